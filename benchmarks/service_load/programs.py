"""What is measured, started on this machine alone and ended again."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from redis import Redis

from service.local import redis_server
from service.local.supervisor import Child, Command
from worker.queue.registry import live_workers
from worker.queue.rq import open_redis

START_SECONDS = 180.0
DOUBLE, INSTANT = "double", "tests.helpers.service_doubles"
"""Model of ``tests.helpers.service_doubles`` that answers at once."""


@dataclass(frozen=True)
class Model:
    """What is served, alike for all.

    Attributes:
        bundle: name or folder.
        refine: refiner chain.
        threads: CPU threads of the model; 0 leaves the choice to torch.
    """

    bundle: str
    refine: str
    threads: int

    def arguments(self) -> list[str]:
        """Return it as options of the programs beside this file."""
        return [f"--bundle={self.bundle}", f"--refine={self.refine}", f"--threads={self.threads}"]


def environment(threads: int = 0) -> dict[str, str]:
    """Return what all programs get alike: an embedded queue, the model's threads, no idle threads that spin."""
    return {"REDIS_URL": "", "SEMPLES_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}


@contextmanager
def service(data: Path, model: Model, *, device: str = "cpu") -> Iterator[int]:
    """Run ``semples serve``; yield its port."""
    port = free_port()
    arguments = ["--bundle", model.bundle, "--device", device]
    command = [sys.executable, "-m", "service.local.serve", *_where(data, port), *arguments]
    with running("serve", command, data, environment(model.threads)) as child:
        _wait_answer(child, port, "/ready")
        yield port


@contextmanager
def instant_service(data: Path) -> Iterator[int]:
    """Run the same stack with a predictor that answers at once; yield its port."""
    port = free_port()
    command = [sys.executable, "-m", "tests.helpers.service_stack", str(data / "stack"), str(port)]
    with running("instant", command, data, environment()) as child:
        _wait_answer(child, port, "/ready")
        yield port


@contextmanager
def litserve(data: Path, model: Model, *, batch: int) -> Iterator[int]:
    """Run the same model behind LitServe; yield its port."""
    port = free_port()
    options = [f"--port={port}", f"--batch={batch}", *model.arguments()]
    command = [sys.executable, "-m", "benchmarks.service_load.lit", *options]
    with running("litserve", command, data, environment(model.threads)) as child:
        try:
            _wait_answer(child, port, "/health")
            yield port
        finally:
            child.ask_to_stop()
            child.wait()
            # Its processes are in the child's session; were one left behind, it would slow down all that comes after.
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


@contextmanager
def valkey(data: Path) -> Iterator[tuple[str, Redis]]:
    """Run the product's embedded server; yield its URL and a client."""
    path = redis_server.socket_path(data)
    command = redis_server.server_command(data, path, log=data / "redis.log")
    with running("redis", command.arguments, data, {}) as child:
        wait_until(lambda: redis_server.answers(path), child, what="starting the queue")
        with open_redis(redis_server.socket_url(path)) as redis:
            yield redis_server.socket_url(path), redis


@contextmanager
def our_worker(data: Path, url: str, redis: Redis, *, program: str = INSTANT, bundle: str = DOUBLE) -> Iterator[None]:
    """Run our worker: with a predictor that answers at once, or another program's."""
    where = ["--redis-url", url, "--blobs", str(data / "blobs"), "--bundle", bundle]
    with running(bundle, [sys.executable, "-m", program, *where], data, environment()) as child:
        known = partial(_serves, redis, bundle)
        wait_until(known, child, what=f"starting {program}")
        yield


def _serves(redis: Redis, model: str) -> bool:
    return any(worker.model.name == model for worker in live_workers(redis))


@contextmanager
def running(name: str, arguments: Sequence[str], data: Path, variables: Mapping[str, str]) -> Iterator[Child]:
    """Run a command until the block ends; if this process is killed, the command is asked to stop."""
    log = data / f"{name}.log"
    child = Child(Command(name, arguments, log, variables, death_signal=signal.SIGTERM, grace=60.0))
    try:
        yield child
    finally:
        child.ask_to_stop()
        child.wait()


def wait_until(condition: Callable[[], bool], child: Child, *, what: str) -> None:
    """Wait until a child has come so far.

    Raises:
        SystemExit: with its last words, if it ended or took too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if child.exit_code is not None or time.monotonic() > deadline:
            raise SystemExit(f"{what} failed: {child.last_log_line()}")
        time.sleep(0.05)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _where(data: Path, port: int) -> list[str]:
    return ["--data", str(data / "stack"), "--port", str(port)]


def _wait_answer(child: Child, port: int, path: str) -> None:
    wait_until(lambda: _answers(port, path), child, what=f"starting {child.command.name}")


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
