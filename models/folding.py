"""Batch norms folded into the convolutions before them, for networks that no longer learn."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.bundle import Bundle

_Network = TypeVar("_Network", bound=nn.Module)
_TOLERANCE = 1e-4  # of the highest output; rounding is far below
_SIDE = 128  # of the image that is sent through a network to see what reads what


def folded_bundle(bundle: Bundle) -> Bundle:
    """Return a bundle whose networks give the same but for rounding, with fewer steps; see ``folded``."""
    device = bundle.class_text.device
    image = torch.linspace(0, 1, 3 * _SIDE**2, device=device).view(1, 3, _SIDE, _SIDE)
    tower, segmenter = bundle.image_tower, bundle.segmenter
    if tower is not None:
        shown = torch.nn.functional.interpolate(image, size=tower.input_size)
        tower = folded(tower, lambda network: network.embed_images(shown))
    if segmenter is not None:
        segmenter = folded(segmenter, lambda network: network(image))
    generator = folded(bundle.generator, lambda network: network(image))
    return replace(bundle, generator=generator, image_tower=tower, segmenter=segmenter)


@torch.no_grad()
def folded(network: _Network, run: Callable[[_Network], Tensor]) -> _Network:
    """Return a network that gives the same but for rounding, with fewer steps.

    In evaluation mode a batch norm scales and shifts each channel by constants, which the weights of the convolution
    before it can do as well. A batch norm is folded if a run shows that of all modules it alone reads a convolution's
    output. Where something that is no module reads it too, the copy gives something else, and is dropped.

    Args:
        network: in evaluation mode; it stays as it is.
        run: sends some image through a network.

    Returns:
        A copy; the network itself if nothing can be folded.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    changed = copy.deepcopy(network)
    for convolution, norm in list(_pairs(changed, run)):
        _fold(changed, convolution, norm)
    before, after = run(network), run(changed)
    same = (after - before).abs().max() <= _TOLERANCE * before.abs().max()
    return changed if same else network


def _pairs(
    network: _Network, run: Callable[[_Network], Tensor]
) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Give each convolution whose output goes to a batch norm and to no other module, with that batch norm."""
    # Outputs are kept, so that each has an identity of its own until the run is over.
    outputs: list[tuple[nn.Conv2d, Tensor]] = []
    inputs: list[tuple[nn.Module, Tensor]] = []
    handles = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(
                module.register_forward_hook(lambda this, _, output: outputs.append((this, output)))
            )
        handles.append(
            module.register_forward_pre_hook(
                lambda this, given: inputs.extend((this, each) for each in given)
            )
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
    """Whether a module is a batch norm that goes by what it learned, not by the batch."""
    is_norm = isinstance(module, nn.BatchNorm2d)
    return is_norm and not module.training and module.running_mean is not None


def _fold(network: nn.Module, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )
    rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]  # timm's
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module is norm:
            network.set_submodule(name, nn.Sequential(*rest))
