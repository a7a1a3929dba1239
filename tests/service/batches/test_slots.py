"""Slots bound the zips on the disk, however slow their clients are, and nothing is left there for ever."""

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import StreamingResponse

from service.batches.service import BatchService
from service.batches.slots import ABANDONED_SECONDS, TEMP_PREFIX, UploadSlots, _delete_abandoned
from tests.helpers.batches import accepted, finish, many, packed, post
from tests.helpers.posting import post as post_image
from tests.helpers.service_fixtures import Place, http_api, wait_for
from worker.batches.scheduler import BatchScheduler

BEGUN = (
    b"POST /batches HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=X\r\n"
    b"Content-Length: 100000\r\n\r\n--X\r\n"
)
LARGE = 500_000_000  # bytes, more than lies in a connection that nobody reads

pytestmark = pytest.mark.usefixtures("announced")


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[httpx.Client]:
    with http_api(place, max_zips=1) as client:
        yield client


@pytest.fixture
def ended(api: httpx.Client, place: Place, scheduler: BatchScheduler) -> str:
    """A batch that has ended."""
    path = accepted(api, packed(many(1)))
    scheduler.dispatch()
    finish(place, place.jobs.batch.get_job_ids()[0])
    scheduler.dispatch()
    return path


def is_refused(answer: httpx.Response) -> bool:
    if answer.status_code != 503:
        return False
    assert answer.json()["type"] == "/problems/too-many-zips"
    assert int(answer.headers["Retry-After"]) > 0
    return True


def test_one_zip_is_received_at_a_time(api: httpx.Client) -> None:
    archive = packed(many(1))
    line = socket.create_connection((api.base_url.host, api.base_url.port or 0), 30)
    with line:
        line.sendall(BEGUN)
        wait_for(lambda: is_refused(post(api, b"PK")), what="a used slot")
        assert api.get("/models").status_code == 200
        alone = post_image(api, b"none")
        assert alone.status_code == 415  # single images have no part in it
    wait_for(lambda: post(api, archive).status_code == 202, what="a slot")


def test_one_archive_is_sent_at_a_time(api: httpx.Client, ended: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(size: int) -> Any:
        file = tempfile.TemporaryFile()  # noqa: SIM115
        file.truncate(size)
        return file

    path, file = f"{ended}/archive.zip", zeros(LARGE)
    monkeypatch.setattr(BatchService, "pack", lambda *_: file)
    with api.stream("GET", path) as slow:
        assert slow.headers["Content-Length"] == str(LARGE)
        assert is_refused(api.get(path))
        assert accepted(api, packed(many(1)))  # uploads have slots of their own
    monkeypatch.setattr(BatchService, "pack", lambda *_: zeros(10))
    wait_for(lambda: api.get(path).status_code == 200, what="a slot")
    assert file.closed


def test_one_client_has_half_of_the_slots(place: Place) -> None:
    archive = packed(many(1))
    with http_api(place, max_zips=2, trusted_proxies="127.0.0.1") as api:
        host, port = api.base_url.host, api.base_url.port or 0
        with socket.create_connection((host, port), 30) as line:
            line.sendall(BEGUN.replace(b"Host: x", b"Host: x\r\nX-Forwarded-For: 203.0.113.1"))
            api.headers["X-Forwarded-For"] = "203.0.113.1"
            wait_for(lambda: is_refused(post(api, b"PK")), what="a used slot")
            api.headers["X-Forwarded-For"] = "203.0.113.2"
            assert post(api, archive).status_code == 202


def test_a_client_that_reads_nothing_loses_its_slot(caplog: pytest.LogCaptureFixture) -> None:
    async def never(_: Any = None) -> Any:
        await asyncio.Event().wait()

    async def zeros() -> Any:
        while True:
            yield bytes(100)

    slots = UploadSlots(StreamingResponse(zeros()), slots=1, stall=0.05)
    scope = {"type": "http", "method": "GET", "path": "/batches/x/archive.zip"}
    for _ in range(2):  # the second has the slot of the first
        asyncio.run(slots({**scope, "asgi": {"spec_version": "2.4"}}, never, never))
    assert caplog.text.count("the client read nothing for 0.05 s") == 2


def test_what_a_dead_process_left_is_deleted(tmp_path: Path) -> None:
    left, new, other = (tmp_path / name for name in (f"{TEMP_PREFIX}left", f"{TEMP_PREFIX}new", "mine"))
    then = time.time() - ABANDONED_SECONDS - 60
    for folder in (left, new, other):
        folder.mkdir()
        (folder / "a.jpg").write_bytes(b"photo")
    for folder in (left, other):
        os.utime(folder, (then, then))
    _delete_abandoned(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, other])
