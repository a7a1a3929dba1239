"""Teach the text tower the sentence embeddings: loss 1 - cosine, one plain loop."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.nn import functional

from benchmarks.offline_clip.text_tower import CONTEXT_LENGTH, encode_cropped, pad, token_sequence

LONGEST = 44
"""Longest training sequence: a learned prompt has 36 tokens."""


@dataclass(frozen=True)
class Lessons:
    """What to teach: texts and their target embeddings.

    ``nouns`` with ``noun_targets`` (N, D) are read in random ``templates``; ``core`` are the
    indices of the nouns that make up half of each batch; ``long`` with ``long_targets`` (M, D) are
    texts of their own.
    """

    nouns: Sequence[str]
    noun_targets: Tensor
    core: Sequence[int]
    templates: Sequence[str]
    long: Sequence[str]
    long_targets: Tensor


@dataclass(frozen=True)
class Batch:
    """Token ids (B, L), the position embeddings to use (L,), and targets (B, D)."""

    tokens: Tensor
    positions: Tensor
    targets: Tensor


def shifted_positions(length: int, source: random.Random) -> Tensor:
    """Leave a gap of random size after the start token.

    A short text then exercises late position embeddings, at the price of a short one.
    """
    gap = source.randint(0, CONTEXT_LENGTH - length)
    return torch.tensor([0, *range(1 + gap, length + gap)])


def split_by_length(
    sequences: Sequence[Sequence[int]], targets: Tensor, *, size: int
) -> list[tuple[Tensor, Tensor]]:
    """Split sequences into padded batches of similar lengths, which wastes little on padding.

    Returns:
        Token ids (size, L) and targets (size, D) of each batch, shortest first.
    """
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    chosen = [order[start : start + size] for start in range(0, len(order), size)]
    return [(pad([sequences[index] for index in part]), targets[part]) for part in chosen]


def batches(
    lessons: Lessons, tokenizer: SimpleTokenizer, *, size: int, seed: int
) -> Iterator[Batch]:
    """Draw batches without end, eight at a time and in random order.

    Of eight, four hold nouns in templates, two the same with shifted positions, and two, of half
    the size, long texts.
    """
    source = random.Random(seed)
    nouns = [tokenizer.encode(noun) for noun in lessons.nouns]
    # Tokens never cross a space or a full stop, so a template's two ends are tokenized once.
    ends = [[tokenizer.encode(end) for end in text.split("{}")] for text in lessons.templates]
    long = [token_sequence(tokenizer, text, most=LONGEST) for text in lessons.long]
    start, stop = tokenizer.sot_token_id, tokenizer.eot_token_id
    while True:
        chosen = source.choices(range(len(nouns)), k=3 * size)
        chosen += source.choices(lessons.core, k=3 * size)
        sequences = []
        for index in chosen:
            before, after = source.choice(ends)
            sequences.append([start, *before, *nouns[index], *after, stop])
        short = split_by_length(sequences, lessons.noun_targets[chosen], size=size)
        chosen = source.choices(range(len(long)), k=size)
        late = split_by_length(
            [long[index] for index in chosen], lessons.long_targets[chosen], size=size // 2
        )
        source.shuffle(short)
        drawn = [
            Batch(tokens, shifted_positions(tokens.shape[1], source), targets)
            for tokens, targets in short[:2]
        ]
        drawn += [
            Batch(tokens, torch.arange(tokens.shape[1]), targets)
            for tokens, targets in short[2:] + late
        ]
        source.shuffle(drawn)
        yield from drawn


def learning_rate(step: int, *, steps: int, peak: float, warmup: int = 100) -> float:
    """Rise linearly over the warm-up, then fall to 0 along a half cosine."""
    rise = min(1.0, (step + 1) / warmup)
    return peak * rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def text_parameters(model: CLIP) -> list[torch.nn.Parameter]:
    """List the text tower's parameters; the image tower's and the logit scale are not among them."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(("visual.", "logit_"))
    ]


def distill(
    model: CLIP,
    lessons: Iterator[Batch],
    *,
    steps: int,
    peak_rate: float,
    on_step: Callable[[int, float], None],
) -> None:
    """Train the text tower in place; ``on_step`` gets the number of steps done and the loss."""
    parameters = text_parameters(model)
    optimizer = torch.optim.AdamW(parameters, lr=peak_rate, weight_decay=0.0, fused=True)
    for step, batch in zip(range(steps), lessons, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps=steps, peak=peak_rate)
        embeddings = encode_cropped(model, batch.tokens, positions=batch.positions)
        loss = 1 - functional.cosine_similarity(embeddings, batch.targets, dim=-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        on_step(step + 1, loss.item())
