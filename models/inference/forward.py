"""The networks' half of inference: a batch of images to CAMs or probabilities, before any refinement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from models.bundle.bundle import Bundle
from models.bundle.manifest import BundleInfo
from models.config import SegmentConfig
from models.data.classes import ClassInfo, ClassList
from models.generators import AddedClass, MaskGenerator
from models.inference.masks import LabeledImage, OnProgress, UnlabeledImage
from models.inference.multi_scale import (
    Probabilities,
    grid_size,
    multi_scale_cams,
    normalize_cams,
    renormalize,
    segment_images,
    upsample,
    upsampled_argmax_classes,
)
from models.inference.open_vocabulary import OpenVocabulary
from models.refine import NEED_FEATURES, NEED_REGIONS, parse_chain
from models.refine.regions import Regions
from models.segmenters import Segmenter
from models.segmenters.on_features import FeatureSegmenter

Propose = Callable[[Tensor], Regions]
"""A network that proposes regions of an image, (3, H, W)."""


@dataclass(frozen=True)
class _RefinerInputs:
    """Network outputs that the refiners of one image need; None where none does."""

    features: Tensor | None  # the mask generator's, one row
    regions: Regions | None  # a network's proposals


@dataclass(frozen=True)
class ForwardOutput:
    """The networks' output for one image."""

    source: LabeledImage | UnlabeledImage  # as given, with its options
    working: Tensor  # the image at working size, (1, 3, H, W) in [0, 1]
    classes: tuple[ClassInfo, ...]  # that may be in its label map, n
    maps: Tensor  # CAMs in [0, 1], or shares of ``total``, (n, H, W)
    total: Tensor | None  # a segmenter's probability of classes and background, (H, W)
    refiner_inputs: _RefinerInputs
    zero_shot: Mapping[str, Tensor] = field(default_factory=dict)


def forward_cam(
    bundle: Bundle,
    batch: Sequence[LabeledImage],
    *,
    vocabulary: OpenVocabulary,
    propose: Propose | None,
    on_progress: OnProgress,
) -> list[ForwardOutput]:
    """Compute the CAMs of the labeled classes of images of one working size; see ``Predictor.forward_cam``."""
    known = bundle.info.classes
    chosen = [(each.classes or known).resolve(each.labels) for each in batch]
    names = sorted({one.name for classes in chosen for one in classes if not known.knows(one.name)})
    zero_shot = {name: vocabulary.zero_shot_class(name) for name in names}
    inference = bundle.info.inference
    working = _resize_to_grid([each.image for each in batch], inference.image_size, device=bundle.class_text.device)
    size = (working.shape[-2], working.shape[-1])
    generator = _CachingGenerator(bundle.generator, [*zero_shot.values()], size=size)
    cams = multi_scale_cams(
        generator,
        working,
        _present(known, names, chosen).to(working.device),
        scales=inference.scales,
        flip=inference.flip,
        competition=inference.competition,
        on_scale=lambda done: on_progress("cam", 0.7 * done),
    )
    maps = list(torch.split(cams, [len(classes) for classes in chosen]))
    settings = bundle.info.segment
    if bundle.segmenter is not None and settings is not None and settings.fusion_weight:
        maps = _fuse(bundle, bundle.segmenter, settings, generator, working, chosen, maps)
    inputs = _refiner_inputs(batch, working, features=generator.features, propose=propose)
    return [
        ForwardOutput(
            source=batch[number],
            working=working[number, None],
            classes=classes,
            maps=maps[number],
            total=None,
            refiner_inputs=inputs[number],
            zero_shot={each.name: zero_shot[each.name].text for each in classes if each.name in zero_shot},
        )
        for number, classes in enumerate(chosen)
    ]


def _fuse(
    bundle: Bundle,
    segmenter: Segmenter,
    settings: SegmentConfig,
    generator: _CachingGenerator,
    working: Tensor,
    chosen: Sequence[Sequence[ClassInfo]],
    cams: Sequence[Tensor],
) -> list[Tensor]:
    """Average the CAMs of each image, (n, H, W), with the segmenter's probabilities among its labels.

    Classes that the segmenter knows too little of keep their CAMs.
    """
    info, size = bundle.info, (working.shape[-2], working.shape[-1])
    trusted = _fused_classes(info, settings)
    network: Probabilities = segmenter
    if isinstance(segmenter, FeatureSegmenter) and segmenter.generator is bundle.generator:
        decode = segmenter.decode
        network = lambda images: decode(generator.features(images))  # noqa: E731 (computed for the CAMs already)
    found = segment_images(network, working, scales=(1.0,), flip=info.inference.flip, window=None)
    result = []
    for number, (classes, maps) in enumerate(zip(chosen, cams, strict=True)):
        known = [at for at, each in enumerate(classes) if each.name in trusted]
        if not known:
            result.append(maps)
            continue
        channels = [0, *(info.classes.channel(classes[at].name) + 1 for at in known)]
        shares, _ = renormalize(found[number, None, channels].float())
        fused = maps.clone()
        average = maps[known] + settings.fusion_weight * (upsample(shares[:, 1:], size)[0] - maps[known])
        # In [0, 1] again: a class that the segmenter misses must not lose to one that it does not know.
        fused[known] = normalize_cams(average)
        result.append(fused)
    return result


def _fused_classes(info: BundleInfo, settings: SegmentConfig) -> set[str]:
    """Return the classes that the segmenter learned from enough masks to have a say in pseudo masks."""
    masks = info.segmenter.masks if info.segmenter else {}
    return {name for name, count in masks.items() if count >= settings.fusion_min_masks} - {*info.untaught}


def forward_segmenter(
    bundle: Bundle,
    segmenter: Segmenter,
    settings: SegmentConfig,
    batch: Sequence[UnlabeledImage],
    *,
    propose: Propose | None,
    on_progress: OnProgress,
) -> list[ForwardOutput]:
    """Segment images of one working size; see ``Predictor.forward_segmenter``."""
    device = bundle.class_text.device
    working = _resize_to_grid([each.image for each in batch], settings.image_size, device=device)
    probabilities = segment_images(
        segmenter,
        working,
        scales=settings.scales,
        flip=settings.flip,
        window=settings.window,
        on_scale=lambda done: on_progress("segment", 0.7 * done),
    )
    inputs = _refiner_inputs(batch, working, features=bundle.generator.features, propose=propose)
    size = (working.shape[-2], working.shape[-1])
    untaught = [bundle.info.classes.channel(name) + 1 for name in bundle.info.untaught]
    outputs = []
    for number, source in enumerate(batch):
        # Few of tens of classes are the best somewhere: the others' maps are not even upsampled.
        channels, kept = upsampled_argmax_classes(
            _without_faint(probabilities[number, None], untaught, min_peak=settings.min_peak), size
        )
        shares, total = renormalize(kept)
        classes = tuple(bundle.info.classes.classes[channel] for channel in channels.tolist())
        outputs.append(
            ForwardOutput(source, working[number, None], classes, shares[0, 1:], total[0, 0], inputs[number])
        )
    return outputs


def _without_faint(probabilities: Tensor, untaught: Sequence[int], *, min_peak: float) -> Tensor:
    """Give the background the shares, (1, K + 1, h, w), of classes that are untaught or nowhere probable enough."""
    if not untaught and not min_peak:
        return probabilities
    faint = probabilities.amax(dim=(2, 3))[0] < min_peak
    faint[list(untaught)] = True
    faint[0] = False
    kept = probabilities.masked_fill(faint[:, None, None], 0)
    kept[:, 0] += probabilities[:, faint].sum(dim=1)
    return kept


def _resize_to_grid(images: Sequence[NDArray[np.uint8]], longer_side: int, *, device: torch.device) -> Tensor:
    """Resize RGB images, (H, W, 3) each, to the size that networks work on, (B, 3, H, W) in [0, 1]."""
    small = [_resize(image, longer_side) for image in images]
    sizes = {pixels.shape[:2] for pixels in small}
    if len(sizes) != 1:
        raise ValueError(f"expected images of one working size, got {sorted(sizes)}")
    # Sent to the device as bytes, a quarter of the floats' size.
    return torch.from_numpy(np.stack(small)).to(device).permute(0, 3, 1, 2).float() / 255


class _CachingGenerator:
    """A mask generator that keeps one batch's features of images of a size, which an affinity would compute again."""

    def __init__(self, generator: MaskGenerator, added: Sequence[AddedClass] = (), *, size: tuple[int, int]) -> None:
        self._generator, self._added, self._size = generator, added, size
        self._features: Tensor | None = None

    def __call__(self, images: Tensor, present: Tensor) -> Tensor:
        """Return the CAMs of (image, class) pairs, (N, h, w); see ``MaskGenerator.chosen_cams``."""
        features = self._generator.features(images)
        if images.shape[-2:] == self._size:
            self._features = features
        return self._generator.chosen_cams(features, present, added=self._added)

    def features(self, images: Tensor) -> Tensor:
        """Return the features of the batch, (B, 3, H, W), kept ones if it was seen, alone or before mirrored images."""
        if self._features is None:
            self._features = self._generator.features(images)
        return self._features[: len(images)]


def _refiner_inputs(
    batch: Sequence[LabeledImage | UnlabeledImage],
    working: Tensor,
    *,
    features: Callable[[Tensor], Tensor],
    propose: Propose | None,
) -> list[_RefinerInputs]:
    """The network outputs that the refiners of a batch's images need."""
    chains = [set(parse_chain(each.options.refine)) for each in batch]
    rows = features(working).float() if any(chain & NEED_FEATURES for chain in chains) else None
    return [
        _RefinerInputs(
            features=rows[number, None] if rows is not None and chain & NEED_FEATURES else None,
            regions=propose(working[number]) if propose and chain & NEED_REGIONS else None,
        )
        for number, chain in enumerate(chains)
    ]


def _resize(image: NDArray[np.uint8], longer_side: int) -> NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected an image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width = grid_size(*image.shape[:2], longer_side=longer_side)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _present(known: ClassList, zero_shot: Sequence[str], chosen: Sequence[Sequence[ClassInfo]]) -> Tensor:
    """The (image, channel) index pairs of the images' classes, (N, 2); zero-shot channels follow the known ones."""
    added = {name: len(known) + number for number, name in enumerate(zero_shot)}
    pairs = [
        (number, added[each.name] if each.name in added else known.channel(each.name))
        for number, classes in enumerate(chosen)
        for each in classes
    ]
    return torch.tensor(pairs, dtype=torch.int64)
