"""The requests that a client makes, as values: nothing is sent here."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, get_type_hints
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

ImageLike = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A photo: the path or the bytes of a JPEG, PNG or WebP, a Pillow image, or pixels, (H, W, 3) RGB or (H, W) gray."""

UNPACK_SECONDS: Final = 600.0
"""How long a service may look at a zip before it answers."""

_PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


class SegmentOptions(TypedDict, total=False):
    """How an image is segmented; what is left out or None is the model's default.

    ``model`` is a name of ``models()``, ``refine`` a chain such as ``"random_walk+pamr"``; pixels less sure than
    ``min_confidence`` become 255.
    """

    model: str | None
    refine: str | None
    min_confidence: float | None


class Thresholds(TypedDict, total=False):
    """How scores become a mask; the background's score is the threshold, or (1 - best score)^power."""

    background_threshold: float | None
    background_power: float | None
    min_confidence: float | None


class PseudoMaskOptions(SegmentOptions, total=False):
    """How a pseudo mask is made; as SegmentOptions, with the background's score of Thresholds."""

    background_threshold: float | None
    background_power: float | None


class PhotoOptions(PseudoMaskOptions, total=False):
    """How one photo's pseudo mask is made; ``vocabulary`` "open" takes labels that the model was not trained on."""

    vocabulary: Literal["closed", "open"] | None


@dataclass(frozen=True)
class Call:
    """A request.

    Attributes:
        method, path: of it; the path is below the service's URL.
        query: None and what is left out are the same.
        form: fields; None and what is left out are the same.
        file: the form's field that is a file: its name, and the file's bytes or where it is.
        headers: of this request alone.
        patience: seconds that the service may stay silent beyond what a client bears otherwise.
    """

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    form: Mapping[str, Any] = field(default_factory=dict)
    file: tuple[str, bytes | Path] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    patience: float = 0.0

    @contextmanager
    def request(
        self, http: httpx.Client | httpx.AsyncClient, timeout: float
    ) -> Iterator[httpx.Request]:
        """Build the request that a client is to send; a file is open as long as this lasts.

        Raises:
            OSError: if the file cannot be read.
        """
        with ExitStack() as stack:
            content: Any = None
            if self.file is not None:
                name, source = self.file
                opened = (
                    stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
                )
                content = {name: (name, opened)}
            yield http.build_request(
                self.method,
                self.path,
                params=_given(self.query) or None,
                data=_given(self.form) or None,
                files=content,
                headers=dict(self.headers),
                timeout=httpx.Timeout(timeout, read=timeout + self.patience, pool=None),
            )


def pseudo_mask_call(
    image: bytes,
    labels: str | Sequence[str],
    options: PseudoMaskOptions | PhotoOptions,
    *,
    wait: int,
) -> Call:
    """Return the post of an image with its labels.

    Args:
        image: a file's bytes.
        labels: what the image shows; one alone may be given as it is.
        options: see PseudoMaskOptions.
        wait: seconds that the service may take to answer with the finished job.

    Raises:
        TypeError: if an option has another name.
        ValueError: if there is no label.
    """
    chosen = [labels] if isinstance(labels, str) else list(labels)
    if not chosen:
        raise ValueError("expected at least one label, got none")
    form = {**checked(options, PhotoOptions), "labels": chosen}
    return _post_image("/pseudo-mask", image, form, wait=wait)


def segment_call(image: bytes, options: SegmentOptions, *, wait: int) -> Call:
    """Return the post of an image alone; see ``pseudo_mask_call``."""
    return _post_image("/segment", image, checked(options, SegmentOptions), wait=wait)


def _post_image(path: str, image: bytes, form: Mapping[str, Any], *, wait: int) -> Call:
    query = {"wait": wait or None}
    return Call("POST", path, query=query, form=form, file=("image", image), patience=wait)


def batch_call(archive: Path, options: PseudoMaskOptions) -> Call:
    """Return the post of a zip of photos and labels; raises as ``pseudo_mask_call``."""
    form = checked(options, PseudoMaskOptions)
    return Call("POST", "/batches", form=form, file=("archive", archive), patience=UNPACK_SECONDS)


def checked(options: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Return options by name; raise TypeError for a name that their kind has not, as a function's keywords would."""
    known = sorted(get_type_hints(kind))
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"expected options {', '.join(known)}, got {unknown[0]!r}")
    return dict(options)


def quoted(text: str) -> str:
    """Return an id or a name as one segment of a path.

    Raises:
        ValueError: if it cannot be one.
    """
    if text in ("", ".", ".."):
        raise ValueError(f"expected an id or a name, got {text!r}")
    return quote(text, safe="")


def image_bytes(image: ImageLike) -> bytes:
    """Return an image's file: as it is where there is one, else as a PNG.

    Pixels and Pillow images are taken as they lie in memory, so that the mask has their height and width.

    Raises:
        TypeError: if it is none of the things that are taken.
        ValueError: if an array has another shape or type than it may have.
        OSError: if the file cannot be read.
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        return _png(_picture(image))
    if isinstance(image, Image.Image):
        return _png(image)
    raise TypeError(
        f"expected a path, bytes, a Pillow image or an array, got {type(image).__name__}"
    )


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not fits or not pixels.size:
        raise ValueError(
            f"expected uint8 pixels (H, W, 3), (H, W, 4) or (H, W), got {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    fits = picture.mode in _PNG_MODES
    # Without EXIF: its orientation would turn the mask away from these pixels. Speed before size.
    (picture if fits else picture.convert("RGB")).save(buffer, "PNG", compress_level=1, exif=b"")
    return buffer.getvalue()


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
