"""CLIP's text tower: embeddings of texts and of soft prompts, with the image tower beside it or alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASS_TEMPLATE = "a photo of {}."
_TEXT_BATCH = 256
REMEMBERED_WORDS = 10_000
_IMAGE_PARTS = ("visual.", "logit_")

Tokenizer = Callable[[list[str]], Tensor]


class TextEmbeddings:
    """What a module can do that has a causal text transformer of open_clip's.

    Attributes:
        text: it, with its parts under open_clip's names.
        tokenizer: open_clip's tokenizer of that model.
    """

    text: Any
    tokenizer: Tokenizer

    @property
    def prompt_width(self) -> int:
        """Width of a token embedding, and so of a soft prompt's tokens."""
        return int(self.text.token_embedding.weight.shape[1])

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed texts, → (N, D), L2-normalized.

        Raises:
            ValueError: if there are none.
        """
        if not texts:
            raise ValueError("expected at least one text, got none")
        chunks = [list(texts[at : at + _TEXT_BATCH]) for at in range(0, len(texts), _TEXT_BATCH)]
        return torch.cat([self._embed_chunk(chunk) for chunk in chunks])

    def _embed_chunk(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts).to(self.text.token_embedding.weight.device)
        ends = tokens.argmax(dim=1)  # [end] is the highest token
        sequence = self.text.token_embedding(tokens[:, : int(ends.max()) + 1])
        return F.normalize(self._encode(sequence, ends), dim=-1)

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Embed the class texts "a photo of {name}.", → (K, D), L2-normalized."""
        return self.embed_texts([CLASS_TEMPLATE.format(name) for name in names])

    def embed_prompts(self, contexts: Tensor) -> Tensor:
        """Embed soft prompts: [start] a photo of P_1 … P_M . [end], → (N, D), L2-normalized, with gradient.

        Args:
            contexts: token embeddings P, (N, M, width).

        Raises:
            ValueError: if contexts has another form, or the prompt exceeds the context length.
        """
        if contexts.ndim != 3 or contexts.shape[-1] != self.prompt_width:
            raise ValueError(
                f"expected contexts (N, M, {self.prompt_width}), got {tuple(contexts.shape)}"
            )
        # The period is the ordinary one, with the end-of-word mark; the released experiments have the one without.
        fixed = self.tokenizer([CLASS_TEMPLATE.format("")])[0].to(contexts.device)
        fixed = fixed[: int(fixed.argmax()) + 1]
        embedded = self.text.token_embedding(fixed).expand(contexts.shape[0], -1, -1)
        sequence = torch.cat([embedded[:, :4], contexts, embedded[:, 4:]], dim=1)
        ends = torch.full((len(sequence),), sequence.shape[1] - 1, device=sequence.device)
        return F.normalize(self._encode(sequence, ends), dim=-1)

    def _encode(self, sequence: Tensor, ends: Tensor) -> Tensor:
        """Run the text tower on token embeddings (N, L, width), [end] at the places ends (N,); → (N, D)."""
        text, length = self.text, sequence.shape[1]
        available = text.positional_embedding.shape[0]
        if length > available:
            raise ValueError(f"expected at most {available} tokens, got {length}")
        # With a causal mask, what follows [end] cannot matter: cropping is exact and several times faster.
        hidden = text.transformer(
            sequence + text.positional_embedding[:length],
            attn_mask=text.attn_mask[:length, :length],
        )
        end = text.ln_final(hidden)[torch.arange(len(hidden), device=ends.device), ends]
        projection = text.text_projection
        embedding: Tensor = (
            projection(end) if isinstance(projection, nn.Module) else end @ projection
        )
        return embedding


class FrozenTextTower(TextEmbeddings, nn.Module):
    """CLIP's text tower without the image tower, in evaluation mode.

    Args:
        text: an open_clip model, or its text tower, with a causal transformer.
        tokenizer: open_clip's tokenizer of that model.
    """

    def __init__(self, text: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.text = text.requires_grad_(False)
        self.tokenizer = tokenizer
        self.eval()


def text_tower_of(model: nn.Module) -> Any:
    """Return what holds the text tower's parts: open_clip keeps them on the model (CLIP) or under its .text."""
    return getattr(model, "text", model)


def text_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of an open_clip model's text tower alone, as a tower from ``build_text_tower`` takes them."""
    weights: Mapping[str, Tensor] = text_tower_of(model).state_dict()
    return {key: value for key, value in weights.items() if not key.startswith(_IMAGE_PARTS)}


def build_text_tower(config: Mapping[str, Any]) -> FrozenTextTower:
    """Build a text tower with random weights from what ``models.clip.text_config`` returned.

    Raises:
        ValueError: if it is not a causal transformer of open_clip's own.
    """
    # open_clip builds towers only in pairs; the smallest image tower costs nothing and is dropped.
    vision = {"layers": 1, "width": 8, "head_width": 8, "patch_size": 8, "image_size": 8}
    described = config["text_cfg"]
    if described.get("hf_model_name"):  # which would be fetched, whoever wrote the name
        raise ValueError("expected a text tower of open_clip's own, got one of a model hub")
    model = open_clip.CLIP(
        config["embed_dim"], vision, described, quick_gelu=config.get("quick_gelu", False)
    )
    if model.attn_mask is None:
        raise ValueError("expected a causal text transformer, got another")
    del model.visual, model.logit_scale
    tokenizer = open_clip.SimpleTokenizer(
        context_length=model.context_length, **described.get("tokenizer_kwargs", {})
    )
    return FrozenTextTower(model, _forgetful(tokenizer))


def _forgetful(tokenizer: Any) -> Tokenizer:
    """Keep open_clip's tokenizer from remembering every word that it ever read: they come from outside, without end."""
    at_first = dict(tokenizer.cache)

    def tokenize(texts: list[str]) -> Tensor:
        if len(tokenizer.cache) > REMEMBERED_WORDS:
            tokenizer.cache = dict(at_first)
        tokens: Tensor = tokenizer(texts)
        return tokens

    return tokenize
