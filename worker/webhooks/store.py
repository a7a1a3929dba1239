"""Webhook subscriptions in Redis: who is notified of a job's end, and when the next attempt is due.

A sorted set holds the due times, a record each subscription. The API writes one before its job can end; it is due at
once, and again later after a failed attempt. It is deleted once it is delivered or given up, so a janitor that dies in
between delivers twice rather than never.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, cast
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import WatchError

from worker.queue.schema import Record

DUE_KEY: Final = "semples:callbacks"
MAX_SUBSCRIPTIONS: Final = 10_000
_LIFETIME_SECONDS: Final = 4 * 24 * 3600  # longer than a job's wait, its work and all attempts


class CallbacksFullError(Exception):
    """There are too many subscriptions for another one."""


class Recipient(Record):
    """URL of a webhook, already checked, and the root of the links in its body."""

    url: str
    root: str = ""


class Subscription(Record):
    """A request to notify a recipient of a job's end.

    Attributes:
        message: the webhook's id, new with each post of the same job.
        job: the job's id.
        to: the recipient.
        since: seconds since the epoch.
        attempts: made so far.
        body: that was sent in them; the job may have expired since.
    """

    message: str
    job: str
    to: Recipient
    since: float
    attempts: int = 0
    body: str | None = None

    @property
    def name(self) -> str:
        """The same for all subscriptions of one URL to one job."""
        return hashlib.sha256(f"{self.job}\n{self.to.url}".encode()).hexdigest()[:32]

    @property
    def host(self) -> str:
        """The recipient's host name."""
        return urlsplit(self.to.url).hostname or ""


def register(redis: Redis, job_id: str, to: Recipient, *, now: float) -> Subscription:
    """Subscribe a recipient to a job, queued or not yet; the same URL and job replace an earlier subscription.

    Raises:
        CallbacksFullError: if there are too many subscriptions.
    """
    if redis.zcard(DUE_KEY) >= MAX_SUBSCRIPTIONS:
        raise CallbacksFullError(f"{MAX_SUBSCRIPTIONS} callbacks wait already")
    subscription = Subscription(message=f"msg_{uuid.uuid4().hex}", job=job_id, to=to, since=now)
    with redis.pipeline() as pipeline:
        record = subscription.model_dump_json()
        pipeline.set(_record_key(subscription.name), record, ex=_LIFETIME_SECONDS)
        pipeline.zadd(DUE_KEY, {subscription.name: now})
        pipeline.execute()
    return subscription


def due(redis: Redis, *, now: float) -> list[Subscription]:
    """Return the subscriptions that are due, the longest due first; their jobs may still run."""
    names = [name.decode() for name in cast("list[bytes]", redis.zrangebyscore(DUE_KEY, 0, now))]
    if not names:
        return []
    records = cast("list[bytes | None]", redis.mget(list(map(_record_key, names))))
    expired = [name for name, record in zip(names, records, strict=True) if record is None]
    if expired:
        redis.zrem(DUE_KEY, *expired)
    return [Subscription.model_validate_json(record) for record in records if record is not None]


def claim(redis: Redis, subscriptions: Sequence[Subscription], *, until: float) -> None:
    """Hide subscriptions from other janitors until a time, at which they are due again."""
    redis.zadd(DUE_KEY, {each.name: until for each in subscriptions}, xx=True)


def delete(redis: Redis, subscription: Subscription) -> None:
    """Delete a subscription, unless it was replaced meanwhile."""
    _replace(redis, subscription, None, due_at=0)


def reschedule(redis: Redis, subscription: Subscription, *, body: str, due_at: float) -> None:
    """Record a failed attempt and the next due time, unless the subscription was replaced meanwhile."""
    update = {"attempts": subscription.attempts + 1, "body": body}
    _replace(redis, subscription, subscription.model_copy(update=update), due_at=due_at)


def _replace(redis: Redis, old: Subscription, new: Subscription | None, *, due_at: float) -> None:
    key = _record_key(old.name)
    with redis.pipeline() as pipeline, suppress(WatchError):  # replaced just now
        pipeline.watch(key)  # type: ignore[no-untyped-call]
        record = cast("bytes | None", pipeline.get(key))
        if record is None or Subscription.model_validate_json(record).message != old.message:
            return
        pipeline.multi()
        if new is None:
            pipeline.delete(key)
            pipeline.zrem(DUE_KEY, old.name)
        else:
            pipeline.set(key, new.model_dump_json(), ex=_LIFETIME_SECONDS)
            pipeline.zadd(DUE_KEY, {old.name: due_at})
        pipeline.execute()


def _record_key(name: str) -> str:
    return f"semples:callback:{name}"
