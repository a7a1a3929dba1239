"""One image and its labels in, one segmentation out; owns all pre- and post-processing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle, BundleInfo
from models.cam import grid_size
from models.conclude import conclude
from models.generators.affinity import RememberingGenerator
from models.mask_batch import Labeled, OnProgress, mask_batch
from models.mask_options import pseudo_mask_options
from models.refine import Surroundings, build_refiner, parse_chain
from models.refine.background import rest
from models.refine.regions import superpixels
from models.refine.sam import load_sam
from models.refine.scaling import as_they_are
from models.segmentation import MaskOptions, Segmentation
from models.segmenters.inference import among, segment_images, winners
from models.working import soft_maps, working_images

__all__ = ["CannotSegmentError", "Labeled", "OnProgress", "Predictor"]


class CannotSegmentError(ValueError):
    """A bundle without a segmenter was asked to segment without labels."""


class Predictor:
    """The same code for the command line and the worker.

    Args:
        bundle: its tensors' device is where the work is done.

    Raises:
        ValueError: if the bundle wants a SAM that cannot be loaded.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.device = bundle.class_text.device
        sam = self.info.inference.sam
        # At once: weights that are missing stop a server's start, not its first job.
        self._proposals = load_sam(sam, device=self.device) if sam else superpixels

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
        on_progress: OnProgress = lambda _stage, _fraction: None,
    ) -> Segmentation:
        """Segment the labeled classes of an image; ``pseudo_masks`` for one.

        Args:
            image: RGB in the upright frame, (H, W, 3).
            labels: names or synonyms of classes that the image shows.
            options: from ``options``.
            on_progress: called with a stage's name and the fraction of all work done; what it raises stops the work.

        Raises:
            UnknownLabelError: if a label is not known.
            ValueError: if the image has another form or there are no labels.
        """
        (made,) = self.pseudo_masks([Labeled(image, labels, options)], on_progress=on_progress)
        return made

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (H, W) at which an image goes through the networks; only equal ones share a batch."""
        return grid_size(height, width, longer_side=self.info.inference.image_size)

    @torch.inference_mode()
    def pseudo_masks(
        self,
        batch: Sequence[Labeled],
        *,
        on_progress: OnProgress = lambda _stage, _fraction: None,
    ) -> list[Segmentation]:
        """Segment the labeled classes of several images at once: one pass through the mask generator for each scale.

        An image alone gives the same but for rounding.

        Args:
            batch: images of equal ``working_size``, with what to do.
            on_progress: called with a stage's name and the fraction of all work done; what it raises stops the work.

        Raises:
            UnknownLabelError: if a label is not known.
            ValueError: if an image has another form or no labels, or their working sizes differ.
        """
        return mask_batch(self.bundle, batch, proposals=self._proposals, on_progress=on_progress)

    def segment_options(
        self, *, refine: str | None = None, min_confidence: float | None = None
    ) -> MaskOptions:
        """Fill in the bundle's defaults for segmenting without labels.

        Raises:
            CannotSegmentError: if the bundle has no segmenter.
            ValueError: if the refiner is unknown or a number is out of range.
        """
        settings = self.info.segment
        if settings is None:
            raise self._cannot_segment()
        options = MaskOptions(
            refine=settings.refine if refine is None else refine,
            min_confidence=settings.min_confidence if min_confidence is None else min_confidence,
        )
        parse_chain(options.refine)
        return options

    @torch.inference_mode()
    def segment(
        self,
        image: NDArray[np.uint8],
        options: MaskOptions,
        *,
        on_progress: OnProgress = lambda _stage, _fraction: None,
    ) -> Segmentation:
        """Segment an image with the segmenter, without being told what it shows.

        The result's classes are those that are the best somewhere; their scores are the segmenter's probabilities.

        Args:
            image: RGB in the upright frame, (H, W, 3).
            options: from ``segment_options``.
            on_progress: called with a stage's name and the fraction of all work done; what it raises stops the work.

        Raises:
            CannotSegmentError: if the bundle has no segmenter.
            ValueError: if the image has another form.
        """
        segmenter, settings = self.bundle.segmenter, self.info.segment
        if segmenter is None or settings is None:
            raise self._cannot_segment()
        working = working_images([image], settings.image_size, device=self.device)
        probabilities = segment_images(
            segmenter,
            working,
            scales=settings.scales,
            flip=settings.flip,
            window=settings.window,
            on_scale=lambda done: on_progress("segment", 0.7 * done),
        )
        on_progress("refine", 0.7)
        channels = winners(probabilities)
        shares, together = among(probabilities, channels)
        generator = RememberingGenerator(self.bundle.generator)
        surroundings = Surroundings(generator.affinity_of(0), rest, self._proposals, as_they_are)
        refined = build_refiner(options.refine, surroundings)(working, shares[:, 1:]).clamp(min=0)
        # What the classes that win nowhere had stays theirs: nobody's confidence grows by dropping them.
        decided = torch.cat([rest(refined[0])[None, None], refined], dim=1) * together
        kept = winners(decided)
        on_progress("mask", 0.9)
        classes = self.info.classes.classes
        chosen = tuple(classes[channel] for channel in channels[kept].tolist())
        maps = soft_maps(decided[0, kept + 1].half(), chosen, image, background=decided[0, 0])
        return conclude(self.bundle, working, maps, options, cams=None)

    def _cannot_segment(self) -> CannotSegmentError:
        return CannotSegmentError(
            f"expected a bundle with a segmenter, got {self.info.name!r} without one"
        )
