"""What an exception means to the client, whether the job is tried again, and what is left of jobs that kill workers."""

from collections.abc import Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.exceptions import AbandonedJobError
from rq.job import Job
from rq.job_lifecycle import record_job_failure
from rq.timeouts import JobTimeoutException
from rq.utils import now

from models.data.classes import UnknownLabelError
from models.data.images import ImageError
from models.inference.masks import CannotSegmentError
from tests.helpers.command import python
from tests.helpers.service_fixtures import NOTHING, Place
from tests.helpers.service_fixtures import WorkerProcess as Worker
from worker.inference.consumer import InFlightJob
from worker.queue import failures
from worker.queue.failures import (
    DeadLetterError,
    _dead_letter,
    drop_expired_letters,
    note_abandoned,
    requeue,
    retry,
    was_abandoned,
)
from worker.queue.rq import TaskNotAllowedError, fetch_job
from worker.queue.schema import dead_key
from worker.storage import BlobError, BlobMissingError, BlobStoreFullError


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


# error → code, part of the detail, whether posting again helps, whether the worker tries again
TABLE: list[tuple[Exception, str, str, bool, bool]] = [
    (ImageError("unreadable", "cannot read the image: x"), "image_unreadable", "x", False, False),
    (UnknownLabelError("cta", ("cat",)), "unknown_label", "nearest known: cat", True, False),
    (CannotSegmentError("no segmenter"), "cannot_segment", "no segmenter", True, False),
    (BlobMissingError("k"), "input_missing", "no longer stored", True, False),
    (BlobStoreFullError("k"), "storage_full", "no room", True, False),
    (BlobError("k"), "storage_unavailable", "blob store", True, True),
    (RedisConnectionError("gone"), "storage_unavailable", "queue", True, True),
    (JobTimeoutException("t"), "timeout", "longer", True, False),
    (MemoryError(), "out_of_memory", "memory", True, False),
    (OutOfMemoryError("CUDA"), "out_of_memory", "memory", True, False),
    (TaskNotAllowedError("no"), "task_not_allowed", "no", False, False),
    (RuntimeError("secret"), "model_error", "(RuntimeError)", True, False),
]


@pytest.mark.parametrize(("error", "code", "detail", "repeatable", "again"), TABLE, ids=lambda value: str(value)[:20])
def test_table(error: Exception, code: str, detail: str, repeatable: bool, again: bool) -> None:
    job: Any = SimpleNamespace(retries_left=2)
    lease: Any = None
    attempt = InFlightJob(job, lease, 0.0, result=Future())
    attempt.fail(error)
    ended = attempt.attempt()
    failure = ended.failure
    assert failure is not None
    assert (failure.code, failure.repeatable, ended.retry) == (code, repeatable, again)
    assert detail in failure.detail
    assert "secret" not in failure.detail
    job.retries_left = 0
    assert not attempt.attempt().retry


class Flaky:
    """Fails so many times."""

    def __init__(self, times: int, error: Exception) -> None:
        self.calls, self._times, self._error = 0, times, error

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self._times:
            raise self._error
        return "done"


def test_an_action_is_retried_while_its_error_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(failures.time, "sleep", pauses.append)
    assert retry(Flaky(8, RedisConnectionError("away"))) == "done"
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    once = Flaky(1, LookupError("a bug"))
    with pytest.raises(LookupError):
        retry(once)
    assert once.calls == 1
    for error in (BlobError("away"), RedisConnectionError("away")):
        forever = Flaky(100, error)
        with pytest.raises(type(error), match="away"):
            retry(forever, retryable=failures.is_transient, patience=0.01)
        assert forever.calls == 1


@pytest.fixture(autouse=True)
def empty(place: Place) -> Iterator[None]:
    place.redis.flushdb()
    yield
    place.redis.flushdb()


def abandon(place: Place, *labels: str) -> Job:
    """A job without an attempt left whose worker is dead."""
    job = place.post(*labels)
    place.redis.lrem(place.queue.key, 1, job.id)
    job.retries_left = 0
    job.save()
    note_abandoned(job, AbandonedJobError, AbandonedJobError(), None)
    with place.redis.pipeline() as pipeline:
        record_job_failure(job, "dead", pipeline)
        pipeline.execute()
    return job


def listed(place: Place) -> list[str]:
    return [letter.job for letter in failures.dead_letters(place.redis)]


def command(place: Place, *arguments: str) -> tuple[int, str, str]:
    return program(place, "dead", *arguments)


def program(place: Place, *arguments: str) -> tuple[int, str, str]:
    environment = {"REDIS_URL": place.url, "SEMPLES_BLOBS": str(place.data / "blobs"), "COLUMNS": "200"}
    done = python("-m", "worker", *arguments, check=False, **environment)
    return done.returncode, done.stdout, done.stderr


def test_a_letter_says_what_and_why(place: Place) -> None:
    assert failures.dead_letters(place.redis) == []
    before = datetime.now(UTC)
    job = abandon(place, "cat", "bowl")
    [letter] = failures.dead_letters(place.redis)
    assert (letter.job, letter.model, letter.task) == (job.id, "double", "pseudo_mask")
    assert letter.labels == ("cat", "bowl")
    assert letter.reason == "a worker died during this job, and no attempt is left"
    assert before <= letter.died <= datetime.now(UTC)
    assert 0 < place.redis.ttl(dead_key("double")) <= 7 * 24 * 3600
    assert job.get_status() == "failed"
    failure = {"code": "worker_died", "detail": letter.reason, "repeatable": False}
    assert job.get_meta() == {"failure": failure}


def test_a_dead_workers_job_is_tried_again_while_it_may_be(place: Place) -> None:
    job = place.post("cat")
    job.retries_left = 1
    assert not was_abandoned(job)
    note_abandoned(job, AbandonedJobError, AbandonedJobError(), None)
    assert job.retries_left == 1
    assert job.get_meta(refresh=True) == {"deaths": 1}
    assert was_abandoned(job)  # from now on it is worked on alone
    assert listed(place) == []


def test_the_latest_come_first_and_the_oldest_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MAX_DEAD", 3)
    jobs = [abandon(place, "cat").id for _ in range(5)]
    assert listed(place) == jobs[:1:-1]


def test_a_letter_whose_job_is_gone_is_dropped(place: Place) -> None:
    job, other = abandon(place, "cat"), abandon(place, "cat")
    assert drop_expired_letters(place.redis) == 0
    job.delete()
    assert listed(place) == [other.id]
    assert place.redis.zcard(dead_key("double")) == 2
    assert drop_expired_letters(place.redis) == 1
    assert place.redis.zrange(dead_key("double"), 0, -1) == [other.id.encode()]


def test_queued_again_it_has_all_attempts(place: Place) -> None:
    job = abandon(place, "cat")
    assert job.results()
    assert requeue(place.redis, place.blobs, job.id).id == job.id
    assert job.results() == []  # a request that waits is not given the earlier failure
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
    _dead_letter(alive, now=now())
    with pytest.raises(DeadLetterError, match="is not failed any more"):
        requeue(place.redis, place.blobs, alive.id)
    job = abandon(place, "bowl")
    (place.data / "blobs" / str(job.args[0]["image"])).unlink()
    with pytest.raises(BlobMissingError):
        requeue(place.redis, place.blobs, job.id)
    assert job.id in listed(place)


def test_the_command(place: Place) -> None:
    assert command(place, "list") == (0, "no dead letters\n", "")
    job = abandon(place, "cat", "bowl")
    code, output, errors = command(place, "list")
    assert (code, errors) == (0, "")
    for word in (job.id, "double", "pseudo_mask", "cat, bowl", "a worker died"):
        assert word in output
    assert command(place, "requeue", job.id) == (0, f"queued {job.id}\n", "")
    assert job.get_status() == "queued"
    code, output, errors = command(place, "requeue", job.id)
    assert (code, output) == (3, "")
    assert errors == f"semples dead: expected the id of a dead letter, got '{job.id}'\n"


@pytest.mark.parametrize(
    ("arguments", "usage"), [((), "python -m worker [OPTIONS] COMMAND"), (("dead",), "semples dead [OPTIONS] COMMAND")]
)
def test_the_help_names_commands_that_exist(place: Place, arguments: tuple[str, ...], usage: str) -> None:
    code, output, _errors = program(place, *arguments, "--help")
    assert code == 0
    assert f"Usage: {usage}" in output


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "http://x"])
def test_the_command_without_redis(place: Place, url: str) -> None:
    code, output, errors = command(place, "list", "--redis-url", url)
    assert (code, output) == (3, "")
    assert errors.startswith("semples dead: ")
    assert errors.count("\n") == 1
