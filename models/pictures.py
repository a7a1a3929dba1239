"""Label maps as PNG pictures: the palette file itself and an overlay to look at. Free of torch."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from models.data.classes import BACKGROUND_INDEX, IGNORE_INDEX


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


def label_map_png(label_map: NDArray[np.uint8], *, text: Mapping[str, str] | None = None) -> bytes:
    """Encode a label map, (H, W), as a palette PNG in VOC colors.

    Args:
        label_map: class indices; the file's pixel values are exactly these.
        text: provenance, written as PNG text chunks.
    """
    picture = Image.fromarray(label_map)
    picture.putpalette(voc_palette().tobytes())
    return _png(picture, text or {})


def overlay_png(
    image: NDArray[np.uint8], label_map: NDArray[np.uint8], *, opacity: float = 0.5
) -> bytes:
    """Encode an image, (H, W, 3), with its label map's colors laid over it as an RGB PNG.

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
    colors = _vivid_palette().astype(np.uint16)[label_map[shown]] * weight
    mixed[shown] = (image[shown] * np.uint16(256 - weight) + colors) >> 8
    mixed[_outline(label_map)] = 255
    return _png(Image.fromarray(mixed), {}, compress_level=1)  # to look at: speed before size


def _vivid_palette() -> NDArray[np.uint8]:
    # VOC's colors, but brightened: its first ones are too dark to see over a photo.
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
