"""Label maps as PNG pictures: the palette file itself and an overlay to look at. Free of torch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX

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
