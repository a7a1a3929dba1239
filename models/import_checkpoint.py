"""From the released files, as torch.save wrote them, to our tensors: WeakTr's weights and background prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import Tensor

from models.data.classes import ClassList
from models.generators.weaktr import WeakTrGenerator
from models.generators.weaktr_sizes import WeakTrSizes
from models.import_channels import choose_channels
from models.tensors import check_shapes

_FUSION = "adaptive_attention_fusion"


@dataclass(frozen=True)
class ImportedWeakTr:
    """A public WeakTr.

    Attributes:
        tensors: the state dict of a WeakTrGenerator for the chosen classes, whose CAMs are those of the whole.
        sizes: of it, but for the pooling, which the tensors do not tell.
    """

    tensors: Mapping[str, Tensor]
    sizes: WeakTrSizes


def weaktr_weights(
    content: object, classes: ClassList, *, channels: Mapping[int, int] | None, source: str
) -> ImportedWeakTr:
    """Take the weights out of a public WeakTr checkpoint, ``{"model": state dict, …}``.

    Args:
        content: of the file.
        classes: that the generator shall know.
        channels: see choose_channels.
        source: what messages call the file.

    Raises:
        ValueError: if it holds something else, with what was expected and found.
    """
    tensors = _floats(_entry(content, "model", source=source), source=source)
    sizes = _sizes_of(tensors, source=source)
    known = tensors["cls_token"].shape[1]
    with torch.device("meta"):  # names and shapes alone
        expected = WeakTrGenerator(sizes, classes=known).state_dict()
    check_shapes(tensors, expected, source=source)
    chosen = choose_channels(classes, known, channels)
    spare = [channel for channel in range(known) if channel not in chosen]
    places = range(known, tensors["pos_embed"].shape[1])
    sliced = {
        "cls_token": tensors["cls_token"][:, [*chosen, *spare]],
        "pos_embed": tensors["pos_embed"][:, [*chosen, *spare, *places]],
        "head.weight": tensors["head.weight"][chosen],
        "head.bias": tensors["head.bias"][chosen],
    }
    return ImportedWeakTr({**tensors, **sliced}, replace(sizes, spare_tokens=len(spare)))


def prompts_context(
    content: object, classes: ClassList, *, channels: Mapping[int, int] | None, source: str
) -> Tensor:
    """Take the background prompts out of a released file, ``{"prompts": (K, M, width)}`` or the tensor alone.

    Args:
        content: of the file.
        classes: whose prompts are wanted.
        channels: see choose_channels.
        source: what messages call the file.

    Raises:
        ValueError: if it holds something else, with what was expected and found.
    """
    prompts = content if isinstance(content, Tensor) else _entry(content, "prompts", source=source)
    context = _floats({"prompts": prompts}, source=source)["prompts"]
    if context.ndim != 3:
        raise ValueError(
            f"expected prompts (classes, tokens, width) in {source}, got {tuple(context.shape)}"
        )
    return context[choose_channels(classes, len(context), channels)]


def _entry(content: object, key: str, *, source: str) -> object:
    if isinstance(content, Mapping):
        if key in content:
            return content[key]
        found = f"the keys {', '.join(map(str, content))[:200] or '(none)'}"
    else:
        found = f"a {type(content).__name__}"
    raise ValueError(f"expected a dictionary with {key!r} in {source}, got {found}")


def _floats(tensors: object, *, source: str) -> dict[str, Tensor]:
    """Check that these are tensors of finite numbers, and return them in single precision."""
    if not isinstance(tensors, Mapping) or not tensors:
        raise ValueError(f"expected a state dict in {source}, got a {type(tensors).__name__}")
    floats = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"expected a tensor {name} in {source}, got a {type(tensor).__name__}")
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or not tensor.is_floating_point():
            kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device}"
            raise ValueError(f"expected floating-point numbers in {name} of {source}, got {kind}")
        if not tensor.isfinite().all():
            raise ValueError(f"expected finite numbers in {name} of {source}, got others")
        floats[str(name)] = tensor.detach().float().contiguous()
    return floats


def _sizes_of(tensors: Mapping[str, Tensor], *, source: str) -> WeakTrSizes:
    """Read a WeakTr's sizes off its tensors' shapes; what does not fit them shows when all shapes are compared."""

    def shape(name: str, *, ndim: int) -> Sequence[int]:
        found = tensors.get(name)
        if found is None or found.ndim != ndim or not found.numel():
            got = f"{name} {tuple(found.shape)}" if found is not None else f"no {name}"
            raise ValueError(f"expected a WeakTr in {source}, got {got}")
        return found.shape

    _, tokens, width = shape("pos_embed", ndim=3)
    side = isqrt(max(tokens - shape("cls_token", ndim=3)[1], 1))
    patch = shape("patch_embed.proj.weight", ndim=4)[2]
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    narrow_features, features = shape(f"{_FUSION}.attn_feat_ffn.0.weight", ndim=2)
    narrow_heads, count = shape(f"{_FUSION}.attn_head_ffn.0.weight", ndim=2)
    return WeakTrSizes(
        native_size=side * patch,
        patch=patch,
        width=width,
        depth=len(blocks),
        heads=max(width // features, 1),
        mlp_ratio=shape("blocks.0.mlp.fc1.weight", ndim=2)[0] / width,
        reduction=max(count // narrow_heads, 1),
        feature_reduction=max(features // narrow_features, 1),
    )
