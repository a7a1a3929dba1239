"""From what the networks said of a photo to its segmentation: refinement, decision, statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.activated import Activated
from models.bundle import Bundle
from models.conclude import conclude
from models.refine import Surroundings, build_refiner
from models.refine.background import power_background, rest
from models.refine.regions import superpixels
from models.refine.scaling import as_they_are, into_range_of
from models.segmentation import Segmentation
from models.segmenters.inference import winners
from models.working import soft_maps


def finish(bundle: Bundle, activated: Activated) -> Segmentation:
    """Finish one photo; see ``Predictor.finish``.

    Nothing of the bundle is changed, and of its networks only the image tower runs, which keeps no state.

    Args:
        bundle: that activated it.
        activated: what its networks said.
    """
    if activated.together is None:
        return _finish_cams(bundle, activated)
    return _finish_probabilities(bundle, activated, activated.together)


def _finish_cams(bundle: Bundle, activated: Activated) -> Segmentation:
    cams, image = activated.maps[None], activated.working
    background = power_background(bundle.info.inference.background_threshold)
    scores = _refine(bundle, activated, background, into_range_of)[0].half()
    stride = bundle.info.generator.output_stride
    grid = (image.shape[-2] // stride, image.shape[-1] // stride)
    coarse = F.interpolate(cams, size=grid, mode="area")[0]
    maps = soft_maps(scores, activated.classes, activated.photo.image)
    options, opened = activated.photo.options, activated.opened
    return conclude(bundle, image, maps, options, cams=coarse, opened=opened)


def _finish_probabilities(bundle: Bundle, activated: Activated, together: Tensor) -> Segmentation:
    refined = _refine(bundle, activated, rest, as_they_are).clamp(min=0)
    # What the classes that win nowhere had stays theirs: nobody's confidence grows by dropping them.
    decided = torch.cat([rest(refined[0])[None, None], refined], dim=1) * together
    kept = winners(decided)
    classes = tuple(activated.classes[number] for number in kept.tolist())
    scores, background = decided[0, kept + 1].half(), decided[0, 0]
    maps = soft_maps(scores, classes, activated.photo.image, background=background)
    return conclude(bundle, activated.working, maps, activated.photo.options, cams=None)


def _refine(
    bundle: Bundle,
    activated: Activated,
    background: Callable[[Tensor], Tensor],
    rescale: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Run the photo's refiner chain on its maps, → (1, n, H, W)."""
    features, regions = activated.hints.features, activated.hints.regions

    def affinity(_images: Tensor) -> Tensor:
        if features is None:
            raise RuntimeError("expected features for the affinity: see NEED_FEATURES, got none")
        return bundle.generator.affinity(features)

    surroundings = Surroundings(
        affinity,
        background,
        superpixels if regions is None else lambda _image: regions,
        rescale,
    )
    refiner = build_refiner(activated.photo.options.refine, surroundings)
    return refiner(activated.working, activated.maps[None])
