"""``python -m worker.janitor``: keep a service clean that runs for months, and tell who wants to hear of jobs.

A CPU process without a model: it puts RQ's books in order, feeds batches to the queue, deletes what has expired, and
delivers webhooks.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Annotated

import typer
from redis import Redis

from worker.batches.records import kept
from worker.batches.scheduler import FEED_SECONDS, Feeder
from worker.periodic import Pulse
from worker.program import run_program
from worker.queue.failures import forget_gone
from worker.queue.maintenance import tidy_all
from worker.queue.registry import janitor_key
from worker.queue.rq import open_redis
from worker.queue.schema import BLOB_SECONDS, LEASE_SECONDS
from worker.storage import BlobError, BlobStore
from worker.webhooks.sender import PER_HOST, Sender, deliver_due, parse_secret

# Deleting blobs whose time is over, by one janitor for all.

log = logging.getLogger(__name__)

SWEEP_KEY = "semples:sweep"
"""There while no sweep is due: a large store takes long to walk, and S3 charges for it."""


def sweep_for_all(
    blobs: BlobStore, redis: Redis, *, now: datetime, lifetime: timedelta, turn: float
) -> None:
    """Delete expired blobs that no batch keeps, unless another janitor has just done it.

    Args:
        blobs: the store.
        redis: where turns are taken.
        now: this moment.
        lifetime: of a blob after it was last written.
        turn: seconds between one sweep and the next.

    Raises:
        RedisError: if Redis is away.
        BlobError: if the store is.
    """
    # A little less, so that the same janitor's next turn is one, should it be the only one.
    if not redis.set(SWEEP_KEY, 1, px=max(1, int(900 * turn)), nx=True):
        return
    deleted = blobs.sweep(now=now, lifetime=lifetime, spare=partial(kept, redis))
    if deleted:
        log.info("deleted %d blobs whose time was over", deleted)


EXIT_CANNOT_START = 3
EXIT_BROKEN = 1
SWEEP_SECONDS = 600.0
DEAD_LETTER_SECONDS = 60.0
ALIVE_SECONDS = 30


@dataclass(frozen=True)
class JanitorSettings:
    """What the janitor works on, and how often.

    Attributes:
        redis_url: redis://, rediss:// or unix://.
        blobs: directory or fsspec URL of the blob store.
        interval: seconds between two looks at queues and callbacks.
        sweep_interval: seconds between two walks through the blob store.
        blob_lifetime: seconds after which a blob is deleted.
        lease: seconds after which a job in nobody's hands is taken for lost.
        secret: signs webhooks; without one none are sent.
        allow_private: whether webhooks may go to addresses that are not on the internet.
    """

    redis_url: str
    blobs: str
    interval: float = 2.0
    sweep_interval: float = SWEEP_SECONDS
    blob_lifetime: float = BLOB_SECONDS
    lease: int = LEASE_SECONDS
    secret: bytes | None = field(default=None, repr=False)
    allow_private: bool = False


@dataclass(frozen=True)
class Chore:
    """Something to be done again and again, so many seconds after it was done."""

    name: str
    action: Callable[[], object]
    interval: float


def chores(
    settings: JanitorSettings, redis: Redis, blobs: BlobStore, *, stop: threading.Event
) -> list[Chore]:
    """Return all that is to be done, until ``stop`` is set."""
    found = [
        Chore("upkeep", partial(_look_after, settings, redis), settings.interval),
        Chore("dead letters", partial(forget_gone, redis), DEAD_LETTER_SECONDS),
        Chore("batches", Feeder(redis, blobs).round, FEED_SECONDS),
        Chore("sweep", partial(_sweep, settings, redis, blobs), settings.sweep_interval),
    ]
    if settings.secret is not None:
        sender = Sender(settings.secret, allow_private=settings.allow_private)
        tell = partial(_tell, redis, sender, Random(), stop=stop)
        found.append(Chore("webhooks", tell, settings.interval))
    return found


def _look_after(settings: JanitorSettings, redis: Redis) -> None:
    tidy_all(redis, lease=settings.lease)
    alive = ALIVE_SECONDS + int(settings.interval)
    redis.set(janitor_key(socket.gethostname()), os.getpid(), ex=alive)


def _sweep(settings: JanitorSettings, redis: Redis, blobs: BlobStore) -> None:
    lifetime = timedelta(seconds=settings.blob_lifetime)
    sweep_for_all(blobs, redis, now=_now(), lifetime=lifetime, turn=settings.sweep_interval)


def _tell(redis: Redis, sender: Sender, random: Random, *, stop: threading.Event) -> None:
    # Again as long as there may be more than are sent at once.
    while deliver_due(redis, sender, clock=_now, random=random) >= PER_HOST:
        if stop.is_set():
            return


def run(settings: JanitorSettings, *, stop: threading.Event) -> bool:
    """Work until asked to stop; return whether that was why, and not a bug in a chore.

    Redis and the blob store may be away meanwhile, and even at the start.

    Args:
        settings: what to do.
        stop: ends it.

    Raises:
        BlobError: if there is no such blob store.
        ValueError: if the Redis URL is none.
    """
    broken: list[Exception] = []

    def on_death(error: Exception) -> None:
        broken.append(error)
        stop.set()

    redis = open_redis(settings.redis_url)
    # A thread for each: neither a large store nor a slow receiver must delay lost jobs.
    pulses = [
        Pulse(chore.action, interval=chore.interval, name=chore.name, on_death=on_death)
        for chore in chores(settings, redis, BlobStore.open(settings.blobs), stop=stop)
    ]
    for pulse in pulses:
        pulse.start()
    log.info("at work: %s", ", ".join(pulse.name for pulse in pulses))
    stop.wait()
    for pulse in pulses:
        pulse.stop()
    return not broken


def main(
    redis_url: Annotated[str, typer.Option(envvar="REDIS_URL", help="redis:// or unix://")],
    blobs: Annotated[
        str, typer.Option(envvar="SEMPLES_BLOBS", help="Blob store: a folder or a URL.")
    ],
    webhook_secret: Annotated[
        str,
        typer.Option(
            envvar="SEMPLES_WEBHOOK_SECRET", help="whsec_…; without it no webhooks are sent."
        ),
    ] = "",
    webhook_private: Annotated[
        bool,
        typer.Option(
            "--webhook-private",
            envvar="SEMPLES_WEBHOOK_PRIVATE",
            help="Webhooks may go to addresses that are not on the internet.",
        ),
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, help="Seconds between two looks at the queues.")
    ] = 2.0,
    lease: Annotated[
        int, typer.Option(min=2, help="Seconds of silence after which a job counts as lost.")
    ] = LEASE_SECONDS,
) -> None:
    """Keep queues and blob store clean, and deliver webhooks; one janitor is enough."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # It would write whole URLs, whose queries may be secrets of the receivers.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        settings = JanitorSettings(
            redis_url=redis_url,
            blobs=blobs,
            interval=interval,
            lease=lease,
            secret=parse_secret(webhook_secret) if webhook_secret else None,
            allow_private=webhook_private,
        )
        stopped_on_request = run(settings, stop=stop)
    except (BlobError, ValueError) as error:
        typer.echo(f"semples janitor: {error}", err=True)
        raise typer.Exit(EXIT_CANNOT_START) from error
    if not stopped_on_request:
        raise typer.Exit(EXIT_BROKEN)


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    run_program(main, "semples janitor")
