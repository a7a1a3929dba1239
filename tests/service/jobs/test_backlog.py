"""A full queue: exactly so many, and an honest word on when to come back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from service.jobs.service import keep_place, seconds_to_wait
from tests.helpers.service_fixtures import Place, WorkerProcess, http_api, png
from worker.queue.jobs import Limits, jobs_done_lately
from worker.queue.rq import fetch_job


@pytest.fixture
def calm(place: Place, running_worker: WorkerProcess) -> Iterator[Place]:
    """A place with an announced model, an idle queue, and nobody who works."""
    place.redis.flushdb()
    running_worker.stop()
    running_worker.start()
    running_worker.stop()
    yield place
    place.redis.flushdb()


def post(api: httpx.Client, number: int) -> httpx.Response:
    return api.post("/segment", files={"image": png(color=(number % 256, number // 256, 0))})


@pytest.mark.parametrize(
    ("waiting", "done", "seconds"),
    [
        (1000, 600, 100),
        (1, 600, 1),
        (0, 5, 1),
        (100, 1, 600),
        (7, 3, 140),
        (1000, 0, 60),
    ],
)
def test_seconds_to_wait(waiting: int, done: int, seconds: int) -> None:
    assert seconds_to_wait(waiting, done) == seconds


def test_what_was_done_in_the_last_minute(calm: Place, worker: WorkerProcess) -> None:
    jobs = [calm.wait_done(calm.post(label)) for label in ("cat", "bowl", "raises")]
    now = time.time()
    assert jobs_done_lately(calm.queue, now=now) == len(jobs)
    assert jobs_done_lately(calm.queue, now=now + 3600) == 0


def test_the_word_is_the_queues_own(calm: Place, running_worker: WorkerProcess) -> None:
    with http_api(calm, max_queue=3) as api:
        for number in range(3):
            assert post(api, number).status_code == 202
        # Nothing was done lately: nobody knows.
        assert post(api, 3).headers["Retry-After"] == "60"
        running_worker.start()
        for _ in range(6):
            calm.wait_done(calm.post("cat"))
        running_worker.stop()
        for number in range(10, 13):
            assert post(api, number).status_code == 202
        full = post(api, 13)
        assert full.status_code == 503
        # 3 wait, and 9 were done in a minute (6 or so, if this machine is that slow).
        assert 20 <= int(full.headers["Retry-After"]) < 60
        assert full.json()["detail"].startswith("3 jobs are waiting already, for about ")


def test_many_at_once_are_not_more_than_there_are_places(calm: Place) -> None:
    with http_api(calm, max_queue=5, decoders=8) as api, ThreadPoolExecutor(32) as pool:
        codes = list(pool.map(lambda number: post(api, number).status_code, range(64)))
    assert sorted(codes) == [202] * 5 + [503] * 59
    assert calm.queue.count == 5
    assert len(calm.redis.keys("rq:job:*")) == 5


def test_who_is_beyond_the_last_place_goes(calm: Place) -> None:
    jobs = [calm.post("cat") for _ in range(3)]
    # Now two wait that both saw the second place free.
    assert [keep_place(calm.queue, job, places=2) for job in jobs] == [True, True, False]
    assert calm.queue.job_ids == [job.id for job in jobs[:2]]
    assert fetch_job(calm.redis, jobs[2].id) is None
    # A job that a worker has taken in the meantime stays.
    calm.redis.lpop(calm.queue.key)
    assert keep_place(calm.queue, jobs[0], places=0)
    assert fetch_job(calm.redis, jobs[0].id) is not None


@pytest.mark.parametrize(
    ("limits", "pixels", "seconds"),
    [
        (Limits(), 0, 120),
        (Limits(), 10_000_000, 170),
        (Limits(), 40_000_000, 300),
        (Limits(job_timeout=1), 600, 1),
        (Limits(job_timeout=400), 600, 300),
        (Limits(job_timeout=5, job_timeout_per_megapixel=0), 10**9, 5),
    ],
)
def test_large_images_have_more_time(limits: Limits, pixels: int, seconds: int) -> None:
    assert limits.timeout(pixels) == seconds


def test_the_time_is_no_part_of_a_jobs_identity(calm: Place) -> None:
    image = {"image": png(width=1000, height=500)}
    ids, timeouts = set(), []
    for per_megapixel in (0, 100):
        with http_api(calm, job_timeout_per_megapixel=per_megapixel) as api:
            ids.add(api.post("/segment", files=image).json()["id"])
            timeouts += [fetch_job(calm.redis, each).timeout for each in ids]
        calm.redis.flushdb()
        calm.redis.delete(calm.queue.key)
        announce_again(calm)
    assert len(ids) == 1
    assert timeouts == [120, 170]


def announce_again(calm: Place) -> None:
    worker = WorkerProcess(calm)
    worker.start()
    worker.stop()
