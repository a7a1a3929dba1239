"""When a part is away or full: a 503 that says when to come back, and no harm done."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.local import redis_server
from service.local.supervisor import Child
from tests.helpers.full_disk import FullDisk, files_below
from tests.helpers.s3_server import answering, aws_environment, nobody, refusal, silent
from tests.helpers.service_fixtures import (
    NOTHING,
    Place,
    WorkerProcess,
    http_api,
    png,
    valkey,
    wait_for,
)
from worker.storage import BlobStore, Patience


def post(api: httpx.Client, *, color: int = 0, query: str = "") -> httpx.Response:
    return api.post(
        f"/pseudo-mask{query}", files={"image": png(color=(color, 0, 0))}, data={"labels": "cat"}
    )


def assert_outage(response: httpx.Response, name: str) -> None:
    assert response.status_code == 503
    assert response.json()["type"] == f"/problems/{name}"
    assert int(response.headers["Retry-After"]) > 0
    assert response.headers["content-type"] == "application/problem+json"


@pytest.fixture
def calm(place: Place) -> Iterator[Place]:
    """A place with an announced model and an idle queue, whose worker is gone."""
    worker = WorkerProcess(place)
    worker.start()
    worker.stop()
    yield place
    place.redis.flushdb()


def test_no_model_was_ever_announced(place: Place, api: httpx.Client) -> None:
    place.redis.flushdb()
    assert_outage(post(api), "not-ready")
    assert_outage(api.get("/ready"), "not-ready")
    assert api.get("/models").json() == {
        "default": None,
        "default_segment": None,
        "models": [],
    }


def test_the_queue_is_full(calm: Place) -> None:
    with http_api(calm, max_queue=2) as api:
        assert [post(api, color=number).status_code for number in (1, 2)] == [202, 202]
        uploads = calm.blobs.keys("uploads")
        assert_outage(post(api, color=3), "queue-full")
        assert calm.blobs.keys("uploads") == uploads
        # What is there already needs no place.
        assert post(api, color=1).status_code == 202


def test_the_disk_is_full(calm: Place, tmp_path: Path) -> None:
    full = Place(calm.data, calm.url, calm.redis, BlobStore(FullDisk(), str(tmp_path)))
    with http_api(full) as api:
        assert_outage(post(api), "storage-full")
    assert files_below(tmp_path) == []
    assert calm.leftovers() == NOTHING
    assert calm.redis.keys("rq:job:*") == []


def test_the_disk_is_broken(calm: Place, tmp_path: Path) -> None:
    disk = FullDisk()
    disk.error = errno.EIO
    broken = Place(calm.data, calm.url, calm.redis, BlobStore(disk, str(tmp_path)))
    with http_api(broken) as api:
        assert_outage(post(api), "storage-unavailable")
    assert calm.leftovers() == NOTHING


@pytest.mark.parametrize(
    ("outage", "problem"),
    [
        (lambda: answering(refusal(507, "XMinioStorageFull")), "storage-full"),
        (lambda: answering(refusal(403, "AccessDenied")), "storage-unavailable"),
        (nobody, "storage-unavailable"),
        (silent, "storage-unavailable"),
    ],
    ids=["full", "denied", "away", "hangs"],
)
def test_s3_fails(
    calm: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    outage: Callable[[], AbstractContextManager[str]],
    problem: str,
) -> None:
    with outage() as endpoint:
        for name, value in aws_environment(endpoint, tmp_path).items():
            monkeypatch.setenv(name, value)
        store = BlobStore.open("s3://blobs", patience=Patience(read=0.5, attempts=1))
        with http_api(Place(calm.data, calm.url, calm.redis, store)) as api:
            assert_outage(post(api), problem)
    assert calm.leftovers() == NOTHING
    assert calm.redis.keys("rq:job:*") == []


def test_redis_goes_away_and_comes_back_with_all_jobs(tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    with valkey(data) as place:
        worker = WorkerProcess(place)
        worker.start()
        worker.stop()
        with http_api(place) as api:
            location = post(api).headers["Location"]
            place.redis.shutdown(nosave=True)
            for response in (post(api), api.get(location), api.get("/ready"), api.get("/models")):
                assert_outage(response, "queue-unreachable")
            assert api.get("/health").status_code == 200
            with again(data, place):
                assert api.get(location).json()["status"] == "queued"
                worker.start()
                wait_for(lambda: api.get(location).json()["status"] == "finished")
                assert worker.stop() == 0
                assert place.leftovers() == NOTHING


class again:  # noqa: N801 - reads as a statement
    """The same data directory's server, started once more."""

    def __init__(self, data: Path, place: Place) -> None:
        path = redis_server.socket_path(data)
        self.child = Child(redis_server.server_command(data, path, log=data / "redis.log"))
        wait_for(lambda: redis_server.answers(path), what="valkey")
        place.redis.ping()

    def __enter__(self) -> None:
        """Nothing more to do."""

    def __exit__(self, *_: Any) -> None:
        """Stop it."""
        self.child.ask_to_stop()
        self.child.wait()


def test_a_wait_ends_with_redis(tmp_path: Path) -> None:
    with valkey(tmp_path) as place:
        worker = WorkerProcess(place)
        worker.start()
        worker.stop()
        with http_api(place) as api:
            # Nobody works: the wait is over before the job is done.
            assert post(api, query="?wait=0.5").status_code == 202
            with http_api(place, max_waiting=0) as busy:
                # No place to wait: answered at once.
                assert post(busy, query="?wait=60").status_code == 202
