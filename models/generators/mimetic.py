"""Attention that begins as that of large pre-trained transformers ends: like looks at like (arXiv 2305.09828).

A transformer that starts from plain noise looks everywhere alike, and few photos do not teach it otherwise. WeakTr's
CAMs live on its attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_TOWARDS_KEYS, _FROM_VALUES = 0.7, 0.4  # the paper's strengths, of the identity and of noise alike


@torch.no_grad()
def draw_attention(qkv: nn.Linear, proj: nn.Linear, *, heads: int) -> None:
    """Draw an attention's weights so that tokens attend to tokens like themselves, and pass on their difference.

    Of each head, ``queries' weightᵀ @ keys' weight`` is close to a positive multiple of the identity plus noise;
    ``projection @ values' weight`` is a negative one plus noise. Biases are zero.

    Args:
        qkv: from tokens to queries, keys and values, each head by head.
        proj: from the heads' outputs to tokens.
        heads: of the attention.
    """
    width = qkv.in_features
    queries, keys, values = qkv.weight.chunk(3)
    for query, key in zip(queries.chunk(heads), keys.chunk(heads), strict=True):
        left, right = _factors(_TOWARDS_KEYS * (_noise(width) + torch.eye(width)), len(query))
        query.copy_(left.T)
        key.copy_(right)
    left, right = _factors(_FROM_VALUES * (_noise(width) - torch.eye(width)), width)
    proj.weight.copy_(left)
    values.copy_(right)
    for layer in (qkv, proj):
        nn.init.zeros_(layer.bias)


def _noise(width: int) -> Tensor:
    return torch.randn(width, width).div_(width**0.5)


def _factors(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two matrices, (C, rank) and (rank, C), whose product is nearest to a given one, (C, C)."""
    left, strengths, right = torch.linalg.svd(product)
    root = strengths[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]
