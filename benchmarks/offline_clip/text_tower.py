"""The offline CLIP's text tower: an ordinary CLIP text transformer, made small.

Short texts run without padding to the context length: the causal mask lets no token see a later
one, so the cropped sequence gives what the full one would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

CONTEXT_LENGTH = 77
VOCABULARY_SIZE = 49408
EMBEDDING_WIDTH = 384

TOKEN_SCALE = 0.05
"""Standard deviation of the initial token embeddings."""


def text_config(*, width: int, heads: int, layers: int) -> dict[str, Any]:
    """Write open_clip's ``text_cfg`` of a transformer over CLIP's own tokens."""
    return {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": VOCABULARY_SIZE,
        "width": width,
        "heads": heads,
        "layers": layers,
    }


def encode_cropped(model: CLIP, tokens: Tensor, *, positions: Tensor | None = None) -> Tensor:
    """Encode token sequences shorter than the context length.

    Args:
        model: its text tower encodes; for sequences without an end token the result is meaningless.
        tokens: ids, (B, L), L at most the context length.
        positions: the rows of the position embeddings to use, (L,); by default the first L.

    Returns:
        Embeddings, (B, D), not normalized.
    """
    length = tokens.shape[1]
    rows = torch.arange(length) if positions is None else positions
    hidden = model.token_embedding(tokens) + model.positional_embedding[rows]
    hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
    # The end token has the highest id of all.
    pooled = hidden[torch.arange(len(tokens)), tokens.argmax(dim=-1)]
    embeddings: Tensor = model.ln_final(pooled) @ model.text_projection
    return embeddings


def token_texts(tokenizer: SimpleTokenizer) -> list[str]:
    """Spell every token of CLIP's vocabulary; byte pieces that are no text become a full stop."""
    spelled = []
    for token in range(tokenizer.vocab_size):
        letters = tokenizer.decoder[token].removesuffix("</w>")
        raw = bytes(tokenizer.byte_decoder.get(letter, ord(".")) for letter in letters)
        spelled.append(raw.decode("utf-8", errors="replace").replace("\ufffd", ".").strip() or ".")
    return spelled


def initialize_from_teacher(model: CLIP, token_embeddings: Tensor, *, seed: int) -> None:
    """Start the token embeddings from the teacher's embeddings of each token's text.

    They are reduced to the tower's width by principal components, turned by a random rotation (so
    that no channel is larger than another before the layer norms), and scaled. The projection
    starts as the way back. Common words are single tokens, so the tower begins with most of what
    it is to learn about them.

    Args:
        model: its token embeddings and text projection are overwritten.
        token_embeddings: centered sentence embeddings of all tokens, (V, D).
        seed: of the rotation.
    """
    width = model.token_embedding.weight.shape[1]
    variance, axes = torch.linalg.eigh(token_embeddings.T @ token_embeddings)
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(noise).Q
    basis = axes[:, variance.argsort(descending=True)[:width]] @ rotation
    reduced = token_embeddings @ basis
    with torch.no_grad():
        model.token_embedding.weight.copy_(reduced * (TOKEN_SCALE / reduced.std()))
        model.text_projection.copy_(basis.T)


def pad(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Stack token sequences as (B, longest), zeros after the end token as CLIP's tokenizer does."""
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence] + [0] * (longest - len(sequence)) for sequence in sequences])


def token_sequence(tokenizer: SimpleTokenizer, text: str, *, most: int) -> list[int]:
    """Tokenize a text with start and end, cut to ``most`` tokens in all."""
    content = tokenizer.encode(text)[: most - 2]
    return [tokenizer.sot_token_id, *content, tokenizer.eot_token_id]


Encoder = Callable[[Sequence[str]], Tensor]
"""Texts to embeddings (N, D)."""


def full_length_encoder(model: CLIP, tokenizer: SimpleTokenizer) -> Encoder:
    """Encode texts the ordinary way, padded to the context length, in small batches."""

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> Tensor:
        batches = [texts[start : start + 64] for start in range(0, len(texts), 64)]
        return torch.cat([model.encode_text(tokenizer(list(batch))) for batch in batches])

    return encode
