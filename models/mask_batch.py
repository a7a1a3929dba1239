"""Labeled photos through the mask generator, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from models.activated import Activated, hints_for
from models.bundle import Bundle
from models.cam import multi_scale_cams
from models.data.classes import ClassInfo, ClassList
from models.generators.affinity import RememberingGenerator
from models.open_vocabulary import OpenClass, OpenVocabulary, WidenedGenerator
from models.photos import Labeled
from models.refine.regions import Regions
from models.segmentation import OnProgress
from models.working import working_images


def activate_labeled(
    bundle: Bundle,
    batch: Sequence[Labeled],
    *,
    vocabulary: OpenVocabulary,
    propose: Callable[[Tensor], Regions] | None,
    on_progress: OnProgress,
) -> list[Activated]:
    """Make the CAMs of the labeled classes of photos of one working size; see ``Predictor.activate``.

    Args:
        bundle: its tensors' device is where the work is done.
        batch: photos with what to do.
        vocabulary: of the bundle.
        propose: a network that proposes regions of an image, (3, H, W), if there is one.
        on_progress: called with a stage's name and the fraction of all work done.
    """
    known = bundle.info.classes
    chosen = [(each.classes or known).resolve(each.labels) for each in batch]
    names = sorted(
        {each.name for classes in chosen for each in classes if not known.knows(each.name)}
    )
    opened = {name: vocabulary.open_class(name) for name in names}
    inference, device = bundle.info.inference, bundle.class_text.device
    working = working_images([each.image for each in batch], inference.image_size, device=device)
    size = (working.shape[-2], working.shape[-1])
    widened = WidenedGenerator(bundle.generator, [*opened.values()]) if opened else bundle.generator
    generator = RememberingGenerator(widened, size=size)
    cams = multi_scale_cams(
        generator,
        working,
        _present(known, names, chosen).to(device),
        scales=inference.scales,
        flip=inference.flip,
        on_scale=lambda done: on_progress("cam", 0.7 * done),
    )
    hints = hints_for(batch, working, features=generator.features, propose=propose)
    counts = [len(classes) for classes in chosen]
    return [
        Activated(photo, image[None], classes, maps, None, hint, _texts(classes, opened))
        for photo, image, classes, maps, hint in zip(
            batch, working, chosen, torch.split(cams, counts), hints, strict=True
        )
    ]


def _present(
    known: ClassList, opened: Sequence[str], chosen: Sequence[Sequence[ClassInfo]]
) -> Tensor:
    """The (image, channel) index pairs of each photo's classes, (N, 2); open classes are after the known ones."""
    further = {name: len(known) + number for number, name in enumerate(opened)}
    pairs = [
        (number, further[each.name] if each.name in further else known.channel(each.name))
        for number, classes in enumerate(chosen)
        for each in classes
    ]
    return torch.tensor(pairs, dtype=torch.int64)


def _texts(classes: Sequence[ClassInfo], opened: Mapping[str, OpenClass]) -> dict[str, Tensor]:
    return {each.name: opened[each.name].text for each in classes if each.name in opened}
