"""An open_clip vision transformer, block by block: tokens, mean attention, and what its last block needs backwards.

Tokens are (B, 1 + N, C), the class token first, then the N = h w patches. Nothing here needs autograd: the adjoint of
the last block is written out, so that it runs in inference mode and in several threads, and a caller may still
differentiate through it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_QUICK = 1.702  # of QuickGELU, x · sigmoid(1.702 x)
_BLOCKS = 8  # the last ones, whose attention tells which places belong together (CLIP-ES)


def check_tower(visual: Any) -> None:
    """Check that an image tower is open_clip's vision transformer with OpenAI's blocks.

    Raises:
        ValueError: if it is another, with what is different.
    """
    vision = open_clip.transformer
    if not isinstance(visual, vision.VisionTransformer):
        found = type(visual).__name__
    elif visual.attn_pool is not None or visual.final_ln_after_pool or visual.proj is None:
        found = "one that pools otherwise"
    elif not all(map(_is_plain, visual.transformer.resblocks)):
        found = "one of other blocks"
    else:
        return
    raise ValueError(f"expected a CLIP whose image tower is open_clip's VisionTransformer, as OpenAI's, got {found}")


def _is_plain(block: Any) -> bool:
    """Whether a block is OpenAI's: attention and MLP behind norms, GELU or QuickGELU, no layer scale."""
    vision = open_clip.transformer
    if not isinstance(block, vision.ResidualAttentionBlock) or not isinstance(block.ls_1, nn.Identity):
        return False
    activation = block.mlp.gelu
    return isinstance(activation, vision.QuickGELU) or getattr(activation, "approximate", "") == "none"


def embed_patches(visual: Any, images: Tensor, *, mode: str) -> tuple[Tensor, tuple[int, int]]:
    """Return the first block's tokens of normalized images, (B, 3, H, W) → (B, 1 + N, C), and the grid (h, w).

    Sides that the patch does not divide are resized to the nearest multiple, so that the grid covers the whole image.
    The position embeddings of another grid than the native one are resized "bilinear" (CLIP-ES), or "bicubic" by the
    factor (side + 0.1) / native (NACLIP); corners not aligned.
    """
    rows, columns = (
        max(1, round(side / patch)) for side, patch in zip(images.shape[-2:], visual.patch_size, strict=True)
    )
    size = rows * visual.patch_size[0], columns * visual.patch_size[1]
    if images.shape[-2:] != size:
        images = F.interpolate(images, size=size, mode="bicubic", antialias=True)
    # Single precision in the residual stream, whatever the products are in.
    patches = visual.conv1(images).flatten(2).transpose(1, 2).float()
    tokens = torch.cat([visual.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
    positions = _positions(visual.positional_embedding, visual.grid_size, (rows, columns), mode=mode)
    embedded: Tensor = visual.ln_pre(tokens + positions)
    return embedded, (rows, columns)


def _positions(embedding: Tensor, native: Sequence[int], grid: tuple[int, int], *, mode: str) -> Tensor:
    """Position embeddings, (1 + native places, C), for another grid, → (1 + N, C)."""
    if grid == tuple(native):
        return embedding
    first, places = embedding.tensor_split([1])
    plane = torch.unflatten(places.T, 1, tuple(native))[None]
    if mode == "bilinear":
        resized = F.interpolate(plane, size=grid, mode=mode, align_corners=False)
    else:
        scale = [(side + 0.1) / of for side, of in zip(grid, native, strict=True)]
        resized = F.interpolate(plane, scale_factor=scale, mode=mode, align_corners=False)
    return torch.cat([first, resized[0].flatten(1).T])


@torch.no_grad()
def run_blocks(visual: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Run all blocks but the last; returns its input, (B, 1 + N, C), and the attention of patches to each other.

    The attention, (B, N, N), is the mean of the last eight blocks' over their heads, the last included. Earlier blocks
    make no maps at all, and of the others' only the running mean is kept.
    """
    *early, last = visual.transformer.resblocks
    total = tokens.new_zeros((len(tokens), tokens.shape[1] - 1, tokens.shape[1] - 1))
    plain = max(0, len(early) + 1 - _BLOCKS)
    for number, block in enumerate(early):
        heads = _split_heads(block, block.ln_1(tokens))
        seen = F.scaled_dot_product_attention(*heads) if number < plain else _attend_and_add(*heads, total)
        tokens = tokens + block.attn.out_proj(_join_heads(seen))
        tokens = tokens + block.mlp(block.ln_2(tokens))
    queries, keys, values = _split_heads(last, last.ln_1(tokens))
    _attend_and_add(queries, keys, values[..., :0], total)
    return tokens, total / (len(early) + 1 - plain)


@dataclass(frozen=True)
class _Normalized:
    """A layer norm's input, centered and scaled to a deviation of 1, and one over its deviation."""

    values: Tensor  # (…, C)
    inverse: Tensor  # (…, 1)

    def adjoint(self, gradient: Tensor) -> Tensor:
        """Turn a gradient with respect to ``values`` into one with respect to the input."""
        along = (gradient * self.values).mean(dim=-1, keepdim=True)
        return self.inverse * (gradient - gradient.mean(dim=-1, keepdim=True) - self.values * along)


@dataclass(frozen=True)
class LastBlock:
    """The last block's pass over some images, with what its adjoint needs; patches alone are queries."""

    visual: Any
    activations: Tensor  # A of Grad-CAM: the patches behind the block's first norm, (B, N, C)
    queries: Tensor  # (B, heads, N, d)
    keys: Tensor  # (B, heads, 1 + N, d)
    values: Tensor
    attention: Tensor  # (B, heads, N, 1 + N)
    seen: Tensor  # attention times values, (B, heads, N, d)
    middle: _Normalized  # before the MLP, (B, N, C)
    slope: Tensor  # of the MLP's activation function, (B, N, 4 C)
    final: _Normalized  # before the final norm, (B, N, C)

    @classmethod
    @torch.no_grad()
    def run(cls, visual: Any, tokens: Tensor) -> LastBlock:
        """Run the last block on its input, (B, 1 + N, C)."""
        block = visual.transformer.resblocks[-1]
        normalized = block.ln_1(tokens)
        queries, keys, values = _split_heads(block, normalized)
        queries = queries[:, :, 1:]
        attention = _attend(queries, keys)
        seen = attention.to(values.dtype) @ values
        after = tokens[:, 1:] + block.attn.out_proj(_join_heads(seen))
        hidden = block.mlp.c_fc(block.ln_2(after))
        output = after + block.mlp.c_proj(block.mlp.gelu(hidden))
        return cls(
            visual,
            activations=normalized[:, 1:],
            queries=queries,
            keys=keys,
            values=values,
            attention=attention,
            seen=seen,
            middle=_normalize(after, block.ln_2),
            slope=_slope(block.mlp.gelu, hidden.float()),
            final=_normalize(output, visual.ln_post),
        )

    @property
    def embedding(self) -> Tensor:
        """The images' embeddings, each the mean over its patches, (B, D); not of length 1."""
        norm = self.visual.ln_post
        pooled: Tensor = self.final.values.mean(dim=1) * norm.weight + norm.bias
        embedding: Tensor = pooled @ self.visual.proj
        return embedding

    def shift_gradients(self, toward: Tensor) -> Tensor:
        """Return the gradients with respect to one shift of all patches' activations, (B, L, C).

        That is the sum over patches of the gradient with respect to ``activations``: all that Grad-CAM takes from it.
        ``toward`` are L gradients for each image with respect to ``embedding``, (B, L, D); all are one batch of matrix
        products. Two facts save most of a backward pass. The mean behind the final norm has the same gradient at every
        patch, so the MLP's last product is one of the L vectors and one of the patches, not of both. And a shift of all
        keys matters only against the class token's, so that of the attention one product with its maps is left.
        """
        block = self.visual.transformer.resblocks[-1]
        length = toward.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(toward.dtype).tiny)
        # Of length 1 until the end, for half precision.
        same = (toward / length @ self.visual.proj.T * self.visual.ln_post.weight)[:, :, None]  # (B, L, 1, C)
        same = same - same.mean(dim=-1, keepdim=True)
        final = self.final.values[:, None]
        along = same @ final.mT / same.shape[-1]  # (B, L, 1, N)
        along, inverse = along.mT.float(), self.final.inverse[:, None]
        output = inverse * (same - along * final)  # (B, L, N, C)
        project = block.mlp.c_proj.weight
        hidden = inverse * (same @ project - along * (final @ project)) * self.slope[:, None]
        middle = _Normalized(self.middle.values[:, None], self.middle.inverse[:, None])
        after = output + middle.adjoint(hidden @ block.mlp.c_fc.weight * block.ln_2.weight)
        by_head = torch.unflatten(after @ block.attn.out_proj.weight, 3, (block.attn.num_heads, -1))
        by_head = by_head.permute(0, 3, 2, 1, 4)  # (B, heads, N, L, d)
        shifts = torch.cat([_join_heads(each) for each in self._attention_shifts(by_head.float())], dim=-1)
        gradients: Tensor = (shifts @ block.attn.in_proj_weight).float() * length / self.activations.shape[1]
        return gradients

    def _attention_shifts(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return gradients, (B, heads, L, d) each, for shifts of all patches' queries, keys and values.

        ``gradient`` is with respect to ``seen``, (B, heads, N, L, d).
        """
        scale = self.queries.shape[-1] ** -0.5
        own = (gradient * self.seen[:, :, :, None]).sum(dim=-1)  # (B, heads, N, L)
        together = torch.cat([gradient, own[..., None]], dim=-1)
        given = torch.unflatten(self.attention.mT @ together.flatten(3), 3, together.shape[3:]).float()
        logits = (given[..., :-1] * self.values[:, :, :, None]).sum(dim=-1) - given[..., -1]  # (B, heads, 1 + N, L)
        to_class = (gradient * self.values[:, :, :1, None]).sum(dim=-1) - own
        to_class = to_class * self.attention[..., :1]
        return (
            scale * logits.mT @ self.keys,
            -scale * to_class.mT @ self.queries,
            gradient.sum(dim=2) - given[:, :, 0, :, :-1],
        )


@torch.no_grad()
def dense_embeddings(visual: Any, tokens: Tensor, grid: tuple[int, int], *, deviation: float) -> Tensor:
    """Return an embedding of each patch, (B, N, D), L2-normalized, from the last block's input (NACLIP).

    Of the block only the attention is left, keys against keys, with more weight on near patches: a Gaussian of their
    distance, in patches, is added before the softmax.
    """
    block = visual.transformer.resblocks[-1]
    _, keys, values = _split_heads(block, block.ln_1(tokens))
    near = F.pad(_neighborhood(grid, deviation=deviation, device=tokens.device), (1, 0))  # 0 for the class token
    seen = []
    for key, value in zip(keys, values, strict=True):  # one image at a time, see _attend_and_add
        scores = key[:, 1:] * key.shape[-1] ** -0.5 @ key.mT + near
        seen.append(scores.softmax(dim=-1).to(value.dtype) @ value)
    embedded = visual.ln_post(block.attn.out_proj(_join_heads(torch.stack(seen)))) @ visual.proj
    return F.normalize(embedded.float(), dim=-1)


def _neighborhood(grid: tuple[int, int], *, deviation: float, device: torch.device) -> Tensor:
    """exp(-d² / (2 deviation²)) of the distances d between a grid's places, (N, N)."""
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32) for side in grid)
    places = torch.cartesian_prod(rows, columns)
    squared = (places[:, None] - places).square().sum(dim=-1)
    return torch.exp(-squared / (2 * deviation**2))


def _split_heads(block: Any, normalized: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a block, (B, T, C) → (B, heads, T, d) each."""
    mixed = F.linear(normalized, block.attn.in_proj_weight, block.attn.in_proj_bias)
    queries, keys, values = torch.unflatten(mixed, 2, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return queries, keys, values


def _join_heads(by_head: Tensor) -> Tensor:
    """(B, heads, T, d) → (B, T, heads d)."""
    return by_head.transpose(1, 2).flatten(2)


def _attend(queries: Tensor, keys: Tensor) -> Tensor:
    """Attention maps, (…, Q, d) and (…, T, d) → (…, Q, T)."""
    attention: Tensor = (queries * queries.shape[-1] ** -0.5 @ keys.mT).softmax(dim=-1)
    return attention


def _attend_and_add(queries: Tensor, keys: Tensor, values: Tensor, total: Tensor) -> Tensor:
    """Attend, (B, heads, 1 + N, d), and add the mean of the heads' maps between patches to a total, (B, N, N)."""
    seen = []
    for image in range(len(queries)):  # one at a time: its maps are the largest tensors of all
        attention = _attend(queries[image], keys[image])
        total[image] += attention[:, 1:, 1:].float().mean(dim=0)
        seen.append(attention.to(values.dtype) @ values[image])
    return torch.stack(seen)


def _normalize(inputs: Tensor, norm: Any) -> _Normalized:
    variance, mean = torch.var_mean(inputs.float(), dim=-1, keepdim=True, correction=0)
    inverse: Tensor = (variance + norm.eps).rsqrt()
    return _Normalized((inputs - mean) * inverse, inverse)


def _slope(activation: nn.Module, inputs: Tensor) -> Tensor:
    """The derivative of GELU or QuickGELU."""
    if isinstance(activation, nn.GELU):
        density = torch.exp(-inputs.square() / 2) / math.sqrt(2 * math.pi)
        slope: Tensor = torch.special.ndtr(inputs) + inputs * density
        return slope
    gate = torch.sigmoid(_QUICK * inputs)
    return gate * (1 + _QUICK * inputs * (1 - gate))
