"""Labeled photos through the mask generator, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.activated import Activated, hints_for
from models.bundle import Bundle
from models.cam import multi_scale_cams
from models.data.classes import ClassInfo
from models.generators.affinity import RememberingGenerator
from models.photos import Labeled, OnProgress
from models.refine.regions import Regions
from models.working import working_images


def activate_labeled(
    bundle: Bundle,
    batch: Sequence[Labeled],
    *,
    propose: Callable[[Tensor], Regions] | None,
    on_progress: OnProgress,
) -> list[Activated]:
    """Make the CAMs of the labeled classes of photos of one working size; see ``Predictor.activate``.

    Args:
        bundle: its tensors' device is where the work is done.
        batch: photos with what to do.
        propose: a network that proposes regions of an image, (3, H, W), if there is one.
        on_progress: called with a stage's name and the fraction of all work done.
    """
    chosen = [bundle.info.classes.resolve(each.labels) for each in batch]
    inference, device = bundle.info.inference, bundle.class_text.device
    working = working_images([each.image for each in batch], inference.image_size, device=device)
    size = (working.shape[-2], working.shape[-1])
    generator = RememberingGenerator(bundle.generator, size=size)
    cams = multi_scale_cams(
        generator,
        working,
        _present(bundle, chosen),
        scales=inference.scales,
        flip=inference.flip,
        on_scale=lambda done: on_progress("cam", 0.7 * done),
    )
    hints = hints_for(batch, working, features=generator.features, propose=propose)
    counts = [len(classes) for classes in chosen]
    return [
        Activated(photo, image[None], classes, maps, None, hint)
        for photo, image, classes, maps, hint in zip(
            batch, working, chosen, torch.split(cams, counts), hints, strict=True
        )
    ]


def _present(bundle: Bundle, chosen: Sequence[Sequence[ClassInfo]]) -> Tensor:
    """The (image, class) index pairs of each photo's classes, (N, 2)."""
    pairs = [
        (number, bundle.info.classes.channel(each.name))
        for number, classes in enumerate(chosen)
        for each in classes
    ]
    return torch.tensor(pairs, dtype=torch.int64, device=bundle.class_text.device)
