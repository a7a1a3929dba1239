"""A worker's life and death: nothing that was accepted is lost, and nothing is left behind."""

from __future__ import annotations

import time

import pytest
from rq.utils import now

from tests.helpers.service_doubles import NAMES
from tests.helpers.service_fixtures import LEASE, NOTHING, Place, WorkerProcess, wait_for
from worker.queue.registry import WorkerInfo, known_models, live_workers
from worker.queue.rq import LeasedIntermediateQueue


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
