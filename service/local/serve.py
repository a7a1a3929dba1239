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
from typing import Annotated, Final

import typer
from platformdirs import user_data_path
from redis.exceptions import RedisError

from models.messages import accept_any_output, one_line
from service.local import redis_server
from service.local.supervisor import (
    Command,
    StopRequestedError,
    Supervisor,
    SupervisorError,
    exclusive_lock,
)
from service.middleware.auth import require_auth_for_public_bind
from service.settings import Settings
from worker.queue.rq import open_redis

_EXIT_CANNOT_START: Final = 3
_READY_SECONDS: Final = 1.0
_REDIS_SECONDS: Final = 60.0
_WORKER_SECONDS: Final = 600.0
_WORKER_GRACE_SECONDS: Final = 30.0  # on top of the longest job, which it finishes
_JANITOR_GRACE_SECONDS: Final = 20.0


@dataclass(frozen=True)
class _Stack:
    """What to run."""

    host: str
    port: int
    data: Path  # of queue, blobs and logs; made if missing
    redis_url: str | None  # the operator's Redis; None for an embedded server
    worker: Sequence[str]  # command line, without the options that say where things are
    root_path: str = ""  # of the API; empty for what the environment says

    @property
    def settings(self) -> dict[str, str]:
        """The API's settings that are not the environment's."""
        return {"root_path": self.root_path} if self.root_path else {}

    @property
    def url(self) -> str:
        """The API's URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self.data / "logs" / f"{name}.log"


def serve(stack: _Stack) -> None:
    """Run a stack until a signal comes; typer.Exit after one line if it cannot run."""
    try:
        _run(stack)
    except SupervisorError as error:
        _say_error(error)
        raise typer.Exit(_EXIT_CANNOT_START) from error
    except StopRequestedError:  # while it was starting
        pass
    _say("stopped")


def _worker_command(stack: _Stack, environment: Mapping[str, str]) -> Command:
    """Return the worker's command, with a new name; it may finish its jobs before it is killed."""
    arguments = [*stack.worker, "--name", f"serve-{uuid.uuid4().hex[:12]}"]
    grace = Settings().job_timeout_max + _WORKER_GRACE_SECONDS
    return Command("worker", arguments, stack.log("worker"), environment, grace=grace)


def _run(stack: _Stack) -> None:
    with exclusive_lock(stack.data), _listening(stack) as listener, Supervisor(_say) as supervisor:
        try:
            require_auth_for_public_bind(Settings.load(**stack.settings), listener.getsockname()[0])
        except ValueError as error:
            raise SupervisorError(str(error)) from error
        environment = {
            "REDIS_URL": _start_redis(stack, supervisor),
            "SEMPLES_BLOBS": str(stack.data / "blobs"),
            # Idle OpenMP threads of the worker that spin would slow down the others on a small machine.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        }
        supervisor.start(lambda: _worker_command(stack, environment))
        supervisor.start(lambda: _janitor_command(stack, environment))
        supervisor.start(lambda: _api_command(stack, environment, listener.fileno()))
        _say(f"starting; the API is at {stack.url}, data and logs in {stack.data}")
        try:
            supervisor.wait_until(lambda: _is_ready(stack), what="loading the model", seconds=_WORKER_SECONDS)
            _say(f"ready: {stack.url} (Ctrl-C stops everything)")
            supervisor.watch()
        except StopRequestedError:
            listener.close()  # no new requests; the running ones are finished
            _say("stopping after the running jobs; press Ctrl-C again to stop now")


def _start_redis(stack: _Stack, supervisor: Supervisor) -> str:
    """Start the embedded server, or check that the operator's answers; return its URL."""
    if stack.redis_url is not None:
        try:
            open_redis(stack.redis_url).ping()
        except (RedisError, ValueError, OSError) as error:
            raise SupervisorError(f"cannot reach REDIS_URL: {error}") from error
        return stack.redis_url
    try:
        path = redis_server.socket_path(stack.data)
        redis_server.end_orphan(path)
        command = redis_server.server_command(stack.data, path, log=stack.log("redis"))
    except (redis_server.EmbeddedError, OSError) as error:
        raise SupervisorError(str(error)) from error
    supervisor.start(lambda: command)
    supervisor.wait_until(lambda: redis_server.answers(path), what="starting the queue", seconds=_REDIS_SECONDS)
    return redis_server.socket_url(path)


def _is_ready(stack: _Stack) -> bool:
    connection = http.client.HTTPConnection(stack.host, stack.port, timeout=_READY_SECONDS)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _janitor_command(stack: _Stack, environment: Mapping[str, str]) -> Command:
    arguments = [sys.executable, "-P", "-m", "worker", "janitor"]
    grace = _JANITOR_GRACE_SECONDS
    return Command("janitor", arguments, stack.log("janitor"), environment, grace=grace)


def _api_command(stack: _Stack, environment: Mapping[str, str], fd: int) -> Command:
    arguments = [sys.executable, "-P", "-m", "service", "--fd", str(fd)]
    own = {"SEMPLES_SPOOL": os.environ.get("SEMPLES_SPOOL") or str(stack.data / "spool")}
    own |= {f"SEMPLES_{name.upper()}": value for name, value in stack.settings.items()}
    return Command("api", arguments, stack.log("api"), {**environment, **own}, pass_fds=(fd,))


@contextmanager
def _listening(stack: _Stack) -> Iterator[socket.socket]:
    """Listen on the API's address before anything is started, and keep it while the API restarts."""
    family = socket.AF_INET6 if ":" in stack.host else socket.AF_INET
    try:
        listener = socket.create_server((stack.host, stack.port), family=family, backlog=128)
    except OSError as error:
        where = f"{stack.host} port {stack.port}"
        # socket.gaierror has numbers of its own, and create_server messages of its own.
        known = error.errno is not None and error.errno > 0
        reason = os.strerror(error.errno or 0) if known else error.strerror or str(error)
        raise SupervisorError(f"cannot listen on {where}: {reason}") from error
    with listener:
        yield listener


def _default_data() -> Path:
    """Return the user's data folder; typer.Exit after one line if the user has no home."""
    try:
        path = user_data_path("semples", appauthor=False).expanduser()
    except (RuntimeError, KeyError):  # no HOME, and nobody knows this uid
        path = Path()
    if not path.is_absolute():
        _say_error("expected --data DIR: this user has no home folder, where the data would be")
        raise typer.Exit(_EXIT_CANNOT_START)
    return path


def _say_error(message: object) -> None:
    typer.echo(one_line(f"semples serve: {message}"), err=True)


def _say(message: str) -> None:
    typer.echo(one_line(f"semples serve: {message}"))
    sys.stdout.flush()


def main(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    data: Annotated[Path | None, typer.Option(help="Queue, images, results, logs. [default: the user's data]")] = None,
    bundle: Annotated[str, typer.Option(envvar="SEMPLES_BUNDLE", help="Name or folder of the bundle.")] = "coco-demo",
    device: Annotated[str, typer.Option(envvar="SEMPLES_DEVICE", help="cpu, cuda, cuda:1 or auto.")] = "auto",
    root_path: Annotated[
        str, typer.Option(envvar="SEMPLES_ROOT_PATH", help="Path below which a proxy serves the API, such as /ml.")
    ] = "",
) -> None:
    """Serve pseudo masks: a queue, one worker, a janitor and the HTTP API, until Ctrl-C.

    With REDIS_URL set, that Redis is used; otherwise a server of its own runs in the data directory.
    """
    worker = [sys.executable, "-P", "-m", "worker", "run", "--bundle", bundle, "--device", device]
    serve(
        _Stack(
            host=host,
            port=port,
            data=(data or _default_data()).absolute(),
            redis_url=os.environ.get("REDIS_URL") or None,
            worker=worker,
            root_path=root_path,
        )
    )


if __name__ == "__main__":
    accept_any_output()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app(prog_name="semples serve")
