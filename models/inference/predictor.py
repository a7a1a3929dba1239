"""Images in, segmentations out: the same code for the command line and the worker.

The networks no longer learn: batch norms are fused into convolutions, and the precision may be lower.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Final, TypeGuard, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from models.bundle.bundle import Bundle
from models.bundle.manifest import BundleInfo
from models.config import SegmentConfig
from models.data.classes import ClassList
from models.generators.cnn import CnnGenerator
from models.inference.forward import ForwardOutput, forward_cam, forward_segmenter
from models.inference.masks import (
    CannotSegmentError,
    LabeledImage,
    MaskOptions,
    OnProgress,
    Segmentation,
    UnlabeledImage,
    fill_defaults,
    ignore_progress,
)
from models.inference.multi_scale import grid_size
from models.inference.open_vocabulary import OpenVocabulary
from models.inference.postprocess import postprocess
from models.refine.regions import load_sam
from models.segmenters import Segmenter
from models.segmenters.on_features import FeatureSegmenter

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
    generator = _fuse_network(bundle.generator, lambda network: network.features(image))
    if isinstance(segmenter, FeatureSegmenter) and isinstance(generator, CnnGenerator):
        segmenter = segmenter.on(generator)
    elif segmenter is not None:
        segmenter = _fuse_network(segmenter, lambda network: network(image))
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


__all__ = ["CannotSegmentError", "ForwardOutput", "LabeledImage", "Predictor", "UnlabeledImage"]


class Predictor:
    """A bundle's networks on its device, ready to segment, in a precision of ``PRECISIONS``.

    ``forward_cam`` and ``forward_segmenter`` run the networks on a batch, in one thread at a time. ``postprocess`` does
    the rest for one image, in any thread. ``pseudo_masks`` and ``segments`` do both in sequence.

    Raises:
        ValueError: if the precision is unknown, or the bundle needs a SAM that cannot be loaded.
    """

    def __init__(self, bundle: Bundle, *, precision: str = "float32") -> None:
        self.bundle = fuse_batch_norms(bundle)
        self.device = bundle.class_text.device
        self._autocast = partial(autocast, precision, device=self.device)
        self._autocast()  # checks the precision
        self._vocabulary = OpenVocabulary(self.bundle)
        sam = self.info.inference.sam
        # Loaded now: missing weights stop a server's start, not its first job.
        self._propose = load_sam(sam, device=self.device) if sam else None

    @property
    def info(self) -> BundleInfo:
        """The bundle's description."""
        return self.bundle.info

    def options(
        self,
        *,
        refine: str | None = None,
        background_threshold: float | None = None,
        background_power: float | None = None,
        min_confidence: float | None = None,
    ) -> MaskOptions:
        """Fill in the bundle's defaults for pseudo masks; see ``fill_defaults``."""
        return fill_defaults(
            self.info.mask_options,
            refine=refine,
            background_threshold=background_threshold,
            background_power=background_power,
            min_confidence=min_confidence,
        )

    def segment_options(self, *, refine: str | None = None, min_confidence: float | None = None) -> MaskOptions:
        """Fill in the bundle's defaults for segmenting; CannotSegmentError if it has no segmenter."""
        return fill_defaults(self.info.segment_options, refine=refine, min_confidence=min_confidence)

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (H, W) at which the mask generator sees an image; only equal ones share a batch."""
        return grid_size(height, width, longer_side=self.info.inference.image_size)

    def segment_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (H, W) at which the segmenter sees an image; only equal ones share a batch."""
        _, settings = self._segmenter()
        return grid_size(height, width, longer_side=settings.image_size)

    def pseudo_mask(
        self,
        image: NDArray[np.uint8],
        labels: Sequence[str],
        options: MaskOptions,
        *,
        classes: ClassList | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> Segmentation:
        """Segment the labeled classes of an image; arguments as of ``LabeledImage``, errors as of ``forward_cam``."""
        labeled = LabeledImage(image, labels, options, classes)
        return self.pseudo_masks([labeled], on_progress=on_progress)[0]

    def pseudo_masks(
        self, batch: Sequence[LabeledImage], *, on_progress: OnProgress = ignore_progress
    ) -> list[Segmentation]:
        """Segment the labeled classes of several images; an image alone gives the same but for rounding."""
        return self._postprocess_all(self.forward_cam(batch, on_progress=on_progress), on_progress)

    @torch.inference_mode()
    def forward_cam(
        self, batch: Sequence[LabeledImage], *, on_progress: OnProgress = ignore_progress
    ) -> list[ForwardOutput]:
        """Run the networks for ``pseudo_masks`` on images of equal ``working_size``; one thread at a time.

        Raises:
            UnknownLabelError: if a label is not known.
            ValueError: if it names a zero-shot class and the bundle has no text tower.
            ValueError: if an image has another form or no labels, or their working sizes differ.
        """
        with self._autocast():
            return forward_cam(
                self.bundle,
                batch,
                vocabulary=self._vocabulary,
                propose=self._propose,
                on_progress=on_progress,
            )

    def segment(
        self,
        image: NDArray[np.uint8],
        options: MaskOptions,
        *,
        on_progress: OnProgress = ignore_progress,
    ) -> Segmentation:
        """Segment an image without labels; arguments as of ``UnlabeledImage``, errors as of ``forward_segmenter``."""
        return self.segments([UnlabeledImage(image, options)], on_progress=on_progress)[0]

    def segments(
        self, batch: Sequence[UnlabeledImage], *, on_progress: OnProgress = ignore_progress
    ) -> list[Segmentation]:
        """Segment several images at once, without labels; an image alone gives the same but for rounding.

        A result's classes are those that are the best somewhere; their scores are the segmenter's probabilities.
        """
        outputs = self.forward_segmenter(batch, on_progress=on_progress)
        return self._postprocess_all(outputs, on_progress)

    @torch.inference_mode()
    def forward_segmenter(
        self, batch: Sequence[UnlabeledImage], *, on_progress: OnProgress = ignore_progress
    ) -> list[ForwardOutput]:
        """Run the networks for ``segments`` on images of equal ``segment_size``; one thread at a time.

        Raises:
            CannotSegmentError: if the bundle has no segmenter.
            ValueError: if an image has another form, or their working sizes differ.
        """
        segmenter, settings = self._segmenter()
        with self._autocast():
            return forward_segmenter(
                self.bundle,
                segmenter,
                settings,
                batch,
                propose=self._propose,
                on_progress=on_progress,
            )

    @torch.inference_mode()
    def postprocess(self, output: ForwardOutput) -> Segmentation:
        """Refine, decide and describe one image of a forward pass of this predictor; thread-safe."""
        return postprocess(self.bundle, output)

    def release_memory(self) -> None:
        """Return cached memory to the device; a CPU has none."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def device_memory(self) -> int | None:
        """Return the bytes of the device's memory that this process holds for tensors; None on a CPU."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else None

    def _postprocess_all(self, outputs: Sequence[ForwardOutput], on_progress: OnProgress) -> list[Segmentation]:
        made = []
        for number, output in enumerate(outputs):
            on_progress("refine", 0.7 + 0.3 * number / len(outputs))
            made.append(self.postprocess(output))
        return made

    def _segmenter(self) -> tuple[Segmenter, SegmentConfig]:
        segmenter, settings = self.bundle.segmenter, self.info.segment
        if segmenter is None or settings is None:
            raise CannotSegmentError(f"expected a bundle with a segmenter, got {self.info.name!r} without one")
        return segmenter, settings
