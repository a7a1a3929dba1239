"""Workers and Valkey die in the middle of the work; what must hold is in ``tests.helpers.chaos``."""

from __future__ import annotations

import time

import pytest

from tests.helpers.chaos import Scene
from tests.helpers.service_fixtures import wait_for
from worker.queue.schema import MAX_JOB_ATTEMPTS


def test_a_worker_is_killed_in_a_batch(there: Scene) -> None:
    worker = there.worker()
    there.post_mixed(4, "slow")
    there.post_mixed(10)
    leased = there.wait_batch()
    worker.kill()
    worker.start()
    assert there.all_finish()
    assert there.problems() == []
    lost = {each for each in there.accepted if there.attempts_lost(each)}
    assert lost <= leased
    assert {there.attempts_lost(each) for each in lost} == {1}


@pytest.mark.parametrize("seconds", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_valkey_is_killed_and_stays_away(there: Scene, seconds: int) -> None:
    busy, idle = there.worker(), there.worker()
    pids = [each.ensure().pid for each in (busy, idle)]
    there.post_mixed(3, "slow")
    there.post_mixed(3)
    there.wait_batch()
    there.server.kill()
    time.sleep(seconds)
    there.server.start()
    assert there.all_finish()
    assert there.problems() == []
    assert {there.attempts_lost(each) for each in there.accepted} == {0}
    there.post_mixed(3)
    assert there.all_finish()
    assert [each.ensure().pid for each in (busy, idle)] == pids


def test_valkey_is_killed_while_all_is_quiet(there: Scene) -> None:
    worker = there.worker()
    pid = worker.ensure().pid
    there.post_mixed(3)
    assert there.all_finish()
    there.server.kill()
    time.sleep(3)
    there.server.start()
    assert there.states() == {"finished": 3}
    there.post_mixed(3)
    assert there.all_finish()
    assert there.problems() == []
    assert worker.ensure().pid == pid


def test_both_are_killed_at_once(there: Scene) -> None:
    worker = there.worker()
    there.post_mixed(3, "slow")
    there.post_mixed(10)
    there.wait_batch()
    there.server.kill()
    worker.child.kill() if worker.child else None
    there.server.start()
    worker.start()
    assert there.all_finish()
    assert there.problems() == []
    assert {there.attempts_lost(each) for each in there.accepted} <= {0, 1}


@pytest.mark.parametrize("signals", [1, 2])
def test_sigterm_in_a_batch(there: Scene, signals: int) -> None:
    worker = there.worker()
    there.post_mixed(3, "slow")
    there.post_mixed(20)
    there.wait_batch()
    for _ in range(signals):  # two within a second are one
        worker.ensure().ask_to_stop()
    leased = there.leased()
    assert worker.stop() == 0
    assert leased.isdisjoint(there.leased())
    jobs = [there.job(each) for each in leased]
    # What was in the networks is finished; what was only decoded waits again, and lost no attempt.
    assert {job.get_status().value for job in jobs} == {"finished", "queued"}
    assert {job.retries_left for job in jobs} == {MAX_JOB_ATTEMPTS - 1}
    worker.start()
    assert there.all_finish()
    assert there.problems() == []
    assert {there.attempts_lost(each) for each in there.accepted} == {0}


def test_a_second_sigterm_leaves_the_jobs_to_another_worker(there: Scene) -> None:
    worker = there.worker()
    child = worker.ensure()
    there.post_mixed(4, "slow")
    there.wait_batch()
    child.ask_to_stop()
    time.sleep(1.5)  # within a second it would be taken for the first one's echo
    child.ask_to_stop()
    wait_for(lambda: child.exit_code is not None, what="the worker's end")
    assert there.leased()
    worker.start()
    assert there.all_finish()
    assert there.problems() == []
    assert {there.attempts_lost(each) for each in there.accepted} <= {0, 1}


def test_sigterm_while_valkey_is_away(there: Scene) -> None:
    worker = there.worker()
    child = worker.ensure()
    job = there.post("slow")
    there.wait_batch(least=1)
    there.server.kill()
    child.ask_to_stop()
    wait_for(lambda: "its end not written" in worker.log() or "trying again" in worker.log())
    there.server.start()
    wait_for(lambda: child.exit_code is not None, what="the worker's end")
    assert child.exit_code == 0
    assert there.wait_all() == {"finished": 1}
    assert there.attempts_lost(job) == 0
    assert there.problems() == []


def test_two_workers_and_batches_longer_than_a_lease(there: Scene) -> None:
    workers = [there.worker(), there.worker()]
    there.post_mixed(8, "slow")
    assert there.all_finish()
    assert there.problems() == []
    assert {there.attempts_lost(each) for each in there.accepted} == {0}
    assert [each.stop() for each in workers] == [0, 0]
