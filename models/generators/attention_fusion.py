"""Adaptive attention fusion: which heads of which blocks to trust."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
