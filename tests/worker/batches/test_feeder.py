"""The feeder round by round, with no worker beside it: how much it hands out, and what it may find half done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.helpers.batch_zips import accepted, items, many, packed, photo, rows
from tests.helpers.feeding import batch_of, counts, finish
from tests.helpers.service_fixtures import Place, http_api, png
from worker.batches import scheduler as feeder_module
from worker.batches.records import TURN_KEY
from worker.batches.scheduler import Feeder
from worker.batches.store import move
from worker.queue.jobs import MEMORY_SHARE
from worker.queue.rq import JobQueue, fetch_job

pytestmark = pytest.mark.usefixtures("announced")


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[httpx.Client]:
    with http_api(place, max_queue=20) as client:
        yield client


def test_half_of_the_queue_is_left_to_others(
    api: httpx.Client, place: Place, feeder: Feeder
) -> None:
    path = accepted(api, packed(many(30)))
    for _ in range(2):
        feeder.round()
        assert (place.queue.count, counts(api, path)["queued"]) == (10, 10)
    for _ in range(10):
        alone = api.post("/pseudo-mask", files={"image": photo()}, data={"labels": "cat"})
        assert alone.status_code == 202
    assert (
        api.post("/pseudo-mask", files={"image": photo()}, data={"labels": "cat"}).status_code
        == 503
    )
    for each in place.queue.get_job_ids()[:5]:
        finish(place, each)
    feeder.round()
    assert place.queue.count == 15  # no place is taken while others wait in it
    assert counts(api, path)["finished"] == 5
    assert counts(api, path)["waiting"] == 20


def test_batches_share(api: httpx.Client, feeder: Feeder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder_module, "LEAST_AHEAD", 4)
    paths = [accepted(api, packed(many(9))) for _ in range(2)]
    feeder.round()
    assert [counts(api, path)["queued"] for path in paths] == [2, 2]


def test_faster_workers_get_more(
    api: httpx.Client, place: Place, feeder: Feeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder_module, "LEAST_AHEAD", 2)
    monkeypatch.setattr(JobQueue, "ended_lately", lambda *_, **__: 30)  # in a minute
    path = accepted(api, packed(many(9)))
    feeder.round()
    assert counts(api, path)["queued"] == place.queue.count == 5


def test_a_full_redis_is_not_filled_up(api: httpx.Client, place: Place, feeder: Feeder) -> None:
    path = accepted(api, packed(many(1)))
    place.redis.set("ballast", b"0" * 80_000_000)
    used = place.redis.info("memory")["used_memory"]
    place.redis.config_set("maxmemory", int(used / (MEMORY_SHARE + 0.1)))
    try:
        feeder.round()
        assert counts(api, path)["waiting"] == 1
        place.redis.delete("ballast")
        feeder.round()
        assert counts(api, path)["queued"] == 1
    finally:
        place.redis.config_set("maxmemory", 0)


def test_what_was_queued_and_not_noted_is_found(
    api: httpx.Client, place: Place, feeder: Feeder
) -> None:
    path = accepted(api, packed(many(3)))
    feeder.round()
    jobs = [each["job"] for each in items(api, path)]
    for number in (1, 2):
        move(place.redis, batch_of(path), number, ("queued", "waiting"), None)
    finish(place, jobs[0])
    feeder.round()
    feeder.round()
    assert [each["job"] for each in items(api, path)] == jobs
    assert [each["status"] for each in items(api, path)] == ["finished", "queued", "queued"]
    assert place.queue.count == 2


def test_jobs_that_are_gone_run_again(api: httpx.Client, place: Place, feeder: Feeder) -> None:
    path = accepted(api, packed(many(2)))
    feeder.round()
    first, second = [each["job"] for each in items(api, path)]
    fetch_job(place.redis, first).delete()  # type: ignore[union-attr]
    finish(place, second)
    place.redis.delete(f"rq:results:{second}")  # it has expired
    assert place.queue.count == 0
    feeder.round()
    assert sorted(place.queue.get_job_ids()) == sorted([first, second])
    assert counts(api, path)["queued"] == 2


def test_somebody_elses_turn(api: httpx.Client, place: Place, feeder: Feeder) -> None:
    path = accepted(api, packed(many(2)))
    place.redis.set(TURN_KEY, "another's", px=60_000)
    feeder.round()
    assert counts(api, path)["waiting"] == 2
    place.redis.delete(TURN_KEY)

    def taken_over(*_: Any, **__: Any) -> None:
        place.redis.set(TURN_KEY, "another's", px=60_000)

    feeder._zips.close_others = taken_over  # type: ignore[method-assign]
    feeder.round()
    assert counts(api, path)["queued"] == 1  # it stops at the first sign
    assert place.redis.get(TURN_KEY) == b"another's"


def test_a_canceled_job_is_a_canceled_photo(api: httpx.Client, feeder: Feeder) -> None:
    path = accepted(api, packed(many(1)))
    feeder.round()
    [item] = items(api, path)
    api.delete(f"/jobs/{item['job']}")
    feeder.round()
    document = api.get(path).json()
    assert (document["status"], document["counts"]["canceled"]) == ("finished", 1)


def test_a_lost_zip_fails_photos_until_it_is_posted_again(
    api: httpx.Client, place: Place, feeder: Feeder
) -> None:
    archive = packed(many(2))
    path = accepted(api, archive)
    place.blobs.delete(place.blobs.keys("archives")[0])
    feeder.round()
    assert {each["problem"]["code"] for each in items(api, path)} == {"input_missing"}
    assert api.get(path).json()["status"] == "finished"
    assert accepted(api, archive) == path
    feeder.round()
    assert counts(api, path)["queued"] == 2


def test_a_photo_that_cannot_be_unpacked(api: httpx.Client, feeder: Feeder) -> None:
    data = bytearray(
        packed(
            {"labels.csv": rows({"a.png": "cat", "b.png": "cat"}), "a.png": png(), "b.png": photo()}
        )
    )
    at = data.find(b"a.png", data.find(b"PK\x03\x04", 10)) + len("a.png") + 10
    data[at : at + 20] = bytes(20)
    path = accepted(api, bytes(data))
    feeder.round()
    first, second = items(api, path)
    assert first["problem"]["detail"] == "damaged in the zip: unpacking fails"
    assert second["status"] == "queued"
