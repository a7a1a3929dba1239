"""Labeled photos through the mask generator, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.bundle.bundle import Bundle
from models.config import SegmentConfig
from models.data.classes import ClassInfo, ClassList
from models.generators.cnn import CachingGenerator
from models.inference.masks import MaskOptions, OnProgress, SoftMaps
from models.inference.multi_scale import (
    grid_size,
    multi_scale_cams,
    renormalize,
    segment_images,
    upsampled_argmax_classes,
)
from models.inference.open_vocabulary import OpenClass, OpenVocabulary, WidenedGenerator
from models.refine import NEED_FEATURES, NEED_REGIONS, parse_chain
from models.refine.regions import Regions
from models.segmenters import Segmenter

# Photos to be segmented, with what to do. Free of torch, so that the worker's loop can use them too.


@dataclass(frozen=True)
class LabeledImage:
    """One photo of a batch, with what it shows.

    Attributes:
        image: RGB in the upright frame, (H, W, 3).
        labels: names or synonyms of classes that it shows.
        options: from ``Predictor.options``.
        classes: that labels may name: the bundle's, with open ones after them (``models.data.classes``); None for
            the bundle's alone.
    """

    image: NDArray[np.uint8]
    labels: Sequence[str]
    options: MaskOptions
    classes: ClassList | None = None


@dataclass(frozen=True)
class UnlabeledImage:
    """One photo of a batch that nothing is said of.

    Attributes:
        image: RGB in the upright frame, (H, W, 3).
        options: from ``Predictor.segment_options``.
    """

    image: NDArray[np.uint8]
    options: MaskOptions


# What networks say of a photo, before any refinement.


@dataclass(frozen=True)
class RefinerInputs:
    """What networks have to say to the refiners of one photo; None where none of them asks.

    Attributes:
        features: the mask generator's, one row; see ``MaskGenerator``.
        regions: the proposals of a network; also None where the bundle has none.
    """

    features: Tensor | None
    regions: Regions | None


@dataclass(frozen=True)
class ForwardOutput:
    """A photo that the networks are done with.

    Attributes:
        photo: what it was and what to do.
        working: the photo at working size, (1, 3, H, W) in [0, 1].
        classes: that may be in its label map, n, in channel order.
        maps: their CAMs in [0, 1], or what they have of ``together``, (n, H, W).
        together: a segmenter's probability of the classes and the background, (H, W); None beside CAMs.
        hints: for the refiners.
        opened: class text embeddings, (D,), of those classes that the bundle was not trained on, by name.
    """

    photo: LabeledImage | UnlabeledImage
    working: Tensor
    classes: tuple[ClassInfo, ...]
    maps: Tensor
    together: Tensor | None
    hints: RefinerInputs
    opened: Mapping[str, Tensor] = field(default_factory=dict)


def refiner_inputs(
    batch: Sequence[LabeledImage | UnlabeledImage],
    working: Tensor,
    *,
    features: Callable[[Tensor], Tensor],
    propose: Callable[[Tensor], Regions] | None,
) -> list[RefinerInputs]:
    """Ask the networks what the refiners of a batch's photos will need.

    Args:
        batch: the photos.
        working: at working size, (B, 3, H, W).
        features: the mask generator's, a row an image.
        propose: a network's regions of an image, (3, H, W); None if there is no such network.
    """
    chains = [set(parse_chain(each.options.refine)) for each in batch]
    rows = features(working).float() if any(chain & NEED_FEATURES for chain in chains) else None
    return [
        RefinerInputs(
            features=rows[number, None] if rows is not None and chain & NEED_FEATURES else None,
            regions=propose(working[number]) if propose and chain & NEED_REGIONS else None,
        )
        for number, chain in enumerate(chains)
    ]


# Photos to the tensors that networks and refinement work on, and back to soft maps of the photo.


def resize_to_grid(
    images: Sequence[NDArray[np.uint8]], longer_side: int, *, device: torch.device
) -> Tensor:
    """Bring photos to the size that networks and refinement work on, (B, 3, H, W) in [0, 1].

    Args:
        images: RGB in the upright frame, (H, W, 3) each.
        longer_side: in pixels.
        device: where the tensor goes.

    Raises:
        ValueError: if there are none, one has another form, or they come to different sizes.
    """
    small = [_resized(image, longer_side) for image in images]
    sizes = {pixels.shape[:2] for pixels in small}
    if len(sizes) != 1:
        raise ValueError(f"expected images of one working size, got {sorted(sizes)}")
    # As bytes to the device: a quarter of what goes there as numbers.
    return torch.from_numpy(np.stack(small)).to(device).permute(0, 3, 1, 2).float() / 255


def soft_maps(
    scores: Tensor,
    classes: Sequence[ClassInfo],
    image: NDArray[np.uint8],
    *,
    background: Tensor | None = None,
) -> SoftMaps:
    """Bring a photo's scores, (n, h, w), and its background's, (h, w), to where label maps are decided."""
    return SoftMaps(
        scores=scores.cpu().numpy(),
        indices=np.array([each.index for each in classes], dtype=np.int64),
        names=tuple(each.name for each in classes),
        size=(image.shape[0], image.shape[1]),
        background=None if background is None else background.half().cpu().numpy(),
    )


def _resized(image: NDArray[np.uint8], longer_side: int) -> NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected an image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = grid_size(*image.shape[:2], longer_side=longer_side)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(small)


def forward_cam(
    bundle: Bundle,
    batch: Sequence[LabeledImage],
    *,
    vocabulary: OpenVocabulary,
    propose: Callable[[Tensor], Regions] | None,
    on_progress: OnProgress,
) -> list[ForwardOutput]:
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
    working = resize_to_grid([each.image for each in batch], inference.image_size, device=device)
    size = (working.shape[-2], working.shape[-1])
    widened = WidenedGenerator(bundle.generator, [*opened.values()]) if opened else bundle.generator
    generator = CachingGenerator(widened, size=size)
    cams = multi_scale_cams(
        generator,
        working,
        _present(known, names, chosen).to(device),
        scales=inference.scales,
        flip=inference.flip,
        on_scale=lambda done: on_progress("cam", 0.7 * done),
    )
    hints = refiner_inputs(batch, working, features=generator.features, propose=propose)
    counts = [len(classes) for classes in chosen]
    return [
        ForwardOutput(photo, image[None], classes, maps, None, hint, _texts(classes, opened))
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


# Photos without labels through the segmenter, several at a time.


def forward_segmenter(
    bundle: Bundle,
    segmenter: Segmenter,
    settings: SegmentConfig,
    batch: Sequence[UnlabeledImage],
    *,
    propose: Callable[[Tensor], Regions] | None,
    on_progress: OnProgress,
) -> list[ForwardOutput]:
    """Ask the segmenter what photos of one working size show; see ``Predictor.activate_segments``.

    Args:
        bundle: whose mask generator knows how alike places are; its tensors' device is where the work is done.
        segmenter: the bundle's.
        settings: the bundle's.
        batch: photos with what to do.
        propose: a network that proposes regions of an image, (3, H, W), if there is one.
        on_progress: called with a stage's name and the fraction of all work done.
    """
    device = bundle.class_text.device
    working = resize_to_grid([each.image for each in batch], settings.image_size, device=device)
    probabilities = segment_images(
        segmenter,
        working,
        scales=settings.scales,
        flip=settings.flip,
        window=settings.window,
        on_scale=lambda done: on_progress("segment", 0.7 * done),
    )
    hints = refiner_inputs(batch, working, features=bundle.generator.features, propose=propose)
    size = (working.shape[-2], working.shape[-1])
    activated = []
    for number, photo in enumerate(batch):
        # Of tens of classes few are somewhere the best: the others' maps are not even stretched.
        channels, kept = upsampled_argmax_classes(probabilities[number, None], size)
        shares, together = renormalize(kept)
        classes = tuple(bundle.info.classes.classes[channel] for channel in channels.tolist())
        activated.append(
            ForwardOutput(
                photo, working[number, None], classes, shares[0, 1:], together[0, 0], hints[number]
            )
        )
    return activated
