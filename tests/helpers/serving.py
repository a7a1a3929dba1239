"""``semples serve`` as a process, for tests: what can be asked of it, and who is below it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import png, wait_for


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Serving:
    """A serve process and what can be asked of it."""

    def __init__(self, data: Path, *arguments: str, port: int | None = None, **env: str) -> None:
        self.data = data
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = arguments or ("tests.helpers.service_stack", str(data), str(self.port))
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
    return httpx.post(f"{stack.url}/pseudo-mask?wait=30", files={"image": png()}, data={"labels": label}, timeout=60)


def answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url).status_code == 200
    return False


def cmdline(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
