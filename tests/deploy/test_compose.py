"""The compose files, as far as they can be checked without a Docker daemon; their health checks are run."""

import json
import os
import re
import socket
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from jsonschema import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for

from service.middleware.auth import _make_key, require_auth_for_public_bind
from service.settings import Settings
from tests.helpers.paths import ROOT
from tests.helpers.redis_users import USERS, Deployment
from tests.helpers.service_doubles import Info
from tests.helpers.service_fixtures import valkey
from tests.helpers.serving import free_port
from worker.queue.registry import ModelInfo, WorkerInfo, announce, janitor_key
from worker.settings import JanitorSettings, WorkerSettings

OURS = ("api", "worker", "janitor")
RESET = object()


class ComposeLoader(yaml.SafeLoader):
    """YAML with Compose's ``!reset``, which takes away what an earlier file says."""


ComposeLoader.add_constructor("!reset", lambda loader, node: RESET)


def merge(below: Any, above: Any) -> Any:
    """Lay one compose file over another: maps are merged, lists joined, the rest replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        merged = below | {key: merge(below.get(key), value) for key, value in above.items()}
        return {key: value for key, value in merged.items() if value is not RESET}
    if isinstance(below, list) and isinstance(above, list):
        return below + above
    return above


def load(*names: str) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for name in names:
        # The loader is a safe one.
        whole = merge(whole, yaml.load((ROOT / name).read_text(), ComposeLoader))
    return whole


@pytest.fixture(params=["gpu", "cpu"])
def compose(request: pytest.FixtureRequest) -> dict[str, Any]:
    files = ["docker-compose.yml", *(["docker-compose.cpu.yml"] if request.param == "cpu" else [])]
    return load(*files)


@pytest.fixture(scope="module")
def schema() -> Validator:
    """The Compose specification's own schema, as check-jsonschema ships it."""
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    content = json.loads((folder / "compose-spec.json").read_text())
    return validator_for(content)(content)


def test_follows_the_compose_specification(compose: dict[str, Any], schema: Validator) -> None:
    schema.validate(compose)


def test_the_schema_finds_mistakes(compose: dict[str, Any], schema: Validator) -> None:
    compose["services"]["api"]["read-only"] = True
    with pytest.raises(ValidationError, match="read-only"):
        schema.validate(compose)


def test_nothing_but_the_api_is_published_and_that_on_this_host(compose: dict[str, Any]) -> None:
    ports = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert [name for name, published in ports.items() if published] == ["api"]
    assert ports["api"] == ["${SEMPLES_BIND:-127.0.0.1}:${SEMPLES_PORT:-8000}:8000"]
    assert compose["networks"]["inside"] == {"internal": True}
    for name in ("redis", "worker"):
        assert compose["services"][name]["networks"] == ["inside"]


def test_keys_are_needed_as_soon_as_the_port_is_open_to_others(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = compose["services"]["api"]
    assert api["ports"][0].startswith(f"{api['environment']['SEMPLES_PUBLISHED']}:")
    for name, value in api["environment"].items():
        # As compose fills them in where the host sets nothing.
        monkeypatch.setenv(name, re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value))
    require_auth_for_public_bind(Settings(), "0.0.0.0")
    monkeypatch.setenv("SEMPLES_PUBLISHED", "0.0.0.0")
    with pytest.raises(ValueError, match="expected API keys"):
        require_auth_for_public_bind(Settings(), "0.0.0.0")
    monkeypatch.setenv("SEMPLES_KEYS", _make_key("alice")[1].line)
    require_auth_for_public_bind(Settings(), "0.0.0.0")


def test_every_service_is_confined_watched_and_restarted(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"secrets", "redis", *OURS}
    for name, service in compose["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        limits = service["deploy"]["resources"]["limits"]
        assert limits["memory"]
        assert 0 < limits["pids"] <= 512
        if name == "secrets":  # it ends
            assert service["restart"] == "no"
            assert service["network_mode"] == "none"
            continue
        assert service["restart"] == "always"
        assert service["healthcheck"]["test"]
        assert service["stop_grace_period"]


def test_nobody_starts_before_redis_answers(compose: dict[str, Any]) -> None:
    for name in OURS:
        depends = compose["services"][name]["depends_on"]
        assert depends == {"redis": {"condition": "service_healthy"}}
    redis = compose["services"]["redis"]["depends_on"]
    assert redis == {"secrets": {"condition": "service_completed_successfully"}}


def test_all_of_ours_share_blobs_and_only_the_worker_reads_bundles(compose: dict[str, Any]) -> None:
    api, worker, janitor = (compose["services"][name] for name in OURS)
    for service in (api, worker, janitor):
        assert service["volumes"][0] == "blobs:/data/blobs"
    bundles = worker["volumes"][2]
    assert (bundles["target"], bundles["read_only"]) == ("/bundles", True)
    assert len(api["volumes"]) == len(janitor["volumes"]) == 2


def test_each_secret_is_mounted_where_it_is_used_and_nowhere_else(compose: dict[str, Any]) -> None:
    mounts = {
        name: [each for each in service.get("volumes", ()) if "secret" in each or "rules" in each]
        for name, service in compose["services"].items()
    }
    for user in USERS:
        assert mounts.pop(user) == [f"{user}-secret:/secrets/{user}:ro"]
        url = compose["services"][user]["environment"]["REDIS_URL_FILE"]
        assert url == f"/secrets/{user}/redis-url"
    assert mounts.pop("redis") == ["redis-rules:/secrets/redis:ro", "operator-secret:/secrets/operator:ro"]
    folder, *made = mounts.pop("secrets")
    assert mounts == {}
    assert folder == "./deploy/redis:/rules:ro"
    assert {each.partition(":")[0] for each in made} == set(compose["volumes"]) - {"blobs", "queue"}


def test_a_gpu_is_reserved_unless_the_override_says_cpu() -> None:
    gpu = load("docker-compose.yml")["services"]["worker"]
    devices = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert gpu["environment"]["SEMPLES_DEVICE"] == "cuda"
    cpu = load("docker-compose.yml", "docker-compose.cpu.yml")["services"]["worker"]
    assert cpu["deploy"]["resources"]["reservations"] == {}
    assert cpu["environment"]["SEMPLES_DEVICE"] == "cpu"
    assert cpu["image"] != gpu["image"]


def test_a_worker_has_time_to_finish_a_job(compose: dict[str, Any]) -> None:
    grace = re.fullmatch(r"(\d+)m(\d+)s", compose["services"]["worker"]["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) * 60 + int(grace[2]) > Settings().job_timeout_max


def test_the_environment_is_what_the_programs_read(compose: dict[str, Any]) -> None:
    names = {"REDIS_URL_FILE", *(f"SEMPLES_{field.upper()}" for field in Settings.model_fields)}
    assert set(compose["services"]["api"]["environment"]) <= names
    for service, settings in (("worker", WorkerSettings), ("janitor", JanitorSettings)):
        names = {"REDIS_URL_FILE", *(f"SEMPLES_{field.upper()}" for field in settings.model_fields)}
        assert set(compose["services"][service]["environment"]) <= names


def test_the_janitor_is_the_api_s_image_with_its_secret(compose: dict[str, Any]) -> None:
    api, _, janitor = (compose["services"][name] for name in OURS)
    assert (janitor["image"], janitor["build"]) == (api["image"], api["build"])
    own = {"REDIS_URL_FILE": "/secrets/janitor/redis-url"}
    assert janitor["environment"].items() <= (api["environment"] | own).items()
    assert janitor["networks"] == ["inside", "outside"]  # webhooks go out
    assert janitor["command"] == ["python", "-m", "worker", "janitor"]


def test_redis_takes_its_options_and_forgets_nothing(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path)
    deployment.start()
    try:
        with deployment.client("operator") as redis:
            settings = redis.config_get("appendonly", "appendfsync", "save", "maxmemory*")
    finally:
        deployment.stop()
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "everysec"
    assert settings["save"] == ""
    assert settings["maxmemory-policy"] == "noeviction"
    limit = load("docker-compose.yml")["services"]["redis"]["deploy"]["resources"]["limits"]
    assert int(settings["maxmemory"]) == 2**30
    # Twice that, for while its file is written anew.
    assert int(limit["memory"].removesuffix("m")) * 2**20 >= 2 * 2**30


def health_command(service: str) -> list[str]:
    test = load("docker-compose.yml")["services"][service]["healthcheck"]["test"]
    assert test[0] == "CMD"
    return [str(each) for each in test[1:]]


def check_health(command: list[str], **environment: str) -> int:
    """Run a health check as in a container; Python and from-files are on its path."""
    path = os.pathsep.join((str(Path(sys.executable).parent), str(ROOT / "deploy"), os.environ["PATH"]))
    process = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PATH": path} | environment, check=False, capture_output=True
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
    model = ModelInfo.model_validate(Info().to_json())
    worker = WorkerInfo(name="w", model=model.ref, device="cpu", host="elsewhere", pid=1)
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
    assert check_health([*command[:-1], command[-1].replace(":8000", f":{free_port()}")]) != 0
