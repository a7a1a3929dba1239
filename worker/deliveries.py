"""All webhooks that are due: whose job has ended, and when to try again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from random import Random
from typing import Final, cast

from redis import Redis
from rq.job import Job

from worker.callbacks import Callback, claim, due, forget, postpone
from worker.outcome import TERMINAL, status_of
from worker.queues import fetch_job
from worker.webhooks import Attempt, Sender, news_of

log = logging.getLogger(__name__)

BATCH, PER_HOST = 100, 25
"""Webhooks that are sent at once, to all and to one host: a slow one must not hold up the others."""

CLAIM_SECONDS = 60.0
GRACE_SECONDS = 60.0
"""How long after a wish its job may be missing: it is written down before the job is queued."""

MAX_DELIVERIES = 8
FIRST_PAUSE, PAUSE_FACTOR, JITTER = 5.0, 5.0, 0.2

_ENDED: Final = frozenset({b"finished", b"failed", b"canceled", b"stopped"})

Clock = Callable[[], datetime]


def pause_after(attempts: int, random: Random) -> float:
    """Return the seconds to wait after so many attempts: 5 s, 25 s, 2 min, …, 22 h, give or take a fifth.

    All eight attempts take about 27 hours.
    """
    jitter = random.uniform(1 - JITTER, 1 + JITTER)
    return float(FIRST_PAUSE * PAUSE_FACTOR ** (attempts - 1) * jitter)


def deliver_due(redis: Redis, sender: Sender, *, clock: Clock, random: Random) -> int:
    """Send the webhooks that are due, and write down what came of it.

    Args:
        redis: where jobs and callbacks are.
        sender: delivers.
        clock: the time, with a time zone.
        random: for the pauses, so that not all come back at once.

    Returns:
        How many attempts were made.

    Raises:
        RedisError: if Redis is away; what was sent may then be sent again.
    """
    now = clock()
    ready = list(islice(_ready(redis, now), BATCH))
    if not ready:
        return 0
    claim(redis, [callback for callback, _ in ready], until=now.timestamp() + CLAIM_SECONDS)
    attempts = asyncio.run(_send_all(sender, ready, now))
    for (callback, body), attempt in zip(ready, attempts, strict=True):
        _settle(redis, callback, body, attempt, clock=clock, random=random)
    return len(ready)


def _ready(redis: Redis, now: datetime) -> Iterator[tuple[Callback, str]]:
    """Give the callbacks that can be sent, each with its body; not too many to one host."""
    waiting = due(redis, now=now.timestamp())
    statuses = _statuses(redis, {callback.job for callback in waiting})
    taken: Counter[str] = Counter()
    for callback in waiting:
        if taken[callback.host] == PER_HOST:
            continue
        body = callback.body or _body(redis, callback, statuses[callback.job], now)
        if body is not None:
            taken[callback.host] += 1
            yield callback, body


def _body(redis: Redis, callback: Callback, status: bytes | None, now: datetime) -> str | None:
    """Return what is to be said of a callback's job, or None if it has not ended."""
    if status in _ENDED:
        job = fetch_job(redis, callback.job)
        # It may have been posted again since.
        if job is not None and status_of(job) in TERMINAL:
            return news_of(callback, job, now=now)
    elif status is None and now.timestamp() - callback.since > GRACE_SECONDS:
        return news_of(callback, None, now=now)
    return None


def _statuses(redis: Redis, job_ids: set[str]) -> dict[str, bytes | None]:
    """Return what RQ says of jobs, in one round trip."""
    names = sorted(job_ids)
    with redis.pipeline(transaction=False) as pipeline:
        for job_id in names:
            pipeline.hget(Job.key_for(job_id), "status")
        return dict(zip(names, cast("list[bytes | None]", pipeline.execute()), strict=True))


async def _send_all(
    sender: Sender, ready: Sequence[tuple[Callback, str]], now: datetime
) -> list[Attempt]:
    return await asyncio.gather(*(sender.send(each, body, now=now) for each, body in ready))


def _settle(
    redis: Redis, callback: Callback, body: str, attempt: Attempt, *, clock: Clock, random: Random
) -> None:
    attempts = callback.attempts + 1
    if attempt.verdict == "again" and attempts < MAX_DELIVERIES:
        due_at = clock().timestamp() + pause_after(attempts, random)
        postpone(redis, callback, body=body, due_at=due_at)
        return
    forget(redis, callback)
    if attempt.verdict != "delivered":
        # Not the whole URL: its query may hold the receiver's own secrets.
        words = "job %s: gave up telling %s after %d attempts: %s"
        log.warning(words, callback.job, callback.host, attempts, attempt.reason)
