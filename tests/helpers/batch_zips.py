"""Zips of photos for tests of batches, whole and broken, and what follows a batch."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from rq.results import Result

from service.local.supervisor import Child, Command
from tests.helpers.service_fixtures import LEASE, NOTHING, Place, WorkerProcess, png, wait_for

COLORS = iter((red, green, 7) for red in range(256) for green in range(256))


def photo(**size: int) -> bytes:
    """A photo that no job is about yet."""
    return png(color=next(COLORS), **size)


def packed(files: Mapping[str, bytes | str], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip, the same for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def rows(labels: Mapping[str, str]) -> str:
    """A labels.csv."""
    return "image,labels\n" + "".join(f"{image},{said}\n" for image, said in labels.items())


def many(number: int, label: str = "cat") -> dict[str, bytes | str]:
    """Photos 0.png, 1.png and so on, all labeled alike."""
    photos = {f"{n}.png": photo() for n in range(number)}
    return {"labels.csv": rows(dict.fromkeys(photos, label)), **photos}


def post(api: httpx.Client, archive: bytes, **options: Any) -> httpx.Response:
    return api.post("/batches", files={"archive": ("photos.zip", archive)}, data=options)


def accepted(api: httpx.Client, archive: bytes, **options: Any) -> str:
    """Post a zip that will do; its batch's path."""
    answer = post(api, archive, **options)
    assert answer.status_code == 202, answer.text
    location = answer.headers["Location"]
    assert location == answer.json()["links"]["self"]
    return str(location)


def ended(api: httpx.Client, path: str, *, seconds: float = 60) -> dict[str, Any]:
    """A batch once it has ended."""
    wait_for(
        lambda: api.get(path).json()["status"] in ("finished", "canceled"),
        seconds=seconds,
        what="the end of the batch",
    )
    document: dict[str, Any] = api.get(path).json()
    assert document["counts"]["total"] == sum(
        each for name, each in document["counts"].items() if name != "total"
    )
    return document


def items(api: httpx.Client, path: str, **query: Any) -> list[dict[str, Any]]:
    """All of a batch's items, page by page."""
    found: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = api.get(f"{path}/items", params={"after": after, **query}).json()
        found += page["items"]
        after = page["next"]
    return found


def runs(place: Place, job_id: str) -> int:
    """How often a job has come to an end with a result."""
    return int(place.redis.xlen(Result.get_key(job_id)))


@contextmanager
def janitor(place: Place) -> Iterator[Child]:
    """A janitor, which feeds batches to the queue."""
    arguments = [
        *(sys.executable, "-m", "worker", "janitor", "--interval", "0.2", "--lease", str(LEASE)),
        *("--redis-url", place.url, "--blobs", str(place.data / "blobs")),
    ]
    child = Child(Command("janitor", arguments, log=place.data / "janitor.log", grace=30))
    try:
        yield child
    finally:
        child.ask_to_stop()
        child.wait()


@pytest.fixture(scope="module")
def feeding(place: Place) -> Iterator[Child]:
    with janitor(place) as child:
        yield child


@pytest.fixture
def nothing_left_behind(place: Place, worker: WorkerProcess, feeding: Child) -> Iterator[None]:
    del worker, feeding
    yield
    wait_for(lambda: place.leftovers() == NOTHING, what="an empty queue")
