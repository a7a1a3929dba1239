"""Safetensors files, with messages that say which file and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_tensors(
    path: Path, *required: str, device: torch.device | None = None
) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: of the file.
        required: names that must be in it.
        device: where the tensors go; None is the CPU.

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


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Give a module its weights.

    Args:
        module: that takes them.
        tensors: its state dict.
        source: what the message calls where they are from.

    Raises:
        ValueError: if a tensor is missing, too many, or of another shape, with the first such one.
    """
    expected, found = (
        {name: tuple(tensor.shape) for name, tensor in each.items()}
        for each in (module.state_dict(), tensors)
    )
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            shapes = [each.get(name, "no such tensor") for each in (expected, found)]
            raise ValueError(f"expected {name} {shapes[0]} in {source}, got {shapes[1]}")
    module.load_state_dict(tensors)
