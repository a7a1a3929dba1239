"""POST /pseudo-mask and /segment: HTTP → real Valkey → real worker process → mask."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.helpers.posting import new_photo, post, segment, wait_for_status
from tests.helpers.service_doubles import NAMES, PlainPredictor
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api, valkey, wait_for
from worker.queue.rq import JobQueue, make_job
from worker.queue.schema import JobRequest, ModelRef
from worker.storage import blob_key


@pytest.fixture
def photo() -> bytes:
    return new_photo()


@pytest.fixture(autouse=True)
def nothing_left_behind(place: Place, worker: WorkerProcess) -> Iterator[None]:
    yield
    wait_for(lambda: place.leftovers() == NOTHING, what="an empty queue")


def test_post_then_ask(api: httpx.Client, photo: bytes) -> None:
    response = post(api, photo, ["Kitty", "dining_table", "cat"])
    assert response.status_code == 202
    assert response.json()["status"] in ("queued", "running", "finished")
    assert response.json()["labels"] == ["cat", "dining table"]  # each once, canonical order
    location = response.headers["Location"]
    assert location == f"/jobs/{response.json()['id']}" == response.json()["links"]["self"]

    document = wait_for_status(api, location, "finished")
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
    assert np.unique(pixels(mask.content)).tolist() == [0, 1, 3]
    overlay = api.get(document["links"]["overlay"])
    drawn = pixels(overlay.content)
    assert drawn.shape == (20, 30, 3)
    assert drawn[10, 5].tolist() != drawn[10, 28].tolist()  # the cat is painted over
    assert drawn[10, 28].tolist() == list(Image.open(io.BytesIO(photo)).getpixel((28, 10)))
    with np.load(io.BytesIO(api.get(document["links"]["scores"]).content)) as scores:
        assert scores["class_name"].tolist() == ["cat", "dining table"]


@pytest.mark.parametrize("wait", [{"query": "?wait=30"}, {"headers": {"Prefer": "respond-async, wait=30"}}])
def test_wait_gives_the_finished_job(api: httpx.Client, photo: bytes, wait: dict[str, Any]) -> None:
    response = post(api, photo, "cat, bowl", **wait)
    assert (response.status_code, response.json()["status"]) == (200, "finished")
    assert response.json()["labels"] == ["cat", "bowl"]


@pytest.mark.parametrize("task", [post, segment])
def test_the_mask_itself(api: httpx.Client, task: Callable[..., httpx.Response]) -> None:
    response = task(api, found_photo("cat"), headers={"Accept": "image/png", "Prefer": "wait=30"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.content == api.get(f"{response.headers['Location']}/mask.png").content
    assert np.unique(pixels(response.content)).tolist() == [0, 1]


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
    assert "progress" not in wait_for_status(api, location, "finished")


def test_queue_position(api: httpx.Client, worker: WorkerProcess) -> None:
    worker.stop()
    jobs = [post(api, new_photo()) for _ in range(3)]
    assert [job.json()["position"] for job in jobs] == [0, 1, 2]
    locations = [job.headers["Location"] for job in jobs]
    assert [api.get(location).json()["position"] for location in locations] == [0, 1, 2]
    worker.start()
    assert all("position" not in wait_for_status(api, location, "finished") for location in locations)


def test_equal_posts_are_one_job_that_runs_once(api: httpx.Client, place: Place, photo: bytes) -> None:
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
def test_other_options_are_another_job(api: httpx.Client, photo: bytes, change: dict[str, Any]) -> None:
    first = post(api, photo).json()["id"]
    # Spelling out the model's defaults changes nothing.
    spelled = {"refine": "none", "background_threshold": 0.4, "min_confidence": 0}
    assert post(api, photo, **spelled).json()["id"] == first
    assert post(api, photo, **change).json()["id"] != first


def test_an_idempotency_key_changes_nothing(api: httpx.Client, place: Place, photo: bytes) -> None:
    headers = {"Idempotency-Key": "my key"}
    first = post(api, photo).json()["id"]
    assert post(api, photo, headers=headers).json()["id"] == first
    # The content alone is the job's identity.
    other = post(api, photo, "bowl", headers=headers)
    assert other.status_code == 202
    assert other.json()["id"] == post(api, photo, "bowl").json()["id"] != first
    assert place.redis.keys("semples:idempotency:*") == []


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


def test_a_job_whose_files_have_expired_runs_again(api: httpx.Client, place: Place, photo: bytes) -> None:
    first = post(api, photo, query="?wait=30").json()
    mask = blob_key("results", api.get(first["links"]["mask"]).content)
    (place.data / "blobs" / mask).unlink()
    gone = api.get(first["links"]["mask"])
    assert (gone.status_code, gone.json()["type"]) == (404, "/problems/unknown-job")
    again = post(api, photo, query="?wait=30").json()
    assert again["id"] == first["id"]
    assert again["ended_at"] > first["ended_at"]
    assert api.get(again["links"]["mask"]).status_code == 200


def test_a_job_whose_worker_is_killed_is_run_again(api: httpx.Client, worker: WorkerProcess, photo: bytes) -> None:
    location = post(api, photo, "slow").headers["Location"]
    wait_for(lambda: api.get(location).json()["status"] == "running")
    worker.kill()
    assert api.get(location).json()["status"] == "running"
    worker.start()
    assert wait_for_status(api, location, "finished")["classes"][0]["name"] == "slow"


def test_jobs_are_taken_while_the_worker_restarts(api: httpx.Client, worker: WorkerProcess, photo: bytes) -> None:
    worker.stop()
    response = post(api, photo)
    assert response.status_code == 202
    worker.start()
    wait_for_status(api, response.headers["Location"], "finished")


def found_photo(finds: str = "bowl") -> bytes:
    """A new photo in which the double finds a class."""
    return new_photo(finds=NAMES.index(finds) + 1 if finds else 0)


@pytest.fixture(scope="module")
def plain_worker(place: Place) -> Iterator[WorkerProcess]:
    """A live worker whose model has no segmenter, beside one whose model has."""
    worker = WorkerProcess(place, bundle="plain")
    worker.start()
    yield worker
    worker.stop()


def pixels(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_segment_needs_no_labels(api: httpx.Client) -> None:
    response = segment(api, found_photo())
    assert response.status_code == 202
    assert (response.json()["task"], response.json()["labels"]) == ("segment", [])
    location = response.headers["Location"]
    assert location == f"/jobs/{response.json()['id']}"

    document = wait_for_status(api, location, "finished")
    assert (document["task"], document["labels"]) == ("segment", [])
    assert [(each["index"], each["name"]) for each in document["classes"]] == [(2, "bowl")]
    assert document["classes"][0]["box"] == [0, 0, 15, 20]
    # The model's own defaults for this task; the background is what the classes leave.
    assert document["options"] == {
        "refine": "pamr",
        "min_confidence": 0.1,
        "class_thresholds": {},
        "threshold_slope": 0,
    }
    assert np.unique(pixels(api.get(document["links"]["mask"]).content)).tolist() == [0, 2]
    assert pixels(api.get(document["links"]["overlay"]).content).shape == (20, 30, 3)
    with np.load(io.BytesIO(api.get(document["links"]["scores"]).content)) as scores:
        assert scores["class_name"].tolist() == ["bowl"]
        assert "cams" not in scores


def test_an_image_without_known_classes(api: httpx.Client) -> None:
    document = segment(api, found_photo(""), query="?wait=30").json()
    assert (document["status"], document["classes"]) == ("finished", [])
    assert np.unique(pixels(api.get(document["links"]["mask"]).content)).tolist() == [0]


def test_equal_posts_to_segment_are_one_job(api: httpx.Client, place: Place) -> None:
    image = found_photo("slow")
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
    image = found_photo("cat")
    options = {"refine": "none", "min_confidence": 0, "query": "?wait=30"}
    first = segment(api, image, **options)
    other = post(api, image, query="?wait=30", refine="none")
    assert (first.json()["task"], other.json()["task"]) == ("segment", "pseudo_mask")
    assert first.json()["id"] != other.json()["id"]
    assert segment(api, image, **options).json()["id"] == first.json()["id"]


def test_a_failed_segmentation_says_why(api: httpx.Client) -> None:
    response = segment(api, found_photo("raises"), query="?wait=30")
    assert (response.status_code, response.json()["status"]) == (200, "failed")
    assert response.json()["failure"]["code"] == "model_error"
    assert "secret" not in response.text


def test_a_model_without_a_segmenter_is_refused(api: httpx.Client, place: Place, plain_worker: WorkerProcess) -> None:
    image, before = found_photo(), place.blobs.keys("uploads")
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


def test_a_job_that_reaches_a_model_without_a_segmenter_fails(
    api: httpx.Client, place: Place, plain_worker: WorkerProcess
) -> None:
    plain = ModelRef(name="plain", version=PlainPredictor.info.version)
    request = place.request(finds=1).model_copy(update={"model": plain})
    job = make_job(place.redis, request, timeout=30)
    JobQueue(place.redis, "plain").enqueue(job)
    place.wait_done(job)
    document = api.get(f"/jobs/{job.id}").json()
    assert document["status"] == "failed"
    assert document["failure"] == {
        "code": "cannot_segment",
        "detail": "expected a model with a segmenter, got 'plain'",
        "repeatable": True,
    }


def test_the_default_of_segment_is_a_model_with_a_segmenter(place: Place, plain_worker: WorkerProcess) -> None:
    with http_api(place, model="plain") as api:
        listed = api.get("/models").json()
        assert (listed["default"], listed["default_segment"]) == ("plain", "double")
        assert segment(api, found_photo(), query="?wait=30").json()["model"]["name"] == "double"
        labeled = post(api, query="?wait=30").json()
        assert (labeled["model"]["name"], labeled["status"]) == ("plain", "finished")


def test_no_model_has_a_segmenter(tmp_path: Path) -> None:
    with valkey(tmp_path) as place, http_api(place) as api:
        unready = segment(api, found_photo())
        assert (unready.status_code, unready.json()["type"]) == (503, "/problems/not-ready")
        place.announce(PlainPredictor.info)
        problem = segment(api, found_photo()).json()
        assert (problem["status"], problem["type"]) == (409, "/problems/cannot-segment")
        assert problem["detail"] == "no segmenter is served"
        assert problem["models"] == []
        listed = api.get("/models").json()
        assert (listed["default"], listed["default_segment"]) == ("plain", None)


def post_open(api: httpx.Client, content: bytes, *labels: str, **fields: Any) -> httpx.Response:
    return post(api, content, labels, query="?wait=30", **{"vocabulary": "open", **fields})


def test_open_labels(api: httpx.Client) -> None:
    answer = post_open(api, new_photo(), "Fire-Truck, kitty", "aardvark")
    document = answer.json()
    assert (answer.status_code, document["status"]) == (200, "finished")
    assert document["vocabulary"] == "open"
    assert document["labels"] == ["cat", "aardvark", "fire truck"]
    found = [(each["index"], each["name"], each["zero_shot"]) for each in document["classes"]]
    assert found == [(1, "cat", False), (12, "aardvark", True), (13, "fire truck", True)]
    assert document["options"]["background_threshold"] == 0.4
    mask = Image.open(io.BytesIO(api.get(document["links"]["mask"]).content))
    assert np.unique(np.asarray(mask)).tolist() == [0, 1, 12, 13]
    assert mask.info["Zero-shot"] == "aardvark, fire truck"
    scores = api.get(document["links"]["scores"]).content
    with np.load(io.BytesIO(scores), allow_pickle=False) as maps:
        assert maps["class_name"].tolist() == ["cat", "aardvark", "fire truck"]
        assert maps["class_index"].tolist() == [1, 12, 13]


def test_every_file_has_zero_shot_classes(api: httpx.Client) -> None:
    document = post_open(api, new_photo(), "cat", "fire truck").json()
    links = document["links"]
    anew = {"background_threshold": 0.85}
    mask = Image.open(io.BytesIO(api.get(links["mask"], params=anew).content))
    assert mask.info["Zero-shot"] == "fire truck"
    assert set(np.unique(np.asarray(mask)).tolist()) == {0, 1, 12}
    by_index, by_name = (api.get(f"{links['self']}/cam/{name}.png") for name in (12, "Fire truck"))
    assert by_index.status_code == 200
    assert by_index.content == by_name.content
    for params in ({}, anew):
        coco = api.get(links["coco"], params=params).json()
        assert {each["id"]: each["name"] for each in coco["categories"]}[12] == "fire truck"
        assert 12 in {each["category_id"] for each in coco["annotations"]}
    assert 12 in {each["category_id"] for each in api.get(links["polygons"]).json()["annotations"]}
    assert '"fire truck"' in api.get(links["label_studio"]).text
    assert 'label="fire truck"' in api.get(links["cvat"]).text


def test_equal_open_labels_are_one_job(api: httpx.Client) -> None:
    content = new_photo()
    one = post_open(api, content, "zebra", "fire-truck", "mug").json()
    two = post_open(api, content, "mug, Fire Truck", "ZEBRA").json()
    assert one["id"] == two["id"]
    known = post_open(api, content, "cat").json()
    closed = post_open(api, content, "kitty", vocabulary="closed").json()
    # All labels are the model's own: the answer is the one of ever.
    assert known["id"] == closed["id"]
    assert known["vocabulary"] == "closed"


def test_the_vocabulary_is_closed_by_default(api: httpx.Client) -> None:
    problem = post(api, labels="fire truck").json()
    assert (problem["status"], problem["type"]) == (422, "/problems/unknown-label")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([f"label {number}" for number in range(33)], "expected at most 32 labels, got 33"),
        ([", ".join(f"label {n}" for n in range(300))], "expected at most 243 labels beside"),
        (["a:b"], "expected a label of letters, digits"),
        (["x" * 65], "expected a label of 1 to 64 bytes"),
        (["ignored"], "expected no label to be called 'ignored'"),
        ([" , "], "expected at least one label, got none"),
    ],
)
def test_invalid_open_labels(api: httpx.Client, place: Place, labels: list[str], said: str) -> None:
    before = place.blobs.keys("uploads")
    answer = post_open(api, new_photo(), *labels)
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (422, "/problems/invalid-request")
    assert problem["errors"][0]["field"] == "labels"
    assert said in problem["detail"]
    assert place.blobs.keys("uploads") == before


def test_other_vocabularies_and_other_tasks(api: httpx.Client) -> None:
    wrong = post_open(api, new_photo(), "cat", vocabulary="any").json()
    assert (wrong["status"], wrong["errors"][0]["field"]) == (422, "vocabulary")
    other = segment(api, vocabulary="open").json()
    assert (other["status"], other["errors"][0]["field"]) == (422, "vocabulary")
    assert "POST /pseudo-mask does" in other["detail"]


def test_a_model_with_a_closed_vocabulary_refuses_open_labels(
    api: httpx.Client, place: Place, plain_worker: WorkerProcess
) -> None:
    before = place.blobs.keys("uploads")
    for labels in (("fire truck",), ("cat", "fire truck")):
        answer = post_open(api, new_photo(), *labels, model="plain")
        problem = answer.json()
        assert (answer.status_code, problem["type"]) == (422, "/problems/closed-vocabulary")
        assert problem["detail"] == (
            "model 'plain' knows its own classes alone: its mask generator (double) is not on CLIP's own image tower"
        )
    assert api.get(problem["type"]).json()["status"] == 422
    assert place.blobs.keys("uploads") == before
    listed = {each["model"]["name"]: each["model"] for each in api.get("/models").json()["models"]}
    shown = {name: model["open_vocabulary"] for name, model in listed.items()}
    assert shown == {"plain": False, "double": True}
    # Its own labels are its own, whatever the vocabulary.
    assert post_open(api, new_photo(), "cat", model="plain").json()["vocabulary"] == "closed"


def test_a_job_with_open_labels_that_reaches_a_closed_model_fails(
    api: httpx.Client, place: Place, plain_worker: WorkerProcess
) -> None:
    changes = {
        "model": ModelRef(name="plain", version="0123456789ab"),
        "labels": ("cat", "zebra"),
        "vocabulary": "open",
    }
    request: JobRequest = place.request("cat").model_copy(update=changes)
    job = make_job(place.redis, request, timeout=30)
    JobQueue(place.redis, "plain").enqueue(job)
    place.wait_done(job)
    failure = api.get(f"/jobs/{job.id}").json()["failure"]
    assert failure["code"] == "unknown_label"
    assert "expected a known label, got 'zebra'" in failure["detail"]
