"""The feeder round by round, with no worker beside it: how much it hands out, and what it may find half done."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from rq.job import JobStatus
from rq.results import Result

from tests.batch_zips import accepted, items, many, packed, photo, rows
from tests.service_doubles import Info
from tests.service_fixtures import Place, http_api, png
from worker import feeder as feeding
from worker.backlog import MEMORY_SHARE
from worker.batch_items import move
from worker.batch_keys import KNOWN_KEY, OPEN_KEY, TURN_KEY, blobs_key, keys_of
from worker.feeder import Feeder
from worker.presence import ModelInfo, WorkerInfo, announce
from worker.protocol import BLOB_SECONDS
from worker.queues import fetch_job
from worker.sweep import SWEEP_KEY, sweep_for_all


@pytest.fixture(autouse=True)
def announced(place: Place) -> None:
    place.redis.flushdb()
    for path in (place.data / "blobs").rglob("*/*/*"):
        path.unlink()
    model = ModelInfo.model_validate(Info().to_json())
    info = WorkerInfo(name="w", model=model.ref, device="cpu", host="h", pid=1)
    announce(place.redis, info, model, lease=60)


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[httpx.Client]:
    with http_api(place, max_queue=20) as client:
        yield client


@pytest.fixture
def feeder(place: Place) -> Feeder:
    return Feeder(place.redis, place.blobs)


def counts(api: httpx.Client, path: str) -> dict[str, int]:
    return dict(api.get(path).json()["counts"])


def batch_of(path: str) -> str:
    return path.rpartition("/")[2]


def sweep(place: Place) -> None:
    place.redis.delete(SWEEP_KEY)
    life = timedelta(seconds=BLOB_SECONDS)
    sweep_for_all(place.blobs, place.redis, now=datetime.now(UTC), lifetime=life, turn=600)


def make_old(place: Place) -> None:
    then = time.time() - BLOB_SECONDS - 60
    for path in (place.data / "blobs").rglob("*"):
        os.utime(path, (then, then))


def finish(place: Place, job_id: str, *, mask: bytes = b"mask") -> str:
    """Do a worker's work on a job; the mask's key."""
    job = fetch_job(place.redis, job_id)
    assert job is not None
    request = job.args[0]
    key = place.blobs.put("results", mask)
    result = {
        "model": request["model"],
        "image": {"width": 3, "height": 2, "exif_orientation": 1},
        "labels": request["labels"],
        "options": request["options"],
        "classes": [{"index": 1, "name": "cat", "area": 0.5, "confidence": 0.9}],
        "ignored": 0.0,
        "timings": {"queue": 0, "decode": 0, "model": 0, "encode": 0},
        "blobs": {"mask": key, "scores": key},
        "worker": "w",
    }
    place.queue.remove(job_id)
    with place.redis.pipeline() as pipeline:
        job.set_status(JobStatus.FINISHED, pipeline=pipeline)
        pipeline.execute()
    Result.create(job, Result.Type.SUCCESSFUL, ttl=3600, return_value=result)
    return key


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
    monkeypatch.setattr(feeding, "LEAST_AHEAD", 4)
    paths = [accepted(api, packed(many(9))) for _ in range(2)]
    feeder.round()
    assert [counts(api, path)["queued"] for path in paths] == [2, 2]


def test_faster_workers_get_more(
    api: httpx.Client, place: Place, feeder: Feeder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "LEAST_AHEAD", 2)
    monkeypatch.setattr(feeding, "jobs_done_lately", lambda *_, **__: 30)  # in a minute
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


def test_a_canceled_batch_leaves_what_another_has_under_way(
    api: httpx.Client, place: Place, feeder: Feeder
) -> None:
    files = many(2)
    one = accepted(api, packed(files))
    two = accepted(api, packed({**files, "readme.txt": "another zip"}))
    three = accepted(api, packed(many(1)))
    feeder.round()
    assert place.queue.count == 3
    api.delete(one)
    assert place.queue.count == 3
    api.delete(three)
    assert place.queue.count == 2
    assert counts(api, two)["queued"] == 2


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


def test_what_a_batch_needs_outlives_the_sweep(
    api: httpx.Client, place: Place, feeder: Feeder
) -> None:
    path = accepted(api, packed(many(2)))
    feeder.round()
    first = items(api, path)[0]["job"]
    mask = finish(place, first)
    feeder.round()
    archive = place.blobs.keys("archives")
    make_old(place)
    sweep(place)
    assert place.blobs.keys("archives") == archive
    assert place.blobs.exists(mask)
    assert place.blobs.keys("uploads") == []  # a photo is in the zip

    # Nor does it go with its job, which somebody removes.
    api.delete(f"/jobs/{first}")
    assert place.blobs.exists(mask)

    # The batch expires; then all goes.
    place.redis.delete(*keys_of(batch_of(path)))
    make_old(place)
    sweep(place)
    assert place.blobs.keys("archives") == place.blobs.keys("results") == []
    assert place.redis.zcard(KNOWN_KEY) == place.redis.zcard(OPEN_KEY) == 0


def test_two_batches_of_one_zip_keep_it_together(api: httpx.Client, place: Place) -> None:
    archive = packed(many(1))
    paths = [accepted(api, archive), accepted(api, archive, min_confidence="0.5")]
    for path in paths:
        assert len(place.blobs.keys("archives")) == 1
        api.delete(path)
        api.delete(path)
    assert place.blobs.keys("archives") == []
    assert not place.redis.exists(blobs_key(batch_of(paths[0])))


def test_posting_at_once_makes_one_batch(api: httpx.Client, place: Place) -> None:
    archive = packed(many(5))
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: accepted(api, archive), range(4)))
    assert len(paths) == 1
    assert counts(api, paths.pop())["total"] == 5
    keys = {key.decode() for key in place.redis.keys("semples:batch:*")}
    assert {each.count(":") for each in keys} <= {2, 3}  # nothing half made
