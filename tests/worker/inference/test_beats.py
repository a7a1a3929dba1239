"""A worker's beats: what they renew and tell, and that they notice what is stuck or dead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.helpers.service_doubles import DoublePredictor
from tests.helpers.service_fixtures import LEASE, Place
from worker.inference.batcher import Sizes
from worker.inference.pipeline import Runtime
from worker.inference.watchdog import Activity
from worker.inference.worker import STUCK_EXIT_CODE, STUCK_GRACE_SECONDS, Calm, LeaseWorker, Vitals
from worker.periodic import PeriodicThread
from worker.queue.registry import (
    Explanation,
    ModelInfo,
    explanation_key,
    explanation_of,
    known_models,
    live_workers,
    worker_key,
)
from worker.settings import WorkerSettings


@pytest.fixture
def lone_worker(place: Place) -> Iterator[LeaseWorker]:
    """A worker in this process, whose parts are called one by one."""
    place.redis.flushdb()
    predictor = DoublePredictor()
    model = ModelInfo.model_validate(predictor.info.to_json())
    worker = LeaseWorker(
        place.redis,
        Runtime(predictor, model, place.blobs, worker="lone"),
        sizes=Sizes(),
        vitals=Vitals.of(predictor, WorkerSettings(redis_url=place.url, blobs="blobs")),
        explanation=Explanation.model_validate(predictor.info.to_json()),
        lease=LEASE,
        exit_process=_raise_exit,
    )
    worker.register_birth()
    yield worker
    place.redis.flushdb()


class ProcessEndedError(Exception):
    """Instead of the end of this process."""


def _raise_exit(code: int) -> None:
    raise ProcessEndedError(code)


def test_a_beat_renews_the_lease_of_worker_and_job(place: Place, lone_worker: LeaseWorker) -> None:
    job = place.post("cat", timeout=1)
    execution = lone_worker.prepare_execution(job)
    place.redis.expire(execution.key, 1)
    lone_worker.beat()
    assert place.redis.ttl(execution.key) > 1
    [announced] = [each for each in live_workers(place.redis) if each.name == "lone"]
    assert announced.jobs_in_hand == 1
    assert 0 < place.redis.ttl(worker_key("lone")) <= LEASE


def test_a_beat_explains_the_model_once(place: Place, lone_worker: LeaseWorker) -> None:
    lone_worker.beat()
    [model] = known_models(place.redis)
    key = explanation_key(model.version)
    told = explanation_of(place.redis, model)
    assert told.nearest_nouns["cat"][0].noun == "sofa"
    assert b"sofa" not in place.redis.get("semples:model:double")  # which every request reads
    place.redis.expire(key, 5)
    lone_worker.beat()
    assert place.redis.ttl(key) > 5
    place.redis.delete(key)  # a Redis that has lost its memory
    assert explanation_of(place.redis, model) == Explanation()
    lone_worker.beat()
    assert explanation_of(place.redis, model) == told


def test_a_main_thread_that_is_stuck_ends_the_process(
    place: Place, lone_worker: LeaseWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [100.0]
    activity = Activity(clock=lambda: seconds[0])
    monkeypatch.setattr(lone_worker, "vitals", replace(lone_worker.vitals, activity=activity))
    activity.expect(1)
    seconds[0] += 1000
    lone_worker.beat()  # Redis may have been away, and the main thread have waited for it
    lone_worker.calm = Calm(lease=0, pause=1e9)
    activity.expect(1)
    seconds[0] += 1 + STUCK_GRACE_SECONDS - 0.5
    lone_worker.beat()
    seconds[0] += 1
    with pytest.raises(ProcessEndedError, match=str(STUCK_EXIT_CODE)):
        lone_worker.beat()
    activity.rest()
    lone_worker.beat()


def test_a_pulse_outlives_outages_and_reports_its_own_death() -> None:
    calls: list[int] = []
    deaths: list[Exception] = []
    died = threading.Event()

    def action() -> None:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("away")
        if len(calls) == 5:
            raise LookupError("a bug")

    def on_error(error: Exception) -> None:
        deaths.append(error)
        died.set()

    pulse = PeriodicThread(action, interval=0.001, name="test", on_error=on_error)
    pulse.start()
    assert died.wait(10)
    pulse.stop()
    assert len(calls) == 5
    assert str(deaths[0]) == "a bug"
