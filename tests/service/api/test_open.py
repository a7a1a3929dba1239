"""POST /pseudo-mask with vocabulary=open: HTTP → real Valkey → real worker process → mask."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from models.bundle.bundle import load_bundle
from models.data.classes import with_open_labels
from models.data.images import read_image
from models.inference.predictor import Predictor
from tests.conftest import CPU
from tests.helpers.browser import read_mask
from tests.helpers.service_fixtures import Place, WorkerProcess, png
from tests.service.local.test_bundle import serving_bundle
from worker.queue.rq import make_job, open_queue
from worker.queue.schema import JobRequest, ModelRef

NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def alive(worker: WorkerProcess) -> None:
    del worker


@pytest.fixture(scope="module")
def plain_worker(place: Place) -> Iterator[WorkerProcess]:
    """A live worker whose model has a closed vocabulary, beside one whose model has an open one."""
    worker = WorkerProcess(place, bundle="plain")
    worker.start()
    yield worker
    worker.stop()


def image() -> bytes:
    """A photo that no job is about yet."""
    return png(color=(8, next(NUMBERS), 0))


def post(api: httpx.Client, content: bytes, *labels: str, **fields: Any) -> httpx.Response:
    data = {"labels": [*labels], "vocabulary": "open", **fields}
    return api.post("/pseudo-mask?wait=30", files={"image": ("photo.png", content)}, data=data)


def test_labels_that_the_model_was_not_trained_on(api: httpx.Client) -> None:
    answer = post(api, image(), "Fire-Truck, kitty", "aardvark")
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


def test_every_file_of_a_job_knows_them(api: httpx.Client) -> None:
    document = post(api, image(), "cat", "fire truck").json()
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


def test_equal_requests_are_one_job(api: httpx.Client) -> None:
    content = image()
    one = post(api, content, "zebra", "fire-truck", "mug").json()
    two = post(api, content, "mug, Fire Truck", "ZEBRA").json()
    assert one["id"] == two["id"]
    known = post(api, content, "cat").json()
    closed = post(api, content, "kitty", vocabulary="closed").json()
    # All labels are the model's own: the answer is the one of ever.
    assert known["id"] == closed["id"]
    assert known["vocabulary"] == "closed"


def test_a_closed_vocabulary_is_the_usual(api: httpx.Client) -> None:
    files, data = {"image": ("photo.png", image())}, {"labels": "fire truck"}
    problem = api.post("/pseudo-mask", files=files, data=data).json()
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
def test_labels_that_will_not_do(
    api: httpx.Client, place: Place, labels: list[str], said: str
) -> None:
    before = place.blobs.keys("uploads")
    answer = post(api, image(), *labels)
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (422, "/problems/invalid-request")
    assert problem["errors"][0]["field"] == "labels"
    assert said in problem["detail"]
    assert place.blobs.keys("uploads") == before


def test_other_vocabularies_and_other_tasks(api: httpx.Client) -> None:
    wrong = post(api, image(), "cat", vocabulary="any").json()
    assert (wrong["status"], wrong["errors"][0]["field"]) == (422, "vocabulary")
    files, data = {"image": ("photo.png", image())}, {"vocabulary": "open"}
    segment = api.post("/segment", files=files, data=data).json()
    assert (segment["status"], segment["errors"][0]["field"]) == (422, "vocabulary")
    assert "POST /pseudo-mask does" in segment["detail"]


def test_a_model_without_it_says_why_before_anything_is_queued(
    api: httpx.Client, place: Place, plain_worker: WorkerProcess
) -> None:
    del plain_worker
    before = place.blobs.keys("uploads")
    for labels in (("fire truck",), ("cat", "fire truck")):
        answer = post(api, image(), *labels, model="plain")
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
    assert post(api, image(), "cat", model="plain").json()["vocabulary"] == "closed"


def test_a_job_that_reaches_such_a_model_anyway_fails(
    api: httpx.Client, place: Place, plain_worker: WorkerProcess
) -> None:
    del plain_worker
    changes = {
        "model": ModelRef(name="plain", version="0123456789ab"),
        "labels": ("cat", "zebra"),
        "vocabulary": "open",
    }
    request: JobRequest = place.request("cat").model_copy(update=changes)
    job = make_job(place.redis, request, timeout=30)
    open_queue(place.redis, "plain").enqueue_job(job)
    place.wait_done(job)
    failure = api.get(f"/jobs/{job.id}").json()["failure"]
    assert failure["code"] == "unknown_label"
    assert "expected a known label, got 'zebra'" in failure["detail"]


def test_a_real_bundle_gives_what_the_library_gives(
    tiny_open_bundle: Path, tiny_data: Path, tmp_path: Path
) -> None:
    content = (tiny_data / "images" / "photo2.jpg").read_bytes()
    predictor = Predictor(load_bundle(tiny_open_bundle, device=CPU))
    labels = ["zebra", "mug", "fire truck"]
    classes = with_open_labels(predictor.info.classes, labels)
    options = predictor.options(refine="pamr", background_threshold=0.3)
    pixels = read_image(content).pixels
    expected = predictor.pseudo_mask(pixels, labels, options, classes=classes)
    data = {"labels": labels, "vocabulary": "open", "refine": "pamr", "background_threshold": 0.3}
    with serving_bundle(tiny_open_bundle, tmp_path / "data") as stack:
        url = f"{stack.url}/pseudo-mask?wait=60"
        document = httpx.post(url, files={"image": content}, data=data, timeout=70).json()
        assert document["status"] == "finished"
        mask = httpx.get(f"{stack.url}{document['links']['mask']}").content
    np.testing.assert_array_equal(read_mask(mask), expected.label_map)
    found = [(each["index"], each["name"], each["zero_shot"]) for each in document["classes"]]
    assert found == [(7, "cup", False), (10, "fire truck", True), (11, "zebra", True)]
    for shown, known in zip(document["classes"], expected.classes, strict=True):
        assert shown["area"] == pytest.approx(known.area)
        assert shown.get("alignment_class") == pytest.approx(known.alignment_class, abs=1e-4)
        assert "alignment_background" not in shown or not shown["zero_shot"]
