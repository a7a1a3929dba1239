"""The weighted mean of all heads' attention maps, one map at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def mean_attention(queries: Sequence[Tensor], keys: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the mean of all attention maps, each times its weight, (B, N, N).

    The weights depend on the last block, so no map can be folded in when its block makes it. Stacked, the maps would
    take depth × heads × N² numbers; queries and keys are kept instead, 2 C N a block, and each map is made again in a
    buffer that a processor's cache holds: about a fifth of the trunk's time. So does the backward pass, for which
    nothing of a map's size is kept.

    Args:
        queries: of each block, (B, heads, N, d).
        keys: likewise.
        weights: (B, depth, heads).
    """
    with torch.autocast(weights.device.type, enabled=False):  # it would lose small attention
        mean: Tensor = _MeanAttention.apply(weights.float(), *queries, *keys)
    return mean


class _MeanAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, *queries_and_keys: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *queries_and_keys)
        batch, _, tokens, _ = queries_and_keys[0].shape
        total = weights.new_zeros((batch, tokens, tokens))
        for block, head, maps in _maps(queries_and_keys):
            total.addcmul_(maps, weights[:, block, head, None, None])
        return total.div_(weights[0].numel())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weights, *queries_and_keys = ctx.saved_tensors
        toward_mean = gradients[0] / weights[0].numel()
        of_weights = torch.empty_like(weights)
        for block, head, maps in _maps(queries_and_keys):
            of_weights[:, block, head] = (maps * toward_mean).sum(dim=(1, 2))
        # In WeakTr masks and the fine CAM's loss teach the weights alone, so queries and keys need no gradient.
        return of_weights, *(None,) * len(queries_and_keys)


def _maps(queries_and_keys: Sequence[Tensor]) -> Iterator[tuple[int, int, Tensor]]:
    """Give block, head and attention map, (B, N, N), of each head; the next map overwrites it."""
    depth = len(queries_and_keys) // 2
    scores = maps = None
    for block in range(depth):
        query, key = (queries_and_keys[at].float() for at in (block, depth + block))
        query = query * query.shape[-1] ** -0.5
        for head in range(query.shape[1]):
            scores = torch.bmm(query[:, head], key[:, head].transpose(1, 2), out=scores)
            maps = torch.softmax(scores, dim=2, out=maps)
            yield block, head, maps
