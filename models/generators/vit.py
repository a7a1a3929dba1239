"""A vision transformer with a token for each class, which returns the queries and keys of each block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from models.weaktr_sizes import WeakTrSizes

_EPSILON = 1e-6  # of layer norms, as in ViT and DeiT
_TOWARDS_KEYS, _FROM_VALUES = 0.7, 0.4  # strengths of the identity and of noise in arXiv 2305.09828


@torch.no_grad()
def _draw_attention(qkv: nn.Linear, proj: nn.Linear, *, heads: int) -> None:
    """Draw an attention's weights so that tokens attend to similar tokens (mimetic, arXiv 2305.09828)."""
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


class _Attended(NamedTuple):
    """Queries, keys and output of one block's attention."""

    queries: Tensor  # (B, heads, N, C / heads)
    keys: Tensor
    output: Tensor  # after the projection, before the residual, (B, N, C)


@dataclass(frozen=True)
class Encoded:
    """The trunk's output; N = T + h w tokens, class tokens first."""

    tokens: Tensor  # after the last block, without a final norm, (B, N, C)
    queries: tuple[Tensor, ...]  # of each block, (B, heads, N, C / heads)
    keys: tuple[Tensor, ...]
    pooled: Tensor  # attention outputs, pooled over tokens, (B, depth, C)
    grid: tuple[int, int]  # (h, w)

    def detached(self) -> Encoded:
        """Return the same without a gradient."""
        queries, keys = (tuple(map(Tensor.detach, each)) for each in (self.queries, self.keys))
        return Encoded(self.tokens.detach(), queries, keys, self.pooled.detach(), self.grid)


class _SelfAttention(nn.Module):
    """Multi-head self-attention that also returns queries and keys; no N × N map is made."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> _Attended:
        """Attend from all tokens to all tokens, (B, N, C)."""
        split = 2 * tokens.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        # Values apart: as slices of one tensor, queries and keys would keep them in memory too.
        queries, keys = self._by_head(F.linear(tokens, weight[:split], bias[:split]), parts=2)
        (values,) = self._by_head(F.linear(tokens, weight[split:], bias[split:]), parts=1)
        seen = F.scaled_dot_product_attention(queries, keys, values)
        return _Attended(queries, keys, self.proj(seen.transpose(1, 2).flatten(2)))

    def _by_head(self, mixed: Tensor, *, parts: int) -> tuple[Tensor, ...]:
        # (B, N, parts, heads, d) → (B, heads, parts, N, d)
        apart = torch.unflatten(mixed, 2, (parts, self.heads, -1))
        return apart.transpose(1, 3).unbind(2)


class _Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPSILON)
        self.attn = _SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPSILON)
        fc1, fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def draw_weights(self) -> None:
        """Initialize; see ``ClassTokenTransformer.draw_weights``."""
        _draw_attention(self.attn.qkv, self.attn.proj, heads=self.attn.heads)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> tuple[Tensor, _Attended]:
        """Return the next tokens, (B, N, C), and the attention's queries, keys and output."""
        attended: _Attended = self.attn(self.norm1(tokens))
        tokens = tokens + attended.output
        return tokens + self.mlp(self.norm2(tokens)), attended


class ClassTokenTransformer(nn.Module):
    """DeiT with T class tokens; parameters are named as in timm and in WeakTr's public checkpoints."""

    def __init__(self, sizes: WeakTrSizes, *, class_tokens: int) -> None:
        super().__init__()
        self.sizes, self.class_tokens = sizes, class_tokens
        width, patch = sizes.width, sizes.patch
        places = sizes.native_grid[0] * sizes.native_grid[1]
        self.cls_token = nn.Parameter(torch.zeros(1, class_tokens, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, class_tokens + places, width))
        projection = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.patch_embed = nn.Sequential(OrderedDict(proj=projection))
        hidden = round(width * sizes.mlp_ratio)
        self.blocks = nn.ModuleList(_Block(width, sizes.heads, hidden) for _ in range(sizes.depth))
        # The public checkpoints have it, though nothing is normed after the last block.
        self.norm = nn.LayerNorm(width, eps=_EPSILON).requires_grad_(False)

    def encode(self, images: Tensor, *, pool: Callable[[Tensor], Tensor]) -> Encoded:
        """Run the trunk on normalized images, (B, 3, H, W), of which only whole patches are used.

        ``pool`` maps outputs of an attention, (B, N, C) → (B, C).
        """
        patch = self.sizes.patch
        grid = images.shape[-2] // patch, images.shape[-1] // patch
        if not min(grid):
            raise ValueError(f"expected images of at least {patch} × {patch}, got {tuple(images.shape[-2:])}")
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1)
        tokens = tokens + self._positions(grid)
        kept = []
        for block in self.blocks:
            tokens, attended = block(tokens)
            kept.append((attended.queries, attended.keys, pool(attended.output)))
        queries, keys, pooled = zip(*kept, strict=True)
        return Encoded(tokens, queries, keys, torch.stack(pooled, dim=1), grid)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings of the class tokens and of a grid, (1, T + h w, C)."""
        if grid == self.sizes.native_grid:
            return self.pos_embed
        of_classes, of_places = torch.tensor_split(self.pos_embed, [self.class_tokens], dim=1)
        plane = torch.unflatten(of_places.transpose(1, 2), 2, self.sizes.native_grid)
        # The tenth shifts the places a little, as in DINO and in WeakTr's public checkpoints.
        scale = [(side + 0.1) / native for side, native in zip(grid, self.sizes.native_grid, strict=True)]
        resized = F.interpolate(plane, scale_factor=scale, mode="bicubic", align_corners=False)
        return torch.cat([of_classes, resized.flatten(2).transpose(1, 2)], dim=1)

    @torch.no_grad()
    def draw_weights(self) -> None:
        """Initialize tokens and MLPs as DeiT, with normals of 0.02; attention and positions for few images.

        Not done when the module is made: it takes seconds, which loading weights would waste.
        """
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        places = build_sincos2d_pos_embed(list(self.sizes.native_grid), dim=self.sizes.width)
        self.pos_embed[0, self.class_tokens :] = places
        for module in self.modules():
            if isinstance(module, _Block):
                module.draw_weights()
