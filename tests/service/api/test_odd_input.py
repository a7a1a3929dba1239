"""Unusual images that are right: they are worked on like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, png, wait_for
from tests.models.data import test_images as pictures

ODD_BUT_RIGHT: list[tuple[str, Callable[[], bytes], dict[str, int]]] = [
    ("1 x 1", lambda: png(width=1, height=1), {"width": 1, "height": 1, "exif_orientation": 1}),
    (
        "16-bit gray",
        pictures.sixteen_bit_gray,
        {"width": 5, "height": 1, "exif_orientation": 1},
    ),
    (
        "palette with transparency",
        lambda: pictures.palette(transparent=True),
        {"width": 2, "height": 1, "exif_orientation": 1},
    ),
    (
        "cmyk",
        lambda: pictures.encode(pictures.photo().convert("CMYK"), "JPEG"),
        {"width": 40, "height": 30, "exif_orientation": 1},
    ),
    (
        "turned by EXIF",
        lambda: pictures.encode(pictures.photo(), "JPEG", exif=turned()),
        {"width": 30, "height": 40, "exif_orientation": 6},
    ),
    (
        "a thin line",
        lambda: png(width=3000, height=1),
        {"width": 3000, "height": 1, "exif_orientation": 1},
    ),
]


def turned() -> Any:
    exif = pictures.Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("image", "record"), [row[1:] for row in ODD_BUT_RIGHT], ids=[row[0] for row in ODD_BUT_RIGHT]
)
def test_odd_but_right(
    place: Place,
    api: httpx.Client,
    worker: WorkerProcess,
    image: Callable[[], bytes],
    record: dict[str, int],
) -> None:
    del worker
    response = api.post(
        "/pseudo-mask?wait=30",
        # A wrong name and type of the part do not matter: the bytes say what it is.
        files={"image": ("x.exe", image(), "text/plain")},
        data={"labels": "cat"},
    )
    assert response.status_code == 200
    assert response.json()["status"] == "finished"
    assert response.json()["image"] == record
    wait_for(lambda: place.leftovers() == NOTHING)
