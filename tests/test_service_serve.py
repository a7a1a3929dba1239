"""``semples serve``: everything starts, everything stops, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from service import embedded
from service.serve import Stack
from service.serve import _worker_command as worker_command
from service.settings import Settings
from service.supervisor import _IMPATIENCE_SECONDS as IMPATIENCE
from tests.service_fixtures import ROOT, png, valkey, wait_for
from tests.webhook_receiver import SECRET, receiving


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Serving:
    """A serve process and what can be asked of it."""

    def __init__(self, data: Path, *arguments: str, port: int | None = None, **env: str) -> None:
        self.data = data
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = arguments or ("tests.service_stack", str(data), str(self.port))
        environment = {key: value for key, value in os.environ.items() if key != "REDIS_URL"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**environment, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise ChildProcessError(self.process.stderr.read() if self.process.stderr else "")
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/ready").status_code == 200
        return False

    def wait_ready(self) -> None:
        wait_for(self.is_ready, seconds=60, what="GET /ready")

    def worker_pid(self) -> int:
        workers = httpx.get(f"{self.url}/ready").json()["workers"]
        return int(workers[0]["pid"]) if workers else 0

    def children(self) -> set[int]:
        """All processes below it."""
        return descendants(self.process.pid)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal; return exit code, output and errors."""
        self.process.send_signal(number)
        return self.outcome()

    def outcome(self) -> tuple[int, str, str]:
        """Wait for its end; return exit code, output and errors."""
        try:
            output, errors = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode, output, errors


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    with suppress(OSError):  # it has ended, as threads do too
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                for child in map(int, (thread / "children").read_text().split()):
                    found |= {child} | descendants(child)
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that run; a zombie that nobody has buried yet does not."""
    running = set()
    for pid in pids:
        with suppress(OSError):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            running |= {pid} if state != "Z" else set()
    return running


@contextmanager
def serving(data: Path, *arguments: str, **options: Any) -> Iterator[Serving]:
    stack = Serving(data, *arguments, **options)
    try:
        yield stack
    finally:
        if stack.process.poll() is None:
            stack.end()


def post(stack: Serving, label: str = "cat") -> httpx.Response:
    return httpx.post(
        f"{stack.url}/pseudo-mask?wait=30",
        files={"image": png()},
        data={"labels": label},
        timeout=60,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_and_stops(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path / "data") as stack:
        stack.wait_ready()
        assert post(stack).json()["status"] == "finished"
        children = stack.children()
        assert len(children) >= 4
        code, output, errors = stack.end(number)
        assert (code, errors) == (0, "")
        assert f"ready: {stack.url}" in output
        assert output.splitlines()[-1] == "semples serve: stopped"
        assert alive(children) == set()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{stack.url}/health")
    assert {path.name for path in (tmp_path / "data" / "logs").iterdir()} == {
        "api.log",
        "janitor.log",
        "redis.log",
        "worker.log",
    }
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_killed_it_takes_its_children_along_and_the_next_one_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as stack:
        stack.wait_ready()
        job = post(stack).json()["id"]
        children = stack.children()
        stack.end(signal.SIGKILL)
        wait_for(lambda: not alive(children), what="the end of all children")
    with serving(data) as stack:
        stack.wait_ready()
        assert httpx.get(f"{stack.url}/jobs/{job}").json()["status"] == "finished"
        assert httpx.get(f"{stack.url}/jobs/{job}/mask.png").status_code == 200


def test_a_dead_worker_and_a_dead_api_are_replaced(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as stack:
        stack.wait_ready()
        before = stack.worker_pid()
        os.kill(before, signal.SIGKILL)
        [api] = [pid for pid in stack.children() if b"service.main" in cmdline(pid)]
        os.kill(api, signal.SIGKILL)
        # A request that comes meanwhile waits in the listening socket, and is answered.
        assert httpx.get(f"{stack.url}/health", timeout=30).status_code == 200
        wait_for(
            lambda: stack.is_ready() and stack.worker_pid() not in (0, before), what="a new worker"
        )
        assert post(stack).json()["status"] == "finished"
        code, output, _ = stack.end()
        assert code == 0
        assert "worker ended (-9)" in output
        assert "api ended (-9)" in output


def test_a_job_in_hand_is_waited_for_until_the_second_signal(tmp_path: Path) -> None:
    settings = Stack("127.0.0.1", 0, tmp_path, None, ["worker"])
    assert worker_command(settings, {}).grace > Settings().job_timeout_max
    with serving(tmp_path / "data") as stack:
        stack.wait_ready()
        form: dict[str, Any] = {"files": {"image": png()}, "data": {"labels": "hangs"}}
        job = stack.url + httpx.post(f"{stack.url}/pseudo-mask", **form).headers["Location"]
        wait_for(lambda: httpx.get(job).json()["status"] == "running", what="the job")
        worker = {stack.worker_pid()}
        stack.process.send_signal(signal.SIGTERM)
        api = f"{stack.url}/health"
        wait_for(lambda: not answers(api), what="the API's end")
        time.sleep(IMPATIENCE)
        assert alive(worker) == worker
        code, output, _ = stack.end()
        assert (code, output.splitlines()[-1]) == (0, "semples serve: stopped")
        assert alive(worker) == set()


def answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url).status_code == 200
    return False


def test_webhooks_with_one_command(tmp_path: Path) -> None:
    env = {"SEMPLES_WEBHOOK_SECRET": SECRET, "SEMPLES_WEBHOOK_PRIVATE": "1"}
    with receiving() as receiver, serving(tmp_path / "data", **env) as stack:
        stack.wait_ready()
        form = {"labels": "cat", "callback_url": receiver.url()}
        job = httpx.post(f"{stack.url}/pseudo-mask", files={"image": png()}, data=form).json()
        wait_for(lambda: receiver.deliveries, what="the webhook")
        [delivery] = receiver.deliveries
        assert Webhook(SECRET).verify(delivery.body, delivery.headers)["data"]["id"] == job["id"]
        [janitor] = [pid for pid in stack.children() if b"worker.janitor" in cmdline(pid)]
        os.kill(janitor, signal.SIGTERM)
        wait_for(lambda: not alive({janitor}), what="its end")
        wait_for(
            lambda: any(b"worker.janitor" in cmdline(pid) for pid in stack.children()),
            what="another janitor",
        )


def cmdline(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


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
    command = ("tests.service_stack", str(data), str(free_port()), *arguments)
    refused = Serving(data, *command, **env)
    code, _, errors = refused.outcome()
    assert code == 3
    assert errors.startswith(f"semples serve: {message}")
    assert errors.count("\n") == 1
    assert not embedded.answers(embedded.socket_path(data))


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


def test_an_operators_redis_is_used_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with valkey(tmp_path / "redis") as place:
        with serving(tmp_path / "data", REDIS_URL=place.url) as stack:
            stack.wait_ready()
            assert post(stack).json()["status"] == "finished"
            assert not (tmp_path / "data" / "redis").exists()
        assert place.redis.ping()


def test_a_signal_while_starting(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as stack:
        wait_for(stack.children, what="the first child")
        children = stack.children()
        code, output, _ = stack.end()
        assert code == 0
        assert output.endswith("semples serve: stopped\n")
        assert alive(children) == set()
