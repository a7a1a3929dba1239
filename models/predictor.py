"""One image and its labels in, one segmentation out; owns all pre- and post-processing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.bundle import Bundle, BundleInfo
from models.cam import grid_size, multi_scale_cams
from models.conclude import conclude
from models.data.classes import ClassInfo
from models.generators.affinity import RememberingGenerator
from models.mask_options import pseudo_mask_options
from models.pseudo_masks import SoftMaps
from models.refine import Surroundings, build_refiner, parse_chain
from models.refine.background import power_background, rest
from models.refine.regions import superpixels
from models.refine.sam import load_sam
from models.refine.scaling import as_they_are, into_range_of
from models.segmentation import MaskOptions, Segmentation
from models.segmenters.inference import among, segment_images, winners

OnProgress = Callable[[str, float], None]


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

    @torch.inference_mode()
    def pseudo_mask(
        self,
        image: NDArray[np.uint8],
        labels: Sequence[str],
        options: MaskOptions,
        *,
        on_progress: OnProgress = lambda _stage, _fraction: None,
    ) -> Segmentation:
        """Segment the labeled classes of an image.

        Args:
            image: RGB in the upright frame, (H, W, 3).
            labels: names or synonyms of classes that the image shows.
            options: from ``options``.
            on_progress: called with a stage's name and the fraction of all work done; what it raises stops the work.

        Raises:
            UnknownLabelError: if a label is not known.
            ValueError: if the image has another form or there are no labels.
        """
        _check_image(image)
        chosen = self.info.classes.resolve(labels)
        inference = self.info.inference
        channels = torch.tensor([self.info.classes.channel(each.name) for each in chosen])
        working = self._working_image(image, inference.image_size)
        generator = RememberingGenerator(self.bundle.generator)
        cams = multi_scale_cams(
            generator,
            working,
            channels.to(self.device),
            scales=inference.scales,
            flip=inference.flip,
            on_scale=lambda done: on_progress("cam", 0.7 * done),
        )
        on_progress("refine", 0.7)
        surroundings = Surroundings(
            generator.affinity,
            power_background(inference.background_threshold),
            self._proposals,
            into_range_of,
        )
        scores = build_refiner(options.refine, surroundings)(working, cams)[0].half()
        on_progress("mask", 0.9)
        coarse = F.interpolate(cams, size=self._cam_size(working), mode="area")[0]
        maps = _soft_maps(scores, chosen, image)
        return conclude(self.bundle, working, maps, options, cams=coarse)

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
        _check_image(image)
        working = self._working_image(image, settings.image_size)
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
        surroundings = Surroundings(generator.affinity, rest, self._proposals, as_they_are)
        refined = build_refiner(options.refine, surroundings)(working, shares[:, 1:]).clamp(min=0)
        # What the classes that win nowhere had stays theirs: nobody's confidence grows by dropping them.
        decided = torch.cat([rest(refined[0])[None, None], refined], dim=1) * together
        kept = winners(decided)
        on_progress("mask", 0.9)
        classes = self.info.classes.classes
        chosen = tuple(classes[channel] for channel in channels[kept].tolist())
        maps = _soft_maps(decided[0, kept + 1].half(), chosen, image, background=decided[0, 0])
        return conclude(self.bundle, working, maps, options, cams=None)

    def _cannot_segment(self) -> CannotSegmentError:
        return CannotSegmentError(
            f"expected a bundle with a segmenter, got {self.info.name!r} without one"
        )

    def _working_image(self, image: NDArray[np.uint8], longer_side: int) -> Tensor:
        """The image at the size that networks and refinement work on, (1, 3, H, W) in [0, 1]."""
        height, width = grid_size(*image.shape[:2], longer_side=longer_side)
        small = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(small)).to(self.device)
        return pixels.permute(2, 0, 1)[None].float() / 255

    def _cam_size(self, working: Tensor) -> tuple[int, int]:
        stride = self.info.generator.output_stride
        return working.shape[-2] // stride, working.shape[-1] // stride


def _check_image(image: NDArray[np.uint8]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected an image (H, W, 3) uint8, got {image.shape} {image.dtype}")


def _soft_maps(
    scores: Tensor,
    classes: Sequence[ClassInfo],
    image: NDArray[np.uint8],
    *,
    background: Tensor | None = None,
) -> SoftMaps:
    return SoftMaps(
        scores=scores.cpu().numpy(),
        indices=np.array([each.index for each in classes], dtype=np.int64),
        names=tuple(each.name for each in classes),
        size=(image.shape[0], image.shape[1]),
        background=None if background is None else background.half().cpu().numpy(),
    )
