"""What the API says of itself: models, health, readiness, documentation."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from tests.helpers.service_doubles import Info
from tests.helpers.service_fixtures import WorkerProcess, http_api, valkey
from worker.queue.registry import ModelInfo, WorkerInfo, announce


def test_models(api: httpx.Client, worker: WorkerProcess) -> None:
    del worker
    listed = api.get("/models").json()
    assert listed["default"] == listed["default_segment"] == "double"
    [summary] = listed["models"]
    assert summary["ready"] is True
    model = summary["model"]
    assert model["classes"][0] == {"index": 1, "name": "cat", "synonyms": ["kitty"]}
    assert model["background_threshold"] == 0.4
    assert model["can_segment"] is True
    assert model["segment"] == {"refine": "pamr", "min_confidence": 0.1}
    assert model["metrics"][0]["name"] == "mean_iou"
    assert "nearest_nouns" not in summary["model"]


def test_one_model_says_what_its_prompts_learned(api: httpx.Client, worker: WorkerProcess) -> None:
    document = api.get("/models/double").json()
    assert document["ready"] is True
    assert document["model"] == api.get("/models").json()["models"][0]["model"]
    assert document["nearest_nouns"] == {"cat": [{"noun": "sofa", "similarity": 0.5}]}
    worker.stop()
    stopped = api.get("/models/double").json()
    assert stopped == {**document, "ready": False}
    worker.start()


@pytest.mark.parametrize("name", ["dubble", "%3Cscript%3E", "x" * 5000])
def test_an_unknown_model(api: httpx.Client, worker: WorkerProcess, name: str) -> None:
    del worker
    answer = api.get(f"/models/{name}")
    assert answer.status_code == 404
    problem = answer.json()
    assert problem["type"] == "/problems/unknown-model"
    assert problem["models"] == ["double"]
    assert "expected one of double, got" in problem["detail"]
    assert len(problem["detail"]) < 200


def test_no_model_yet(tmp_path: Path) -> None:
    with valkey(tmp_path) as place, http_api(place) as api:
        answer = api.get("/models/double")
        assert (answer.status_code, answer.json()["type"]) == (503, "/problems/not-ready")
        # A worker of an older version, which explains nothing.
        model = ModelInfo.model_validate(Info().to_json())
        announce(
            place.redis, WorkerInfo(name="w", model=model.ref, device="cpu", host="h", pid=1), model
        )
        document = api.get("/models/double").json()
        assert (document["ready"], document["nearest_nouns"]) == (True, {})


def test_health_and_readiness(api: httpx.Client, worker: WorkerProcess) -> None:
    assert api.get("/health").json()["status"] == "ok"
    ready = api.get("/ready")
    assert ready.status_code == 200
    assert ready.json()["workers"][0]["pid"] == worker.ensure().pid
    worker.stop()
    unready = api.get("/ready")
    assert unready.status_code == 503
    assert unready.json()["type"] == "/problems/not-ready"
    assert unready.headers["Retry-After"]
    assert api.get("/health").status_code == 200
    assert api.get("/models").json()["models"][0]["ready"] is False
    worker.start()
    assert api.get("/ready").status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_need_nothing_from_elsewhere(api: httpx.Client, path: str) -> None:
    page = api.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src" in page.headers["content-security-policy"]
    parts = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert any(part.endswith(".js") for part in parts)
    for part in parts:
        assert "//" not in part
        assert api.get(str(httpx.URL(path).join(part))).status_code == 200, part


SHARED = {"model", "refine", "min_confidence", "callback_url"}


@pytest.mark.parametrize(
    ("path", "required", "optional"),
    [
        (
            "/pseudo-mask",
            {"image", "labels"},
            {*SHARED, "vocabulary", "background_threshold", "background_power"},
        ),
        ("/segment", {"image"}, SHARED),
    ],
)
def test_the_documentation_names_all_fields_and_answers(
    api: httpx.Client, path: str, required: set[str], optional: set[str]
) -> None:
    document = api.get("/openapi.json").json()
    post = document["paths"][path]["post"]
    [(kind, body)] = post["requestBody"]["content"].items()
    assert kind == "multipart/form-data"
    form = document["components"]["schemas"][body["schema"]["$ref"].rpartition("/")[2]]
    assert set(form["required"]) == required
    assert set(form["properties"]) == required | optional
    assert form["additionalProperties"] is False
    refusals = {"400", "401", "408", "409", "413", "415", "422", "429", "503"}
    assert set(post["responses"]) == {"200", "202"} | refusals
    assert set(post["responses"]["200"]["content"]) == {"application/json", "image/png"}
