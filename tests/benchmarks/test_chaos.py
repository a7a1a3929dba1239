"""Workers and Valkey die, jobs do harm, disks fill: what must hold is in ``tests.helpers.chaos``."""

import resource
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from random import Random

import httpx
import pytest

from service.jobs.service import JobService
from tests.helpers.chaos import Scene
from tests.helpers.service_fixtures import WorkerProcess, http_api, png, wait_for
from tests.helpers.undisturbed import Asked
from worker.queue.rq import open_redis
from worker.queue.schema import MAX_JOB_ATTEMPTS


def finish_well(there: Scene, *, lost: set[int] | None = None) -> None:
    """Wait for all jobs; each finishes, and loses one of these numbers of attempts."""
    assert there.all_finish()
    assert there.problems() == []
    if lost is not None:
        assert there.accepted
        assert {there.attempts_lost(each) for each in there.accepted} <= lost


def test_a_worker_is_killed_in_a_batch(there: Scene) -> None:
    worker = there.worker()
    there.post_mixed(4, "slow")
    there.post_mixed(10)
    leased = there.wait_batch()
    worker.kill()
    worker.start()
    finish_well(there)
    lost = {each for each in there.accepted if there.attempts_lost(each)}
    assert lost <= leased
    assert {there.attempts_lost(each) for each in lost} == {1}


@pytest.mark.parametrize("seconds", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_valkey_is_killed_and_is_down_for_a_while(there: Scene, seconds: int) -> None:
    busy, idle = there.worker(), there.worker()
    pids = [each.ensure().pid for each in (busy, idle)]
    there.post_mixed(3, "slow")
    there.post_mixed(3)
    there.wait_batch()
    there.server.kill()
    time.sleep(seconds)
    there.server.start()
    finish_well(there, lost={0})
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
    finish_well(there)
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
    finish_well(there, lost={0, 1})


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
    finish_well(there, lost={0})


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
    finish_well(there, lost={0, 1})


def test_sigterm_while_valkey_is_down(there: Scene) -> None:
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
    finish_well(there, lost={0})
    assert [each.stop() for each in workers] == [0, 0]


def test_the_same_from_many_threads_is_one_job_that_runs_once(there: Scene) -> None:
    request = Asked(("cat",))
    with ThreadPoolExecutor(16) as pool:
        ids = set(pool.map(lambda _: there.submit(request, 7), range(64)))
        assert there.place.queue.count == 1
        worker = there.worker()
        ids |= set(pool.map(lambda _: there.submit(request, 7), range(64)))
    assert there.all_finish()
    assert len(ids) == 1
    assert there.problems() == []
    assert worker.log().count("job finished") == 1


@pytest.mark.parametrize(
    ("poison", "code"), [("raises", "model_error"), ("hangs", "timeout"), ("kills", "worker_died")]
)
def test_a_poisoned_image_fails_alone(there: Scene, poison: str, code: str) -> None:
    others = [there.post("cat", timeout=2) for _ in range(4)]
    bad = there.post(poison, timeout=2)
    others += [there.post("bowl", timeout=2) for _ in range(4)]
    worker = there.worker()
    assert there.wait_all(meanwhile=worker.ensure) == {"finished": 8, "failed": 1}
    assert there.job(bad).meta["failure"]["code"] == code
    assert {there.attempts_lost(each) for each in others} <= {0, 1 if poison == "kills" else 0}
    assert there.problems() == []


def test_out_of_memory_in_a_batch(there: Scene) -> None:
    for _ in range(4):
        there.post("wide")
        there.post("cat")
    bad = there.post("huge")
    worker = there.worker()
    pid = worker.ensure().pid
    assert there.wait_all() == {"finished": 8, "failed": 1}
    assert there.job(bad).meta["failure"]["code"] == "out_of_memory"
    assert there.problems() == []
    assert worker.ensure().pid == pid


def test_a_broken_device_is_left_to_a_new_process(there: Scene) -> None:
    others = [there.post("cat") for _ in range(3)]
    bad = there.post("breaks")
    others += [there.post("cat") for _ in range(3)]
    worker = there.worker()
    codes = []

    def restart() -> None:
        if worker.child is not None and worker.child.exit_code is not None:
            codes.append(worker.child.exit_code)
            worker.start()

    assert there.wait_all(meanwhile=restart) == {"finished": 6, "failed": 1}
    assert codes == [1] * MAX_JOB_ATTEMPTS
    assert there.job(bad).meta["failure"]["code"] == "worker_died"
    assert {there.attempts_lost(each) for each in others} <= {0, 1}
    assert there.problems() == []


def set_room(worker: WorkerProcess, size: int) -> None:
    """Let a running worker write files of so many bytes at most; more is as a full disk."""
    pid = worker.ensure().pid
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))


def test_the_disk_is_full_and_then_has_room_again(there: Scene) -> None:
    worker = there.worker()
    set_room(worker, 100)
    ids = there.post_mixed(8)
    assert there.wait_all() == {"failed": 8}
    assert {there.job(each).meta["failure"]["code"] for each in ids} == {"storage_full"}
    assert there.problems() == []
    assert there.unfinished_files() == []
    set_room(worker, resource.RLIM_INFINITY)
    requests = list(there.accepted.values())
    again = [there.submit(each, number) for number, each in enumerate(requests, 1)]
    assert again == ids
    finish_well(there)
    assert there.unfinished_files() == []


def test_a_slow_client_keeps_nobody_waiting(there: Scene) -> None:
    there.worker()
    with http_api(there.place) as api:
        body = httpx.Request(
            "POST", f"{api.base_url}/pseudo-mask", files={"image": png(color=(9, 9, 9))}, data={"labels": "cat"}
        )
        address = (api.base_url.host, api.base_url.port)
        with socket.create_connection(address) as slow, socket.create_connection(address) as gone:
            headers = "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
            content = body.read()
            head = f"POST /pseudo-mask HTTP/1.1\r\n{headers}\r\n".encode()
            for client in (slow, gone):
                client.sendall(head + content[:100])
            gone.close()
            for red in range(5):
                posted = api.post(
                    "/pseudo-mask?wait=30", files={"image": png(color=(red, 0, 0))}, data={"labels": "cat"}
                )
                assert posted.json()["status"] == "finished"
            for start in range(100, len(content), 40):
                slow.sendall(content[start : start + 40])
            assert slow.recv(100).startswith(b"HTTP/1.1 202")
        wait_for(lambda: len(there.place.redis.keys("rq:job:*")) == 6)
        for key in there.place.redis.keys("rq:job:*"):
            job_id = key.decode().rpartition(":")[2]
            there.accepted[job_id] = Asked(tuple(there.job(job_id).args[0]["labels"]))
    assert there.all_finish()
    assert there.unfinished_files() == []
    assert there.problems() == []


def test_a_job_canceled_and_posted_again_finishes(there: Scene) -> None:
    request, jobs = Asked(("slow", "cat")), there.jobs()
    job_id = there.submit(request, 7)
    there.worker()
    there.wait_batch(least=1)
    for _ in range(20):
        jobs.cancel(there.job(job_id))
        assert there.submit(request, 7) == job_id
    finish_well(there)
    assert there.attempts_lost(job_id) == 0


@pytest.mark.parametrize("seed", [0])
def test_half_of_a_thousand_are_canceled_while_a_worker_works(there: Scene, seed: int) -> None:
    there.post_mixed(1000)
    kept = set(there.accepted)
    canceled = Random(seed).sample(sorted(there.accepted), 500)
    there.worker()
    local = threading.local()

    def cancel(job_id: str) -> None:
        if not hasattr(local, "jobs"):
            local.jobs = JobService(open_redis(there.place.url), there.place.blobs, there.jobs().limits)
        local.jobs.cancel(local.jobs.find(job_id))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(cancel, canceled))
    states = there.wait_all()
    assert set(states) <= {"finished", "canceled"}
    kept -= set(canceled)
    assert {there.job(each).get_status().value for each in kept} == {"finished"}
    assert there.problems() == []
    assert {there.attempts_lost(each) for each in there.accepted} == {0}
