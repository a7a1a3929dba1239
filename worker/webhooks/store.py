"""Who wants to hear of a job's end: written down by the API before the job can end. Wire layer.

A sorted set of due times, and a record for each callback. One that was not yet answered when its job ends is due at
once; one that could not be delivered is due again later. A record is removed when it was delivered or given up, so a
janitor that dies in between delivers twice rather than never.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import cast
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import WatchError

from worker.queue.schema import Record

DUE_KEY = "semples:callbacks"
MAX_CALLBACKS = 10_000
CALLBACK_SECONDS = 4 * 24 * 3600
"""Longer than a job's wait, its work and all attempts to deliver."""


class CallbacksFullError(Exception):
    """So many callbacks wait that no more are taken."""


class Recipient(Record):
    """Who is to be told.

    Attributes:
        url: checked; see ``worker.webhooks.urls``.
        root: what the links of the job begin with.
    """

    url: str
    root: str = ""


class Callback(Record):
    """A wish to be told of a job's end.

    Attributes:
        message: id of what will be sent, new with each post of the same.
        job: the job's id.
        to: who is to be told.
        since: when it was wished, in seconds since the epoch.
        attempts: made so far.
        body: what was sent in them; the job may have expired since.
    """

    message: str
    job: str
    to: Recipient
    since: float
    attempts: int = 0
    body: str | None = None

    @property
    def name(self) -> str:
        """The same for all wishes of one URL for one job."""
        return hashlib.sha256(f"{self.job}\n{self.to.url}".encode()).hexdigest()[:32]

    @property
    def host(self) -> str:
        """The receiver's name."""
        return urlsplit(self.to.url).hostname or ""


def callback_key(name: str) -> str:
    """Return the key of a callback's record."""
    return f"semples:callback:{name}"


def register(redis: Redis, job_id: str, to: Recipient, *, now: float) -> Callback:
    """Write a wish down; one of the same URL for the same job takes its place.

    Args:
        redis: where.
        job_id: the job, which need not be queued yet.
        to: who is to be told.
        now: seconds since the epoch.

    Raises:
        CallbacksFullError: if too many wait.
    """
    if redis.zcard(DUE_KEY) >= MAX_CALLBACKS:
        raise CallbacksFullError(f"{MAX_CALLBACKS} callbacks wait already")
    callback = Callback(message=f"msg_{uuid.uuid4().hex}", job=job_id, to=to, since=now)
    with redis.pipeline() as pipeline:
        key = callback_key(callback.name)
        pipeline.set(key, callback.model_dump_json(), ex=CALLBACK_SECONDS)
        pipeline.zadd(DUE_KEY, {callback.name: now})
        pipeline.execute()
    return callback


def due(redis: Redis, *, now: float) -> list[Callback]:
    """Return the callbacks whose time has come, the longest due first; their jobs may still run."""
    names = [name.decode() for name in cast("list[bytes]", redis.zrangebyscore(DUE_KEY, 0, now))]
    if not names:
        return []
    records = cast("list[bytes | None]", redis.mget(list(map(callback_key, names))))
    expired = [name for name, record in zip(names, records, strict=True) if record is None]
    if expired:
        redis.zrem(DUE_KEY, *expired)
    return [Callback.model_validate_json(record) for record in records if record is not None]


def claim(redis: Redis, callbacks: Sequence[Callback], *, until: float) -> None:
    """Keep other janitors from callbacks for a while, after which they are due again."""
    redis.zadd(DUE_KEY, {each.name: until for each in callbacks}, xx=True)


def forget(redis: Redis, callback: Callback) -> None:
    """Remove a callback, unless the same was wished anew meanwhile."""
    _replace(redis, callback, None, due_at=0)


def postpone(redis: Redis, callback: Callback, *, body: str, due_at: float) -> None:
    """Write an attempt in vain down, unless the same was wished anew meanwhile."""
    update = {"attempts": callback.attempts + 1, "body": body}
    _replace(redis, callback, callback.model_copy(update=update), due_at=due_at)


def _replace(redis: Redis, old: Callback, new: Callback | None, *, due_at: float) -> None:
    key = callback_key(old.name)
    with redis.pipeline() as pipeline, suppress(WatchError):  # wished anew just now
        pipeline.watch(key)  # type: ignore[no-untyped-call]
        record = cast("bytes | None", pipeline.get(key))
        if record is None or Callback.model_validate_json(record).message != old.message:
            return
        pipeline.multi()
        if new is None:
            pipeline.delete(key)
            pipeline.zrem(DUE_KEY, old.name)
        else:
            pipeline.set(key, new.model_dump_json(), ex=CALLBACK_SECONDS)
            pipeline.zadd(DUE_KEY, {old.name: due_at})
        pipeline.execute()
