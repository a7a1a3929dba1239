"""Labeled photos to pseudo masks, several at a time: what the networks do for all at once, and the rest for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle
from models.cam import multi_scale_cams
from models.conclude import conclude
from models.data.classes import ClassInfo
from models.generators.affinity import RememberingGenerator
from models.refine import Surroundings, build_refiner
from models.refine.background import power_background
from models.refine.regions import Regions
from models.refine.scaling import into_range_of
from models.segmentation import MaskOptions, Segmentation
from models.working import soft_maps, working_images

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class Labeled:
    """One photo of a batch.

    Attributes:
        image: RGB in the upright frame, (H, W, 3).
        labels: names or synonyms of classes that it shows.
        options: from ``Predictor.options``.
    """

    image: NDArray[np.uint8]
    labels: Sequence[str]
    options: MaskOptions


def mask_batch(
    bundle: Bundle,
    batch: Sequence[Labeled],
    *,
    proposals: Callable[[Tensor], Regions],
    on_progress: OnProgress,
) -> list[Segmentation]:
    """Segment the labeled classes of photos of one working size; see ``Predictor.pseudo_masks``.

    Args:
        bundle: its tensors' device is where the work is done.
        batch: photos with what to do.
        proposals: regions of an image, (3, H, W), that probably belong together.
        on_progress: called with a stage's name and the fraction of all work done.
    """
    chosen = [bundle.info.classes.resolve(each.labels) for each in batch]
    inference, device = bundle.info.inference, bundle.class_text.device
    working = working_images([each.image for each in batch], inference.image_size, device=device)
    generator = RememberingGenerator(bundle.generator)
    cams = multi_scale_cams(
        generator,
        working,
        _present(bundle, chosen),
        scales=inference.scales,
        flip=inference.flip,
        on_scale=lambda done: on_progress("cam", 0.7 * done),
    )
    made = []
    for number, maps in enumerate(torch.split(cams, [len(classes) for classes in chosen])):
        on_progress("refine", 0.7 + 0.3 * number / len(batch))
        surroundings = Surroundings(
            generator.affinity_of(number),
            power_background(inference.background_threshold),
            proposals,
            into_range_of,
        )
        image = working[number, None]
        made.append(_finish(bundle, batch[number], chosen[number], image, maps, surroundings))
    return made


def _present(bundle: Bundle, chosen: Sequence[Sequence[ClassInfo]]) -> Tensor:
    """The (image, class) index pairs of each photo's classes, (N, 2)."""
    pairs = [
        (number, bundle.info.classes.channel(each.name))
        for number, classes in enumerate(chosen)
        for each in classes
    ]
    return torch.tensor(pairs, dtype=torch.int64, device=bundle.class_text.device)


def _finish(
    bundle: Bundle,
    labeled: Labeled,
    chosen: Sequence[ClassInfo],
    image: Tensor,
    cams: Tensor,
    surroundings: Surroundings,
) -> Segmentation:
    """From the CAMs of one photo, (n, H, W), at working size to its segmentation."""
    scores = build_refiner(labeled.options.refine, surroundings)(image, cams[None])[0].half()
    stride = bundle.info.generator.output_stride
    grid = (image.shape[-2] // stride, image.shape[-1] // stride)
    coarse = F.interpolate(cams[None], size=grid, mode="area")[0]
    maps = soft_maps(scores, chosen, labeled.image)
    return conclude(bundle, image, maps, labeled.options, cams=coarse)
