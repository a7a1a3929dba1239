"""The manifests: valid for Kubernetes' own schemas, confined as its strictest profile asks, and of one piece."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import Settings
from tests.helpers.paths import ROOT
from tests.helpers.redis_users import DEPLOY, USERS, make_secrets

FOLDER = DEPLOY / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
NAME = "app.kubernetes.io/name"


def documents() -> Iterator[dict[str, Any]]:
    for name in KUSTOMIZATION["resources"]:
        yield from yaml.safe_load_all((FOLDER / name).read_text())


DOCUMENTS = {f"{each['kind']}/{each['metadata']['name']}": each for each in documents()}
PODS = {
    each["metadata"]["name"]: each["spec"]["template"]["spec"]
    for each in DOCUMENTS.values()
    if each["kind"] in ("Deployment", "StatefulSet")
}


def container(name: str) -> dict[str, Any]:
    [only] = PODS[name]["containers"]
    return dict(only)


def variables(name: str) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(name).get("env", ())}


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_follows_the_schema(name: str, version: str) -> None:
    kubernetes_validate.validate(DOCUMENTS[name], version, strict=True)


def test_the_schema_finds_mistakes() -> None:
    wrong = {**DOCUMENTS["Deployment/api"], "spec": {**DOCUMENTS["Deployment/api"]["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(wrong, "1.37", strict=True)


def test_every_file_is_applied_and_every_secret_is_made(tmp_path: Path) -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(KUSTOMIZATION["resources"]) == files
    make_secrets(tmp_path)
    made = {f"secrets/{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*") if path.is_file()}
    wanted = [file.partition("=")[2] for each in KUSTOMIZATION["secretGenerator"] for file in each["files"]]
    assert sorted(wanted) == sorted({*made, "secrets/keys"})  # these a person makes
    assert "deploy/kubernetes/secrets/" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.parametrize("name", PODS)
def test_every_pod_is_confined(name: str) -> None:
    pod, only = PODS[name], container(name)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert only["resources"]["limits"]["memory"]
    assert only["resources"]["requests"].keys() >= {"cpu", "memory"}
    assert {each["name"] for each in pod["volumes"]} <= {each["name"] for each in only["volumeMounts"]}


@pytest.mark.parametrize("user", USERS)
def test_each_program_has_its_own_secret_and_no_other(user: str) -> None:
    secrets = {each["name"]: each["secret"]["secretName"] for each in PODS[user]["volumes"] if "secret" in each}
    assert secrets.pop("redis-url") == f"redis-url-{user}"
    assert set(secrets.values()) <= {"api-keys"}
    mounts = {each["name"]: each["mountPath"] for each in container(user)["volumeMounts"]}
    assert variables(user)["REDIS_URL_FILE"] == f"{mounts['redis-url']}/redis-url"
    assert mounts["blobs"] == variables(user)["SEMPLES_BLOBS"]
    assert mounts["tmp"] == "/tmp"


def test_redis_is_the_compose_files() -> None:
    def options(words: list[str]) -> dict[str, str]:
        return dict(zip(words[::2], words[1::2], strict=True))

    here, there = options(container("redis")["args"]), options(COMPOSE["redis"]["command"][1:])
    assert (here.pop("--dir"), here.pop("--aclfile")) == ("/data", "/secrets/users.acl")
    there.pop("--aclfile")
    assert here == there
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        command = container("redis")[probe]["exec"]["command"]
        assert ["CMD", *command] == COMPOSE["redis"]["healthcheck"]["test"]


def test_probes_are_those_that_there_are() -> None:
    api = container("api")
    assert api["livenessProbe"]["httpGet"]["path"] == "/health"
    assert api["readinessProbe"]["httpGet"]["path"] == "/ready"
    for name, probe in (("worker", "startupProbe"), ("worker", "readinessProbe"), ("janitor", "livenessProbe")):
        command = container(name)[probe]["exec"]["command"]
        assert ["CMD", *command] == COMPOSE[name]["healthcheck"]["test"]


def test_a_worker_has_a_gpu_and_time_to_finish_a_job() -> None:
    assert container("worker")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert PODS["worker"]["terminationGracePeriodSeconds"] > Settings().job_timeout_max
    [shm] = [each for each in PODS["worker"]["volumes"] if each["name"] == "shm"]
    assert shm["emptyDir"]["medium"] == "Memory"


def test_selectors_select_what_is_there() -> None:
    for name, each in DOCUMENTS.items():
        spec = each.get("spec", {})
        selector = spec.get("selector") or spec.get("podSelector") or {}
        labels = selector.get("matchLabels", selector if each["kind"] == "Service" else {})
        assert labels.keys() <= {NAME}, name
        assert set(labels.values()) <= PODS.keys(), name
        if "template" in spec:
            assert spec["template"]["metadata"]["labels"] == labels == {NAME: each["metadata"]["name"]}
    ports = {each["name"]: each["containerPort"] for each in container("api")["ports"]}
    assert DOCUMENTS["Service/api"]["spec"]["ports"][0]["targetPort"] in ports


def test_nothing_is_let_through_but_what_is_named() -> None:
    policies = {
        each["metadata"]["name"]: each["spec"] for each in DOCUMENTS.values() if each["kind"] == "NetworkPolicy"
    }
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    [rule] = policies["redis"]["ingress"]
    [clients] = [each["podSelector"]["matchExpressions"][0]["values"] for each in rule["from"]]
    assert set(clients) == set(USERS)
    outside = [name for name, spec in policies.items() if "ipBlock" in str(spec)]
    assert outside == ["webhooks"]


def test_the_programs_read_what_they_are_given() -> None:
    known = {f"SEMPLES_{field.upper()}" for field in Settings.model_fields}
    known |= {"REDIS_URL_FILE", "SEMPLES_LOG"}
    assert variables("api").keys() <= known
    assert variables("worker").keys() <= COMPOSE["worker"]["environment"].keys() | {"SEMPLES_LOG"}
    assert variables("janitor").keys() <= COMPOSE["janitor"]["environment"].keys()
