"""POST /segment: HTTP → real Valkey → real worker process → mask, without any labels."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.helpers.service_doubles import NAMES, PlainPredictor
from tests.helpers.service_fixtures import (
    NOTHING,
    Place,
    WorkerProcess,
    http_api,
    png,
    valkey,
    wait_for,
)
from tests.service.api.test_http import finished
from worker.queue.registry import ModelInfo, WorkerInfo, announce
from worker.queue.rq import make_job, open_queue
from worker.queue.schema import ModelRef

NUMBERS = itertools.count()


def photo(finds: str = "bowl") -> bytes:
    """A photo that no job is about yet, in which the misbehaving predictor finds a class."""
    index = NAMES.index(finds) + 1 if finds else 0
    return png(color=(2, next(NUMBERS), index))


@pytest.fixture(autouse=True)
def nothing_left_behind(place: Place, worker: WorkerProcess) -> Iterator[None]:
    del worker
    yield
    wait_for(lambda: place.leftovers() == NOTHING, what="an empty queue")


@pytest.fixture(scope="module")
def plain_worker(place: Place) -> Iterator[WorkerProcess]:
    """A live worker whose model has no segmenter, beside one whose model has."""
    worker = WorkerProcess(place, bundle="plain")
    worker.start()
    yield worker
    worker.stop()


def segment(api: httpx.Client, image: bytes, *, query: str = "", **options: Any) -> httpx.Response:
    headers = options.pop("headers", None)
    files = {"image": ("photo.png", image)}
    return api.post(f"/segment{query}", files=files, data=options, headers=headers)


def pixels(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_post_then_ask(api: httpx.Client) -> None:
    response = segment(api, photo())
    assert response.status_code == 202
    assert (response.json()["task"], response.json()["labels"]) == ("segment", [])
    location = response.headers["Location"]
    assert location == f"/jobs/{response.json()['id']}"

    document = finished(api, location)
    assert (document["task"], document["labels"]) == ("segment", [])
    assert [(each["index"], each["name"]) for each in document["classes"]] == [(2, "bowl")]
    assert document["classes"][0]["box"] == [0, 0, 15, 20]
    # The model's own defaults for this task; the background is what the classes leave.
    assert document["options"] == {"refine": "pamr", "min_confidence": 0.1, "class_thresholds": {}}
    assert np.unique(pixels(api.get(document["links"]["mask"]).content)).tolist() == [0, 2]
    assert pixels(api.get(document["links"]["overlay"]).content).shape == (20, 30, 3)
    with np.load(io.BytesIO(api.get(document["links"]["scores"]).content)) as scores:
        assert scores["class_name"].tolist() == ["bowl"]
        assert "cams" not in scores


def test_an_image_of_nothing_known(api: httpx.Client) -> None:
    document = segment(api, photo(""), query="?wait=30").json()
    assert (document["status"], document["classes"]) == ("finished", [])
    assert np.unique(pixels(api.get(document["links"]["mask"]).content)).tolist() == [0]


def test_the_mask_itself(api: httpx.Client) -> None:
    headers = {"Accept": "image/png", "Prefer": "wait=30"}
    response = segment(api, photo("cat"), headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.content == api.get(f"{response.headers['Location']}/mask.png").content
    assert np.unique(pixels(response.content)).tolist() == [0, 1]


def test_equal_posts_are_one_job_that_runs_once(api: httpx.Client, place: Place) -> None:
    image = photo("slow")
    with ThreadPoolExecutor(4) as pool:
        posts = list(pool.map(lambda _: segment(api, image, query="?wait=30"), range(4)))
    assert {response.status_code for response in posts} == {200}
    [job_id] = {response.json()["id"] for response in posts}
    assert place.redis.xlen(f"rq:results:{job_id}") == 1
    # Spelling out the model's defaults changes nothing, another choice does.
    assert segment(api, image, refine="pamr", min_confidence=0.1).json()["id"] == job_id
    assert segment(api, image, refine="none").json()["id"] != job_id
    assert segment(api, image, min_confidence=0.2).json()["id"] != job_id


def test_a_pseudo_mask_of_the_same_image_is_another_job(api: httpx.Client) -> None:
    image, headers = photo("cat"), {"Idempotency-Key": "for one of them"}
    options = {"refine": "none", "min_confidence": 0, "query": "?wait=30"}
    first = segment(api, image, headers=headers, **options)
    labeled = {"labels": "cat", "refine": "none"}
    files = {"image": ("photo.png", image)}
    other = api.post("/pseudo-mask?wait=30", files=files, data=labeled)
    assert (first.json()["task"], other.json()["task"]) == ("segment", "pseudo_mask")
    assert first.json()["id"] != other.json()["id"]
    assert segment(api, image, headers=headers, **options).json()["id"] == first.json()["id"]
    reused = api.post("/pseudo-mask", files=files, data=labeled, headers=headers)
    assert reused.status_code == 422
    assert reused.json()["type"] == "/problems/idempotency-key-reused"


def test_a_killed_worker_is_no_concern_of_the_client(
    api: httpx.Client, worker: WorkerProcess
) -> None:
    location = segment(api, photo("slow")).headers["Location"]
    wait_for(lambda: api.get(location).json()["status"] == "running")
    worker.kill()
    assert api.get(location).json()["status"] == "running"
    worker.start()
    assert finished(api, location)["classes"][0]["name"] == "slow"


def test_a_failed_job_says_why(api: httpx.Client) -> None:
    response = segment(api, photo("raises"), query="?wait=30")
    assert (response.status_code, response.json()["status"]) == (200, "failed")
    assert response.json()["failure"]["code"] == "model_error"
    assert "secret" not in response.text


def test_a_model_without_a_segmenter_is_refused(
    api: httpx.Client, place: Place, plain_worker: WorkerProcess
) -> None:
    del plain_worker
    image, before = photo(), place.blobs.keys("uploads")
    response = segment(api, image, model="plain")
    problem = response.json()
    assert response.status_code == 409 == problem["status"]
    assert problem["type"] == "/problems/cannot-segment"
    assert problem["models"] == ["double"]
    assert problem["detail"] == "model 'plain' has no segmenter; these models have one: double"
    assert api.get(problem["type"]).json()["status"] == 409
    assert place.blobs.keys("uploads") == before
    assert segment(api, image, model="double").status_code == 202
    listed = {each["model"]["name"]: each["model"] for each in api.get("/models").json()["models"]}
    assert listed["plain"]["can_segment"] is False
    assert listed["plain"]["segment"] is None
    assert listed["double"]["can_segment"] is True
    assert listed["double"]["segment"] == {"refine": "pamr", "min_confidence": 0.1}


def test_a_job_that_reaches_such_a_model_anyway_fails(
    api: httpx.Client, place: Place, plain_worker: WorkerProcess
) -> None:
    del plain_worker
    plain = ModelRef(name="plain", version=PlainPredictor.info.version)
    request = place.request(finds=1).model_copy(update={"model": plain})
    job = make_job(place.redis, request, timeout=30)
    open_queue(place.redis, "plain").enqueue_job(job)
    place.wait_done(job)
    document = api.get(f"/jobs/{job.id}").json()
    assert document["status"] == "failed"
    assert document["failure"] == {
        "code": "cannot_segment",
        "detail": "expected a model with a segmenter, got 'plain'",
        "repeatable": True,
    }


def test_without_a_name_a_model_that_can_is_taken(
    place: Place, plain_worker: WorkerProcess
) -> None:
    del plain_worker
    with http_api(place, model="plain") as api:
        listed = api.get("/models").json()
        assert (listed["default"], listed["default_segment"]) == ("plain", "double")
        assert segment(api, photo(), query="?wait=30").json()["model"]["name"] == "double"
        files, data = {"image": ("photo.png", photo())}, {"labels": "cat"}
        labeled = api.post("/pseudo-mask?wait=30", files=files, data=data).json()
        assert (labeled["model"]["name"], labeled["status"]) == ("plain", "finished")


def test_where_no_model_can(tmp_path: Path) -> None:
    with valkey(tmp_path) as place, http_api(place) as api:
        unready = segment(api, photo())
        assert (unready.status_code, unready.json()["type"]) == (503, "/problems/not-ready")
        model = ModelInfo.model_validate(PlainPredictor.info.to_json())
        worker = WorkerInfo(name="w", model=model.ref, device="cpu", host="here", pid=1)
        announce(place.redis, worker, model)
        problem = segment(api, photo()).json()
        assert (problem["status"], problem["type"]) == (409, "/problems/cannot-segment")
        assert problem["detail"] == "no segmenter is served"
        assert problem["models"] == []
        listed = api.get("/models").json()
        assert (listed["default"], listed["default_segment"]) == ("plain", None)
