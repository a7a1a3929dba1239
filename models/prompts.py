"""Learnable background prompts, and the nouns nearest to them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import torch
from torch import Tensor, nn

_INITIALIZATIONS = ("uniform", "normal")


class BackgroundPrompts(nn.Module):
    """One soft prompt for each of K classes, of M tokens of CLIP's embedding width: parameters only, (K, M, width).

    The initialization is "uniform" in [0, 1), as released, or "normal" with standard deviation 0.02.

    Raises:
        ValueError: if the initialization is unknown.
    """

    def __init__(
        self,
        classes: int,
        tokens: int,
        width: int,
        *,
        initialization: str,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if initialization not in _INITIALIZATIONS:
            raise ValueError(f"expected initialization in {_INITIALIZATIONS}, got {initialization!r}")
        context = torch.empty(classes, tokens, width)
        if initialization == "uniform":
            context.uniform_(0, 1, generator=generator)
        else:
            context.normal_(0, 0.02, generator=generator)
        self.context = nn.Parameter(context)


def nearest_nouns(
    prompts: Tensor, nouns: Sequence[str], noun_embeddings: Tensor, *, count: int
) -> list[list[tuple[str, float]]]:
    """Return each prompt's nearest nouns with their cosines, nearest first.

    Args:
        prompts: embeddings of the prompts, (K, D), L2-normalized.
        nouns: V nouns.
        noun_embeddings: embeddings of "a photo of {noun}.", (V, D), L2-normalized.
        count: nouns for each prompt, at most V.

    Raises:
        ValueError: if nouns and embeddings differ in number.
    """
    if len(nouns) != noun_embeddings.shape[0]:
        raise ValueError(f"expected {len(nouns)} noun embeddings, got {noun_embeddings.shape[0]}")
    best = (prompts @ noun_embeddings.T).topk(min(count, len(nouns)), dim=1)
    return [
        [(nouns[index], value) for index, value in zip(indices, values, strict=True)]
        for indices, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def read_nouns() -> tuple[str, ...]:
    """Return the project's noun list: things, stuff and places in photos."""
    return tuple(files("models").joinpath("nouns.txt").read_text(encoding="utf-8").split("\n")[:-1])
