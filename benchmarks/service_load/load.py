"""Posts photos over HTTP, so many at a time, and takes the time of each answer.

Threads with a connection each that stays open, and ``http.client``: the client shares the machine with what it loads,
so it must be light. Its own CPU time is part of what it reports.
"""

from __future__ import annotations

import http.client
import io
import itertools
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from benchmarks.demo import LABELS, PHOTOS
from benchmarks.service_load.figures import Load
from models.data.labels import read_label_rows

# Labeled photos as JPEG files in memory, each as often as wanted and never the same bytes twice.

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


ANSWER_SECONDS = 90.0
_PNG = b"\x89PNG"
_BOUNDARY = uuid.uuid4().hex
FORM = f"multipart/form-data; boundary={_BOUNDARY}"
"""The content type of a ``form``."""


@dataclass(frozen=True)
class Target:
    """Where photos are posted to, on this machine; the answer to each is to be its mask, a PNG.

    Attributes:
        port: of 127.0.0.1.
        path: with the query.
        fields: of the form, besides ``image`` and ``labels``.
    """

    port: int
    path: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bounds:
    """A measurement ends at the first of the two: so many requests begun, or so many seconds gone."""

    requests: int
    seconds: float


def press(
    target: Target,
    photos: Sequence[LabeledPhoto],
    *,
    concurrency: int,
    bounds: Bounds,
    numbers: Iterator[int],
) -> Load:
    """Post photos one after the other, from the first on, with so many requests under way at any time.

    Args:
        target: where to.
        photos: posted again from the first when all were.
        concurrency: requests under way.
        bounds: when to begin no more.
        numbers: of copies, see ``LabeledPhoto.copy``; no target must see one twice.
    """
    turns = itertools.count()  # one step of it is atomic, as of ``numbers``
    seconds: list[float] = []
    errors: list[str] = []
    started, cpu = time.perf_counter(), time.process_time()

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=ANSWER_SECONDS)
        while (turn := next(turns)) < bounds.requests and time.perf_counter() - started < bounds.seconds:
            photo = photos[turn % len(photos)]
            body = form(photo.copy(next(numbers)), photo.labels, target.fields)
            posted = time.perf_counter()
            error = _post(connection, target.path, body)
            taken = time.perf_counter() - posted
            if error:
                errors.append(error)
                connection.close()  # the next request opens it again
            else:
                seconds.append(taken)
        connection.close()

    # Daemons, so that Ctrl-C ends the program and not the requests first.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - started
    return Load(tuple(seconds), wall, time.process_time() - cpu, tuple(errors))


def form(image: bytes, labels: Sequence[str], fields: Mapping[str, str]) -> bytes:
    """Return a multipart body of an image, its labels and other fields."""
    values = {"labels": ",".join(labels), **fields}
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in values.items()
    ]
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    return b"".join([*parts, head.encode(), image, f"\r\n--{_BOUNDARY}--\r\n".encode()])


def _post(connection: http.client.HTTPConnection, path: str, body: bytes) -> str:
    """Post a body and read the answer; return what is wrong with it, nothing if it is a mask."""
    try:
        connection.request("POST", path, body, {"Content-Type": FORM, "Accept": "image/png"})
        answer = connection.getresponse()
        content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    if answer.status != http.HTTPStatus.OK or not content.startswith(_PNG):
        return f"expected a PNG, got {answer.status} {content[:200]!r}"
    return ""
