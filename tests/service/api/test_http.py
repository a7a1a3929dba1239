"""HTTP → real Valkey → real worker process → mask."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api, png, wait_for
from worker.storage import blob_key

COLORS = ((1, number, 0) for number in itertools.count())


@pytest.fixture
def photo() -> bytes:
    """A photo that no job is about yet."""
    return png(color=next(COLORS))


@pytest.fixture(autouse=True)
def nothing_left_behind(place: Place, worker: WorkerProcess) -> Iterator[None]:
    del worker
    yield
    wait_for(lambda: place.leftovers() == NOTHING, what="an empty queue")


def post(
    api: httpx.Client, photo: bytes, labels: Any = "cat", *, query: str = "", **options: Any
) -> httpx.Response:
    headers = options.pop("headers", None)
    return api.post(
        f"/pseudo-mask{query}",
        files={"image": ("photo.png", photo)},
        data={"labels": labels, **options},
        headers=headers,
    )


def finished(api: httpx.Client, location: str) -> dict[str, Any]:
    wait_for(lambda: api.get(location).json()["status"] == "finished", what="the job")
    document: dict[str, Any] = api.get(location).json()
    return document


def test_post_then_ask(api: httpx.Client, photo: bytes) -> None:
    response = post(api, photo, ["Kitty", "dining_table", "cat"])
    assert response.status_code == 202
    assert response.json()["status"] in ("queued", "running", "finished")
    assert response.json()["labels"] == ["cat", "dining table"]  # each once, canonical order
    location = response.headers["Location"]
    assert location == f"/jobs/{response.json()['id']}" == response.json()["links"]["self"]

    document = finished(api, location)
    assert document["task"] == "pseudo_mask"
    assert document["model"] == {"name": "double", "version": "0123456789ab"}
    assert document["image"] == {"width": 30, "height": 20, "exif_orientation": 1}
    assert [each["name"] for each in document["classes"]] == ["cat", "dining table"]
    assert document["classes"][0]["area"] == pytest.approx(1 / 3)
    assert document["classes"][0]["box"] == [0, 0, 10, 20]
    assert set(document["timings"]) == {"queue", "decode", "model", "encode"}
    assert "failure" not in document

    mask = api.get(document["links"]["mask"])
    assert mask.headers["content-type"] == "image/png"
    assert np.unique(np.asarray(Image.open(io.BytesIO(mask.content)))).tolist() == [0, 1, 3]
    overlay = api.get(document["links"]["overlay"])
    drawn = np.asarray(Image.open(io.BytesIO(overlay.content)))
    assert drawn.shape == (20, 30, 3)
    assert drawn[10, 5].tolist() != drawn[10, 28].tolist()  # the cat is painted over
    assert drawn[10, 28].tolist() == list(Image.open(io.BytesIO(photo)).getpixel((28, 10)))
    with np.load(io.BytesIO(api.get(document["links"]["scores"]).content)) as scores:
        assert scores["class_name"].tolist() == ["cat", "dining table"]


def test_wait_gives_the_finished_job(api: httpx.Client, photo: bytes) -> None:
    response = post(api, photo, "cat, bowl", query="?wait=30")
    assert response.status_code == 200
    assert response.json()["status"] == "finished"
    assert response.json()["labels"] == ["cat", "bowl"]


def test_a_preference_to_wait_counts_as_well(api: httpx.Client, photo: bytes) -> None:
    assert post(api, photo, headers={"Prefer": "respond-async, wait=30"}).status_code == 200


def test_the_mask_itself(api: httpx.Client, photo: bytes) -> None:
    response = post(api, photo, query="?wait=30", headers={"Accept": "image/png"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.content == api.get(f"{response.headers['Location']}/mask.png").content


def test_a_wait_that_is_too_short(api: httpx.Client, photo: bytes) -> None:
    response = post(api, photo, "slow", query="?wait=1", headers={"Accept": "image/png"})
    assert response.status_code == 202
    assert response.json()["status"] == "running"
    location = response.headers["Location"]
    for name in ("mask.png", "overlay.png", "scores.npz"):
        early = api.get(f"{location}/{name}")
        assert early.status_code == 409
        assert early.json()["type"] == "/problems/job-not-ready"
        assert early.headers["Retry-After"] == "1"
    progress = api.get(location).json()["progress"]
    assert progress["stage"] == "cam"
    assert 0 < progress["fraction"] < 1
    assert "progress" not in finished(api, location)


def test_queue_position(api: httpx.Client, worker: WorkerProcess) -> None:
    worker.stop()
    jobs = [post(api, png(color=next(COLORS))) for _ in range(3)]
    assert [job.json()["position"] for job in jobs] == [0, 1, 2]
    locations = [job.headers["Location"] for job in jobs]
    assert [api.get(location).json()["position"] for location in locations] == [0, 1, 2]
    worker.start()
    assert all("position" not in finished(api, location) for location in locations)


def test_equal_posts_are_one_job_that_runs_once(
    api: httpx.Client, place: Place, photo: bytes
) -> None:
    with ThreadPoolExecutor(8) as pool:
        posts = list(pool.map(lambda _: post(api, photo, "slow", query="?wait=30"), range(8)))
    assert {response.status_code for response in posts} == {200}
    assert len({response.json()["id"] for response in posts}) == 1
    assert len({response.json()["ended_at"] for response in posts}) == 1
    assert place.redis.xlen(f"rq:results:{posts[0].json()['id']}") == 1
    again = post(api, photo, "slow")
    assert again.status_code == 202
    assert again.json()["status"] == "finished"


@pytest.mark.parametrize(
    "change",
    [
        {"labels": "bowl"},
        {"background_threshold": 0.5},
        {"background_power": 2},
        {"min_confidence": 0.2},
        {"refine": "pamr"},
    ],
)
def test_another_choice_is_another_job(
    api: httpx.Client, photo: bytes, change: dict[str, Any]
) -> None:
    first = post(api, photo).json()["id"]
    # Spelling out the model's defaults changes nothing.
    spelled = {"refine": "none", "background_threshold": 0.4, "min_confidence": 0}
    assert post(api, photo, **spelled).json()["id"] == first
    assert post(api, photo, **change).json()["id"] != first


def test_an_idempotency_key_belongs_to_one_request(api: httpx.Client, photo: bytes) -> None:
    headers = {"Idempotency-Key": "my key"}
    post(api, photo)  # the job is there before the key is first used
    first = post(api, photo, headers=headers)
    assert post(api, photo, headers=headers).json()["id"] == first.json()["id"]
    other = post(api, photo, "bowl", headers=headers)
    assert other.status_code == 422
    assert other.json()["type"] == "/problems/idempotency-key-reused"


@pytest.mark.parametrize(
    ("label", "code"), [("raises", "model_error"), ("huge", "out_of_memory"), ("hangs", "timeout")]
)
def test_a_failed_job_says_why(place: Place, photo: bytes, label: str, code: str) -> None:
    with http_api(place, job_timeout=1) as api:
        response = post(api, photo, label, query="?wait=30")
        assert response.status_code == 200
        assert response.json()["status"] == "failed"
        assert response.json()["failure"]["code"] == code
        mask = api.get(f"{response.headers['Location']}/mask.png")
        assert mask.status_code == 409
        assert mask.json()["type"] == "/problems/job-failed"
        assert mask.json()["code"] == code
        assert "secret" not in response.text + mask.text
        # What may have passed is tried again.
        again = post(api, photo, label, query="?wait=30", headers={"Accept": "image/png"})
        assert again.status_code == 409
        assert place.redis.xlen(f"rq:results:{response.json()['id']}") == 1
        ended = api.get(response.headers["Location"]).json()["ended_at"]
        assert ended > response.json()["ended_at"]


def test_a_job_whose_files_have_expired_runs_again(
    api: httpx.Client, place: Place, photo: bytes
) -> None:
    first = post(api, photo, query="?wait=30").json()
    mask = blob_key("results", api.get(first["links"]["mask"]).content)
    (place.data / "blobs" / mask).unlink()
    gone = api.get(first["links"]["mask"])
    assert (gone.status_code, gone.json()["type"]) == (404, "/problems/unknown-job")
    again = post(api, photo, query="?wait=30").json()
    assert again["id"] == first["id"]
    assert again["ended_at"] > first["ended_at"]
    assert api.get(again["links"]["mask"]).status_code == 200


def test_a_killed_worker_is_no_concern_of_the_client(
    api: httpx.Client, worker: WorkerProcess, photo: bytes
) -> None:
    location = post(api, photo, "slow").headers["Location"]
    wait_for(lambda: api.get(location).json()["status"] == "running")
    worker.kill()
    assert api.get(location).json()["status"] == "running"
    worker.start()
    assert finished(api, location)["classes"][0]["name"] == "slow"


def test_a_model_can_be_named(api: httpx.Client, photo: bytes) -> None:
    assert post(api, photo, model="double").status_code == 202


def test_jobs_are_taken_while_the_worker_restarts(
    api: httpx.Client, worker: WorkerProcess, photo: bytes
) -> None:
    worker.stop()
    response = post(api, photo)
    assert response.status_code == 202
    worker.start()
    finished(api, response.headers["Location"])
