"""The Dockerfile's promises; whether it builds is for a machine that can build images."""

import json
import re
import tomllib
from importlib import util

import pytest
import yaml

from tests.helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def stages() -> dict[str, str]:
    """The Dockerfile's stages: name → instructions."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", (ROOT / "Dockerfile").read_text(), flags=re.M)
    return {name: body for name, body in zip(parts[2::3], parts[3::3], strict=True)}


@pytest.mark.parametrize("target", ["api", "worker"])
def test_compose_builds_a_stage_that_runs_our_module_as_nobody(target: str) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert compose["services"][target]["build"]["target"] == target
    found = stages()
    assert "USER semples" in found["runtime"]
    assert "USER" not in found[target]
    command = re.search(r"^CMD (\[.*\])$", found[target], re.M)
    assert command is not None
    python, module_flag, module, *_ = json.loads(command[1])
    assert (python, module_flag) == ("python", "-m")
    assert util.find_spec(module) is not None


def test_the_cpu_override_sets_an_argument_that_the_build_takes() -> None:
    override = (ROOT / "docker-compose.cpu.yml").read_text()
    arguments = re.findall(r"^ +([A-Z_]+): https?://", override, re.M)
    assert arguments == re.findall(r"^ARG (\w+)=$", stages()["build-worker"], re.M)


def requirements(extra: str) -> set[str]:
    """Names of the packages that an extra brings, ours resolved."""
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    names: set[str] = set()
    for requirement in wanted:
        nested = re.fullmatch(r"semples\[(.*)\]", requirement)
        if nested:
            names.update(*(requirements(inner) for inner in nested[1].split(",")))
        else:
            names.add(re.split(r"[\[<>=!~; ]", requirement)[0])
    return names


def test_the_api_image_has_no_torch_and_the_worker_s_no_http() -> None:
    torch = {"torch", "torchvision", "timm", "open_clip_torch", "safetensors"}
    http = {"fastapi", "uvicorn", "python-multipart"}
    assert requirements("api") >= http | {"redis", "rq", "fsspec"} | requirements("janitor")
    assert not requirements("api") & torch
    assert requirements("worker") >= torch | {"redis", "rq", "fsspec"}
    assert not requirements("worker") & http
    assert "'.[api,s3]'" in stages()["build-api"]
    assert "'.[worker,s3]'" in stages()["build-worker"]
    assert "s3fs" in requirements("s3")
    assert not requirements("s3") & (torch | http)


def test_what_the_dockerfile_copies_exists_and_travels() -> None:
    travels = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied: set[str] = set()
    for body in stages().values():
        for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", body, re.M):
            copied.update(sources.split())
    assert copied == travels
    assert all((ROOT / source).exists() for source in copied)
