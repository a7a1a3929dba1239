"""``python -m worker``: run a worker or the janitor, ask whether one is at work, look at dead letters."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from models.messages import accept_any_output, one_line
from worker import telemetry
from worker.queue.failures import DeadLetter, DeadLetterError, dead_letters, requeue
from worker.queue.registry import janitor_key, live_workers
from worker.queue.rq import open_redis
from worker.settings import JanitorSettings, WorkerSettings
from worker.storage import BlobError, BlobStore

if TYPE_CHECKING:
    from models.inference.predictor import Predictor

_EXIT_CANNOT_START = 3
_EXIT_LOST = _EXIT_NOT_AT_WORK = 1
_HEALTH_SECONDS = 3.0
_OWN_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

_RedisUrl = Annotated[str, typer.Option(envvar="REDIS_URL", help="redis:// or unix://")]
_Blobs = Annotated[str, typer.Option(envvar="SEMPLES_BLOBS", help="Blob store: a folder or a URL.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)
_dead = typer.Typer(no_args_is_help=True)
app.add_typer(_dead, name="dead", help="Dead letters: jobs during which workers died.")


class _Program(StrEnum):
    """What a health check can ask for."""

    WORKER = "worker"
    JANITOR = "janitor"


@app.command("run", context_settings=_OWN_OPTIONS)
def _run(context: typer.Context) -> None:
    """Take jobs from Redis and make masks; see run --help."""
    run_worker(context.args, load=_load_predictor)


@app.command("janitor", context_settings=_OWN_OPTIONS)
def _janitor(context: typer.Context) -> None:
    """Keep queues and blob store clean, and deliver webhooks; see janitor --help."""
    from worker.janitor import run  # noqa: PLC0415

    settings = JanitorSettings.from_command_line(context.args)
    telemetry.configure_logging("text")
    try:
        stopped_on_request = run(settings)
    except (BlobError, ValueError) as error:
        raise _failed("janitor", error) from error
    if not stopped_on_request:
        raise typer.Exit(_EXIT_LOST)


@app.command("health")
def _health(
    program: Annotated[_Program, typer.Argument(help="What should be at work on this host.")],
    redis_url: _RedisUrl,
) -> None:
    """End with code 0 if a worker, or the janitor, is at work on this host."""
    try:
        redis = open_redis(redis_url, timeout=_HEALTH_SECONDS)
        problem = _health_problem(redis, program, host=socket.gethostname())
    except (RedisError, ValueError) as error:
        problem = str(error)
    if problem:
        typer.echo(one_line(f"python -m worker health: {problem}"), err=True)
        raise typer.Exit(_EXIT_NOT_AT_WORK)


@_dead.command("list")
def _list_dead(redis_url: _RedisUrl) -> None:
    """Show the dead letters, the latest first."""
    try:
        letters = dead_letters(open_redis(redis_url))
    except (RedisError, ValueError) as error:
        raise _failed("dead", error) from error
    if letters:
        Console().print(_table(letters))
    else:
        typer.echo("no dead letters")


@_dead.command("requeue")
def _requeue_dead(
    job: Annotated[str, typer.Argument(help="A job's id, as in the list.")],
    redis_url: _RedisUrl,
    blobs: _Blobs,
) -> None:
    """Queue a dead letter again, with as many attempts as a new job."""
    try:
        requeue(open_redis(redis_url), BlobStore.open(blobs), job)
    except (RedisError, BlobError, DeadLetterError, ValueError) as error:
        raise _failed("dead", error) from error
    typer.echo(f"queued {job}")


def run_worker(arguments: list[str], *, load: Callable[[WorkerSettings], Predictor]) -> None:
    """Run a worker until it is asked to stop; typer.Exit if it cannot start, or stops by itself."""
    # The other commands need no RQ worker.
    from worker.inference.worker import WorkerStartError, run  # noqa: PLC0415

    settings = WorkerSettings.from_command_line(arguments)
    telemetry.configure_logging(settings.log)
    telemetry.configure_tracing("semples-worker", os.environ)
    try:
        stopped_on_request = run(settings, load=load)
    except WorkerStartError as error:
        raise _failed("worker", error) from error
    if not stopped_on_request:
        raise typer.Exit(_EXIT_LOST)


def _load_predictor(settings: WorkerSettings) -> Predictor:
    """Load the bundle onto its device; BundleError, RuntimeError or ValueError if it, or the device, is unusable."""
    # torch takes seconds to import, which --help and a wrong option should not.
    import torch  # noqa: PLC0415

    from models import find_bundle, load_bundle  # noqa: PLC0415
    from models.inference.predictor import Predictor  # noqa: PLC0415

    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    bundle = load_bundle(find_bundle(settings.bundle), device=torch.device(device))
    return Predictor(bundle, precision=settings.precision)


def _health_problem(redis: Redis, program: _Program, *, host: str) -> str:
    """Say in one line why a program is not at work on a host; empty if it is, or one worker of several is."""
    if program is _Program.JANITOR:
        return "" if redis.exists(janitor_key(host)) else f"no janitor on {host}"
    here = [worker for worker in live_workers(redis) if worker.host == host]
    if any(not worker.trouble for worker in here):
        return ""
    return "; ".join(worker.trouble for worker in here) or f"no worker on {host}"


def _table(letters: list[DeadLetter]) -> Table:
    table = Table("job", "model", "task", "labels", "died", "reason")
    table.columns[0].no_wrap = True  # to be copied
    for letter in letters:
        died = letter.died.isoformat(" ", "seconds")
        labels = ", ".join(letter.labels)
        table.add_row(letter.job, letter.model, letter.task, labels, died, letter.reason)
    return table


def _failed(program: str, error: Exception) -> typer.Exit:
    typer.echo(one_line(f"semples {program}: {error}"), err=True)
    return typer.Exit(_EXIT_CANNOT_START)


if __name__ == "__main__":
    accept_any_output()
    # `semples dead` runs this module as `dead`; `run` and `health` are no commands of `semples`.
    app(prog_name="semples" if sys.argv[1:2] == ["dead"] else "python -m worker")
