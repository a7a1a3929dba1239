"""``semples janitor``: the maintenance of a service that runs for months, in a CPU process without a model.

It returns jobs of dead workers to the queue, dispatches the items of batches, deletes what has expired, and delivers
webhooks; each task has a thread of its own, for neither a large store nor a slow receiver must delay lost jobs.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Final

from redis import Redis

from worker.batches.scheduler import INTERVAL_SECONDS, BatchScheduler
from worker.batches.store import BatchStore
from worker.periodic import PeriodicThread
from worker.queue.failures import drop_expired_letters, note_abandoned
from worker.queue.registry import janitor_key
from worker.queue.rq import job_queues, open_redis
from worker.settings import JanitorSettings
from worker.signals import handle
from worker.storage import BlobStore
from worker.webhooks.sender import MAX_PER_HOST, Sender, deliver_due, parse_secret

_log = logging.getLogger(__name__)

EXPIRY_KEY: Final = "semples:sweep"
"""Set while no walk through the blob store is due: a large store takes long to list, and S3 charges for it."""

_DEAD_LETTER_SECONDS = 60.0
_HEARTBEAT_SECONDS = 30


def run(settings: JanitorSettings, *, stop: threading.Event | None = None) -> bool:
    """Work until ``stop``, or SIGTERM or SIGINT; return False if a bug in a task ended it.

    Redis and the blob store may fail meanwhile, and even at the start. BlobError or ValueError if the blob store's
    URL, the Redis URL or the webhook secret is malformed.
    """
    stop = stop or _stop_signals()
    errors: list[Exception] = []

    def on_error(error: Exception) -> None:
        errors.append(error)
        stop.set()

    redis, blobs = open_redis(settings.redis_url), BlobStore.open(settings.blobs)
    threads = [
        PeriodicThread(task, interval=interval, name=name, on_error=on_error)
        for name, (task, interval) in _tasks(settings, redis, blobs, stop).items()
    ]
    for thread in threads:
        thread.start()
    _log.info("at work: %s", ", ".join(thread.name for thread in threads))
    stop.wait()
    for thread in threads:
        thread.stop()
    return not errors


def _expire_blobs(blobs: BlobStore, redis: Redis, *, now: datetime, lifetime: timedelta, interval: float) -> None:
    """Delete expired blobs that no batch keeps, unless another janitor did within ``interval`` seconds."""
    # A little less than the interval, so that a single janitor does not skip every second walk.
    if not redis.set(EXPIRY_KEY, 1, px=max(1, int(900 * interval)), nx=True):
        return
    deleted = blobs.delete_older(now=now, lifetime=lifetime, pinned=BatchStore(redis).pinned)
    if deleted:
        _log.info("deleted %d expired blobs", deleted)


def _tasks(
    settings: JanitorSettings, redis: Redis, blobs: BlobStore, stop: threading.Event
) -> dict[str, tuple[Callable[[], object], float]]:
    """Return what to do by name, and the seconds between one run's end and the next."""

    def maintain() -> None:
        for queue in job_queues(redis, lease=settings.lease):
            queue.maintain(note_abandoned)
        seconds = _HEARTBEAT_SECONDS + int(settings.interval)
        redis.set(janitor_key(socket.gethostname()), os.getpid(), ex=seconds)

    def expire() -> None:
        lifetime = timedelta(seconds=settings.blob_lifetime)
        _expire_blobs(blobs, redis, now=_now(), lifetime=lifetime, interval=settings.sweep_interval)

    tasks: dict[str, tuple[Callable[[], object], float]] = {
        "maintenance": (maintain, settings.interval),
        "dead letters": (partial(drop_expired_letters, redis), _DEAD_LETTER_SECONDS),
        "batches": (BatchScheduler(redis, blobs).dispatch, INTERVAL_SECONDS),
        "expiry": (expire, settings.sweep_interval),
    }
    if settings.webhook_secret is not None:
        secret = parse_secret(settings.webhook_secret.get_secret_value())
        sender, random = Sender(secret, allow_private=settings.webhook_private), Random()

        def deliver() -> None:
            # Again while there may be more than are sent at once.
            while deliver_due(redis, sender, clock=_now, random=random) >= MAX_PER_HOST:
                if stop.is_set():
                    return

        tasks["webhooks"] = (deliver, settings.interval)
    return tasks


def _stop_signals() -> threading.Event:
    stop = threading.Event()
    handle((signal.SIGTERM, signal.SIGINT), lambda _number, _frame: stop.set())
    return stop


def _now() -> datetime:
    return datetime.now(UTC)
