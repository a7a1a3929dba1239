"""Faster networks that no longer learn: batch norms fused into convolutions, and lower precision."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Final, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.bundle.bundle import Bundle

PRECISIONS: Final = MappingProxyType({"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16})

_Network = TypeVar("_Network", bound=nn.Module)
_TOLERANCE = 1e-4  # of the highest output; rounding is far below
_SIDE = 128  # of the image that shows which modules read which outputs


def autocast(precision: str, *, device: torch.device) -> torch.autocast:
    """Return a context in which networks compute in a precision, where that is safe; weights stay float32."""
    if precision not in PRECISIONS:
        raise ValueError(f"expected a precision of {', '.join(PRECISIONS)}, got {precision!r}")
    lower = precision != "float32"
    return torch.autocast(device.type, dtype=PRECISIONS[precision] if lower else torch.bfloat16, enabled=lower)


def fuse_batch_norms(bundle: Bundle) -> Bundle:
    """Return a bundle whose networks are fused; see ``_fuse_network``."""
    device = bundle.class_text.device
    image = torch.linspace(0, 1, 3 * _SIDE**2, device=device).view(1, 3, _SIDE, _SIDE)
    tower, segmenter = bundle.image_tower, bundle.segmenter
    if tower is not None:
        resized = nn.functional.interpolate(image, size=tower.input_size)
        tower = _fuse_network(tower, lambda network: network.embed_images(resized))
    if segmenter is not None:
        segmenter = _fuse_network(segmenter, lambda network: network(image))
    generator = _fuse_network(bundle.generator, lambda network: network(image))
    return replace(bundle, generator=generator, image_tower=tower, segmenter=segmenter)


@torch.no_grad()
def _fuse_network(network: _Network, run: Callable[[_Network], Tensor]) -> _Network:
    """Return a copy with the same output but for rounding, and with batch norms fused into convolutions."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    fused = copy.deepcopy(network)
    for convolution, norm in list(_fusible_pairs(fused, run)):
        _fuse(fused, convolution, norm)
    before, after = run(network), run(fused)
    same = (after - before).abs().max() <= _TOLERANCE * before.abs().max()
    return fused if same else network


def _fusible_pairs(network: _Network, run: Callable[[_Network], Tensor]) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Yield each convolution whose output is read by a batch norm and by no other module."""
    # Outputs are kept, so that each has an identity of its own until the run is over.
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    inputs: list[tuple[nn.Module, Tensor]] = []
    handles = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(lambda this, _, output: outputs.append((this, output))))
        handles.append(
            module.register_forward_pre_hook(lambda this, given: inputs.extend((this, each) for each in given))
        )
    try:
        run(network)
    finally:
        for handle in handles:
            handle.remove()
    runs = Counter(convolution for convolution, _ in outputs)
    for convolution, output in outputs:
        readers = [module for module, given in inputs if given is output]
        if len(readers) == runs[convolution] == 1 and _is_constant(readers[0]):
            yield convolution, readers[0]


def _is_constant(module: nn.Module) -> TypeGuard[nn.BatchNorm2d]:
    """Whether a module is a batch norm with stored statistics, not those of the batch."""
    is_norm = isinstance(module, nn.BatchNorm2d)
    return is_norm and not module.training and module.running_mean is not None


def _fuse(network: nn.Module, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )
    rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]  # timm's
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module is norm:
            network.set_submodule(name, nn.Sequential(*rest))
