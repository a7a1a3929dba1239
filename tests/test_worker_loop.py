"""A worker's life and death: nothing that was accepted is lost, and nothing is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from rq.utils import now

from tests.service_doubles import NAMES, DoublePredictor
from tests.service_fixtures import LEASE, NOTHING, Place, WorkerProcess, wait_for
from worker.activity import Activity
from worker.calm import Calm
from worker.loop import STUCK_EXIT_CODE, STUCK_GRACE_SECONDS, LeaseWorker
from worker.presence import (
    Explanation,
    ModelInfo,
    WorkerInfo,
    explanation_key,
    explanation_of,
    known_models,
    live_workers,
    worker_key,
)
from worker.pulse import Pulse
from worker.queues import LeasedIntermediateQueue
from worker.runtime import Runtime
from worker.settings import WorkerSettings
from worker.sizes import Sizes
from worker.vitals import Vitals


@pytest.mark.parametrize("labels", [("slow", "cat"), ()], ids=["pseudo mask", "segment"])
def test_a_killed_workers_job_is_finished_by_the_next(
    place: Place, worker: WorkerProcess, labels: tuple[str, ...]
) -> None:
    job = place.post(*labels, finds=NAMES.index("slow") + 1)
    wait_for(lambda: job.get_meta().get("progress", {}).get("stage") == "cam", what="the start")
    assert len(place.leftovers()["wip"]) == 1
    worker.kill()
    assert job.get_status() == "started"  # nobody has noticed yet
    worker.start()
    assert place.wait_done(job).get_status() == "finished"
    assert job.retries_left == 1
    assert job.return_value()["classes"][-1]["name"] == "slow"
    assert place.leftovers() == NOTHING


def test_a_job_that_kills_workers_is_failed_after_three(
    place: Place, worker: WorkerProcess
) -> None:
    pids = {
        worker.ensure().pid
    }  # before the job: on a busy machine it may die before the first look
    job = place.post("kills")
    other = place.post("cat")
    deadline = time.monotonic() + 60
    while job.get_status() != "failed" and time.monotonic() < deadline:
        pids.add(worker.ensure().pid)
        time.sleep(0.05)
    job.refresh()
    assert job.get_status() == "failed"
    assert job.meta["failure"]["code"] == "worker_died"
    assert place.wait_done(other).get_status() == "finished"
    assert len(pids) == 4  # three that died, and the one that found out
    assert place.leftovers() == NOTHING


def test_a_worker_that_died_between_queue_and_hand(place: Place, worker: WorkerProcess) -> None:
    worker.stop()
    job = place.post("cat")
    place.redis.lmove(place.queue.key, place.queue.intermediate_queue_key)
    worker.start()
    assert place.wait_done(job).get_status() == "finished"
    assert place.leftovers() == NOTHING


def test_sigterm_finishes_the_job_in_hand_and_takes_no_other(
    place: Place, worker: WorkerProcess
) -> None:
    job = place.post("slow")
    wait_for(lambda: job.get_meta().get("progress", {}).get("stage") == "cam")
    worker.ensure().ask_to_stop()
    other = place.post("cat")
    assert worker.stop() == 0
    assert job.get_status() == "finished"
    assert other.get_status() == "queued"
    assert live_workers(place.redis) == ()
    assert [model.name for model in known_models(place.redis)] == ["double"]
    worker.start()
    assert place.wait_done(other).get_status() == "finished"


def test_sigterm_while_idle(place: Place, worker: WorkerProcess) -> None:
    assert worker.stop() == 0
    assert live_workers(place.redis) == ()


@pytest.mark.parametrize(
    ("label", "code"), [("raises", "model_error"), ("huge", "out_of_memory"), ("hangs", "timeout")]
)
def test_a_misbehaving_job_fails_alone_and_once(
    place: Place, worker: WorkerProcess, label: str, code: str
) -> None:
    pid = worker.ensure().pid
    job = place.wait_done(place.post(label, timeout=1))
    assert job.meta == {"failure": job.meta["failure"]}
    assert job.meta["failure"]["code"] == code
    assert len(job.results()) == 1
    assert place.wait_done(place.post("cat")).get_status() == "finished"
    assert worker.ensure().pid == pid
    assert place.leftovers() == NOTHING


@pytest.mark.parametrize(
    ("bundle", "reason"),
    [
        ("broken", "expected a bundle, got a broken one"),
        ("crooked", "expected a label map of (64, 96), got (1, 1)"),
        ("crooked-segmenter", "expected a label map of (64, 96), got (1, 1)"),
    ],
)
def test_a_model_that_does_not_work_is_one_line_and_never_ready(
    place: Place, worker: WorkerProcess, bundle: str, reason: str
) -> None:
    del worker
    before = {each.name for each in live_workers(place.redis)}
    failing = WorkerProcess(place, bundle=bundle)
    child = failing.start(ready=False)
    wait_for(lambda: child.exit_code is not None)
    assert child.exit_code == 3
    assert child.last_words() == f"semples worker: cannot load bundle '{bundle}': {reason}"
    assert {each.name for each in live_workers(place.redis)} == before


def test_the_lease_runs_out_by_itself(place: Place, worker: WorkerProcess) -> None:
    worker.kill()
    assert len(live_workers(place.redis)) == 1  # the lease holds for a while
    wait_for(lambda: not live_workers(place.redis), seconds=LEASE + 5)


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
        vitals=Vitals.of(predictor, WorkerSettings(place.url, "blobs")),
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


def test_a_passage_through_the_intermediate_list_is_no_stay(place: Place) -> None:
    queue = LeasedIntermediateQueue(place.queue.key, place.redis, lease=LEASE)
    assert queue.set_first_seen("j")
    assert not queue.set_first_seen("j")
    assert not queue.should_be_cleaned_up("j")
    assert not queue.should_be_cleaned_up("never seen")
    # Forgotten soon, so that the job's next passage is a first one again.
    assert place.redis.ttl(queue.get_first_seen_key("j")) <= 3 * LEASE
    place.redis.set(queue.get_first_seen_key("j"), now().timestamp() - LEASE - 1)
    assert queue.should_be_cleaned_up("j")


def test_presence_forgets_what_is_over(place: Place) -> None:
    place.redis.flushdb()
    place.redis.sadd("semples:workers", "ghost")
    assert live_workers(place.redis) == ()
    assert place.redis.smembers("semples:workers") == set()
    assert known_models(place.redis) == ()
    info = WorkerInfo.model_validate(
        {"name": "w", "model": {"name": "m", "version": "1"}, "device": "", "host": "", "pid": 1}
    )
    assert info.jobs_in_hand == 0


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

    def on_death(error: Exception) -> None:
        deaths.append(error)
        died.set()

    pulse = Pulse(action, interval=0.001, name="test", on_death=on_death)
    pulse.start()
    assert died.wait(10)
    pulse.stop()
    assert len(calls) == 5
    assert str(deaths[0]) == "a bug"
