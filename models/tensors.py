"""Safetensors files, with messages that say which file and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from models.data.provenance import SOFTWARE
from models.io import write_atomically


def read_tensors(path: Path, *required: str, device: torch.device | None = None) -> dict[str, Tensor]:
    """Read a safetensors file that must have the required tensors; to the CPU unless a device is given.

    Raises:
        ValueError: if it is damaged or lacks a tensor, with its path.
        OSError: if it cannot be read.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"expected a safetensors file, got a damaged {path} ({error})") from error
    missing = [name for name in required if name not in tensors]
    if missing:
        raise ValueError(f"expected {', '.join(missing)} in {path}, got {', '.join(tensors)}")
    return {name: tensor.to(device or "cpu") for name, tensor in tensors.items()}


def read_single(path: Path, *required: str, device: torch.device | None = None) -> dict[str, Tensor]:
    """Read a safetensors file as ``read_tensors``, with half precision turned into single."""
    tensors = read_tensors(path, *required, device=device)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all; its folder is made if missing.

    Raises:
        OSError: if it cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Serialized in memory: for a full disk, safetensors raises an error of its own.
    write_atomically(path, save(plain, {"software": SOFTWARE}))


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict into a module; ``source`` is its name in messages.

    Raises:
        ValueError: as check_shapes.
    """
    check_shapes(tensors, module.state_dict(), source=source)
    module.load_state_dict(tensors)


def check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str) -> None:
    """Check that two state dicts have the same names and shapes.

    Raises:
        ValueError: if a tensor is missing, too many, or of another shape, with the first such one.
    """
    for name in dict.fromkeys([*expected, *found]):
        shapes = [tuple(each[name].shape) if name in each else "no such tensor" for each in (expected, found)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"expected {name} {shapes[0]} in {source}, got {shapes[1]}")
