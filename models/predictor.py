"""Photos in, segmentations out; owns all pre- and post-processing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from models.activated import Activated
from models.bundle import Bundle, BundleInfo
from models.cam import grid_size
from models.data.classes import ClassList
from models.finish import finish
from models.folding import folded_bundle
from models.mask_batch import activate_labeled
from models.mask_options import pseudo_mask_options
from models.open_vocabulary import OpenVocabulary
from models.photos import Labeled, Unlabeled
from models.precision import computing_in
from models.refine import parse_chain
from models.refine.sam import load_sam
from models.segment_batch import activate_unlabeled
from models.segmentation import MaskOptions, OnProgress, Segmentation, ignore_progress
from models.segmenter_config import SegmentConfig
from models.segmenters import Segmenter

__all__ = ["Activated", "CannotSegmentError", "Labeled", "OnProgress", "Predictor", "Unlabeled"]


class CannotSegmentError(ValueError):
    """A bundle without a segmenter was asked to segment without labels."""


class Predictor:
    """The same code for the command line and the worker.

    Work comes in two halves. ``activate`` and ``activate_segments`` are all that the networks say of a batch: one
    thread alone calls them. ``finish`` does the rest for one photo, and any thread may call it meanwhile.
    ``pseudo_masks`` and ``segments`` are both halves in sequence.

    Args:
        bundle: its tensors' device is where the work is done.
        precision: of the mask generator's and the segmenter's numbers, a name in ``models.precision.PRECISIONS``.

    Raises:
        ValueError: if the precision is unknown, or the bundle wants a SAM that cannot be loaded.
    """

    def __init__(self, bundle: Bundle, *, precision: str = "float32") -> None:
        self.bundle = folded_bundle(bundle)
        self.device = bundle.class_text.device
        self._computing = partial(computing_in, precision, device=self.device)
        self._computing()  # an unknown precision is refused here
        self._activate_labeled = partial(
            activate_labeled, self.bundle, vocabulary=OpenVocabulary(self.bundle)
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
        """Fill in the bundle's defaults; see ``pseudo_mask_options``."""
        return pseudo_mask_options(
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
            classes: that labels may name; see ``Labeled``.
            on_progress: as for ``activate``, whose errors are raised.
        """
        asked = Labeled(image, labels, options, classes)
        (made,) = self.pseudo_masks([asked], on_progress=on_progress)
        return made

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (H, W) at which an image goes through the networks; only equal ones share a batch."""
        return grid_size(height, width, longer_side=self.info.inference.image_size)

    def pseudo_masks(
        self, batch: Sequence[Labeled], *, on_progress: OnProgress = ignore_progress
    ) -> list[Segmentation]:
        """Segment the labeled classes of several images at once: one pass through the mask generator for each scale.

        An image alone gives the same but for rounding. Arguments and errors are those of ``activate``.
        """
        return self._finish_all(self.activate(batch, on_progress=on_progress), on_progress)

    @torch.inference_mode()
    def activate(
        self, batch: Sequence[Labeled], *, on_progress: OnProgress = ignore_progress
    ) -> list[Activated]:
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
    def finish(self, activated: Activated) -> Segmentation:
        """Refine, decide and describe one photo; several threads may, also while another one activates.

        Args:
            activated: by this predictor.
        """
        return finish(self.bundle, activated)

    def _finish_all(
        self, activated: Sequence[Activated], on_progress: OnProgress
    ) -> list[Segmentation]:
        made = []
        for number, each in enumerate(activated):
            on_progress("refine", 0.7 + 0.3 * number / len(activated))
            made.append(self.finish(each))
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
        (made,) = self.segments([Unlabeled(image, options)], on_progress=on_progress)
        return made

    def segment_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (H, W) at which the segmenter sees an image; only equal ones share a batch.

        Raises:
            CannotSegmentError: if the bundle has no segmenter.
        """
        _, settings = self._segmenter()
        return grid_size(height, width, longer_side=settings.image_size)

    def segments(
        self, batch: Sequence[Unlabeled], *, on_progress: OnProgress = ignore_progress
    ) -> list[Segmentation]:
        """Segment several images with the segmenter at once, without being told what they show.

        A result's classes are those that are the best somewhere; their scores are the segmenter's probabilities.
        An image alone gives the same but for rounding. Arguments and errors are those of ``activate_segments``.
        """
        return self._finish_all(self.activate_segments(batch, on_progress=on_progress), on_progress)

    @torch.inference_mode()
    def activate_segments(
        self, batch: Sequence[Unlabeled], *, on_progress: OnProgress = ignore_progress
    ) -> list[Activated]:
        """Do what networks do for ``segments``; one thread at a time.

        Args:
            batch: images of equal ``segment_size``, with what to do.
            on_progress: called with a stage's name and the fraction of all work done; what it raises stops the work.

        Raises:
            CannotSegmentError: if the bundle has no segmenter.
            ValueError: if an image has another form, or their working sizes differ.
        """
        segmenter, settings = self._segmenter()
        activate = partial(activate_unlabeled, self.bundle, segmenter, settings)
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
