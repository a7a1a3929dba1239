"""Photos in, segmentations out; owns all pre- and post-processing."""

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

from models.bundle.bundle import Bundle, BundleInfo
from models.config import SegmentConfig
from models.data.classes import ClassList
from models.inference.forward import (
    ForwardOutput,
    LabeledImage,
    UnlabeledImage,
    forward_cam,
    forward_segmenter,
)
from models.inference.masks import (
    MaskOptions,
    OnProgress,
    Segmentation,
    fill_defaults,
    ignore_progress,
)
from models.inference.multi_scale import grid_size
from models.inference.open_vocabulary import OpenVocabulary
from models.inference.postprocess import finish
from models.refine import parse_chain
from models.refine.regions import load_sam
from models.segmenters import Segmenter

# In which numbers networks compute; their weights and all that is not a network stay in single precision.

PRECISIONS: Final = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)


def autocast(precision: str, *, device: torch.device) -> torch.autocast:
    """Return a context in which networks compute in a precision, where it does them no harm.

    Args:
        precision: a name in PRECISIONS.
        device: of the networks.

    Raises:
        ValueError: if the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"expected a precision of {', '.join(PRECISIONS)}, got {precision!r}")
    lower = precision != "float32"
    return torch.autocast(
        device.type, dtype=PRECISIONS[precision] if lower else torch.bfloat16, enabled=lower
    )


# Batch norms folded into the convolutions before them, for networks that no longer learn.

_Network = TypeVar("_Network", bound=nn.Module)
_TOLERANCE = 1e-4  # of the highest output; rounding is far below
_SIDE = 128  # of the image that is sent through a network to see what reads what


def fuse_batch_norms(bundle: Bundle) -> Bundle:
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


__all__ = [
    "CannotSegmentError",
    "ForwardOutput",
    "LabeledImage",
    "OnProgress",
    "Predictor",
    "UnlabeledImage",
]


class CannotSegmentError(ValueError):
    """A bundle without a segmenter was asked to segment without labels."""


class Predictor:
    """The same code for the command line and the worker.

    Work comes in two halves. ``forward_cam`` and ``forward_segmenter`` are all that the networks say of a batch: one
    thread alone calls them. ``postprocess`` does the rest for one photo, and any thread may call it meanwhile.
    ``pseudo_masks`` and ``segments`` are both halves in sequence.

    Args:
        bundle: its tensors' device is where the work is done.
        precision: of the mask generator's and the segmenter's numbers, a name in ``PRECISIONS``.

    Raises:
        ValueError: if the precision is unknown, or the bundle wants a SAM that cannot be loaded.
    """

    def __init__(self, bundle: Bundle, *, precision: str = "float32") -> None:
        self.bundle = fuse_batch_norms(bundle)
        self.device = bundle.class_text.device
        self._computing = partial(autocast, precision, device=self.device)
        self._computing()  # an unknown precision is refused here
        self._activate_labeled = partial(
            forward_cam, self.bundle, vocabulary=OpenVocabulary(self.bundle)
        )
        sam = self.info.inference.sam
        # At once: weights that are missing stop a server's start, not its first job.
        self._propose = load_sam(sam, device=self.device) if sam else None

    @property
    def info(self) -> BundleInfo:
        """What the bundle says of itself."""
        return self.bundle.info

    def options(
        self,
        *,
        refine: str | None = None,
        background_threshold: float | None = None,
        background_power: float | None = None,
        min_confidence: float | None = None,
    ) -> MaskOptions:
        """Fill in the bundle's defaults; see ``fill_defaults``."""
        return fill_defaults(
            self.info.inference,
            refine=refine,
            background_threshold=background_threshold,
            background_power=background_power,
            min_confidence=min_confidence,
        )

    def pseudo_mask(
        self,
        image: NDArray[np.uint8],
        labels: Sequence[str],
        options: MaskOptions,
        *,
        classes: ClassList | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> Segmentation:
        """Segment the labeled classes of an image; ``pseudo_masks`` for one.

        Args:
            image: RGB in the upright frame, (H, W, 3).
            labels: names or synonyms of classes that the image shows.
            options: from ``options``.
            classes: that labels may name; see ``LabeledImage``.
            on_progress: as for ``activate``, whose errors are raised.
        """
        asked = LabeledImage(image, labels, options, classes)
        (made,) = self.pseudo_masks([asked], on_progress=on_progress)
        return made

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (H, W) at which an image goes through the networks; only equal ones share a batch."""
        return grid_size(height, width, longer_side=self.info.inference.image_size)

    def pseudo_masks(
        self, batch: Sequence[LabeledImage], *, on_progress: OnProgress = ignore_progress
    ) -> list[Segmentation]:
        """Segment the labeled classes of several images at once: one pass through the mask generator for each scale.

        An image alone gives the same but for rounding. Arguments and errors are those of ``activate``.
        """
        return self._finish_all(self.forward_cam(batch, on_progress=on_progress), on_progress)

    @torch.inference_mode()
    def forward_cam(
        self, batch: Sequence[LabeledImage], *, on_progress: OnProgress = ignore_progress
    ) -> list[ForwardOutput]:
        """Do what networks do for ``pseudo_masks``; one thread at a time.

        Args:
            batch: images of equal ``working_size``, with what to do.
            on_progress: called with a stage's name and the fraction of all work done; what it raises stops the work.

        Raises:
            UnknownLabelError: if a label is not known.
            ClosedVocabularyError: if it names an open class and the bundle has no text tower.
            ValueError: if an image has another form or no labels, or their working sizes differ.
        """
        with self._computing():
            return self._activate_labeled(batch, propose=self._propose, on_progress=on_progress)

    @torch.inference_mode()
    def postprocess(self, activated: ForwardOutput) -> Segmentation:
        """Refine, decide and describe one photo; several threads may, also while another one activates.

        Args:
            activated: by this predictor.
        """
        return finish(self.bundle, activated)

    def _finish_all(
        self, activated: Sequence[ForwardOutput], on_progress: OnProgress
    ) -> list[Segmentation]:
        made = []
        for number, each in enumerate(activated):
            on_progress("refine", 0.7 + 0.3 * number / len(activated))
            made.append(self.postprocess(each))
        return made

    def segment_options(
        self, *, refine: str | None = None, min_confidence: float | None = None
    ) -> MaskOptions:
        """Fill in the bundle's defaults for segmenting without labels.

        Raises:
            CannotSegmentError: if the bundle has no segmenter.
            ValueError: if the refiner is unknown or a number is out of range.
        """
        _, settings = self._segmenter()
        options = MaskOptions(
            refine=settings.refine if refine is None else refine,
            min_confidence=settings.min_confidence if min_confidence is None else min_confidence,
        )
        parse_chain(options.refine)
        return options

    def segment(
        self,
        image: NDArray[np.uint8],
        options: MaskOptions,
        *,
        on_progress: OnProgress = ignore_progress,
    ) -> Segmentation:
        """Segment an image without being told what it shows; ``segments`` for one.

        Args:
            image: RGB in the upright frame, (H, W, 3).
            options: from ``segment_options``.
            on_progress: called with a stage's name and the fraction of all work done; what it raises stops the work.

        Raises:
            CannotSegmentError: if the bundle has no segmenter.
            ValueError: if the image has another form.
        """
        (made,) = self.segments([UnlabeledImage(image, options)], on_progress=on_progress)
        return made

    def segment_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (H, W) at which the segmenter sees an image; only equal ones share a batch.

        Raises:
            CannotSegmentError: if the bundle has no segmenter.
        """
        _, settings = self._segmenter()
        return grid_size(height, width, longer_side=settings.image_size)

    def segments(
        self, batch: Sequence[UnlabeledImage], *, on_progress: OnProgress = ignore_progress
    ) -> list[Segmentation]:
        """Segment several images with the segmenter at once, without being told what they show.

        A result's classes are those that are the best somewhere; their scores are the segmenter's probabilities.
        An image alone gives the same but for rounding. Arguments and errors are those of ``activate_segments``.
        """
        return self._finish_all(self.forward_segmenter(batch, on_progress=on_progress), on_progress)

    @torch.inference_mode()
    def forward_segmenter(
        self, batch: Sequence[UnlabeledImage], *, on_progress: OnProgress = ignore_progress
    ) -> list[ForwardOutput]:
        """Do what networks do for ``segments``; one thread at a time.

        Args:
            batch: images of equal ``segment_size``, with what to do.
            on_progress: called with a stage's name and the fraction of all work done; what it raises stops the work.

        Raises:
            CannotSegmentError: if the bundle has no segmenter.
            ValueError: if an image has another form, or their working sizes differ.
        """
        segmenter, settings = self._segmenter()
        activate = partial(forward_segmenter, self.bundle, segmenter, settings)
        with self._computing():
            return activate(batch, propose=self._propose, on_progress=on_progress)

    def release_memory(self) -> None:
        """Give memory that is held for later tensors back to the device; a CPU holds none."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def device_memory(self) -> int | None:
        """Return how many bytes of the device's memory this process holds for tensors; None on a CPU."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else None

    def _segmenter(self) -> tuple[Segmenter, SegmentConfig]:
        segmenter, settings = self.bundle.segmenter, self.info.segment
        if segmenter is None or settings is None:
            raise CannotSegmentError(
                f"expected a bundle with a segmenter, got {self.info.name!r} without one"
            )
        return segmenter, settings
