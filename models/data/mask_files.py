"""What a pseudo mask leaves on disk: one writer for a single photo and for a folder of them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX
from models.inference.masks import SoftMaps

if TYPE_CHECKING:  # at run time they would bring torch, which a check of the input does not need
    from models.bundle.manifest import BundleInfo
    from models.inference.masks import ClassResult, MaskOptions, Segmentation

OVERLAY = "_overlay"  # what follows the stem in the name of a picture to look at


def describe(
    segmentation: Segmentation, info: BundleInfo, options: MaskOptions, *, image: str
) -> dict[str, Any]:
    """Return what is worth knowing about a pseudo mask in JSON's types: classes, model, thresholds."""
    height, width = segmentation.label_map.shape
    used = options.for_classes(each.name for each in segmentation.classes)
    return {
        "image": image,
        "size": {"width": width, "height": height},
        "model": {"name": info.name, "version": info.version},
        "options": asdict(used),
        "classes": [asdict(each) for each in segmentation.classes],
        "ignored": segmentation.ignored,
    }


class Model(Protocol):
    """What provenance says of a model; bundles and their announcements fit."""

    @property
    def name(self) -> str:
        """The bundle's name."""
        ...

    @property
    def version(self) -> str:
        """The hash of its content."""
        ...

    @property
    def licence(self) -> str:
        """Of its weights."""
        ...


def provenance(
    model: Model, classes: Sequence[ClassResult], options: Mapping[str, Any]
) -> dict[str, str]:
    """Return the PNG text chunks that say where a mask comes from.

    No time and no place: equal requests give equal files. Labels that the model was not trained on are named once more.
    """
    zero_shot = ", ".join(each.name for each in classes if each.zero_shot)
    return {
        "Software": f"semples {software_version()}",
        "Model": f"{model.name} {model.version}",
        "Licence": model.licence,
        "Labels": ", ".join(each.name for each in classes),
        **({"Zero-shot": zero_shot} if zero_shot else {}),
        "Options": json.dumps(options, sort_keys=True),
    }


@cache
def software_version() -> str:
    """Return the installed version; "unknown" where the package is not installed."""
    try:
        return version("semples")
    except PackageNotFoundError:
        return "unknown"


def scores_npz(segmentation: Segmentation) -> bytes:
    """Encode a segmentation's soft maps as an npz that loads without pickle.

    ``cams`` (n, h', w') float16 at CAM resolution (not from a segmenter), ``scores`` (n, h, w) float16 after
    refinement, from a segmenter ``background`` (h, w) float16 too, ``class_index`` (n,), ``class_name`` (n,) and
    ``image_size`` (height, width). Not compressed: soft maps hardly shrink, and deflating them takes longer than
    making them.
    """
    arrays: dict[str, Any] = {
        "scores": segmentation.scores,
        "class_index": np.array([each.index for each in segmentation.classes], dtype=np.int64),
        "class_name": np.array([each.name for each in segmentation.classes], dtype=np.str_),
        "image_size": np.array(segmentation.label_map.shape, dtype=np.int64),
    }
    if segmentation.cams is not None:
        arrays["cams"] = segmentation.cams
    if segmentation.background is not None:
        arrays["background"] = segmentation.background
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read_soft_maps(source: Path | BinaryIO) -> SoftMaps:
    """Read what ``scores_npz`` wrote, but for the CAMs.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        with np.load(source, allow_pickle=False) as stored:
            height, width = stored["image_size"].tolist()
            return SoftMaps(
                scores=stored["scores"],
                indices=stored["class_index"].astype(np.int64),
                names=tuple(stored["class_name"].tolist()),
                size=(height, width),
                background=stored.get("background"),
            )
    except _UNREADABLE as error:
        raise ValueError(f"expected soft scores in {_name(source)}, got {error}") from error


def read_cams(source: Path | BinaryIO) -> NDArray[np.float16] | None:
    """Read the CAMs that ``scores_npz`` wrote, (n, h', w'); None if there are none, as from a segmenter.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        with np.load(source, allow_pickle=False) as stored:
            cams: NDArray[np.float16] | None = stored.get("cams")
            return cams
    except _UNREADABLE as error:
        raise ValueError(f"expected soft maps in {_name(source)}, got {error}") from error


_UNREADABLE = (KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile)


def _name(source: Path | BinaryIO) -> str:
    return str(source) if isinstance(source, Path) else "the file"


# Label maps as PNG pictures: the palette file itself and an overlay to look at. Free of torch.

_STRONGEST = 0.8  # the most that a soft map's color covers of the photo


def voc_palette() -> NDArray[np.uint8]:
    """Return PASCAL VOC's colors, (256, 3): bits of the index, lowest first, fill R, G, B from the highest bit."""
    index = np.arange(256)
    colors = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    return colors


_PALETTE = voc_palette().tobytes()


def label_map_png(label_map: NDArray[np.uint8], *, text: Mapping[str, str] | None = None) -> bytes:
    """Encode a label map, (H, W), as a palette PNG in VOC colors.

    Args:
        label_map: class indices; the file's pixel values are exactly these.
        text: provenance, written as PNG text chunks.
    """
    picture = Image.fromarray(label_map)
    picture.putpalette(_PALETTE)
    return _png(picture, text or {})


def overlay_png(
    image: NDArray[np.uint8], label_map: NDArray[np.uint8], *, opacity: float = 0.5
) -> bytes:
    """Encode an image, (H, W, 3), with its label map's colors laid over it as an RGB PNG; see ``overlay``."""
    mixed = overlay(image, label_map, opacity=opacity)
    return _png(Image.fromarray(mixed), {}, compress_level=1)  # to look at: speed before size


def overlay(
    image: NDArray[np.uint8], label_map: NDArray[np.uint8], *, opacity: float = 0.5
) -> NDArray[np.uint8]:
    """Lay a label map's colors over an image, (H, W, 3).

    Background stays as it is, ignored pixels turn white-ish, and each region gets a white outline.

    Args:
        image: RGB.
        label_map: (H, W) class indices.
        opacity: of the colors, in [0, 1].

    Raises:
        ValueError: if the sizes differ.
    """
    if image.shape[:2] != label_map.shape:
        raise ValueError(f"expected a label map of {image.shape[:2]}, got {label_map.shape}")
    mixed = image.copy()
    shown = label_map != BACKGROUND_INDEX
    weight = round(opacity * 256)
    # Integers of 16 bits, and only where something is shown: photos may have 40 million pixels.
    colors = vivid_palette().astype(np.uint16)[label_map[shown]] * weight
    mixed[shown] = (image[shown] * np.uint16(256 - weight) + colors) >> 8
    mixed[_outline(label_map)] = 255
    return mixed


def soft_overlay(
    image: NDArray[np.uint8], maps: NDArray[np.float32], indices: Sequence[int]
) -> NDArray[np.uint8]:
    """Lay each pixel's best class over a gray image, (H, W, 3), in its color and as strongly as its map says.

    Args:
        image: RGB.
        maps: soft maps in [0, 1], (n, H, W).
        indices: the classes' values in label maps; n of them, which may be none.

    Raises:
        ValueError: if the sizes differ.
    """
    if maps.shape != (len(indices), *image.shape[:2]):
        raise ValueError(f"expected maps {(len(indices), *image.shape[:2])}, got {maps.shape}")
    mixed = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    if len(indices):
        colors = vivid_palette()[np.array(indices)[maps.argmax(axis=0)]]
        weight = _STRONGEST * maps.max(axis=0)[..., None].clip(0, 1)
        mixed = mixed * (1 - weight) + colors * weight
    rounded: NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return rounded


def vivid_palette() -> NDArray[np.uint8]:
    """Return the colors of overlays, (256, 3): VOC's but brightened, for its first ones are too dark over a photo."""
    colors = voc_palette().astype(np.int64)
    brightest = np.maximum(colors.max(axis=1, keepdims=True), 1)
    vivid: NDArray[np.uint8] = (colors * 255 // brightest).astype(np.uint8)
    vivid[IGNORE_INDEX] = 224
    return vivid


def _outline(label_map: NDArray[np.uint8]) -> NDArray[np.bool_]:
    edge = np.zeros(label_map.shape, dtype=bool)
    edge[:, 1:] |= label_map[:, 1:] != label_map[:, :-1]
    edge[1:] |= label_map[1:] != label_map[:-1]
    return edge


def _png(picture: Image.Image, text: Mapping[str, str], *, compress_level: int = 6) -> bytes:
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info, compress_level=compress_level)
    return buffer.getvalue()


# Soft maps as pictures whose pixel values are the maps' own, in steps of 1/255. Free of torch.


def soft_map_png(values: NDArray[np.floating]) -> bytes:
    """Encode values in [0, 1], (H, W), as a palette PNG.

    A pixel's index is ``round(255 * value)``; what lies outside is clipped. The palette is ``cubehelix``'s, so that the
    picture looks the brighter the higher the value is.
    """
    steps = (np.asarray(values, dtype=np.float32).clip(0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(steps)
    picture.putpalette(cubehelix().tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)  # to look at: speed before size
    return buffer.getvalue()


@cache
def cubehelix(*, start: float = 0.5, rotations: float = -1.5) -> NDArray[np.uint8]:
    """Return 256 colors from black to white, (256, 3), whose perceived brightness grows evenly.

    A helix around the gray diagonal of the color cube: Green 2011, "A colour scheme for the display of astronomical
    intensity images", equation 2, hue 1, gamma 1.

    Args:
        start: hue at black, in thirds of a turn: 1 is red, 2 green, 3 blue.
        rotations: turns from black to white.
    """
    gray = np.linspace(0, 1, 256)
    angle = 2 * np.pi * (start / 3 + 1 + rotations * gray)
    amplitude = gray * (1 - gray) / 2
    turned = np.stack([np.cos(angle), np.sin(angle)])
    # Directions of equal perceived brightness, as the paper gives them.
    weights = np.array([[-0.14861, 1.78277], [-0.29227, -0.90649], [1.97294, 0.0]])
    colors = gray + amplitude * (weights @ turned)
    table: NDArray[np.uint8] = (colors.T.clip(0, 1) * 255).round().astype(np.uint8)
    return table


# Label maps as files: palette or gray images whose values are class indices.


def read_label_map(path: Path) -> NDArray[np.uint8]:
    """Read a label map, (H, W): class index per pixel, 0 background, 255 ignore.

    Raises:
        ValueError: if the file is no image of mode L or P.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("L", "P"):
                raise ValueError(
                    f"expected a label map in mode L or P in {path}, got {picture.mode}"
                )
            label_map: NDArray[np.uint8] = np.array(picture)
            return label_map
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"expected a label map in {path}, got {error}") from error


def occurring(label_map: NDArray[np.uint8]) -> list[int]:
    """Return the indices that a label map, (H, W), holds, ascending."""
    # numpy's unique() sorts all pixels, which takes ten times as long.
    found: list[int] = np.flatnonzero(np.bincount(label_map.ravel(), minlength=256)).tolist()
    return found
