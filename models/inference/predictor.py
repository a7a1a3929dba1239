"""Images in, segmentations out: the same code for the command line and the worker."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle.bundle import Bundle
from models.bundle.manifest import BundleInfo
from models.config import SegmentConfig
from models.data.classes import ClassList
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
from models.inference.optimize import autocast, fuse_batch_norms
from models.inference.postprocess import postprocess
from models.refine.regions import load_sam
from models.segmenters import Segmenter

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
