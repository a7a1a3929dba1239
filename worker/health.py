"""``python -m worker.health worker``, or ``janitor``: is the one on this host at work? For health checks.

Neither listens on a port: each leaves a sign of life in Redis.
"""

from __future__ import annotations

import socket
from enum import StrEnum
from typing import Annotated

import typer
from redis import Redis
from redis.exceptions import RedisError

from worker.queue.registry import janitor_key, live_workers
from worker.queue.rq import open_redis

EXIT_NOT_AT_WORK = 1
REDIS_SECONDS = 3.0


class Part(StrEnum):
    """A process that can be asked for."""

    WORKER = "worker"
    JANITOR = "janitor"


def complaint(redis: Redis, part: Part, *, host: str) -> str:
    """Say in one line why a part is not at work on a host; nothing if it is.

    Args:
        redis: where signs of life are.
        part: which process.
        host: as it calls itself; of several workers there, one will do.

    Raises:
        RedisError: if Redis is away.
    """
    if part is Part.JANITOR:
        return "" if redis.exists(janitor_key(host)) else f"no janitor on {host}"
    here = [worker for worker in live_workers(redis) if worker.host == host]
    if any(not worker.trouble for worker in here):
        return ""
    return "; ".join(worker.trouble for worker in here) or f"no worker on {host}"


def main(
    part: Annotated[Part, typer.Argument(help="What should be at work on this host.")],
    redis_url: Annotated[str, typer.Option(envvar="REDIS_URL", help="redis:// or unix://")],
) -> None:
    """End with code 0 if a worker, or the janitor, is at work on this host."""
    try:
        redis = open_redis(redis_url, timeout=REDIS_SECONDS)
        reason = complaint(redis, part, host=socket.gethostname())
    except (RedisError, ValueError) as error:
        reason = str(error)
    if reason:
        typer.echo(f"semples health: {reason}", err=True)
        raise typer.Exit(EXIT_NOT_AT_WORK)


if __name__ == "__main__":
    typer.run(main)
