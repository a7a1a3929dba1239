"""Taking a job back, whether it waits, runs or is done."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, png, wait_for
from worker.storage import blob_key

RED = iter(range(1, 256))


def post(api: httpx.Client, label: str, *, color: tuple[int, int, int] | None = None) -> str:
    image = png(color=color or (next(RED), 9, 0))
    response = api.post("/pseudo-mask", files={"image": image}, data={"labels": label})
    assert response.status_code == 202
    return response.headers["Location"]


def status(api: httpx.Client, path: str) -> Any:
    return api.get(path).json()["status"]


def test_a_job_that_waits_is_canceled_at_once(
    place: Place, worker: WorkerProcess, api: httpx.Client
) -> None:
    worker.stop()
    kept, path = post(api, "cat"), post(api, "cat")
    answer = api.delete(path)
    assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
    assert place.queue.count == 1
    assert api.get(f"{path}/mask.png").status_code == 409
    worker.start()
    wait_for(lambda: status(api, kept) == "finished")
    assert status(api, path) == "canceled"
    assert place.leftovers() == NOTHING


def test_a_job_that_runs_is_left_between_two_steps(
    place: Place, worker: WorkerProcess, api: httpx.Client
) -> None:
    path = post(api, "slow")
    wait_for(lambda: api.get(path).json().get("progress", {}).get("stage") == "cam")
    assert api.delete(path).json()["status"] == "running"
    wait_for(lambda: status(api, path) == "canceled")
    assert place.leftovers() == NOTHING
    assert place.redis.keys("rq:execution*") == []


def test_a_wait_ends_when_the_job_is_canceled(worker: WorkerProcess, api: httpx.Client) -> None:
    color = (next(RED), 9, 0)
    with ThreadPoolExecutor(1) as waiting:
        answer = waiting.submit(
            api.post,
            "/pseudo-mask?wait=60",
            files={"image": png(color=color)},
            data={"labels": "slow"},
        )
        path = post(api, "slow", color=color)  # the same job
        wait_for(lambda: status(api, path) == "running")
        api.delete(path)
        assert answer.result().json()["status"] == "canceled"


def test_a_canceled_job_runs_when_it_is_posted_again(
    worker: WorkerProcess, api: httpx.Client
) -> None:
    worker.stop()
    color = (next(RED), 9, 0)
    path = post(api, "cat", color=color)
    api.delete(path)
    assert post(api, "cat", color=color) == path
    worker.start()
    wait_for(lambda: status(api, path) == "finished")


def test_a_finished_job_is_removed_with_all_that_is_its_own(
    place: Place, worker: WorkerProcess, api: httpx.Client
) -> None:
    path = post(api, "cat")
    wait_for(lambda: status(api, path) == "finished")
    before = {kind: place.blobs.keys(kind) for kind in ("uploads", "results")}
    for _ in range(2):  # twice is as once
        answer = api.delete(path)
        assert (answer.status_code, answer.content) == (204, b"")
        assert api.get(path).status_code == 404
        assert api.get(f"{path}/mask.png").status_code == 404
    assert len(place.blobs.keys("uploads")) == len(before["uploads"]) - 1
    job_id = path.rpartition("/")[2]
    assert place.redis.keys(f"*{job_id}*") == []


def test_what_another_job_has_too_is_kept(
    place: Place, worker: WorkerProcess, api: httpx.Client
) -> None:
    color = (next(RED), 9, 0)
    photo = png(color=color)
    paths = [post(api, "cat", color=color), post(api, "bowl", color=color)]  # one upload
    paths.append(post(api, "cat"))  # its mask is the first one's
    for path in paths:
        wait_for(lambda path=path: status(api, path) == "finished")
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


def test_a_removed_job_runs_when_it_is_posted_again(
    worker: WorkerProcess, api: httpx.Client
) -> None:
    color = (next(RED), 9, 0)
    path = post(api, "cat", color=color)
    wait_for(lambda: status(api, path) == "finished")
    api.delete(path)
    assert post(api, "cat", color=color) == path
    wait_for(lambda: status(api, path) == "finished")
    assert api.get(f"{path}/mask.png").status_code == 200


def test_jobs_that_never_came_to_anything_are_removed(
    worker: WorkerProcess, api: httpx.Client
) -> None:
    failed = post(api, "raises")
    wait_for(lambda: status(api, failed) == "failed")
    worker.stop()
    canceled = post(api, "cat")
    api.delete(canceled)
    for path in (failed, canceled):
        assert api.delete(path).status_code == 204
        assert api.get(path).status_code == 404
    worker.start()


def test_an_unknown_job_is_gone_already(api: httpx.Client) -> None:
    for job_id in ("0" * 32, "x", "é", "%00", "0" * 5000):
        assert api.delete(f"/jobs/{job_id}").status_code == 204
