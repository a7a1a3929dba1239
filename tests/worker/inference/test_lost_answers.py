"""Connections that break at the worst moment: done is done once, and what was not done is done again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rq.utils import now

from tests.helpers.fragile import Fragile, break_at
from tests.helpers.service_doubles import DoublePredictor
from tests.helpers.service_fixtures import LEASE, NOTHING, Place
from worker.inference.batcher import Sizes
from worker.inference.pipeline import Runtime, _Holder
from worker.inference.worker import LeaseWorker, Vitals
from worker.queue.maintenance import tidy
from worker.queue.registry import ModelInfo
from worker.queue.rq import give_back, lease, new_execution, open_queue, open_redis, take, take_back
from worker.queue.schema import MAX_ATTEMPTS, RESULT_SECONDS
from worker.settings import WorkerSettings


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
def worker(place: Place, fragile: Redis, monkeypatch: pytest.MonkeyPatch) -> LeaseWorker:
    """A worker in this process."""
    predictor = DoublePredictor()
    model = ModelInfo.model_validate(predictor.info.to_json())
    runtime = Runtime(predictor, model, place.blobs, worker="lone")
    monkeypatch.setattr(_Holder, "runtime", runtime)  # undone after the test
    settings = WorkerSettings(redis_url=place.url, blobs="")
    vitals = Vitals.of(predictor, settings)
    return LeaseWorker(fragile, runtime, sizes=Sizes(), vitals=vitals, lease=LEASE)


def work(worker: LeaseWorker, place: Place, job: Any) -> Any:
    """Let the worker take a job and work on it; return the job as it is then."""
    place.redis.lmove(place.queue.key, place.queue.intermediate_queue_key)
    worker.execute_job(worker.job_class.fetch(job.id, worker.connection, worker.serializer), None)
    job.refresh()
    return job


@pytest.mark.parametrize("arrives", [True, False])
def test_a_success_is_written_once(place: Place, worker: LeaseWorker, *, arrives: bool) -> None:
    job = place.post("cat")
    break_at(b"XADD", arrives=arrives)
    work(worker, place, job)
    assert [each.type.name for each in job.results()] == ["SUCCESSFUL"]
    assert job.get_status() == "finished"
    assert place.leftovers() == NOTHING
    assert worker.executions == {}


@pytest.mark.parametrize("arrives", [True, False])
def test_a_failure_is_written_once(place: Place, worker: LeaseWorker, *, arrives: bool) -> None:
    job = place.post("raises")
    break_at(b"XADD", arrives=arrives)
    work(worker, place, job)
    assert [each.type.name for each in job.results()] == ["FAILED"]
    assert job.meta["failure"]["code"] == "model_error"
    assert place.leftovers() == NOTHING
    assert worker.executions == {}


@pytest.mark.parametrize(("label", "looks"), [("cat", 1), ("raises", 2)])
def test_a_lease_is_renewed_until_the_end_is_written(
    place: Place, worker: LeaseWorker, label: str, looks: int
) -> None:
    job = place.post(label)
    held: list[int] = []
    states = worker._desk._states

    def look(hands: Any) -> Any:
        held.append(len(worker.executions))
        return states(hands)

    worker._desk._states = look  # type: ignore[method-assign]
    break_at(b"XADD", b"XADD", arrives=False)
    work(worker, place, job)
    # Before each try, although RQ lets go of the lease in each; of a failure it is looked at after it too.
    assert held[: 2 * looks : looks] == [1, 1]
    assert job.get_status() == ("finished" if label == "cat" else "failed")
    assert worker.executions == {}


def test_what_is_finished_together_is_written_once(place: Place, worker: LeaseWorker) -> None:
    jobs = [place.post("cat") for _ in range(5)]
    break_at(b"XADD", arrives=True)
    work(worker, place, jobs[0])
    for job in jobs:
        assert [each.type.name for each in job.results()] == ["SUCCESSFUL"]
        assert job.get_status(refresh=True) == "finished"
    assert place.leftovers() == NOTHING
    assert worker.executions == {}


def test_a_job_taken_away_while_its_end_is_written_stays_the_others(
    place: Place, worker: LeaseWorker
) -> None:
    job = place.post("cat")

    def take_away() -> None:
        place.redis.hset(job.key, "worker_name", "another")

    break_at(b"XADD", arrives=True, then=take_away)
    work(worker, place, job)
    assert job.get_status() == "started"
    assert job.results() == []
    assert worker.executions == {}


def test_a_job_of_a_dead_worker_is_queued_once(place: Place, worker: LeaseWorker) -> None:
    job = place.post("cat")
    [taken] = take(place.queue, 1)
    lease(place.queue, [new_execution(taken, worker="dead")], seconds=1)
    [entry] = place.leftovers()["wip"]
    place.redis.zadd(job.started_job_registry.key, {entry: 1})  # long ago
    queue = open_queue(worker.connection, "double")
    break_at(b"RPUSH", arrives=True)
    with pytest.raises(RedisConnectionError):
        tidy(queue)
    tidy(queue)
    assert place.leftovers() == NOTHING | {"queue": [job.id.encode()]}


def test_what_is_given_back_is_in_the_queue_once(place: Place, worker: LeaseWorker) -> None:
    first, second, third = (place.post("cat") for _ in range(3))
    taken = take(place.queue, 2)
    for _ in range(2):  # the answer to the first was lost
        give_back(place.queue, taken)
    ids = [each.id.encode() for each in (first, second, third)]
    assert place.leftovers() == NOTHING | {"queue": ids}


def test_what_is_queued_twice_runs_once(place: Place, worker: LeaseWorker) -> None:
    job = place.post("cat")
    place.redis.rpush(place.queue.key, job.id, job.id)
    work(worker, place, job)
    work(worker, place, job)
    assert [each.type.name for each in job.results()] == ["SUCCESSFUL"]
    assert job.get_status() == "finished"
    assert place.leftovers() == NOTHING


def test_a_finished_job_is_finished_whatever_list_it_is_in(
    place: Place, worker: LeaseWorker
) -> None:
    job = work(worker, place, place.post("cat"))
    place.redis.rpush(place.queue.intermediate_queue_key, job.id)
    intermediate = place.queue.intermediate_queue
    place.redis.set(intermediate.get_first_seen_key(job.id), 0)  # it has been there for long
    tidy(place.queue)
    assert place.leftovers() == NOTHING | {"queue": [job.id.encode()]}
    work(worker, place, job)
    assert job.get_status() == "finished"
    assert len(job.results()) == 1
    assert place.leftovers() == NOTHING


def test_to_be_lost_between_queue_and_hand_is_no_attempt(place: Place, worker: LeaseWorker) -> None:
    job = place.post("cat")
    take(place.queue, 1)
    place.redis.set(place.queue.intermediate_queue.get_first_seen_key(job.id), 0)
    tidy(place.queue)
    job.refresh()
    assert job.retries_left == MAX_ATTEMPTS - 1
    assert place.leftovers() == NOTHING | {"queue": [job.id.encode()]}


def test_what_is_known_before_redis_is_away_is_done_without_it(
    place: Place, worker: LeaseWorker
) -> None:
    break_at(b"suspended", arrives=False)
    worker.check_for_suspension(burst=False)
    break_at(b"shutdown_requested_date", arrives=False)
    worker.set_state("busy")
    worker.request_stop(signal.SIGTERM, None)
    assert worker.stopped_on_request


@pytest.mark.parametrize("label", ["cat", "raises"])
def test_a_second_signal_is_no_failure_of_the_job(
    place: Place, worker: LeaseWorker, label: str
) -> None:
    job = place.post(label)

    def stop() -> None:
        raise SystemExit

    break_at(b"XADD", arrives=False, then=stop)
    with pytest.raises(SystemExit):
        work(worker, place, job)
    assert job.get_status() == "started"
    assert job.results() == []


def test_a_job_taken_while_it_is_canceled_is_its_workers_to_end(
    place: Place, worker: LeaseWorker
) -> None:
    job = place.post("cat")
    [taken] = take(place.queue, 1)
    lease(place.queue, [new_execution(taken, worker="lone")], seconds=LEASE)
    take_back(place.queue, job)
    assert job.get_status() == "started"
    assert len(place.leftovers()["wip"]) == 1


def test_what_waits_is_canceled_at_once(place: Place, worker: LeaseWorker) -> None:
    job = place.post("cat")
    for _ in range(2):
        take_back(place.queue, job)
    assert job.get_status() == "canceled"
    assert place.redis.zscore(f"rq:canceled:{place.queue.name}", job.id) > now().timestamp()
    assert 0 < place.redis.ttl(job.key) <= RESULT_SECONDS
    assert place.leftovers() == NOTHING
