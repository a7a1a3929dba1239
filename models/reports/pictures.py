"""A few photos and how their masks come about: CAM, refined scores, label map, side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX
from models.data.label_maps import read_label_map
from models.data.sample import Sample
from models.images import ImageError, read_image
from models.pictures import overlay, soft_overlay, vivid_palette
from models.predictor import Predictor
from models.pseudo_masks import stretch

_LONGER_SIDE = 320  # pixels; with the quality it bounds the page's size
_QUALITY = 80
# Of the overlays' palette: red, blue, green, yellow, magenta, cyan, orange, violet. Its other entries look much alike.
_COLORS = (1, 4, 2, 3, 5, 6, 11, 12)


@dataclass(frozen=True)
class Panel:
    """One picture: what it shows, and itself as a data URI."""

    name: str
    uri: str


@dataclass(frozen=True)
class Chip:
    """A class of a photo: its color, and what its mask came to."""

    name: str
    color: str
    area: float
    confidence: float | None


@dataclass(frozen=True)
class PhotoPart:
    """A photo's row of panels; where it could not be read, why."""

    name: str
    chips: tuple[Chip, ...] = ()
    panels: tuple[Panel, ...] = ()
    problem: str = ""


def choose(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Choose labeled photos that spread over the classes, the same ones each time.

    Classes are taken at even distances, each with the first by name of its photos that have the fewest labels.
    """
    left = sorted((each for each in samples if each.channels), key=_simplest_first)
    classes = sorted({channel for sample in left for channel in sample.channels})
    distance = max(len(classes) / max(count, 1), 1.0)
    spread = [classes[int(at * distance)] for at in range(min(count, len(classes)))]
    chosen: list[Sample] = []
    for channel in cycle(spread):
        if len(chosen) == count or not left:
            break
        found = next((each for each in left if channel in each.channels), left[0])
        left.remove(found)
        chosen.append(found)
    return chosen


def photo_parts(
    predictor: Predictor,
    samples: Sequence[Sample],
    *,
    ground_truth: Path | None,
    on_share: Callable[[float], None],
) -> tuple[PhotoPart, ...]:
    """Make the pictures of some photos; one that cannot be read is said to be so.

    Args:
        predictor: makes the masks, with its bundle's own options.
        samples: labeled photos.
        ground_truth: folder of ``STEM.png``; the photos that have one get one panel more.
        on_share: called with the share that is done, in [0, 1].
    """
    parts = []
    for done, sample in enumerate(samples, start=1):
        truth = ground_truth / f"{sample.stem}.png" if ground_truth is not None else None
        try:
            parts.append(_photo_part(predictor, sample, truth))
        except (ImageError, OSError) as error:
            parts.append(PhotoPart(sample.name, problem=str(error)))
        on_share(done / len(samples))
    return tuple(parts)


def _photo_part(predictor: Predictor, sample: Sample, truth: Path | None) -> PhotoPart:
    image = read_image(sample.path.read_bytes()).pixels
    labels = [predictor.info.classes.names[channel] for channel in sample.channels]
    made = predictor.pseudo_mask(image, labels, predictor.options())
    small = _thumbnail(image)
    colors = {each.index: color for each, color in zip(made.classes, cycle(_COLORS), strict=False)}
    panels = {"photo": small}
    if made.cams is not None:
        panels["CAM"] = _soft(small, made.cams, colors)
    panels["refined scores"] = _soft(small, made.scores, colors)
    panels["pseudo mask"] = _hard(small, made.label_map, colors)
    if truth is not None and truth.is_file():
        label_map = read_label_map(truth)
        if label_map.shape == image.shape[:2]:
            panels["ground truth"] = _hard(small, label_map, colors)
    palette = vivid_palette()
    return PhotoPart(
        name=sample.name,
        chips=tuple(
            Chip(each.name, f"#{palette[color].tobytes().hex()}", each.area, each.confidence)
            for each, color in zip(made.classes, colors.values(), strict=True)
        ),
        panels=tuple(Panel(name, _data_uri(pixels)) for name, pixels in panels.items()),
    )


def _simplest_first(sample: Sample) -> tuple[int, str]:
    return len(sample.channels), sample.name


def _thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(image)
    picture.thumbnail((_LONGER_SIDE, _LONGER_SIDE), Image.Resampling.BICUBIC)
    return np.array(picture)


def _soft(
    small: NDArray[np.uint8], maps: NDArray[np.float16], colors: Mapping[int, int]
) -> NDArray[np.uint8]:
    height, width = small.shape[:2]
    stretched = stretch(stretch(maps, width, axis=2), height, axis=1)
    return soft_overlay(small, stretched, list(colors.values()))


def _hard(
    small: NDArray[np.uint8], label_map: NDArray[np.uint8], colors: Mapping[int, int]
) -> NDArray[np.uint8]:
    """Lay a label map over a thumbnail; classes that the photo is not labeled with look like ignored pixels."""
    table = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    table[BACKGROUND_INDEX] = BACKGROUND_INDEX
    table[list(colors)] = list(colors.values())
    rows, columns = (
        np.arange(length) * whole // length
        for length, whole in zip(small.shape[:2], label_map.shape, strict=True)
    )
    return overlay(small, table[label_map[np.ix_(rows, columns)]])


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
