"""The compose file's health checks, run as they stand there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from tests.deploy.test_compose import load
from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import valkey
from worker.queue.registry import ModelInfo, WorkerInfo, announce, janitor_key
from worker.queue.schema import ModelRef


def health_command(service: str) -> list[str]:
    test = load("docker-compose.yml")["services"][service]["healthcheck"]["test"]
    assert test[0] == "CMD"
    return [str(each) for each in test[1:]]


def check_health(command: list[str], **environment: str) -> int:
    """Run a health check as in a container; Python and from-files are on its path."""
    path = os.pathsep.join(
        (str(Path(sys.executable).parent), str(ROOT / "deploy"), os.environ["PATH"])
    )
    process = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PATH": path} | environment,
        check=False,
        capture_output=True,
    )
    return process.returncode


def test_a_janitor_is_healthy_while_it_is_at_work(tmp_path: Path) -> None:
    command = health_command("janitor")
    with valkey(tmp_path) as place:
        assert check_health(command, REDIS_URL=place.url) == 1
        place.redis.set(janitor_key(socket.gethostname()), 1)
        assert check_health(command, REDIS_URL=place.url) == 0


def test_a_worker_is_healthy_while_its_lease_holds(tmp_path: Path) -> None:
    command = health_command("worker")
    model = ModelInfo(
        name="m",
        version="0" * 12,
        kind="cam",
        classes=(),
        background_threshold=0.4,
        min_confidence=0.0,
        refine="none",
    )
    worker = WorkerInfo(
        name="w",
        model=ModelRef(name="m", version="0" * 12),
        device="cpu",
        host="elsewhere",
        pid=1,
    )
    with valkey(tmp_path) as place:
        assert check_health(command, REDIS_URL=place.url) == 1
        announce(place.redis, worker, model)
        assert check_health(command, REDIS_URL=place.url) == 1
        here = worker.model_copy(update={"host": socket.gethostname()})
        announce(place.redis, here, model)
        assert check_health(command, REDIS_URL=place.url) == 0
        announce(place.redis, here.model_copy(update={"trouble": "it is stuck"}), model)
        assert check_health(command, REDIS_URL=place.url) == 1


def test_the_api_is_healthy_while_it_answers(api: httpx.Client) -> None:
    command = health_command("api")
    assert command[-1].count("127.0.0.1:8000") == 1
    program = [*command[:-1], command[-1].replace(":8000", f":{api.base_url.port}")]
    assert check_health(program) == 0
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert check_health([*command[:-1], command[-1].replace(":8000", f":{port}")]) != 0
