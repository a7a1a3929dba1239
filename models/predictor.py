"""One image and its labels in, one segmentation out; owns all pre- and post-processing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.alignment import Alignment, score_alignment
from models.bundle import Bundle, BundleInfo
from models.cam import grid_size, multi_scale_cams
from models.data.classes import IGNORE_INDEX, ClassInfo
from models.pseudo_masks import SoftMaps, decide
from models.refine import build_refiner, parse_chain
from models.segmentation import ClassResult, MaskOptions, Segmentation

OnProgress = Callable[[str, float], None]


class Predictor:
    """The same code for the command line and the worker.

    Args:
        bundle: its tensors' device is where the work is done.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.device = bundle.class_text.device

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
        """Fill in the bundle's defaults; a background of one's own replaces all that the bundle says of it.

        Raises:
            ValueError: if the refiner is unknown or a number is out of range.
        """
        inference = self.info.inference
        options = MaskOptions(
            refine=inference.refine if refine is None else refine,
            min_confidence=inference.min_confidence if min_confidence is None else min_confidence,
            background_threshold=background_threshold,
            background_power=background_power,
        )
        parse_chain(options.refine)
        if background_threshold is None and background_power is None:
            return replace(
                options,
                background_threshold=inference.background_threshold,
                class_thresholds=inference.class_thresholds,
            )
        return options

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
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"expected an image (H, W, 3) uint8, got {image.shape} {image.dtype}")
        chosen = self.info.classes.resolve(labels)
        inference = self.info.inference
        channels = torch.tensor([self.info.classes.channel(each.name) for each in chosen])
        working = self._working_image(image)
        cams = multi_scale_cams(
            self.bundle.generator,
            working,
            channels.to(self.device),
            scales=inference.scales,
            flip=inference.flip,
            on_scale=lambda done: on_progress("cam", 0.7 * done),
        )
        on_progress("refine", 0.7)
        scores = build_refiner(options.refine)(working, cams)[0].half()
        on_progress("mask", 0.9)
        maps = SoftMaps(
            scores=scores.cpu().numpy(),
            indices=np.array([each.index for each in chosen], dtype=np.int64),
            names=tuple(each.name for each in chosen),
            size=(image.shape[0], image.shape[1]),
        )
        decision = decide(maps, options)
        label_map, confidence = decision.label_map, decision.confidence
        alignment = score_alignment(self.bundle, working, label_map, channels)
        coarse = F.interpolate(cams, size=self._cam_size(working), mode="area")[0]
        return Segmentation(
            label_map=label_map,
            confidence=confidence,
            scores=maps.scores,
            cams=coarse.half().cpu().numpy(),
            classes=tuple(
                _class_result(each, label_map, confidence, score)
                for each, score in zip(chosen, alignment, strict=True)
            ),
            ignored=float((label_map == IGNORE_INDEX).mean()),
        )

    def _working_image(self, image: NDArray[np.uint8]) -> Tensor:
        """The image at the size that CAMs and refinement work on, (1, 3, H, W) in [0, 1]."""
        height, width = grid_size(*image.shape[:2], longer_side=self.info.inference.image_size)
        small = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(small)).to(self.device)
        return pixels.permute(2, 0, 1)[None].float() / 255

    def _cam_size(self, working: Tensor) -> tuple[int, int]:
        stride = self.info.generator.output_stride
        return working.shape[-2] // stride, working.shape[-1] // stride


def _class_result(
    info: ClassInfo,
    label_map: NDArray[np.uint8],
    confidence: NDArray[np.float16],
    alignment: Alignment,
) -> ClassResult:
    region = label_map == info.index
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    found = rows.size > 0
    return ClassResult(
        index=info.index,
        name=info.name,
        area=float(region.mean()),
        confidence=float(confidence[region].mean(dtype=np.float64)) if found else None,
        alignment_class=alignment.to_class,
        alignment_background=alignment.to_background,
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        if found
        else None,
    )
