"""Jobs: a full queue, cancellation, removal."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from rq.job import Job

from service.jobs.service import JobService, _enforce_queue_limit, _seconds_to_wait
from tests.helpers.posting import new_photo, post, posted, segment, status, wait_for_status
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api, png, wait_for
from worker.queue.jobs import Limits
from worker.queue.rq import JobQueue, fetch_job
from worker.storage import blob_key
from worker.webhooks.store import Recipient


@pytest.fixture
def idle(idle: Place, running_worker: WorkerProcess) -> Place:
    running_worker.stop()
    return idle


@pytest.mark.parametrize(
    ("waiting", "done", "seconds"),
    [(1000, 600, 100), (1, 600, 1), (0, 5, 1), (100, 1, 600), (7, 3, 140), (1000, 0, 60)],
)
def test_seconds_to_wait(waiting: int, done: int, seconds: int) -> None:
    assert _seconds_to_wait(waiting, done) == seconds


def test_what_was_done_in_the_last_minute(idle: Place, worker: WorkerProcess) -> None:
    jobs = [idle.wait_done(idle.post(label)) for label in ("cat", "bowl", "raises")]
    now = time.time()
    assert idle.jobs.ended_lately(now=now) == len(jobs)
    assert idle.jobs.ended_lately(now=now + 3600) == 0


def test_retry_after_is_from_the_queues_own_rate(idle: Place, running_worker: WorkerProcess) -> None:
    with http_api(idle, max_queue=3) as api:
        for _ in range(3):
            assert segment(api).status_code == 202
        # Nothing was done lately: nobody knows.
        assert segment(api).headers["Retry-After"] == "60"
        running_worker.start()
        for _ in range(6):
            idle.wait_done(idle.post("cat"))
        running_worker.stop()
        for _ in range(3):
            assert segment(api).status_code == 202
        full = segment(api)
        assert full.status_code == 503
        # 3 wait, and 9 were done in a minute (6 or so, if this machine is that slow).
        assert 20 <= int(full.headers["Retry-After"]) < 60
        assert full.json()["detail"].startswith("3 jobs are waiting already, for about ")


def test_posts_at_once_do_not_exceed_the_limit(idle: Place) -> None:
    with http_api(idle, max_queue=5, decoders=8) as api, ThreadPoolExecutor(32) as pool:
        codes = list(pool.map(lambda _: segment(api).status_code, range(64)))
    assert sorted(codes) == [202] * 5 + [503] * 59
    assert idle.queue.count == 5
    assert len(idle.redis.keys("rq:job:*")) == 5


def test_a_callback_is_registered_once_though_another_post_was_faster(
    idle: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[str] = []
    monkeypatch.setattr("service.jobs.service.register", lambda _redis, job, *_, **__: registered.append(job))
    enqueue = JobQueue.enqueue

    def after_another(queue: JobQueue, job: Job, **options: Any) -> bool:
        assert enqueue(queue, job, **options)  # the other post
        return enqueue(queue, job, **options)

    monkeypatch.setattr(JobQueue, "enqueue", after_another)
    jobs = JobService(idle.redis, idle.blobs, Limits())
    job = jobs.submit(idle.request("cat"), png(), pixels=1, callback=Recipient(url="https://h/"))
    assert registered == [job.id]
    assert idle.queue.job_ids == [job.id]


def test_a_job_beyond_the_limit_is_removed(idle: Place) -> None:
    jobs = [idle.post("cat") for _ in range(3)]
    # Now two wait that both saw the second place free.
    assert [_enforce_queue_limit(idle.jobs, job, limit=2) for job in jobs] == [True, True, False]
    assert idle.queue.job_ids == [job.id for job in jobs[:2]]
    assert fetch_job(idle.redis, jobs[2].id) is None
    # A job that a worker has taken in the meantime stays.
    idle.redis.lpop(idle.queue.key)
    assert _enforce_queue_limit(idle.jobs, jobs[0], limit=0)
    assert fetch_job(idle.redis, jobs[0].id) is not None


@pytest.mark.parametrize(
    ("limits", "pixels", "seconds"),
    [
        (Limits(), 0, 120),
        (Limits(), 10_000_000, 170),
        (Limits(), 40_000_000, 300),
        (Limits(job_timeout=1), 600, 1),
        (Limits(job_timeout=400), 600, 300),
        (Limits(job_timeout=5, job_timeout_per_megapixel=0), 10**9, 5),
    ],
)
def test_large_images_have_more_time(limits: Limits, pixels: int, seconds: int) -> None:
    assert limits.timeout(pixels) == seconds


def test_the_timeout_is_no_part_of_the_jobs_id(idle: Place) -> None:
    image = png(width=1000, height=500)
    ids, timeouts = set(), []
    for per_megapixel in (0, 100):
        with http_api(idle, job_timeout_per_megapixel=per_megapixel) as api:
            ids.add(segment(api, image).json()["id"])
            timeouts += [fetch_job(idle.redis, each).timeout for each in ids]
        idle.redis.flushdb()
        idle.redis.delete(idle.queue.key)
        idle.announce(alive=False)
    assert len(ids) == 1
    assert timeouts == [120, 170]


def test_a_job_that_waits_is_canceled_at_once(place: Place, worker: WorkerProcess, api: httpx.Client) -> None:
    worker.stop()
    kept, path = posted(api, labels="cat"), posted(api, labels="cat")
    answer = api.delete(path)
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert place.queue.count == 1
    assert api.get(f"{path}/mask.png").status_code == 409
    worker.start()
    wait_for_status(api, kept, "finished")
    assert status(api, path) == "canceled"
    assert place.leftovers() == NOTHING


def test_a_running_job_is_canceled_between_two_steps(place: Place, worker: WorkerProcess, api: httpx.Client) -> None:
    path = posted(api, labels="slow")
    wait_for(lambda: api.get(path).json().get("progress", {}).get("stage") == "cam")
    assert api.delete(path).json()["status"] == "running"
    wait_for_status(api, path, "canceled")
    assert place.leftovers() == NOTHING
    assert place.redis.keys("rq:execution*") == []


def test_a_wait_ends_when_the_job_is_canceled(worker: WorkerProcess, api: httpx.Client) -> None:
    photo = new_photo()
    with ThreadPoolExecutor(1) as waiting:
        answer = waiting.submit(post, api, photo, "slow", query="?wait=60")
        path = posted(api, photo, "slow")  # the same job
        wait_for_status(api, path, "running")
        api.delete(path)
        assert answer.result().json()["status"] == "canceled"


def test_a_canceled_job_runs_when_it_is_posted_again(worker: WorkerProcess, api: httpx.Client) -> None:
    worker.stop()
    photo = new_photo()
    path = posted(api, photo, "cat")
    api.delete(path)
    assert posted(api, photo, "cat") == path
    worker.start()
    wait_for_status(api, path, "finished")


def test_a_finished_job_is_deleted_with_its_files(place: Place, worker: WorkerProcess, api: httpx.Client) -> None:
    path = posted(api, labels="cat")
    wait_for_status(api, path, "finished")
    before = {kind: place.blobs.keys(kind) for kind in ("uploads", "results")}
    for _ in range(2):  # twice is as once
        answer = api.delete(path)
        assert (answer.status_code, answer.content) == (204, b"")
        assert api.get(path).status_code == 404
        assert api.get(f"{path}/mask.png").status_code == 404
    assert len(place.blobs.keys("uploads")) == len(before["uploads"]) - 1
    job_id = path.rpartition("/")[2]
    assert place.redis.keys(f"*{job_id}*") == []


def test_files_of_another_job_are_kept(place: Place, worker: WorkerProcess, api: httpx.Client) -> None:
    photo = new_photo()
    paths = [posted(api, photo, "cat"), posted(api, photo, "bowl")]  # one upload
    paths.append(posted(api, labels="cat"))  # its mask is the first one's
    for path in paths:
        wait_for_status(api, path, "finished")
    assert api.get(f"{paths[0]}/mask.png").content == api.get(f"{paths[2]}/mask.png").content
    assert api.delete(paths[0]).status_code == 204
    assert place.blobs.exists(blob_key("uploads", photo))
    for path in paths[1:]:
        for name in ("mask.png", "overlay.png", "scores.npz"):
            assert api.get(f"{path}/{name}").status_code == 200
    mask = blob_key("results", api.get(f"{paths[1]}/mask.png").content)
    assert api.delete(paths[1]).status_code == 204
    assert not place.blobs.exists(mask)
    assert not place.blobs.exists(blob_key("uploads", photo))


def test_a_deleted_job_runs_when_it_is_posted_again(worker: WorkerProcess, api: httpx.Client) -> None:
    photo = new_photo()
    path = posted(api, photo, "cat")
    wait_for_status(api, path, "finished")
    api.delete(path)
    assert posted(api, photo, "cat") == path
    wait_for_status(api, path, "finished")
    assert api.get(f"{path}/mask.png").status_code == 200


def test_failed_and_canceled_jobs_are_deleted(worker: WorkerProcess, api: httpx.Client) -> None:
    failed = posted(api, labels="raises")
    wait_for_status(api, failed, "failed")
    worker.stop()
    canceled = posted(api, labels="cat")
    api.delete(canceled)
    for path in (failed, canceled):
        assert api.delete(path).status_code == 204
        assert api.get(path).status_code == 404
    worker.start()


def test_deleting_an_unknown_job_is_no_error(api: httpx.Client) -> None:
    for job_id in ("0" * 32, "x", "é", "%00", "0" * 5000):
        assert api.delete(f"/jobs/{job_id}").status_code == 204
