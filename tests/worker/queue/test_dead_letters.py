"""Jobs that took every worker down: kept, shown, and queued again by hand alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from rq.exceptions import AbandonedJobError
from rq.job import Job
from rq.job_lifecycle import record_job_failure
from rq.utils import now

from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import NOTHING, Place, wait_for
from tests.helpers.service_fixtures import WorkerProcess as Worker
from worker.queue import failures
from worker.queue.failures import DeadLetterError, bury, forget_gone, note_failure, requeue
from worker.queue.rq import fetch_job
from worker.queue.schema import dead_key
from worker.storage import BlobMissingError


@pytest.fixture(autouse=True)
def empty(place: Place) -> Iterator[None]:
    place.redis.flushdb()
    yield
    place.redis.flushdb()


def die(place: Place, *labels: str) -> Job:
    """A job that has no attempt left and whose worker is dead."""
    job = place.post(*labels)
    place.redis.lrem(place.queue.key, 1, job.id)
    job.retries_left = 0
    job.save()
    note_failure(job, AbandonedJobError, AbandonedJobError(), None)
    with place.redis.pipeline() as pipeline:
        record_job_failure(job, "dead", pipeline)
        pipeline.execute()
    return job


def listed(place: Place) -> list[str]:
    return [letter.job for letter in failures.dead_letters(place.redis)]


def command(place: Place, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "worker", "dead", *arguments],
        cwd=ROOT,
        env=os.environ
        | {"REDIS_URL": place.url, "SEMPLES_BLOBS": str(place.data / "blobs"), "COLUMNS": "200"},
        check=False,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_letter_says_what_and_why(place: Place) -> None:
    assert failures.dead_letters(place.redis) == []
    before = datetime.now(UTC)
    job = die(place, "cat", "bowl")
    [letter] = failures.dead_letters(place.redis)
    assert (letter.job, letter.model, letter.task) == (job.id, "double", "pseudo_mask")
    assert letter.labels == ("cat", "bowl")
    assert letter.reason == "the worker died on this job 3 times"
    assert before <= letter.died <= datetime.now(UTC)
    assert 0 < place.redis.ttl(dead_key("double")) <= 7 * 24 * 3600
    assert job.get_status() == "failed"


def test_other_failures_are_no_dead_letters(place: Place) -> None:
    job = place.post("cat")
    for error in (RuntimeError("x"), MemoryError()):
        note_failure(job, type(error), error, None)
    job.retries_left = 1
    note_failure(job, AbandonedJobError, AbandonedJobError(), None)  # has another attempt
    assert listed(place) == []


def test_the_latest_come_first_and_the_oldest_go(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "MAX_DEAD", 3)
    jobs = [die(place, "cat").id for _ in range(5)]
    assert listed(place) == jobs[:1:-1]


def test_a_letter_whose_job_is_gone_is_dropped(place: Place) -> None:
    job, other = die(place, "cat"), die(place, "cat")
    assert forget_gone(place.redis) == 0
    job.delete()
    assert listed(place) == [other.id]
    assert place.redis.zcard(dead_key("double")) == 2
    assert forget_gone(place.redis) == 1
    assert place.redis.zrange(dead_key("double"), 0, -1) == [other.id.encode()]


def test_queued_again_it_has_all_attempts(place: Place) -> None:
    job = die(place, "cat")
    assert job.results()
    assert requeue(place.redis, place.blobs, job.id).id == job.id
    assert job.results() == []  # who waits is not told of the earlier failure
    again = fetch_job(place.redis, job.id)
    assert again is not None
    assert (again.get_status(), again.retries_left, again.meta) == ("queued", 2, {})
    assert 0 < place.redis.ttl(again.key) <= 24 * 3600
    assert listed(place) == []
    with pytest.raises(DeadLetterError, match="expected the id of a dead letter, got"):
        requeue(place.redis, place.blobs, job.id)
    worker = Worker(place)
    worker.start()
    assert place.wait_done(again).get_status() == "finished"
    assert worker.stop() == 0
    assert again.return_value()["classes"][0]["name"] == "cat"
    assert place.leftovers() == NOTHING


def test_what_cannot_be_queued_again(place: Place) -> None:
    alive = place.post("cat")
    for unknown in (alive.id, "0" * 32, "x" * 200, ""):
        with pytest.raises(DeadLetterError, match="expected the id of a dead letter"):
            requeue(place.redis, place.blobs, unknown)
    bury(alive, now=now())
    with pytest.raises(DeadLetterError, match="is not failed any more"):
        requeue(place.redis, place.blobs, alive.id)
    job = die(place, "bowl")
    (place.data / "blobs" / str(job.args[0]["image"])).unlink()
    with pytest.raises(BlobMissingError):
        requeue(place.redis, place.blobs, job.id)
    assert job.id in listed(place)


def test_the_command(place: Place) -> None:
    assert command(place, "list") == (0, "no dead letters\n", "")
    job = die(place, "cat", "bowl")
    code, output, errors = command(place, "list")
    assert (code, errors) == (0, "")
    for word in (job.id, "double", "pseudo_mask", "cat, bowl", "the worker died on this job 3"):
        assert word in output
    assert command(place, "requeue", job.id) == (0, f"queued {job.id}\n", "")
    assert job.get_status() == "queued"
    code, output, errors = command(place, "requeue", job.id)
    assert (code, output) == (3, "")
    assert errors == f"semples dead: expected the id of a dead letter, got '{job.id}'\n"


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "http://x"])
def test_the_command_without_redis(place: Place, url: str) -> None:
    code, output, errors = command(place, "list", "--redis-url", url)
    assert (code, output) == (3, "")
    assert errors.startswith("semples dead: ")
    assert errors.count("\n") == 1


def test_a_job_that_kills_workers_comes_here(place: Place) -> None:
    worker = Worker(place)
    job: Any = place.post("kills")

    def failed() -> bool:
        worker.ensure()
        return bool(job.get_status() == "failed")

    wait_for(failed, seconds=90, what="the third death")
    assert listed(place) == [job.id]
    assert worker.stop() == 0
