"""The real thing: a bundle, the product's own command, HTTP, and the library's own answer."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from models.bundle import load_bundle
from models.images import read_image
from models.predictor import Predictor
from tests.test_service_serve import Serving, free_port, serving


@pytest.fixture(scope="module")
def stack(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    data, port = tmp_path_factory.mktemp("stack") / "data", free_port()
    arguments = ("--data", str(data), "--port", str(port), "--device", "cpu")
    command = ("service.serve", *arguments, "--bundle", str(tiny_bundle))
    with serving(data, *command, port=port) as running:
        running.wait_ready()
        yield running


@pytest.mark.parametrize("refine", ["none", "pamr"])
def test_the_service_gives_what_the_library_gives(
    stack: Serving, tiny_bundle: Path, tiny_data: Path, refine: str
) -> None:
    photo = (tiny_data / "images" / "photo2.jpg").read_bytes()
    labels = ["mug", "cat"]
    predictor = Predictor(load_bundle(tiny_bundle, device=torch.device("cpu")))
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


def test_the_model_is_listed_with_its_synonyms(stack: Serving) -> None:
    listed = httpx.get(f"{stack.url}/models").json()
    assert listed["default"] == "tiny"
    classes = listed["models"][0]["model"]["classes"]
    assert {"index": 7, "name": "cup", "synonyms": ["mug"]} in classes
