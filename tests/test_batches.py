"""A zip of photos in, masks out: real app, real Valkey, real worker, real janitor."""

from __future__ import annotations

import io
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from service.processes import Child
from tests.batch_zips import accepted, ended, items, janitor, many, packed, photo, post, rows
from tests.service_fixtures import NOTHING, Place, WorkerProcess, http_api, png, wait_for


@pytest.fixture(scope="module")
def feeding(place: Place) -> Iterator[Child]:
    with janitor(place) as child:
        yield child


@pytest.fixture(autouse=True)
def nothing_left_behind(place: Place, worker: WorkerProcess, feeding: Child) -> Iterator[None]:
    del worker, feeding
    yield
    wait_for(lambda: place.leftovers() == NOTHING, what="an empty queue")


def test_all_photos_get_masks(api: httpx.Client) -> None:
    files = {
        "labels.csv": rows({"a.png": "cat", "street/b.jpg": "bowl;kitty", "c.webp": "dining_table"}),
        "a.png": photo(),
        "street/b.jpg": photo(width=40),
        "c.webp": photo(),
        "readme.md": "not looked at",
        "__MACOSX/._a.png": b"\0",
        ".DS_Store": b"\0",
    }
    answer = post(api, packed(files))
    assert answer.status_code == 202
    first = answer.json()
    assert first["counts"]["total"] == 3
    path = first["links"]["self"]
    assert first["links"]["archive"] == f"{path}/archive.zip"
    assert first["model"] == {"name": "double", "version": "0123456789ab"}

    document = ended(api, path)
    assert document["status"] == "finished"
    assert document["counts"]["finished"] == 3
    assert document["created_at"] < document["ended_at"]
    found = items(api, path)
    assert [each["number"] for each in found] == [1, 2, 3]
    assert [each["image"] for each in found] == ["a.png", "street/b.jpg", "c.webp"]
    assert [each["labels"] for each in found] == [["cat"], ["cat", "bowl"], ["dining table"]]
    assert all(each["status"] == "finished" and each["problem"] is None for each in found)
    mask = api.get(f"/jobs/{found[1]['job']}/mask.png").content
    assert np.unique(np.asarray(Image.open(io.BytesIO(mask)))).tolist() == [0, 1, 2]
