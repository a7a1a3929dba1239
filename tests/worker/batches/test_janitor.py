"""Janitors that die in the middle of a batch, or are two: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.local.supervisor import Child
from tests.helpers.batch_zips import accepted, ended, items, janitor, many, packed, runs
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api, wait_for
from worker.batches.records import BatchRecord, batch_key
from worker.batches.scheduler import Feeder

PHOTOS = 80


@pytest.fixture
def api(place: Place, worker: WorkerProcess) -> Iterator[httpx.Client]:
    """With so few places that a batch takes many turns."""
    del worker
    with http_api(place, max_queue=30) as client:
        yield client
    wait_for(lambda: place.leftovers() == NOTHING, what="an empty queue")


def left(api: httpx.Client, path: str) -> int:
    """Photos that are not done."""
    counts = api.get(path).json()["counts"]
    return int(counts["total"] - counts["finished"])


def kill(child: Child) -> None:
    os.kill(child.pid, signal.SIGKILL)
    wait_for(lambda: child.exit_code is not None)


def each_is_done_once(api: httpx.Client, place: Place, path: str) -> None:
    document = ended(api, path)
    assert (document["status"], document["counts"]["finished"]) == ("finished", PHOTOS)
    found = items(api, path)
    assert [each["number"] for each in found] == list(range(1, PHOTOS + 1))
    assert len({each["job"] for each in found}) == PHOTOS
    assert {runs(place, each["job"]) for each in found} == {1}


def test_trouble_with_one_batch_is_not_the_others(
    api: httpx.Client, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    class Troubled(Feeder):
        def _look_after(self, record: BatchRecord, *given: Any, **named: Any) -> None:
            if record.id in bad:
                raise KeyError("nobody has thought of it")
            super()._look_after(record, *given, **named)

    bad, good = accepted(api, packed(many(1))), accepted(api, packed(many(1)))
    Troubled(place.redis, place.blobs).round()
    assert [api.get(path).json()["counts"]["waiting"] for path in (bad, good)] == [1, 0]
    assert "is left alone in this turn" in caplog.text
    with janitor(place):
        assert [ended(api, path)["counts"]["finished"] for path in (bad, good)] == [1, 1]


def test_killed_again_and_again(api: httpx.Client, place: Place) -> None:
    path = accepted(api, packed(many(PHOTOS)))
    kills = 0
    while kills < 2:
        before = left(api, path)
        with janitor(place) as child:
            wait_for(lambda before=before: left(api, path) < before, what="a step")  # type: ignore[misc]
            kill(child)
        kills += 1
    assert left(api, path) > 0
    with janitor(place):
        each_is_done_once(api, place, path)


def test_two_at_once(api: httpx.Client, place: Place) -> None:
    path = accepted(api, packed(many(PHOTOS)))
    with janitor(place), janitor(place) as second:
        wait_for(lambda: left(api, path) < PHOTOS, what="a step")
        kill(second)
        each_is_done_once(api, place, path)


def test_without_one_a_batch_waits(api: httpx.Client, place: Place) -> None:
    path = accepted(api, packed(many(1)))
    assert api.get(path).json()["status"] == "queued"
    key = batch_key(path.rpartition("/")[2])
    assert place.redis.ttl(key) > 0
    assert place.redis.ttl(f"{key}:items") > 0
    with janitor(place):
        ended(api, path)
    assert 0 < place.redis.ttl(key) <= 24 * 3600
