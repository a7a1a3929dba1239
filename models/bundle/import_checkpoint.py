"""Import of released checkpoints: public WeakTr weights and background prompts that torch.save wrote."""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import ValidationError
from torch import Tensor

from models.data.classes import ClassList
from models.generators.weaktr import WeakTrGenerator
from models.tensors import check_shapes
from models.weaktr_sizes import WeakTrSizes

_FUSION = "adaptive_attention_fusion"


class _Inert:
    """Stand-in for an object beside the tensors: accepts any arguments and keeps nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


# Classes of objects that training scripts save beside the weights. None is imported or called: torch's restricted
# unpickler maps each name to _Inert.
_INERT_NAMES: Final = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
)
# What torch.load raises on malformed files.
_DAMAGE: Final = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError,
    AssertionError, struct.error, OverflowError,
)  # fmt: skip


def read_torch_file(path: Path) -> Any:
    """Read what torch.save wrote: tensors in dictionaries and lists; nothing in the file is executed.

    Raises:
        ValueError: if it is another file, damaged, or names anything that would have to be executed.
    """
    inert = torch.serialization.safe_globals([(_Inert, name) for name in _INERT_NAMES])
    try:
        # torch warns about foreign pickles before it refuses them.
        with inert, warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise ValueError(
                f"expected tensors and plain values, got {foreign[1]}, which was not executed: {path}"
            ) from error
        raise ValueError(f"expected a file that torch.save wrote, got a damaged or foreign one: {path}") from error


@dataclass(frozen=True)
class _ImportedWeakTr:
    """State dict of a WeakTrGenerator for the chosen classes, and its sizes; the file does not state the pooling."""

    tensors: Mapping[str, Tensor]
    sizes: WeakTrSizes


def weaktr_weights(
    content: object, classes: ClassList, *, channels: Mapping[int, int] | None, source: str
) -> _ImportedWeakTr:
    """Return the weights of a public WeakTr checkpoint, ``{"model": state dict, …}``; ``source`` is for messages."""
    tensors = _floats(_entry(content, "model", source=source), source=source)
    sizes = _sizes_of(tensors, source=source)
    known = tensors["cls_token"].shape[1]
    with torch.device("meta"):  # names and shapes alone
        expected = WeakTrGenerator(sizes, classes=known).state_dict()
    check_shapes(tensors, expected, source=source)
    chosen = _choose_channels(classes, known, channels)
    spare = [channel for channel in range(known) if channel not in chosen]
    positions = range(known, tensors["pos_embed"].shape[1])
    sliced = {
        "cls_token": tensors["cls_token"][:, [*chosen, *spare]],
        "pos_embed": tensors["pos_embed"][:, [*chosen, *spare, *positions]],
        "head.weight": tensors["head.weight"][chosen],
        "head.bias": tensors["head.bias"][chosen],
    }
    return _ImportedWeakTr({**tensors, **sliced}, sizes.model_copy(update={"spare_tokens": len(spare)}))


def prompts_context(content: object, classes: ClassList, *, channels: Mapping[int, int] | None, source: str) -> Tensor:
    """Return the background prompts, (K, M, width), of a released file: ``{"prompts": tensor}`` or the tensor alone."""
    prompts = content if isinstance(content, Tensor) else _entry(content, "prompts", source=source)
    context = _floats({"prompts": prompts}, source=source)["prompts"]
    if context.ndim != 3:
        raise ValueError(f"expected prompts (classes, tokens, width) in {source}, got {tuple(context.shape)}")
    return context[_choose_channels(classes, len(context), channels)]


def _choose_channels(classes: ClassList, available: int, channels: Mapping[int, int] | None) -> list[int]:
    """Return each class's channel in a foreign network; without ``channels`` it has exactly these classes."""
    if channels is None:
        if available != len(classes):
            raise ValueError(
                f"expected {available} classes, as the file has, or --channels that says which are "
                f"wanted, got {len(classes)} classes"
            )
        return list(range(available))
    missing = [info.name for info in classes.classes if info.index not in channels]
    if missing:
        raise ValueError(f"expected a channel for each class, got none for {missing[0]!r}")
    chosen = [channels[info.index] for info in classes.classes]
    if len(set(chosen)) < len(chosen) or not all(0 <= each < available for each in chosen):
        raise ValueError(f"expected distinct channels from 0 to {available - 1}, got {chosen}")
    return chosen


def read_channels(path: Path) -> dict[int, int]:
    """Read a text file of "class-index channel" lines."""
    channels = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split()
        if len(parts) != 2 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"{path}:{number}: expected 'class-index channel', got {line!r}")
        channels[int(parts[0])] = int(parts[1])
    return channels


def _entry(content: object, key: str, *, source: str) -> object:
    if isinstance(content, Mapping):
        if key in content:
            return content[key]
        found = f"the keys {', '.join(map(str, content))[:200] or '(none)'}"
    else:
        found = f"a {type(content).__name__}"
    raise ValueError(f"expected a dictionary with {key!r} in {source}, got {found}")


def _floats(tensors: object, *, source: str) -> dict[str, Tensor]:
    """Return a state dict of finite floating-point tensors in single precision."""
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
    """Derive a WeakTr's sizes from some tensors' shapes; the caller compares the shapes of all."""

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
    found = dict(
        native_size=side * patch,
        patch=patch,
        width=width,
        depth=len(blocks),
        heads=max(width // features, 1),
        mlp_ratio=shape("blocks.0.mlp.fc1.weight", ndim=2)[0] / width,
        reduction=max(count // narrow_heads, 1),
        feature_reduction=max(features // narrow_features, 1),
    )
    try:
        return WeakTrSizes.model_validate(found)
    except ValidationError as error:
        raise ValueError(f"expected a WeakTr in {source}, got {found}") from error
