"""Adaptive attention fusion: which heads of which blocks to trust, and the mean of their attention maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.generators.weaktr_sizes import WeakTrSizes


class AdaptiveAttentionFusion(nn.Module):
    """Weigh all heads of all blocks by what their attention put out (WeakTr).

    Args:
        sizes: of the transformer and of the MLPs.
    """

    def __init__(self, sizes: WeakTrSizes) -> None:
        super().__init__()
        self.pooling, self.heads = sizes.pooling, sizes.heads
        features = sizes.width // sizes.heads
        narrow = max(features // sizes.feature_reduction, 1)
        self.attn_feat_ffn = nn.Sequential(nn.Linear(features, narrow), nn.Linear(narrow, 1))
        count = sizes.depth * sizes.heads
        narrow = max(count // sizes.reduction, 1)
        self.attn_head_ffn = nn.Sequential(
            nn.Linear(count, narrow, bias=False), nn.ReLU(),
            nn.Linear(narrow, count, bias=False), nn.Sigmoid(),
        )  # fmt: skip

    def pool(self, outputs: Tensor) -> Tensor:
        """Pool attention outputs over tokens, (B, N, C) → (B, C)."""
        return outputs.amax(dim=1) if self.pooling == "max" else outputs.mean(dim=1)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return the weights of the heads in (0, 1), (B, depth, heads), of pooled outputs, (B, depth, C).

        Channel c counts as feature c // heads of head c % heads, as in the public checkpoints, though the attention
        itself lays heads out the other way round. In the MLPs' rows and columns heads come before blocks.
        """
        features = torch.unflatten(pooled, 2, (-1, self.heads)).movedim(
            3, 1
        )  # (B, heads, depth, d)
        weights = self.attn_head_ffn(self.attn_feat_ffn(features).flatten(1))
        return torch.unflatten(weights, 1, (self.heads, -1)).transpose(1, 2)


def mean_attention(queries: Sequence[Tensor], keys: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the mean of all attention maps, each times its weight, (B, N, N).

    The weights depend on the last block, so no map can be folded in when its block makes it. Queries and keys are kept
    instead, which take 2 C / (heads N) of the maps' memory, and the maps of one block at a time are made again: about a
    sixth of the trunk's time. The same happens in the backward pass, so that what is kept for it does not grow with
    N² either.

    Args:
        queries: of each block, (B, heads, N, d).
        keys: likewise.
        weights: (B, depth, heads).
    """
    total = weights.new_zeros((), dtype=torch.float32)  # half precision would lose small attention
    for query, key, weight in zip(queries, keys, weights.unbind(1), strict=True):
        folded = checkpoint(
            weighted_attention, query, key, weight, use_reentrant=False, preserve_rng_state=False
        )
        total = total + folded
    return total / weights[0].numel()


def weighted_attention(queries: Tensor, keys: Tensor, weights: Tensor) -> Tensor:
    """Return the sum over the heads of weight × attention map: (B, heads, N, d) twice and (B, heads) → (B, N, N)."""
    scaled = queries * queries.shape[-1] ** -0.5
    maps = (scaled @ keys.transpose(2, 3)).softmax(dim=-1)
    return torch.einsum("bh,bhij->bij", weights, maps)
