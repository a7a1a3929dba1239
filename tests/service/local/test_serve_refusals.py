"""``semples serve`` where it cannot: one line says why, and nothing is left running."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.local import redis_server
from tests.helpers.serving import Serving, free_port, serving


def test_refusals_are_one_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as stack:
        stack.wait_ready()
        own = stack.process.pid
        cases = [
            (Serving(data), f"{data} is in use by another semples serve (process {own})"),
            (
                Serving(tmp_path / "other", port=stack.port),
                f"cannot listen on 127.0.0.1 port {stack.port}: Address already in use",
            ),
        ]
        for refused, message in cases:
            code, output, errors = refused.outcome()
            assert (code, output) == (3, "")
            assert errors == f"semples serve: {message}\n"
        assert stack.is_ready()  # and nobody else was harmed


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (("--bundle", "broken"), {}, "worker ended at the start: semples worker: cannot load"),
        ((), {"REDIS_URL": "redis://127.0.0.1:1/0"}, "cannot reach REDIS_URL: Error 111"),
        ((), {"REDIS_URL": "http://x"}, "cannot reach REDIS_URL: "),
        ((), {"SEMPLES_MAX_QUEUE": "many"}, "1 validation error for Settings max_queue"),
        ((), {"SEMPLES_RATE": "often"}, "api ended at the start: semples api: expected a rate"),
    ],
)
def test_what_cannot_start_is_one_line_and_stops_the_rest(
    tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], message: str
) -> None:
    data = tmp_path / "data"
    command = ("tests.helpers.service_stack", str(data), str(free_port()), *arguments)
    refused = Serving(data, *command, **env)
    code, _, errors = refused.outcome()
    assert code == 3
    assert errors.startswith(f"semples serve: {message}")
    assert errors.count("\n") == 1
    assert not redis_server.answers(redis_server.socket_path(data))


def test_a_webhook_secret_that_is_none(tmp_path: Path) -> None:
    """API and janitor both end; which of them is noticed first is chance."""
    code, _, errors = Serving(tmp_path / "data", SEMPLES_WEBHOOK_SECRET="password").outcome()
    assert code == 3
    assert "ended at the start: semples " in errors
    assert "expected as webhook secret whsec_ and the base64 of 24 to 64 bytes, got 8" in errors
    assert "password" not in errors


def test_a_file_as_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = Serving(tmp_path / "file")
    code, _, errors = refused.outcome()
    assert code == 3
    assert errors == (
        f"semples serve: cannot use the data directory {tmp_path / 'file'}: File exists\n"
    )
