"""What the client does not do with a folder of photos: mix models, overwrite photos, begin what cannot end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from models.data.mask_files import label_map_png
from models.data.mask_folder import read_results
from service.client import AsyncClient, InvalidRequest
from tests.helpers.client_fixtures import Script, make_photos, problem

MODELS = {
    "default": "double",
    "default_segment": None,
    "models": [
        {
            "ready": True,
            "model": {
                "name": "double",
                "version": "1",
                "classes": [{"index": 1, "name": "cat"}],
                "refine": "none",
                "min_confidence": 0.0,
                "background_threshold": 0.4,
            },
        }
    ],
}


def finished(version: str) -> httpx.Response:
    return httpx.Response(
        200,
        json={
            **{"id": "0" * 32, "task": "pseudo_mask", "status": "finished", "labels": ["cat"]},
            "model": {"name": "double", "version": version},
            "options": {
                "refine": "none",
                "min_confidence": 0.0,
                "background_threshold": 0.4,
                "of_tomorrow": 1,
            },
            "image": {"width": 3, "height": 2, "exif_orientation": 1},
            "classes": [{"index": 1, "name": "cat", "area": 0.0}],
        },
    )


def batch_of_one(tmp_path: Path, *answers: httpx.Response, **options: Any) -> Any:
    labels = make_photos(tmp_path, {"a.png": "cat", "b.png": "cat"}, shade=110)
    script = Script(httpx.Response(200, json=MODELS), *answers)

    async def run() -> Any:
        async with AsyncClient("http://host", transport=script, retries=0) as client:
            return await client.batch(tmp_path / "images", labels, tmp_path / "out", **options)

    return anyio.run(run)


def test_masks_of_another_model_are_not_mixed(tmp_path: Path) -> None:
    mask = httpx.Response(200, content=label_map_png(np.zeros((2, 3), np.uint8)))
    with pytest.raises(
        ValueError,
        match="expected masks of double 1, got double 2: the service has another model now",
    ):
        batch_of_one(tmp_path, finished("1"), mask, finished("2"), mask, concurrency=1)
    assert list(read_results(tmp_path / "out" / "results.jsonl")) == ["a"]


def test_an_error_of_our_service_is_one_photos_but_a_wrong_option_is_not(tmp_path: Path) -> None:
    mask = httpx.Response(200, content=label_map_png(np.zeros((2, 3), np.uint8)))
    outcome = batch_of_one(
        tmp_path, problem(500, "internal-error", "a bug"), finished("1"), mask, concurrency=1
    )
    assert (outcome.made, outcome.empty, outcome.failed) == (1, 1, (("a.png", "a bug"),))
    with pytest.raises(InvalidRequest, match="no"):
        batch_of_one(tmp_path, problem(422, "invalid-request"), concurrency=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "other"}, r"expected a model of the service \(double\), got other"),
        ({"concurrency": 0}, "expected at least one photo in flight, got 0"),
        ({"background_threshold": 3}, r"expected background_threshold in \(0, 1\), got 3"),
        ({"refine": "nonsense"}, "nonsense"),
    ],
)
def test_what_cannot_begin(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_of_one(tmp_path, **options)
    assert not (tmp_path / "out").exists()


def test_photos_are_not_overwritten(tmp_path: Path) -> None:
    labels = make_photos(tmp_path, {"a.png": "cat"}, shade=111)
    (tmp_path / "images").rename(tmp_path / "masks")
    script = Script(httpx.Response(200, json=MODELS))

    async def run() -> None:
        async with AsyncClient("http://host", transport=script) as client:
            await client.batch(tmp_path / "masks", labels, tmp_path)

    with pytest.raises(ValueError, match="expected an output folder that keeps the images"):
        anyio.run(run)
