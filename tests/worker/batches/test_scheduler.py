"""The scheduler round by round without a worker: how much it dispatches, and what it may find half done."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.helpers.batches import accepted, batch_of, counts, finish, items, many, packed, rows
from tests.helpers.posting import new_photo, post
from tests.helpers.service_fixtures import Place, http_api, png
from worker.batches.records import BatchRecord
from worker.batches.scheduler import LOCK_KEY, BatchScheduler
from worker.batches.store import BatchStore, Move, batch_key
from worker.queue.jobs import MEMORY_SHARE
from worker.queue.rq import fetch_job
from worker.queue.schema import RESULT_SECONDS

pytestmark = pytest.mark.usefixtures("announced")


@pytest.fixture(scope="module")
def api(place: Place) -> Iterator[httpx.Client]:
    with http_api(place, max_queue=20) as client:
        yield client


def test_a_bound_on_items_ahead_that_takes_no_place_of_posted_images(
    api: httpx.Client, place: Place, scheduler: BatchScheduler
) -> None:
    path = accepted(api, packed(many(30)))
    for _ in range(2):
        scheduler.dispatch()
        assert (place.jobs.batch.count, counts(api, path)["queued"]) == (20, 20)
    posts = [post(api) for _ in range(21)]
    assert [each.status_code for each in posts] == [202] * 20 + [503]
    for each in place.jobs.batch.get_job_ids()[:5]:
        finish(place, each)
    scheduler.dispatch()
    found = counts(api, path)
    assert (found["finished"], found["queued"], found["waiting"]) == (5, 20, 5)


def test_a_posted_item_waits_as_an_interactive_job_only_where_there_is_room(
    place: Place, scheduler: BatchScheduler
) -> None:
    photos = [new_photo() for _ in range(3)]
    names = [f"{number}.png" for number in range(3)]
    archive = packed({"labels.csv": rows(dict.fromkeys(names, "cat")), **dict(zip(names, photos, strict=True))})
    with http_api(place, max_queue=2) as api:
        accepted(api, archive)
        scheduler.dispatch()
        assert place.jobs.batch.count == 2
        posts = [post(api), *(post(api, each) for each in photos)]
        assert [each.status_code for each in posts] == [202, 202, 202, 503]
        ids = [each.json()["id"] for each in posts[:3]]
        assert [each.job_ids for each in place.jobs.rq_queues] == [ids[:2], ids[2:]]
        assert posts[2].json()["position"] == 2


def test_ten_seconds_of_work_are_queued_and_64_items_at_least(place: Place, scheduler: BatchScheduler) -> None:
    ended = place.jobs.batch.finished_job_registry.key
    with http_api(place, max_queue=68) as api:
        path = accepted(api, packed(many(70)))
        for done, queued in ((0, 64), (402, 67), (600, 68)):  # in the last minute
            score = time.time() + RESULT_SECONDS
            place.redis.zadd(ended, {"0": 0} | {f"{n:032x}": score for n in range(done)})
            scheduler.dispatch()
            assert counts(api, path)["queued"] == queued


def test_batches_share(api: httpx.Client, scheduler: BatchScheduler) -> None:
    paths = [accepted(api, packed(many(15))) for _ in range(2)]
    scheduler.dispatch()
    assert [counts(api, path)["queued"] for path in paths] == [10, 10]


def test_a_slow_store_does_not_prolong_a_round(
    api: httpx.Client, scheduler: BatchScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.batches.scheduler._BATCH_SECONDS", -1)
    paths = [accepted(api, packed(many(3))) for _ in range(2)]
    for queued in (1, 2, 3):
        scheduler.dispatch()
        assert [counts(api, path)["queued"] for path in paths] == [queued, queued]


def test_a_full_redis_is_not_filled_up(api: httpx.Client, place: Place, scheduler: BatchScheduler) -> None:
    path = accepted(api, packed(many(1)))
    place.redis.setrange("ballast", 80_000_000, "0")  # in place: no buffer that counts and goes
    used = place.redis.info("memory")["used_memory"]
    place.redis.config_set("maxmemory", int(used / (MEMORY_SHARE + 0.1)))
    try:
        scheduler.dispatch()
        assert counts(api, path)["waiting"] == 1
        place.redis.delete("ballast")
        scheduler.dispatch()
        assert counts(api, path)["queued"] == 1
    finally:
        place.redis.config_set("maxmemory", 0)


def test_what_was_queued_and_not_noted_is_found(api: httpx.Client, place: Place, scheduler: BatchScheduler) -> None:
    path = accepted(api, packed(many(3)))
    scheduler.dispatch()
    jobs = [each["job"] for each in items(api, path)]
    for number in (1, 2):
        BatchStore(place.redis).move(batch_of(path), [Move(number, "queued", "waiting")])
    finish(place, jobs[0])
    scheduler.dispatch()
    scheduler.dispatch()
    assert [each["job"] for each in items(api, path)] == jobs
    assert [each["status"] for each in items(api, path)] == ["finished", "queued", "queued"]
    assert place.jobs.batch.count == 2


def test_jobs_that_are_gone_run_again(api: httpx.Client, place: Place, scheduler: BatchScheduler) -> None:
    path = accepted(api, packed(many(2)))
    scheduler.dispatch()
    first, second = [each["job"] for each in items(api, path)]
    fetch_job(place.redis, first).delete()  # type: ignore[union-attr]
    finish(place, second)
    place.redis.delete(f"rq:results:{second}")  # it has expired
    assert place.jobs.batch.count == 0
    scheduler.dispatch()
    assert sorted(place.jobs.batch.get_job_ids()) == sorted([first, second])
    assert counts(api, path)["queued"] == 2


def test_somebody_elses_turn(api: httpx.Client, place: Place, scheduler: BatchScheduler) -> None:
    path = accepted(api, packed(many(2)))
    place.redis.set(LOCK_KEY, "another's", px=60_000)
    scheduler.dispatch()
    assert counts(api, path)["waiting"] == 2
    place.redis.delete(LOCK_KEY)

    def taken_over(*_: Any, **__: Any) -> None:
        place.redis.set(LOCK_KEY, "another's", px=60_000)

    scheduler._zips.close_others = taken_over  # type: ignore[method-assign]
    scheduler.dispatch()
    assert counts(api, path)["queued"] == 1  # it stops at the first sign
    assert place.redis.get(LOCK_KEY) == b"another's"


def test_a_canceled_job_is_a_canceled_photo(api: httpx.Client, scheduler: BatchScheduler) -> None:
    path = accepted(api, packed(many(1)))
    scheduler.dispatch()
    [item] = items(api, path)
    api.delete(f"/jobs/{item['job']}")
    scheduler.dispatch()
    document = api.get(path).json()
    assert (document["status"], document["counts"]["canceled"]) == ("finished", 1)


def test_a_lost_zip_fails_photos_until_it_is_posted_again(
    api: httpx.Client, place: Place, scheduler: BatchScheduler
) -> None:
    archive = packed(many(2))
    path = accepted(api, archive)
    place.blobs.delete(place.blobs.keys("archives")[0])
    scheduler.dispatch()
    assert {each["problem"]["code"] for each in items(api, path)} == {"input_missing"}
    assert api.get(path).json()["status"] == "finished"
    assert accepted(api, archive) == path
    scheduler.dispatch()
    assert counts(api, path)["queued"] == 2


def test_a_photo_that_cannot_be_unpacked(api: httpx.Client, scheduler: BatchScheduler) -> None:
    data = bytearray(
        packed({"labels.csv": rows({"a.png": "cat", "b.png": "cat"}), "a.png": png(), "b.png": new_photo()})
    )
    at = data.find(b"a.png", data.find(b"PK\x03\x04", 10)) + len("a.png") + 10
    data[at : at + 20] = bytes(20)
    path = accepted(api, bytes(data))
    scheduler.dispatch()
    first, second = items(api, path)
    assert first["problem"]["detail"] == "damaged in the zip: unpacking fails"
    assert second["status"] == "queued"


def test_a_bug_in_one_batch_does_not_stop_the_others(
    api: httpx.Client, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    class Buggy(BatchScheduler):
        def _dispatch_batch(self, record: BatchRecord, *given: Any, **named: Any) -> None:
            if record.id == batch_of(bad):
                raise KeyError("a bug")
            super()._dispatch_batch(record, *given, **named)

    bad, good = accepted(api, packed(many(1))), accepted(api, packed(many(1)))
    Buggy(place.redis, place.blobs).dispatch()
    assert [counts(api, path)["waiting"] for path in (bad, good)] == [1, 0]
    assert "is skipped in this round" in caplog.text
    BatchScheduler(place.redis, place.blobs).dispatch()
    assert counts(api, bad)["waiting"] == 0


def test_an_open_batch_without_a_janitor_expires_and_one_that_ended_sooner(
    api: httpx.Client, place: Place, scheduler: BatchScheduler
) -> None:
    path = accepted(api, packed(many(1)))
    assert api.get(path).json()["status"] == "queued"
    key = batch_key(batch_of(path))
    assert place.redis.ttl(key) > 0
    assert place.redis.ttl(f"{key}:items") > 0
    scheduler.dispatch()
    finish(place, items(api, path)[0]["job"])
    scheduler.dispatch()
    assert api.get(path).json()["status"] == "finished"
    assert 0 < place.redis.ttl(key) <= 24 * 3600
