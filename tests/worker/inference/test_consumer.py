"""Connections that break at the worst moment: done is done once, and what was not done is done again."""

import signal
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from redis import Redis, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.utils import now

from tests.helpers.service_doubles import DoublePredictor
from tests.helpers.service_fixtures import LEASE, NOTHING, Place
from tests.helpers.undisturbed import context_of
from worker.inference import consumer
from worker.inference.worker import GpuWorker, _make_worker
from worker.queue.failures import note_abandoned
from worker.queue.rq import JobQueue, open_redis
from worker.queue.schema import MAX_JOB_ATTEMPTS, RESULT_SECONDS
from worker.settings import WorkerSettings
from worker.storage import BlobError


class Fragile(UnixDomainSocketConnection):
    """Breaks with each command that holds the next of some words: before the server gets it, or after it was done."""

    words: ClassVar[list[bytes]] = []
    arrives = True
    at_break: ClassVar[Callable[[], object]] = list

    def send_packed_command(self, command: Any, check_health: bool = True) -> Any:
        content = command if isinstance(command, bytes) else b"".join(command)
        if not Fragile.words or Fragile.words[0] not in content:
            return super().send_packed_command(command, check_health)
        Fragile.words.pop(0)
        Fragile.at_break()
        if Fragile.arrives:
            super().send_packed_command(command, check_health)
            self.can_read(timeout=10)
        raise RedisConnectionError("broken")


def break_at(*words: bytes, arrives: bool, then: Callable[[], object] = list) -> None:
    Fragile.words[:], Fragile.arrives, Fragile.at_break = words, arrives, then


@pytest.fixture
def fragile(place: Place) -> Iterator[Redis]:
    """The worker's client."""
    place.redis.flushdb()
    redis = open_redis(place.url, retries=0)
    redis.connection_pool.connection_class = Fragile
    yield redis
    assert Fragile.words == []  # it did break, if it was to
    redis.close()
    place.redis.flushdb()


@pytest.fixture
def worker(place: Place, fragile: Redis) -> GpuWorker:
    """A worker in this process."""
    context = context_of(DoublePredictor(), place.blobs, worker="lone")
    settings = WorkerSettings(redis_url=place.url, blobs="", lease=LEASE, batch=8)
    return _make_worker(fragile, context, settings)


def take_and_lease(place: Place, worker: str) -> None:
    """Lease the next job to a worker."""
    [job] = place.jobs.take(1)
    place.jobs.lease([place.jobs.new_lease(job, worker=worker)])


def first_seen_key(place: Place, job: Any) -> str:
    return f"{place.queue.intermediate_queue_key}:first_seen:{job.id}"


def work(worker: GpuWorker, place: Place, job: Any) -> Any:
    """Let the worker take a job and work on it; return the job as it is then."""
    place.redis.lmove(place.queue.key, place.queue.intermediate_queue_key)
    worker.execute_job(worker.job_class.fetch(job.id, worker.connection, worker.serializer), None)
    job.refresh()
    return job


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize(
    ("label", "result", "failure"), [("cat", "SUCCESSFUL", None), ("raises", "FAILED", "model_error")]
)
def test_an_end_is_written_once(
    place: Place, worker: GpuWorker, label: str, result: str, failure: str | None, *, arrives: bool
) -> None:
    job = place.post(label)
    break_at(b"XADD", arrives=arrives)
    work(worker, place, job)
    assert [each.type.name for each in job.results()] == [result]
    assert job.get_status() == ("failed" if failure else "finished")
    assert job.meta.get("failure", {}).get("code") == failure
    assert place.leftovers() == NOTHING
    assert worker.consumer.leases == {}


@pytest.mark.parametrize("arrives", [True, False])
def test_a_failure_that_may_pass_costs_one_attempt(
    place: Place, worker: GpuWorker, monkeypatch: pytest.MonkeyPatch, *, arrives: bool
) -> None:
    errors = [BlobError("away")]
    preprocess = consumer.preprocess

    def fail_once(*given: Any) -> Any:
        if errors:
            raise errors.pop()
        return preprocess(*given)

    monkeypatch.setattr(consumer, "preprocess", fail_once)
    job = place.post("cat")
    before = job.enqueued_at
    break_at(b"retries_left", arrives=arrives)
    work(worker, place, job)
    if job.get_status() == "queued":  # its end was written after the last look at the queue
        work(worker, place, job)
    assert (job.get_status(), job.retries_left) == ("finished", MAX_JOB_ATTEMPTS - 2)
    assert job.enqueued_at > before
    assert place.leftovers() == NOTHING
    assert [each.type.name for each in job.results()] == ["SUCCESSFUL"]
    assert worker.consumer.leases == {}


@pytest.mark.parametrize("label", ["cat", "raises"])
def test_a_lease_is_renewed_until_the_end_is_written(
    place: Place, worker: GpuWorker, monkeypatch: pytest.MonkeyPatch, label: str
) -> None:
    job = place.post(label)
    held: list[int] = []
    ack = JobQueue.ack

    def look(queue: JobQueue, attempts: Any) -> Any:
        held.append(len(worker.consumer.leases))
        return ack(queue, attempts)

    monkeypatch.setattr(JobQueue, "ack", look)
    break_at(b"XADD", b"XADD", arrives=False)
    work(worker, place, job)
    assert held == [1, 1, 1]  # in each try
    assert job.get_status() == ("finished" if label == "cat" else "failed")
    assert worker.consumer.leases == {}


def test_what_is_finished_together_is_written_once(place: Place, worker: GpuWorker) -> None:
    jobs = [place.post("cat") for _ in range(5)]
    break_at(b"XADD", arrives=True)
    work(worker, place, jobs[0])
    for job in jobs:
        assert [each.type.name for each in job.results()] == ["SUCCESSFUL"]
        assert job.get_status(refresh=True) == "finished"
    assert place.leftovers() == NOTHING
    assert worker.consumer.leases == {}


def test_a_job_taken_away_while_its_end_is_written_stays_the_others(place: Place, worker: GpuWorker) -> None:
    job = place.post("cat")

    def take_away() -> None:
        place.redis.hset(job.key, "worker_name", "another")

    break_at(b"XADD", arrives=True, then=take_away)
    work(worker, place, job)
    assert job.get_status() == "started"
    assert job.results() == []
    assert worker.consumer.leases == {}


def test_a_job_of_a_dead_worker_is_queued_once(place: Place, worker: GpuWorker) -> None:
    job = place.post("cat")
    take_and_lease(place, "dead")
    [entry] = place.leftovers()["wip"]
    place.redis.zadd(job.started_job_registry.key, {entry: 1})  # long ago
    queue = JobQueue(worker.connection, "double")
    break_at(b"RPUSH", arrives=True)
    with pytest.raises(RedisConnectionError):
        queue.maintain(note_abandoned)
    queue.maintain(note_abandoned)
    assert place.leftovers() == NOTHING | {"queue": [job.id.encode()]}


def test_what_is_given_back_is_in_the_queue_once(place: Place, worker: GpuWorker) -> None:
    first, second, third = (place.post("cat") for _ in range(3))
    taken = place.jobs.take(2)
    for _ in range(2):  # the answer to the first was lost
        place.jobs.put_back(taken)
    ids = [each.id.encode() for each in (first, second, third)]
    assert place.leftovers() == NOTHING | {"queue": ids}


def test_what_is_queued_twice_runs_once(place: Place, worker: GpuWorker) -> None:
    job = place.post("cat")
    place.redis.rpush(place.queue.key, job.id, job.id)
    work(worker, place, job)
    work(worker, place, job)
    assert [each.type.name for each in job.results()] == ["SUCCESSFUL"]
    assert job.get_status() == "finished"
    assert place.leftovers() == NOTHING


def test_a_finished_job_is_finished_whatever_list_it_is_in(place: Place, worker: GpuWorker) -> None:
    job = work(worker, place, place.post("cat"))
    place.redis.rpush(place.queue.intermediate_queue_key, job.id)
    place.redis.set(first_seen_key(place, job), 0)  # it has been there for long
    place.jobs.maintain(note_abandoned)
    assert place.leftovers() == NOTHING | {"queue": [job.id.encode()]}
    work(worker, place, job)
    assert job.get_status() == "finished"
    assert len(job.results()) == 1
    assert place.leftovers() == NOTHING


def test_to_be_lost_between_queue_and_hand_is_no_attempt(place: Place, worker: GpuWorker) -> None:
    job = place.post("cat")
    place.jobs.take(1)
    place.redis.set(first_seen_key(place, job), 0)
    place.jobs.maintain(note_abandoned)
    job.refresh()
    assert job.retries_left == MAX_JOB_ATTEMPTS - 1
    assert place.leftovers() == NOTHING | {"queue": [job.id.encode()]}


def test_what_is_known_before_redis_is_away_is_done_without_it(place: Place, worker: GpuWorker) -> None:
    break_at(b"suspended", arrives=False)
    worker.check_for_suspension(burst=False)
    break_at(b"shutdown_requested_date", arrives=False)
    worker.set_state("busy")
    worker.request_stop(signal.SIGTERM, None)
    assert worker.stopped_on_request


@pytest.mark.parametrize("label", ["cat", "raises"])
def test_a_second_signal_is_no_failure_of_the_job(place: Place, worker: GpuWorker, label: str) -> None:
    job = place.post(label)

    def stop() -> None:
        raise SystemExit

    break_at(b"XADD", arrives=False, then=stop)
    with pytest.raises(SystemExit):
        work(worker, place, job)
    assert job.get_status() == "started"
    assert job.results() == []


def test_a_job_taken_while_it_is_canceled_is_its_workers_to_end(place: Place, worker: GpuWorker) -> None:
    job = place.post("cat")
    take_and_lease(place, "lone")
    place.jobs.request_cancel(job)
    assert job.get_status() == "started"
    assert len(place.leftovers()["wip"]) == 1


def test_what_waits_is_canceled_at_once(place: Place, worker: GpuWorker) -> None:
    job = place.post("cat")
    for _ in range(2):
        place.jobs.request_cancel(job)
    assert job.get_status() == "canceled"
    assert place.redis.zscore(f"rq:canceled:{place.queue.name}", job.id) > now().timestamp()
    assert 0 < place.redis.ttl(job.key) <= RESULT_SECONDS
    assert place.leftovers() == NOTHING
