"""The real thing: a bundle, the product's own command, HTTP, and the library's own answer."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from models.bundle.bundle import load_bundle
from models.data.classes import with_open_labels
from models.data.images import read_image
from models.inference.predictor import Predictor
from tests.helpers.command import semples_ok
from tests.helpers.paths import PHOTO
from tests.helpers.serving import Serving, free_port, serving


@contextmanager
def serving_bundle(bundle: Path, data: Path) -> Iterator[Serving]:
    port = free_port()
    arguments = ("--data", str(data), "--port", str(port), "--device", "cpu")
    command = ("service.local.serve", *arguments, "--bundle", str(bundle))
    with serving(data, *command, port=port) as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def stack(tiny_segmenter_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A bundle with both tasks."""
    data = tmp_path_factory.mktemp("stack") / "data"
    with serving_bundle(tiny_segmenter_bundle, data) as running:
        yield running


@pytest.fixture(scope="module")
def open_stack(tiny_open_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A bundle without a segmenter, with an open vocabulary."""
    with serving_bundle(tiny_open_bundle, tmp_path_factory.mktemp("open") / "data") as running:
        yield running


@pytest.mark.parametrize("refine", ["none", "pamr"])
def test_the_service_gives_what_the_library_gives(
    stack: Serving, tiny_segmenter_bundle: Path, tiny_data: Path, refine: str
) -> None:
    photo = (tiny_data / "images" / "photo2.jpg").read_bytes()
    labels = ["mug", "cat"]
    predictor = Predictor(load_bundle(tiny_segmenter_bundle, device=torch.device("cpu")))
    options = predictor.options(refine=refine)
    expected = predictor.pseudo_mask(read_image(photo).pixels, labels, options)

    response = httpx.post(
        f"{stack.url}/pseudo-mask?wait=60",
        files={"image": photo},
        data={"labels": labels, "refine": refine},
        timeout=70,
    )
    document = response.json()
    assert response.status_code == 200
    assert document["status"] == "finished"

    mask = httpx.get(f"{stack.url}{document['links']['mask']}").content
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask))), expected.label_map)
    content = httpx.get(f"{stack.url}{document['links']['scores']}").content
    with np.load(io.BytesIO(content)) as scores:
        np.testing.assert_allclose(scores["scores"], expected.scores, atol=1e-3)
        np.testing.assert_allclose(scores["cams"], expected.cams, atol=1e-3)
    assert [each["name"] for each in document["classes"]] == ["cat", "cup"]
    for shown, known in zip(document["classes"], expected.classes, strict=True):
        assert shown["area"] == pytest.approx(known.area)
        assert tuple(shown.get("box", ())) == (known.box or ())
        assert shown.get("alignment_class") == pytest.approx(known.alignment_class, abs=1e-4)
    assert document["model"]["version"] == predictor.info.version


@pytest.mark.parametrize("refine", ["none", "pamr"])
def test_it_segments_as_the_library_does(
    stack: Serving, tiny_segmenter_bundle: Path, tiny_data: Path, refine: str
) -> None:
    photo = (tiny_data / "images" / "photo2.jpg").read_bytes()
    predictor = Predictor(load_bundle(tiny_segmenter_bundle, device=torch.device("cpu")))
    options = predictor.segment_options(refine=refine)
    expected = predictor.segment(read_image(photo).pixels, options)
    assert len(expected.classes) > 1

    url = f"{stack.url}/segment?wait=60"
    document = httpx.post(url, files={"image": photo}, data={"refine": refine}, timeout=70).json()
    assert (document["status"], document["task"]) == ("finished", "segment")
    mask = httpx.get(f"{stack.url}{document['links']['mask']}").content
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask))), expected.label_map)
    content = httpx.get(f"{stack.url}{document['links']['scores']}").content
    with np.load(io.BytesIO(content)) as scores:
        np.testing.assert_allclose(scores["scores"], expected.scores, atol=1e-3)
        assert scores["class_name"].tolist() == [each.name for each in expected.classes]
    shown = [(each["index"], each["area"]) for each in document["classes"]]
    assert shown == [(each.index, pytest.approx(each.area)) for each in expected.classes]
    assert {key: document["options"].get(key) for key in ("refine", "min_confidence")} == {
        "refine": refine,
        "min_confidence": predictor.info.segment.min_confidence,
    }


def anew(url: str, path: str, photo: bytes, form: dict[str, Any], options: dict[str, Any]) -> bytes:
    """A mask decided anew; a job that is posted with the same options has the same bytes."""
    documents = [
        httpx.post(f"{url}/{path}?wait=60", files={"image": photo}, data=form | more, timeout=70)
        for more in ({}, options)
    ]
    first, other = (each.json()["links"]["mask"] for each in documents)
    content = httpx.get(f"{url}{first}", params=options).content
    assert content == httpx.get(f"{url}{other}").content
    assert content != httpx.get(f"{url}{first}").content
    return content


@pytest.mark.parametrize("refine", ["none", "pamr"])
def test_decided_anew_is_what_the_model_would_give(stack: Serving, tiny_data: Path, refine: str) -> None:
    photo = (tiny_data / "images" / "photo2.jpg").read_bytes()
    form = {"labels": "mug, cat", "refine": refine}
    for options in ({"background_threshold": 0.35, "min_confidence": 0.6}, {"background_power": 3}):
        mask = anew(stack.url, "pseudo-mask", photo, form, options)
        assert np.unique(np.asarray(Image.open(io.BytesIO(mask)))).size > 1
    anew(stack.url, "segment", photo, {"refine": refine}, {"min_confidence": 0.6})


def test_a_bundle_without_a_segmenter_cannot_segment(open_stack: Serving, tiny_data: Path) -> None:
    photo = (tiny_data / "images" / "photo2.jpg").read_bytes()
    problem = httpx.post(f"{open_stack.url}/segment", files={"image": photo}).json()
    assert (problem["status"], problem["type"]) == (409, "/problems/cannot-segment")


def test_the_model_is_listed_with_its_synonyms(stack: Serving) -> None:
    listed = httpx.get(f"{stack.url}/models").json()
    assert listed["default"] == "tiny"
    classes = listed["models"][0]["model"]["classes"]
    assert {"index": 7, "name": "cup", "synonyms": ["mug"]} in classes


def test_open_labels_give_what_the_library_gives(open_stack: Serving, tiny_open_bundle: Path, tiny_data: Path) -> None:
    content = (tiny_data / "images" / "photo2.jpg").read_bytes()
    predictor = Predictor(load_bundle(tiny_open_bundle, device=torch.device("cpu")))
    labels = ["zebra", "mug", "fire truck"]
    classes = with_open_labels(predictor.info.classes, labels)
    options = predictor.options(refine="pamr", background_threshold=0.3)
    pixels = read_image(content).pixels
    expected = predictor.pseudo_mask(pixels, labels, options, classes=classes)
    data = {"labels": labels, "vocabulary": "open", "refine": "pamr", "background_threshold": 0.3}
    url = f"{open_stack.url}/pseudo-mask?wait=60"
    document = httpx.post(url, files={"image": content}, data=data, timeout=70).json()
    assert document["status"] == "finished"
    mask = httpx.get(f"{open_stack.url}{document['links']['mask']}").content
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask))), expected.label_map)
    found = [(each["index"], each["name"], each["zero_shot"]) for each in document["classes"]]
    assert found == [(7, "cup", False), (10, "fire truck", True), (11, "zebra", True)]
    for shown, known in zip(document["classes"], expected.classes, strict=True):
        assert shown["area"] == pytest.approx(known.area)
        assert shown.get("alignment_class") == pytest.approx(known.alignment_class, abs=1e-4)
        assert "alignment_background" not in shown or not shown["zero_shot"]


def test_a_clip_alone_masks_any_label(tiny_vit_weights: Path, tmp_path: Path) -> None:
    """From a downloaded file to masks over HTTP, without training and without a class that anybody knew."""
    bundle, pretrained = tmp_path / "bundle", str(tiny_vit_weights)
    semples_ok("new-bundle", bundle, "--clip", "tiny-vit", "--pretrained", pretrained, "--device", "cpu")
    labels = ["zeppelin", "quokka", "astrolabe"]
    with serving_bundle(bundle, tmp_path / "data") as running:
        document = httpx.post(
            f"{running.url}/pseudo-mask?wait=60",
            files={"image": PHOTO.read_bytes()},
            data={"labels": labels, "vocabulary": "open", "refine": "random_walk", "background_threshold": "0.1"},
            timeout=70,
        ).json()
        assert document["status"] == "finished", document
        assert [each["name"] for each in document["classes"]] == sorted(labels)
        content = httpx.get(f"{running.url}{document['links']['mask']}").content
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(content))))) > 2
