"""Batches of the service, as the client sees them: a zip goes in, a zip comes out."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from service.client import AsyncClient, Client, InvalidRequest, Unavailable
from tests.helpers.client_fixtures import Script, problem

ID = "b" * 32
ITEMS = [
    {"number": number, "image": f"{number}.png", "labels": ["cat"], "status": status, "job": None, "problem": None}
    for number, status in enumerate(["finished", "failed", "finished", "finished", "failed"])
]  # fmt: skip


class Batches:
    """The calls of the contract, with a batch that gets ahead whenever it is looked at."""

    def __init__(self) -> None:
        self.uploads: list[bytes] = []
        self.done = 0
        self.there = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix(f"/batches/{ID}")
        if request.method == "POST" and path == "/batches":
            self.uploads.append(request.read())
            self.there = True
            return httpx.Response(202, json=self._batch(), headers={"Location": f"/batches/{ID}"})
        if request.method == "DELETE":
            self.there = False
            return httpx.Response(204)
        if not self.there:
            return problem(404, "unknown-batch", "no such batch")
        parts = {
            "": self._look,
            "/items": self._items,
            "/report": self._report,
            "/archive.zip": self._archive,
        }
        return parts[path](request.url.params)

    def _look(self, _: httpx.QueryParams) -> httpx.Response:
        self.done = min(5, self.done + 2)
        return httpx.Response(200, json=self._batch())

    def _report(self, _: httpx.QueryParams) -> httpx.Response:
        return httpx.Response(200, json={"photos": 5})

    def _batch(self) -> dict[str, Any]:
        status = "finished" if self.done == 5 else "running" if self.done else "queued"
        counts = {"total": 5, "waiting": 5 - self.done, "finished": self.done}
        return {"id": ID, "status": status, "counts": counts, "model": "double", "links": {}}

    def _items(self, params: httpx.QueryParams) -> httpx.Response:
        after = int(params.get("after", -1))
        wanted = params.get("status")
        rest = [
            each for each in ITEMS if each["number"] > after and wanted in (None, each["status"])
        ]
        more = rest[1]["number"] if len(rest) > 2 else None
        return httpx.Response(200, json={"items": rest[:2], "next": more})

    def _archive(self, params: httpx.QueryParams) -> httpx.Response:
        if self.done < 5:
            return problem(409, "batch-not-ready", "the batch is running")
        return httpx.Response(200, content=b"PK" + params["format"].encode())


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("labels.csv", "image,labels\na.png,cat\n")
    return path


def script() -> Script:
    """An outage first, so that what is sent must be sent again."""
    return Script(httpx.WriteError("cut"), then=Batches())


def batches(script: Script) -> Batches:
    assert isinstance(script.then, Batches)
    return script.then


@pytest.fixture
def service() -> Script:
    return script()


@pytest.fixture
def client(service: Script) -> Iterator[Client]:
    with Client("http://host", transport=service, sleep=lambda _: None) as client:
        yield client


def test_from_zip_to_zip(client: Client, service: Script, archive: Path, tmp_path: Path) -> None:
    batch = client.submit_batch(archive, refine="none", background_threshold=0.5, model=None)
    assert (batch.id, batch.status, batch.ended) == (ID, "queued", False)
    assert batch.counts == {"total": 5, "waiting": 5, "finished": 0}
    [body] = batches(service).uploads
    assert archive.read_bytes() in body
    assert b'name="archive"' in body
    assert b'name="background_threshold"\r\n\r\n0.5' in body
    assert b'name="model"' not in body
    early = tmp_path / "early.zip"
    with pytest.raises(InvalidRequest, match="the batch is running"):
        client.save_archive(batch.id, early)
    assert client.batch_status(batch.id).status == "running"
    ended = client.wait_for_batch(batch.id)
    assert (ended.status, ended.counts["finished"]) == ("finished", 5)
    assert [each["number"] for each in client.batch_items(ID)] == [0, 1, 2, 3, 4]
    assert [each["number"] for each in client.batch_items(ID, status="failed")] == [1, 4]
    assert client.batch_report(ID) == {"photos": 5}
    target = client.save_archive(ID, tmp_path / "new" / "masks.zip", format="coco")
    assert target.read_bytes() == b"PKcoco"
    assert {path.name for path in tmp_path.iterdir()} == {"photos.zip", "new"}
    client.cancel_batch(ID)
    with pytest.raises(Exception, match="no such batch"):
        client.batch_status(ID)


def test_awaited(archive: Path, tmp_path: Path) -> None:
    async def no_time(seconds: float) -> None:
        assert seconds > 0

    async def run() -> None:
        async with AsyncClient("http://host", transport=script(), sleep=no_time) as client:
            batch = await client.submit_batch(archive)
            assert (await client.wait_for_batch(batch.id)).ended
            assert (await client.batch_status(batch.id)).ended
            items = [each["number"] async for each in client.batch_items(ID)]
            assert items == [0, 1, 2, 3, 4]
            assert await client.batch_report(ID) == {"photos": 5}
            target = await client.save_archive(ID, tmp_path / "masks.zip")
            assert target.read_bytes() == b"PKvoc"
            await client.cancel_batch(ID)

    anyio.run(run)


def test_half_a_download_is_none(tmp_path: Path) -> None:
    """Cut off it begins anew; where it never comes whole, what was there stays."""

    def half() -> Iterator[bytes]:
        yield b"PK, and then"
        raise httpx.ReadError("cut")

    target = tmp_path / "masks.zip"
    target.write_bytes(b"from before")
    answers = [httpx.Response(200, content=half()) for _ in range(4)]
    broken = Script(*answers[:2], httpx.Response(200, content=b"PK"), *answers[2:])
    with Client("http://host", transport=broken, retries=2, sleep=lambda _: None) as client:
        client.save_archive(ID, target)
        assert target.read_bytes() == b"PK"
    broken = Script(*answers[2:])
    with (
        Client("http://host", transport=broken, retries=1, sleep=lambda _: None) as client,
        pytest.raises(Unavailable, match="cut"),
    ):
        client.save_archive(ID, target)
    assert target.read_bytes() == b"PK"
    assert list(tmp_path.iterdir()) == [target]


def test_no_zip(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.submit_batch(tmp_path / "none.zip")
    with pytest.raises(TypeError, match="got 'labels'"):
        client.submit_batch(tmp_path / "none.zip", labels="cat")  # type: ignore[call-arg]
