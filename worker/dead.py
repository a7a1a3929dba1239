"""``python -m worker.dead``: look at the dead letters, queue one again."""

from __future__ import annotations

from typing import Annotated

import typer
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from worker.queue.failures import DeadLetter, DeadLetterError, dead_letters, requeue
from worker.queue.rq import open_redis
from worker.storage import BlobError, BlobStore

EXIT_CANNOT = 3

RedisUrl = Annotated[str, typer.Option(envvar="REDIS_URL", help="redis:// or unix://")]
Blobs = Annotated[str, typer.Option(envvar="SEMPLES_BLOBS", help="Blob store: a folder or a URL.")]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Jobs that took every worker down that tried them.",
)


@app.command("list")
def list_letters(redis_url: RedisUrl) -> None:
    """Show the dead letters, the latest first."""
    try:
        letters = dead_letters(open_redis(redis_url))
    except (RedisError, ValueError) as error:
        raise _cannot(error) from error
    if not letters:
        typer.echo("no dead letters")
        return
    Console().print(table_of(letters))


@app.command("requeue")
def requeue_letter(
    job: Annotated[str, typer.Argument(help="A job's id, as in the list.")],
    redis_url: RedisUrl,
    blobs: Blobs,
) -> None:
    """Queue a dead letter again, with as many attempts as a new job."""
    try:
        requeue(open_redis(redis_url), BlobStore.open(blobs), job)
    except (RedisError, BlobError, DeadLetterError, ValueError) as error:
        raise _cannot(error) from error
    typer.echo(f"queued {job}")


def table_of(letters: list[DeadLetter]) -> Table:
    """Return a table of dead letters."""
    table = Table("job", "model", "task", "labels", "died", "reason")
    table.columns[0].no_wrap = True  # to be copied
    for letter in letters:
        died = letter.died.isoformat(" ", "seconds")
        labels = ", ".join(letter.labels)
        table.add_row(letter.job, letter.model, letter.task, labels, died, letter.reason)
    return table


def _cannot(error: Exception) -> typer.Exit:
    typer.echo(f"semples dead: {error}", err=True)
    return typer.Exit(EXIT_CANNOT)


if __name__ == "__main__":
    app(prog_name="semples dead")
