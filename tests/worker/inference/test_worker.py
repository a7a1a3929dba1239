"""A worker's life and death: nothing that was accepted is lost, nothing is left behind, and a stuck worker ends."""

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.inference.masks import MaskOptions
from tests.helpers.service_doubles import NAMES, DoublePredictor
from tests.helpers.service_fixtures import LEASE, NOTHING, Place, WorkerProcess, png, wait_for
from worker.inference.pipeline import WorkerContext
from worker.inference.watchdog import StallDetector
from worker.inference.worker import STUCK_EXIT_CODE, STUCK_GRACE_SECONDS, GpuWorker, _HeartbeatGap, _make_worker
from worker.periodic import PeriodicThread
from worker.queue.failures import dead_letters
from worker.queue.registry import (
    Explanation,
    ModelInfo,
    _explanation_key,
    explanation_of,
    known_models,
    live_workers,
    worker_key,
)
from worker.queue.rq import make_job
from worker.queue.schema import JobRequest, ModelRef
from worker.settings import WorkerSettings

HALF = 500
GROWTH = 24 * 2**20
"""Of the second half: 48 KB an image. The first half fills caches and finds the largest sizes."""


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


def test_a_job_that_kills_workers_is_failed_after_three(place: Place, worker: WorkerProcess) -> None:
    # Before the job: on a busy machine it may die before the first look.
    pids = {worker.ensure().pid}
    job = place.post("kills")
    other = place.post("cat")
    deadline = time.monotonic() + 60
    while job.get_status() != "failed" and time.monotonic() < deadline:
        pids.add(worker.ensure().pid)
        time.sleep(0.05)
    job.refresh()
    assert job.get_status() == "failed"
    assert job.meta["failure"]["code"] == "worker_died"
    assert [letter.job for letter in dead_letters(place.redis)] == [job.id]
    assert place.wait_done(other).get_status() == "finished"
    assert len(pids) == 4  # three that died, and the one that found out
    assert place.leftovers() == NOTHING


def test_a_worker_that_died_between_queue_and_lease(place: Place, worker: WorkerProcess) -> None:
    worker.stop()
    job = place.post("cat")
    place.redis.lmove(place.queue.key, place.queue.intermediate_queue_key)
    worker.start()
    assert place.wait_done(job).get_status() == "finished"
    assert place.leftovers() == NOTHING


def test_sigterm_finishes_the_job_in_hand_and_takes_no_other(place: Place, worker: WorkerProcess) -> None:
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
def test_a_misbehaving_job_fails_alone_and_once(place: Place, worker: WorkerProcess, label: str, code: str) -> None:
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
    before = {each.name for each in live_workers(place.redis)}
    failing = WorkerProcess(place, bundle=bundle)
    child = failing.start(ready=False)
    wait_for(lambda: child.exit_code is not None)
    assert child.exit_code == 3
    assert child.last_log_line() == f"semples worker: cannot load bundle '{bundle}': {reason}"
    assert {each.name for each in live_workers(place.redis)} == before


def test_the_helper_takes_no_early_end_for_a_start(place: Place) -> None:
    with pytest.raises(RuntimeError, match=r"expected a worker that runs, got exit code 3: (.|\n)*cannot load bundle"):
        WorkerProcess(place, bundle="broken").start()


def test_the_lease_runs_out_by_itself(place: Place, worker: WorkerProcess) -> None:
    worker.kill()
    assert len(live_workers(place.redis)) == 1  # the lease holds for a while
    wait_for(lambda: not live_workers(place.redis), seconds=LEASE + 5)


def test_items_of_batches_are_worked_on_behind_what_somebody_posts(place: Place, worker: WorkerProcess) -> None:
    worker.stop()
    # Of three sizes, so that no two share a forward pass. One item may go first, if its image is decoded sooner.
    images = [place.blobs.put("uploads", png(width=width, height=32)) for width in (64, 96)]
    requests = [place.request("slow").model_copy(update={"image": image}) for image in images]
    *items, posted = (make_job(place.redis, each, timeout=30) for each in (*requests, place.request("slow")))
    for item in items:
        assert place.jobs.enqueue(item, batch=True)
    assert place.jobs.enqueue(posted)
    worker.start()
    for job in (*items, posted):
        assert place.wait_done(job).get_status() == "finished"
    assert posted.ended_at < max(item.ended_at for item in items)
    late = make_job(place.redis, place.request("cat"), timeout=30)
    place.jobs.enqueue(late, batch=True)  # to a worker that waits at the other queue
    assert place.wait_done(late).get_status() == "finished"
    assert place.leftovers() == NOTHING


def test_a_killed_workers_batch_item_waits_again_behind_the_others(place: Place, worker: WorkerProcess) -> None:
    job = make_job(place.redis, place.request("slow"), timeout=30)
    place.jobs.enqueue(job, batch=True)
    wait_for(lambda: job.get_status(refresh=True) == "started", what="the start")
    worker.kill()
    worker.start()
    assert place.wait_done(job).get_status() == "finished"
    assert (job.retries_left, job.origin) == (1, place.jobs.batch.name)
    assert place.leftovers() == NOTHING


@pytest.fixture
def lone_worker(place: Place, running_worker: WorkerProcess) -> Iterator[GpuWorker]:
    """A worker in this process, the only one, whose parts are called one by one."""
    running_worker.stop()
    place.redis.flushdb()
    predictor: Any = DoublePredictor()
    document = predictor.info.to_json()
    model = ModelInfo.model_validate(document)
    worker = _make_worker(
        place.redis,
        WorkerContext(predictor, model, place.blobs, worker="lone"),
        WorkerSettings(redis_url=place.url, blobs="blobs", lease=LEASE),
        explanation=Explanation.model_validate(document),
        exit_process=_raise_exit,
    )
    worker.register_birth()
    yield worker
    place.redis.flushdb()


class ProcessEndedError(Exception):
    """Instead of the end of this process."""


def _raise_exit(code: int) -> None:
    raise ProcessEndedError(code)


def test_a_heartbeat_renews_the_lease_of_worker_and_job(place: Place, lone_worker: GpuWorker) -> None:
    place.post("cat", timeout=1)
    [flying] = lone_worker.consumer.lease(place.jobs.take(1))
    place.redis.expire(flying.lease.key, 1)
    lone_worker.send_heartbeat()
    assert place.redis.ttl(flying.lease.key) > 1
    [announced] = [each for each in live_workers(place.redis) if each.name == "lone"]
    assert announced.jobs_in_hand == 1
    assert 0 < place.redis.ttl(worker_key("lone")) <= LEASE


def test_a_heartbeat_explains_the_model_once(place: Place, lone_worker: GpuWorker) -> None:
    lone_worker.send_heartbeat()
    [model] = known_models(place.redis)
    key = _explanation_key(model.version)
    explained = explanation_of(place.redis, model)
    assert explained.nearest_nouns["cat"][0].noun == "sofa"
    assert b"sofa" not in place.redis.get("semples:model:double")  # which every request reads
    place.redis.expire(key, 5)
    lone_worker.send_heartbeat()
    assert place.redis.ttl(key) > 5
    place.redis.delete(key)  # a Redis that has lost its memory
    assert explanation_of(place.redis, model) == Explanation()
    lone_worker.send_heartbeat()
    assert explanation_of(place.redis, model) == explained


def test_a_main_thread_that_is_stuck_ends_the_process(
    place: Place, lone_worker: GpuWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [100.0]
    stall = StallDetector(clock=lambda: seconds[0])
    monkeypatch.setattr(lone_worker, "stall", stall)
    stall.deadline(1)
    seconds[0] += 1000
    lone_worker.send_heartbeat()  # Redis may have been away, and the main thread have waited for it
    lone_worker.heartbeat_gap = _HeartbeatGap(lease=0, pause=1e9)
    stall.deadline(1)
    seconds[0] += 1 + STUCK_GRACE_SECONDS - 0.5
    lone_worker.send_heartbeat()
    seconds[0] += 1
    with pytest.raises(ProcessEndedError, match=str(STUCK_EXIT_CODE)):
        lone_worker.send_heartbeat()
    stall.idle()
    lone_worker.send_heartbeat()


def test_a_periodic_thread_outlives_outages_and_reports_its_own_death() -> None:
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

    thread = PeriodicThread(action, interval=0.001, name="test", on_error=on_error)
    thread.start()
    assert died.wait(10)
    thread.stop()
    assert len(calls) == 5
    assert str(deaths[0]) == "a bug"


def test_no_worker_is_taken_for_dead_right_after_an_outage() -> None:
    seconds = [100.0]
    gap = _HeartbeatGap(lease=3, pause=1.5, clock=lambda: seconds[0])

    def beats(*pauses: float) -> list[bool]:
        answers = []
        for pause in pauses:
            seconds[0] += pause
            answers.append(gap.settled())
        return answers

    assert beats(0, 1, 1, 1, 1) == [False, False, False, True, True]
    assert beats(25, 1, 1, 1) == [False, False, False, True]


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(match[1]) * 1024 if match else 0


def run_many(place: Place, *, seed: int) -> None:
    """Queue half a thousand images, no two of which have the same size, and wait until all are done."""
    random = np.random.default_rng(seed)
    sides = random.integers(16, 400, (HALF, 2))
    finished = place.queue.finished_job_registry.count
    for number, (width, height) in enumerate(sides):
        # Every other one is segmented, and finds a class.
        labels = ("cat", "bowl")[: number % 3] if number % 2 else ()
        image = png(width=int(width), height=int(height), color=(number % 256, seed, 2))
        request = JobRequest(
            task="pseudo_mask" if labels else "segment",
            image=place.blobs.put("uploads", image),
            labels=labels,
            options=MaskOptions(refine="none", min_confidence=0.0, background_threshold=0.4),
            model=ModelRef(name="double", version="0123456789ab"),
        )
        place.queue.enqueue_job(make_job(place.redis, request, timeout=60), unique=True)
    wait_for(lambda: place.leftovers() == NOTHING, seconds=100, what=f"{HALF} jobs")
    assert place.queue.finished_job_registry.count == finished + HALF


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_stays_flat(place: Place, worker: WorkerProcess) -> None:
    pid = worker.ensure().pid
    run_many(place, seed=1)
    some = resident_bytes(pid)
    run_many(place, seed=2)
    many = resident_bytes(pid)
    assert 0 < many < some + GROWTH
