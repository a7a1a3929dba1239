"""API keys: their file, the requests without one, the addresses that need them."""

import hashlib
import logging
import re
import socket
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from service.__main__ import main
from service.middleware.auth import (
    ApiKey,
    ApiKeys,
    _is_loopback,
    _make_key,
    _parse_keys,
    is_open,
    require_auth_for_public_bind,
)
from service.settings import Settings
from tests.helpers.command import python
from tests.helpers.posting import post
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api
from worker import telemetry

ALICE, ALICES = _make_key("alice")
BOB, BOBS = _make_key("bob")


def test_a_key_is_random_and_only_its_hash_is_remembered() -> None:
    key, remembered = _make_key("alice")
    assert key != ALICE
    assert len(key) >= 43  # 256 bits in base 64
    assert remembered.digest == hashlib.sha256(key.encode()).hexdigest()
    assert key not in remembered.line


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a:b", "-a", "x" * 65, "ä", "a\nb"])
def test_invalid_names(name: str) -> None:
    with pytest.raises(ValueError, match="expected a name of at most 64 letters"):
        _make_key(name)


def test_lines_comments_and_commas() -> None:
    text = f"# who\n\n{ALICES.line}  # until May\n  {BOBS.line}\r\n"
    assert _parse_keys(text, source="x") == (ALICES, BOBS)
    assert _parse_keys(f"{ALICES.line}, {BOBS.line}", source="x") == (ALICES, BOBS)
    assert _parse_keys("# nobody", source="x") == ()


@pytest.mark.parametrize(
    "line",
    ["alice", f"alice {ALICE}", ALICE, f"alice sha256:{'A' * 64}"],
    ids=["no hash", "the key", "the key alone", "upper case"],
)
def test_a_malformed_line_is_not_quoted(line: str) -> None:
    with pytest.raises(ValueError, match=r'^keys, line 2: expected "NAME sha256:HASH"$'):
        _parse_keys(f"{BOBS.line}\n{line}", source="keys")


def test_owners() -> None:
    ring = ApiKeys(file=None, lines=f"{ALICES.line},{BOBS.line}")
    assert [ring.owner(key) for key in (ALICE, BOB)] == ["alice", "bob"]
    assert not any(ring.owner(key) for key in ("", ALICE[:-1], "ü", ALICES.digest))


def test_a_changed_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text(ALICES.line)
    carol, carols = _make_key("carol")
    ring = ApiKeys(file=file, lines=carols.line)
    assert [ring.owner(key) for key in (ALICE, BOB, carol)] == ["alice", None, "carol"]

    write(file, BOBS)
    assert [ring.owner(key) for key in (ALICE, BOB, carol)] == [None, "bob", "carol"]

    # What cannot be read changes nothing, and is logged once.
    with caplog.at_level(logging.ERROR):
        file.write_text(f"{ALICES.line}\nbob {BOB}")
        assert [ring.owner(key) for key in (ALICE, BOB)] == [None, "bob"]
        file.unlink()
        assert [ring.owner(key) for key in (ALICE, BOB)] == [None, "bob"]
    assert len(caplog.messages) == 2
    assert BOB not in caplog.text

    write(file, ALICES)
    assert [ring.owner(key) for key in (ALICE, BOB)] == ["alice", None]
    write(file)
    assert [ring.owner(key) for key in (ALICE, BOB, carol)] == [None, None, "carol"]


def write(file: Path, *keys: ApiKey) -> None:
    """As an editor does: a new file in the place of the old one."""
    new = file.with_suffix(".new")
    new.write_text("".join(f"{key.line}\n" for key in keys))
    new.replace(file)


def test_no_keys_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one API key, got none"):
        ApiKeys(file=None, lines=" ,\n# none")
    with pytest.raises(ValueError, match=r"cannot read the API keys in .*nowhere: No such file"):
        ApiKeys(file=tmp_path / "nowhere", lines="")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected UTF-8"):
        ApiKeys(file=tmp_path / "binary", lines=ALICES.line)


def test_the_command_prints_a_line_that_is_good() -> None:
    command = ("-c", "from models.cli import main; main()", "api-key")
    done = python(*command, "dave", check=False)
    (line,) = done.stdout.splitlines()
    key = done.stderr.split()[-1]
    assert done.returncode == 0
    assert ApiKeys(file=None, lines=line).owner(key) == "dave"
    bad = python(*command, "da/ve", check=False)
    assert bad.returncode == 2
    assert bad.stderr.startswith("semples api-key: expected a name")
    assert bad.stdout == ""


@pytest.fixture(scope="module")
def guarded(place: Place, running_worker: WorkerProcess) -> Iterator[httpx.Client]:
    """An API that asks for keys."""
    with http_api(place, keys=f"{ALICES.line},{BOBS.line}", max_body_bytes=2_000_000) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}


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
        basic("", ALICE),
        basic("label studio", BOB),
        {"Authorization": basic("a", BOB)["Authorization"].replace("Basic", "BASIC")},
    ],
)
def test_a_valid_key(guarded: httpx.Client, headers: dict[str, str]) -> None:
    posted = post(guarded, headers=headers)
    assert posted.status_code == 202
    assert guarded.get(posted.headers["Location"], headers=headers).status_code == 200
    assert guarded.get("/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "challenge"),
    [
        ({}, "Bearer"),
        ({"Authorization": "Bearer"}, "Bearer"),
        ({"Authorization": f"Basic {ALICE}"}, "Bearer"),
        (basic(ALICE, ""), "Bearer"),
        (basic("a", ALICE[:-1]), 'Bearer error="invalid_token"'),
        (basic("a", f"x:{ALICE}"), 'Bearer error="invalid_token"'),
        ({"Authorization": "Basic /w=="}, "Bearer"),
        (bearer(ALICE[:-1]), 'Bearer error="invalid_token"'),
        (bearer(ALICES.digest), 'Bearer error="invalid_token"'),
        ({**bearer("wrong"), "X-API-Key": ALICE}, 'Bearer error="invalid_token"'),
        ({"X-API-Key": "ü".encode()}, 'Bearer error="invalid_token"'),
    ],
)
def test_a_request_without_a_valid_key_is_refused(
    guarded: httpx.Client, place: Place, headers: dict[str, Any], challenge: str
) -> None:
    uploads, jobs = place.blobs.keys("uploads"), place.redis.keys("rq:job:*")
    assert_refused(post(guarded, headers=headers), challenge)
    for path in ("/models", "/jobs/" + "0" * 32, "/nope", "/healthy", "/problems"):
        assert_refused(guarded.get(path, headers=headers), challenge)
    assert place.blobs.keys("uploads") == uploads
    assert place.redis.keys("rq:job:*") == jobs
    assert place.leftovers() == NOTHING


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/docs", "/openapi.json", "/problems/unauthorized"])
def test_open_paths(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path, follow_redirects=True).status_code == 200


@pytest.mark.parametrize("path", ["/models/health", "/jobs/x/health", "/health/", "//health"])
def test_paths_like_open_ones_need_a_key(path: str) -> None:
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
    assert_refused(post(guarded, b"\0" * 1_500_000), "Bearer")


def test_the_key_is_in_no_log(guarded: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        post(guarded, headers=bearer(ALICE))
        post(guarded, headers=bearer("wrong-key"))
        post(guarded, headers={"X-API-Key": BOB})
    assert caplog.text
    for secret in (ALICE, BOB, "wrong-key", ALICES.digest):
        assert secret not in caplog.text


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
    assert _is_loopback(host) is loopback


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
def test_a_public_address_needs_keys(host: str, settings: dict[str, Any], starts: bool) -> None:
    if starts:
        require_auth_for_public_bind(Settings(**settings), host)
        return
    with pytest.raises(ValueError, match=r"^expected API keys \(SEMPLES_KEYS_FILE\) to listen on"):
        require_auth_for_public_bind(Settings(**settings), host)


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], words: str
) -> None:
    monkeypatch.setattr(telemetry, "configure_logging", lambda _: None)
    where = {"SEMPLES_BLOBS": str(tmp_path), "REDIS_URL": f"unix://{tmp_path}/none"}
    app = typer.Typer()
    app.command()(main)
    done = CliRunner(env=where | environment).invoke(app, ["--host", "0.0.0.0", "--port", "1"])
    assert done.exit_code == 3
    assert re.fullmatch(r"python -m service: [^\n]*\n", done.stderr)
    assert words in done.stderr
    assert ALICE not in done.stderr


def test_serve_refuses_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    serve = ("-m", "service.local.serve", "--host", "0.0.0.0", "--port", port)
    done = python(*serve, "--data", str(tmp_path), SEMPLES_KEYS="", SEMPLES_KEYS_FILE="", check=False)
    assert done.returncode == 3
    assert done.stderr.startswith("semples serve: expected API keys")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["serve.lock"]
