"""``semples serve``: queue, worker, janitor and API on one host, with one command."""

from __future__ import annotations

import http.client
import os
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from platformdirs import user_data_path
from redis.exceptions import RedisError

from service.local import redis_server
from service.local.supervisor import (
    Command,
    StopRequestedError,
    Supervisor,
    SupervisorError,
    locked,
)
from service.middleware.auth import require_keys
from service.settings import Settings
from worker.queue.rq import open_redis

EXIT_CANNOT_START = 3
READY_SECONDS = 1.0
REDIS_SECONDS = 60.0
WORKER_SECONDS = 600.0
WORKER_GRACE_SECONDS = 30.0
"""On top of the longest job: a worker that is told to stop finishes what it has begun."""
JANITOR_GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class Stack:
    """What to run.

    Attributes:
        host: address of the API.
        port: of the API.
        data: directory of queue, blobs and logs; made if missing.
        redis_url: a Redis of the operator's; None for an embedded server.
        worker: the worker's command line, without the options that say where things are.
    """

    host: str
    port: int
    data: Path
    redis_url: str | None
    worker: Sequence[str]

    @property
    def url(self) -> str:
        """Where the API is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def run(stack: Stack) -> None:
    """Run a stack until a signal comes.

    Raises:
        SupervisorError: if it cannot run.
    """
    with locked(stack.data), _listening(stack) as listener, Supervisor(_say) as supervisor:
        _refuse_strangers(listener)
        redis_url = _start_redis(stack, supervisor)
        environment = {
            "REDIS_URL": redis_url,
            "SEMPLES_BLOBS": str(stack.data / "blobs"),
            # Idle OpenMP threads of the worker that spin would stall queue and API on a small machine.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        }
        supervisor.start(lambda: _worker_command(stack, environment))
        supervisor.start(lambda: _janitor_command(stack, environment))
        supervisor.start(lambda: _api_command(stack, environment, listener.fileno()))
        _say(f"starting; the API is at {stack.url}, data and logs in {stack.data}")
        try:
            supervisor.wait_until(
                lambda: _is_ready(stack), what="loading the model", seconds=WORKER_SECONDS
            )
            _say(f"ready: {stack.url} (Ctrl-C stops everything)")
            supervisor.watch()
        except StopRequestedError:
            # Nobody is to come in any more, and what is inside ends in order.
            listener.close()
            _say("stopping when the jobs in hand are done; once more, and it is at once")


def _refuse_strangers(listener: socket.socket) -> None:
    """Say at once what the API would say when it starts; see service.middleware.auth."""
    try:
        require_keys(Settings(), listener.getsockname()[0])
    except ValueError as error:
        raise SupervisorError(" ".join(str(error).split())) from error


def _start_redis(stack: Stack, supervisor: Supervisor) -> str:
    """Start the embedded server, or look whether the operator's answers; return its URL."""
    if stack.redis_url is not None:
        try:
            open_redis(stack.redis_url).ping()
        except (RedisError, ValueError) as error:
            raise SupervisorError(f"cannot reach REDIS_URL: {error}") from error
        return stack.redis_url
    try:
        path = redis_server.socket_path(stack.data)
        redis_server.end_orphan(path)
        command = redis_server.server_command(stack.data, path, log=_log(stack, "redis"))
    except (redis_server.EmbeddedError, OSError) as error:
        raise SupervisorError(str(error)) from error
    supervisor.start(lambda: command)
    supervisor.wait_until(
        lambda: redis_server.answers(path), what="starting the queue", seconds=REDIS_SECONDS
    )
    return redis_server.socket_url(path)


def _is_ready(stack: Stack) -> bool:
    """Ask the API itself: it knows of the queue and of the worker."""
    connection = http.client.HTTPConnection(stack.host, stack.port, timeout=READY_SECONDS)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _worker_command(stack: Stack, environment: Mapping[str, str]) -> Command:
    return Command(
        name="worker",
        arguments=[*stack.worker, "--name", f"serve-{uuid.uuid4().hex[:12]}"],
        environment=environment,
        log=_log(stack, "worker"),
        grace=Settings().job_timeout_max + WORKER_GRACE_SECONDS,
    )


def _janitor_command(stack: Stack, environment: Mapping[str, str]) -> Command:
    return Command(
        name="janitor",
        arguments=[sys.executable, "-P", "-m", "worker", "janitor"],
        environment=environment,
        log=_log(stack, "janitor"),
        grace=JANITOR_GRACE_SECONDS,
    )


def _api_command(stack: Stack, environment: Mapping[str, str], fd: int) -> Command:
    spool = {"SEMPLES_SPOOL": os.environ.get("SEMPLES_SPOOL") or str(stack.data / "spool")}
    return Command(
        name="api",
        arguments=[sys.executable, "-P", "-m", "service", "--fd", str(fd)],
        environment={**environment, **spool},
        log=_log(stack, "api"),
        pass_fds=(fd,),
    )


def _log(stack: Stack, name: str) -> Path:
    return stack.data / "logs" / f"{name}.log"


@contextmanager
def _listening(stack: Stack) -> Iterator[socket.socket]:
    """Bind the API's address before anything is started, and keep it while the API restarts."""
    family = socket.AF_INET6 if ":" in stack.host else socket.AF_INET
    try:
        listener = socket.create_server((stack.host, stack.port), family=family, backlog=128)
    except OSError as error:
        where = f"{stack.host} port {stack.port}"
        # socket.gaierror has numbers of its own, and create_server words of its own.
        known = error.errno is not None and error.errno > 0
        reason = os.strerror(error.errno or 0) if known else error.strerror or str(error)
        raise SupervisorError(f"cannot listen on {where}: {reason}") from error
    with listener:
        yield listener


def _say(message: str) -> None:
    typer.echo(f"semples serve: {message}")
    sys.stdout.flush()


def main(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    data: Annotated[
        Path | None, typer.Option(help="Queue, images, results, logs. [default: the user's data]")
    ] = None,
    bundle: Annotated[
        str, typer.Option(envvar="SEMPLES_BUNDLE", help="Name or folder of the bundle.")
    ] = "coco-demo",
    device: Annotated[
        str, typer.Option(envvar="SEMPLES_DEVICE", help="cpu, cuda, cuda:1 or auto.")
    ] = "auto",
) -> None:
    """Serve pseudo masks: a queue, one worker, a janitor and the HTTP API, until Ctrl-C.

    With REDIS_URL set, that Redis is used; otherwise a server of its own runs in the data directory.
    """
    worker = [sys.executable, "-P", "-m", "worker", "run", "--bundle", bundle, "--device", device]
    serve(
        Stack(
            host=host,
            port=port,
            data=(data or user_data_path("semples", appauthor=False)).absolute(),
            redis_url=os.environ.get("REDIS_URL") or None,
            worker=worker,
        )
    )


def serve(stack: Stack) -> None:
    """Run a stack as a command does: one line and an exit code if it cannot.

    Raises:
        typer.Exit: if it cannot run.
    """
    try:
        run(stack)
    except SupervisorError as error:
        typer.echo(f"semples serve: {error}", err=True)
        raise typer.Exit(EXIT_CANNOT_START) from error
    except StopRequestedError:  # while it was starting
        pass
    _say("stopped")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    app(prog_name="semples serve")
