"""Labeled photos as JPEG files in memory, each as often as wanted and never the same bytes twice."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.demo import LABELS, PHOTOS
from models.data.labels import read_label_rows

_START = b"\xff\xd8"
_COMMENT = b"\xff\xfe"


@dataclass(frozen=True)
class LabeledPhoto:
    """A JPEG file's bytes and the names of the classes that it shows."""

    data: bytes
    labels: tuple[str, ...]

    def copy(self, number: int) -> bytes:
        """Return the photo with a number in a JPEG comment: to the service another upload, to a decoder the same.

        A service that knows uploads by their content answers none of these from memory, and neither the client nor the
        decoder has more work than with the photo itself.
        """
        text = b"%016d" % number
        segment = _COMMENT + (len(text) + 2).to_bytes(2, "big") + text
        return _START + segment + self.data.removeprefix(_START)


def read_photos(data: Path | None) -> list[LabeledPhoto]:
    """Return the labeled photos of a folder with ``images`` and ``labels.csv``, or those of the demo.

    Raises:
        OSError: if they cannot be read.
        ValueError: if there are none.
    """
    if data is None:
        return [_read(PHOTOS / f"{stem}.jpg", labels) for stem, labels in LABELS.items()]
    rows = read_label_rows(data / "labels.csv")
    photos = [_read(data / "images" / name, labels) for name, labels in rows.items() if labels]
    if not photos:
        raise ValueError(f"expected labeled photos in {data}, got none")
    return photos


def tiny_photo(*labels: str) -> LabeledPhoto:
    """Return a photo that costs next to nothing to decode."""
    return LabeledPhoto(_jpeg(Image.new("RGB", (32, 24), (200, 30, 30))), labels)


def _read(path: Path, labels: Sequence[str]) -> LabeledPhoto:
    data = path.read_bytes()
    if not data.startswith(_START):
        data = _jpeg(Image.open(io.BytesIO(data)).convert("RGB"))
    return LabeledPhoto(data, tuple(labels))


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
