"""Who may come in, and on which addresses the API starts without asking."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.middleware.auth import is_loopback, is_open, make_key, require_keys
from service.settings import Settings
from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api, png

ALICE, ALICES = make_key("alice")
BOB, BOBS = make_key("bob")


@pytest.fixture(scope="module")
def guarded(place: Place, running_worker: WorkerProcess) -> Iterator[httpx.Client]:
    """An API that asks for keys."""
    del running_worker
    with http_api(place, keys=f"{ALICES.line},{BOBS.line}", max_body_bytes=2_000_000) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def post(api: httpx.Client, headers: dict[str, str], image: bytes = png()) -> httpx.Response:
    return api.post("/pseudo-mask", files={"image": image}, data={"labels": "cat"}, headers=headers)


def assert_refused(response: httpx.Response, challenge: str) -> None:
    assert response.status_code == 401
    assert response.json()["type"] == "/problems/unauthorized"
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["WWW-Authenticate"] == challenge


@pytest.mark.parametrize(
    "headers",
    [
        bearer(ALICE),
        bearer(BOB),
        {"Authorization": f"bearer  {ALICE}"},
        {"X-API-Key": ALICE},
        {"X-API-Key": BOB, "Authorization": "Basic dXNlcjpwYXNz"},  # a proxy's own
    ],
)
def test_a_key_opens(guarded: httpx.Client, headers: dict[str, str]) -> None:
    posted = post(guarded, headers)
    assert posted.status_code == 202
    assert guarded.get(posted.headers["Location"], headers=headers).status_code == 200
    assert guarded.get("/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, "Bearer"),
        ({"Authorization": "Bearer"}, "Bearer"),
        ({"Authorization": f"Basic {ALICE}"}, "Bearer"),
        (bearer(ALICE[:-1]), 'Bearer error="invalid_token"'),
        (bearer(ALICES.digest), 'Bearer error="invalid_token"'),
        ({**bearer("wrong"), "X-API-Key": ALICE}, 'Bearer error="invalid_token"'),
        ({"X-API-Key": "ü".encode()}, 'Bearer error="invalid_token"'),
    ],
)
def test_no_key_no_entry(
    guarded: httpx.Client, place: Place, headers: dict[str, Any], challenge: str
) -> None:
    uploads, jobs = place.blobs.keys("uploads"), place.redis.keys("rq:job:*")
    assert_refused(post(guarded, headers, png(color=(1, 2, 3))), challenge)
    for path in ("/models", "/jobs/" + "0" * 32, "/nope", "/healthy", "/problems"):
        assert_refused(guarded.get(path, headers=headers), challenge)
    assert place.blobs.keys("uploads") == uploads
    assert place.redis.keys("rq:job:*") == jobs
    assert place.leftovers() == NOTHING


@pytest.mark.parametrize(
    "path", ["/", "/health", "/ready", "/docs", "/openapi.json", "/problems/unauthorized"]
)
def test_how_to_ask_and_whether_it_is_up_is_open(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path, follow_redirects=True).status_code == 200


@pytest.mark.parametrize("path", ["/models/health", "/jobs/x/health", "/health/", "//health"])
def test_what_looks_like_an_open_path_is_none(path: str) -> None:
    assert not is_open(path)


def test_a_stranger_is_refused_before_the_body_is_sent(guarded: httpx.Client) -> None:
    with socket.create_connection((guarded.base_url.host, guarded.base_url.port or 0), 20) as line:
        # It waits to be asked for its body, and is not.
        line.sendall(
            b"POST /pseudo-mask HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
            b"Content-Type: multipart/form-data; boundary=X\r\nExpect: 100-continue\r\n\r\n"
        )
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_a_stranger_with_a_large_body_reads_the_refusal(guarded: httpx.Client) -> None:
    assert_refused(post(guarded, {}, b"\0" * 1_500_000), "Bearer")


def test_the_key_is_in_no_log(guarded: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        post(guarded, bearer(ALICE))
        post(guarded, bearer("wrong-key"))
        post(guarded, {"X-API-Key": BOB})
    assert caplog.text
    for secret in (ALICE, BOB, "wrong-key", ALICES.digest):
        assert secret not in caplog.text


def test_an_idempotency_key_belongs_to_its_client(guarded: httpx.Client) -> None:
    token = {"Idempotency-Key": "1"}
    assert post(guarded, {**bearer(ALICE), **token}, png(color=(9, 9, 1))).status_code == 202
    assert post(guarded, {**bearer(BOB), **token}, png(color=(9, 9, 2))).status_code == 202
    assert post(guarded, {**bearer(ALICE), **token}, png(color=(9, 9, 2))).status_code == 422


def test_the_document_names_the_schemes(guarded: httpx.Client, api: httpx.Client) -> None:
    document = guarded.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert schemes["HTTPBearer"]["scheme"] == "bearer"
    assert schemes["APIKeyHeader"]["name"] == "X-API-Key"
    for path, operations in document["paths"].items():
        for operation in operations.values():
            either = [{"HTTPBearer": []}, {"APIKeyHeader": []}]
            assert operation.get("security") == (None if is_open(path) else either)
    assert "securitySchemes" not in api.get("/openapi.json").json()["components"]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.0.1", False),
        ("fe80::1%1", False),
        ("no.such.host.invalid", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("host", "settings", "starts"),
    [
        ("127.0.0.1", {}, True),
        ("0.0.0.0", {}, False),
        ("0.0.0.0", {"keys": ALICES.line}, True),
        ("0.0.0.0", {"open": True}, True),
        ("0.0.0.0", {"published": "127.0.0.1"}, True),
        ("0.0.0.0", {"published": "0.0.0.0"}, False),
        ("0.0.0.0", {"published": "192.168.0.1", "keys": ALICES.line}, True),
        ("127.0.0.1", {"published": "192.168.0.1"}, False),
    ],
)
def test_no_keys_only_where_no_stranger_comes(
    host: str, settings: dict[str, Any], starts: bool
) -> None:
    if starts:
        require_keys(Settings(**settings), host)
        return
    with pytest.raises(ValueError, match=r"^expected API keys \(SEMPLES_KEYS_FILE\) to listen on"):
        require_keys(Settings(**settings), host)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "expected API keys (SEMPLES_KEYS_FILE) to listen on 0.0.0.0, got none"),
        ({"SEMPLES_KEYS_FILE": "/nowhere"}, "cannot read the API keys in /nowhere"),
        ({"SEMPLES_KEYS": f"alice {ALICE}"}, "SEMPLES_KEYS, line 1: expected"),
        ({"SEMPLES_OPEN": "1", "SEMPLES_RATE": "often"}, "expected a rate such as"),
        ({"SEMPLES_OPEN": "1", "SEMPLES_TRUSTED_PROXIES": "*"}, "'*' does not appear to be"),
    ],
)
def test_the_api_says_in_one_line_why_it_does_not_start(
    tmp_path: Path, environment: dict[str, str], words: str
) -> None:
    where = {"SEMPLES_BLOBS": str(tmp_path), "REDIS_URL": f"unix://{tmp_path}/none"}
    done = run("service", "--host", "0.0.0.0", "--port", "1", **where, **environment)
    assert done.returncode == 3
    assert re.fullmatch(r"semples api: [^\n]*\n", done.stderr)
    assert words in done.stderr
    assert ALICE not in done.stderr


def test_serve_says_so_too_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    serve = ("service.local.serve", "--host", "0.0.0.0", "--port", port, "--data", str(tmp_path))
    done = run(*serve, SEMPLES_KEYS="", SEMPLES_KEYS_FILE="")
    assert done.returncode == 3
    assert done.stderr.startswith("semples serve: expected API keys")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["serve.lock"]
