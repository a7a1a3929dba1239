"""Decoding of images: bytes in, upright RGB pixels out; the same rules everywhere. Free of torch.

JPEG, PNG and WebP only, at most 40 megapixels, complete and still. From any mode
(palette, gray, alpha, 16 bits, CMYK) and EXIF orientation, the caller gets 8-bit RGB in the upright
frame. Embedded color profiles are not applied.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 40_000_000
MAX_SIDE = 32_768
"""Longer strips of few pixels would become enormous maps at working size."""
FORMATS = ("JPEG", "PNG", "WEBP")
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

ImageErrorKind = Literal["unsupported", "too_large", "unreadable"]

_MAX_GRAY = 65_535
_ORIENTATION_TAG = 0x0112
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")

# Errors of Pillow's parsers on damaged bytes. Not Exception: a job's timeout, raised in the middle
# of decoding, and MemoryError must not look like a damaged image.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
    Warning,  # of damaged metadata, where the process turns warnings into errors
)


class ImageError(ValueError):
    """Bytes that are not an accepted image.

    Attributes:
        kind: "unsupported" (another format, or animated), "too_large" (pixels) or "unreadable"
            (damaged).
    """

    def __init__(self, kind: ImageErrorKind, message: str) -> None:
        super().__init__(kind, message)  # both, so that it can be pickled
        self.kind: ImageErrorKind = kind

    def __str__(self) -> str:
        return str(self.args[1])


@dataclass(frozen=True)
class UprightImage:
    """A decoded image.

    Attributes:
        pixels: RGB, (H, W, 3), in the upright frame.
        exif_orientation: the file's EXIF orientation, 1 to 8, already applied.
        value_range: smallest and largest value of 16-bit gray that became 0 and 255; None if 0 and 65,535 did.
    """

    pixels: NDArray[np.uint8]
    exif_orientation: int
    value_range: tuple[int, int] | None = None


@dataclass(frozen=True)
class ImageHeader:
    """Size in the upright frame, orientation and format of an image."""

    width: int
    height: int
    exif_orientation: int
    format: str


def read_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> UprightImage:
    """Decode an image to upright 8-bit RGB; transparent parts become white.

    Args:
        data: the file's bytes.
        max_pixels: largest width times height, checked on the header before anything is decoded.

    Raises:
        ImageError: if the bytes are not a complete, still JPEG, PNG or WebP within the limit.
    """
    image = _open(data, max_pixels=max_pixels)
    try:
        image.load()
        orientation = _orientation(image)
        # A copy: an array that views Pillow's memory is read-only, and torch warns of those.
        rgb, value_range = _to_rgb(image)
        pixels = np.array(rgb)
    except _DECODER_ERRORS as error:
        raise ImageError("unreadable", f"cannot read the image: {error}") from error
    return UprightImage(_turn_upright(pixels, orientation), orientation, value_range)


def check_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Check an image as ``read_image`` does, with less work, and return its header.

    A JPEG is decoded at an eighth of its size: that still reads all of its data, and so detects a
    truncated file.

    Raises:
        ImageError: as ``read_image`` does.
    """
    image = _open(data, max_pixels=max_pixels)
    width, height = image.size
    try:
        image.draft("L", (1, 1))
        image.load()
        _to_rgb(image.crop((0, 0, 1, 1)))  # a missing palette shows only here
        orientation = _orientation(image)
    except _DECODER_ERRORS as error:
        raise ImageError("unreadable", f"cannot read the image: {error}") from error
    if orientation >= 5:  # a quarter turn
        width, height = height, width
    return ImageHeader(width, height, orientation, "JPEG" if image.format == "MPO" else str(image.format))


def _open(data: bytes, *, max_pixels: int) -> Image.Image:
    """Open an image without decoding it; refuse large and animated ones."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        frames = getattr(image, "n_frames", 1)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too_large", f"expected at most {max_pixels} pixels, got far more") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except _DECODER_ERRORS as error:
        raise ImageError("unreadable", f"cannot read the image: {error}") from error
    width, height = image.size
    # Beyond its own limit Pillow only warns; here that is an error, whatever the caller's limit.
    limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    if width * height > limit or max(width, height) > MAX_SIDE:
        raise ImageError(
            "too_large",
            f"expected at most {limit} pixels and {MAX_SIDE} a side, got {width} x {height}",
        )
    # Phones write a second image (a preview, a gain map) into a JPEG: the first one is the photo.
    if frames > 1 and image.format != "MPO":
        raise ImageError("unsupported", f"expected a still image, got an animation of {frames} frames")
    return image


def _unidentified(data: bytes) -> ImageError:
    known = data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    if known or not data:
        return ImageError("unreadable", "cannot read the image: its header is damaged or incomplete")
    return ImageError("unsupported", "expected a JPEG, PNG or WebP image, got something else")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 where there is none or the EXIF block is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn_upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    if orientation == 1:
        return pixels
    image = Image.fromarray(pixels)  # without the file's other EXIF data, which may be damaged
    image.getexif()[_ORIENTATION_TAG] = orientation
    return np.array(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[int, int] | None]:
    if image.mode.startswith("I"):
        return _sixteen_bits_to_rgb(image)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB"), None
    return image if image.mode == "RGB" else image.convert("RGB"), None


def _sixteen_bits_to_rgb(image: Image.Image) -> tuple[Image.Image, tuple[int, int] | None]:
    """Scale 16-bit gray; Pillow's own conversion clips at 255 instead."""
    values = np.clip(np.asarray(image), 0, _MAX_GRAY).astype(np.uint32)
    low, high = int(values.min()), int(values.max())
    # Cameras and scanners of 10, 12 or 14 bits write their values as they are, which would be nearly black.
    scaled = low < high <= _MAX_GRAY // 4
    if not scaled:
        low, high = 0, _MAX_GRAY
    gray = ((values - low) * 255 + (high - low) // 2) // (high - low)
    return Image.fromarray(gray.astype(np.uint8)).convert("RGB"), (low, high) if scaled else None
