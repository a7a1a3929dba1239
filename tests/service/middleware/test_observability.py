"""Around a request: its id, its line in the log, and nothing secret in either."""

import json
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.api import errors
from service.local.supervisor import Child, Command
from service.metrics import HttpMetrics
from service.middleware.observability import RequestLogger
from tests.helpers.posting import new_photo, post
from tests.helpers.service_fixtures import Place, WorkerProcess, http_api, png, wait_for
from worker.queue.rq import fetch_job


@pytest.fixture
def access(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="service.access")
    return caplog


def lines(caplog: pytest.LogCaptureFixture, count: int) -> list[Any]:
    """The access log's records; an answer may arrive before its line is written."""

    def found() -> list[Any]:
        return [record for record in caplog.records if record.name == "service.access"]

    wait_for(lambda: len(found()) >= count, what="the line")
    return found()


@pytest.mark.parametrize("sent", ["abc-1.2_X", "x" * 64])
def test_a_clients_request_id_is_kept(api: httpx.Client, sent: str) -> None:
    assert api.get("/health", headers={"X-Request-ID": sent}).headers["X-Request-ID"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 65, "a b", 'a"b', "<b>", "a\tb"])
def test_any_other_request_id_is_replaced(api: httpx.Client, sent: str) -> None:
    answers = [api.get("/health", headers={"X-Request-ID": sent}) for _ in range(2)]
    one, other = (answer.headers["X-Request-ID"] for answer in answers)
    assert len(one) == 32
    assert sent not in (one, other)
    assert one != other


def test_errors_have_the_id_too(api: httpx.Client) -> None:
    for answer in (api.get("/nowhere"), api.post("/pseudo-mask"), api.put("/health")):
        assert answer.status_code in (404, 405, 415)
        assert answer.headers["X-Request-ID"]


def test_one_line_a_request_without_its_secrets(
    place: Place, worker: WorkerProcess, access: pytest.LogCaptureFixture
) -> None:
    with http_api(place) as api:
        answer = api.post(
            "/pseudo-mask?wait=30&api_key=s3cret",
            files={"image": ("holiday.png", png())},
            data={"labels": "kitty"},
            headers={"Authorization": "Bearer s3cret", "X-Request-ID": "r1"},
        )
        assert answer.status_code == 200
        job = answer.json()["id"]
        api.get(f"/jobs/{job}")
        api.get("/jobs/secret-path")
        posted, followed, missed = lines(access, 3)
    assert (posted.method, posted.route, posted.status) == ("POST", "/pseudo-mask", 200)
    assert posted.seconds > 0
    assert posted.job == job
    assert (followed.route, followed.job) == ("/jobs/{job_id}", job)
    assert (missed.route, missed.status, missed.job) == ("/jobs/{job_id}", 404, "")
    whole = " ".join(f"{record.getMessage()} {vars(record)}" for record in (posted, missed))
    for secret in ("s3cret", "holiday", "kitty", "secret-path"):
        assert secret not in whole


def test_a_job_knows_its_request_but_is_the_same_for_another(place: Place) -> None:
    photo = new_photo()
    with http_api(place) as api:
        first, other = (post(api, photo, headers={"X-Request-ID": each}).json()["id"] for each in ("r1", "r2"))
        assert first == other
    job = fetch_job(place.redis, first)
    assert job is not None
    assert job.meta["request"] == "r1"


def test_a_workers_lines_about_a_job_name_it(place: Place, worker: WorkerProcess) -> None:
    worker.ensure()
    done, failed = place.wait_done(place.post("cat")), place.wait_done(place.post("raises"))
    wait_for(lambda: "job failed: model_error" in worker.log(), what="the line")
    for job, message in ((done, "job finished"), (failed, "job failed: model_error")):
        about = [line for line in worker.log().splitlines() if f"[job={job.id}]" in line]
        assert any(": job taken" in line for line in about)
        assert any(f": {message}" in line for line in about)


def broken_app(metrics: HttpMetrics) -> FastAPI:
    app = FastAPI()
    app.add_middleware(RequestLogger, metrics=metrics)
    errors.install(app)

    @app.get("/broken/{name}")
    def get_broken(name: str) -> None:
        raise LookupError(name)

    return app


def test_an_unexpected_error_is_answered_counted_and_logged(access: pytest.LogCaptureFixture) -> None:
    metrics = HttpMetrics()
    client = TestClient(broken_app(metrics), raise_server_exceptions=False)
    answer = client.get("/broken/secret", headers={"X-Request-ID": "r1"})
    assert answer.status_code == 500
    assert answer.json()["type"] == "/problems/internal-error"
    assert answer.headers["X-Request-ID"] == "r1"
    labels = {"route": "/broken/{name}", "method": "GET", "status": "500"}
    assert metrics.registry.get_sample_value("semples_http_requests_total", labels) == 1
    [line] = lines(access, 1)
    assert (line.status, line.route) == (500, "/broken/{name}")


def test_the_api_as_a_process_logs_json_lines_alone(place: Place, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = Command(
            "api",
            [sys.executable, "-m", "service", "--fd", str(listener.fileno())],
            log=tmp_path / "api.log",
            environment={"REDIS_URL": place.url, "SEMPLES_BLOBS": str(tmp_path), "SEMPLES_LOG": "json"},
            pass_fds=(listener.fileno(),),
        )
        child = Child(command)
        port = listener.getsockname()[1]
        answer = httpx.get(f"http://127.0.0.1:{port}/health?key=s3cret", timeout=60)
        child.ask_to_stop()
        child.wait()
    found = [json.loads(line) for line in command.log.read_text().splitlines()]
    [line] = [each for each in found if each["logger"] == "service.access"]
    assert (line["method"], line["route"], line["status"]) == ("GET", "/health", 200)
    assert line["request"] == answer.headers["X-Request-ID"]
    assert "s3cret" not in command.log.read_text()
