"""Events of a job or a batch for those who listen: what was written, what comes, and the end. Holds no thread."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError
from rq.job import Job, JobStatus
from rq.results import Result
from sse_starlette import ServerSentEvent

from worker.batches.records import batch_events_key, batch_key
from worker.queue.events import events_key
from worker.queue.jobs import TERMINAL, status_word

log = logging.getLogger(__name__)

END: Final = "end"
"""Id of the last event: who has it needs no other."""
BEGINNING: Final = "0-0"

_SLICE_SECONDS: Final = 1.0
_ID = re.compile(r"\d{1,15}-\d{1,15}")

Entry = tuple[bytes, dict[bytes, bytes]]


@dataclass(frozen=True)
class Source:
    """What is listened to.

    Attributes:
        name: for the log.
        stream: key of its events.
        ending: key of a stream where something is written when it ends; empty if nothing is.
        status: says what it is now, None if it is gone.
        ends: what it can be when it has ended.
    """

    name: str
    stream: str
    ending: str
    status: Callable[[Redis], Awaitable[str | None]]
    ends: frozenset[str]


def job_source(job_id: str) -> Source:
    """Return a job to listen to."""

    async def status(redis: Redis) -> str | None:
        stored = cast("bytes | None", await redis.hget(Job.key_for(job_id), "status"))
        return None if stored is None else status_word(JobStatus(stored.decode()))

    ending = str(Result.get_key(job_id))  # type: ignore[no-untyped-call]
    return Source(f"job {job_id}", events_key(job_id), ending, status, frozenset(TERMINAL))


def batch_source(batch_id: str) -> Source:
    """Return a batch to listen to."""

    async def status(redis: Redis) -> str | None:
        stored = cast("bytes | None", await redis.hget(batch_key(batch_id), "status"))
        return None if stored is None else stored.decode()

    ends = frozenset({"finished", "canceled"})
    return Source(f"batch {batch_id}", batch_events_key(batch_id), "", status, ends)


class Listeners:
    """Those who listen to jobs and batches.

    Args:
        url: Redis's.
        most: how many may listen at once, each with a connection.
    """

    def __init__(self, url: str, *, most: int) -> None:
        # An answer may take a whole slice, so the socket must be more patient than that.
        self._redis = Redis.from_url(url, socket_timeout=_SLICE_SECONDS + 3)
        self._places = asyncio.Semaphore(most)

    @property
    def full(self) -> bool:
        """Whether no more may listen."""
        return self._places.locked()

    async def listen(self, source: Source, *, after: str) -> AsyncIterator[ServerSentEvent]:
        """Yield events, and return after the end, or when the source is gone or Redis is.

        Args:
            source: of the events.
            after: id of the last event that the client has; BEGINNING for none.
        """
        async with self._places:
            try:
                async for event in self._events(source, after):
                    yield event
            except RedisError as error:
                # The client asks again with the last id that it has.
                log.warning("events of %s cut off: %s", source.name, error)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def _events(self, source: Source, after: str) -> AsyncIterator[ServerSentEvent]:
        said = ""
        while True:
            # In this order nothing is missed: all that is written before the end is there once the end is seen.
            status = await source.status(self._redis)
            for identity, fields in await self._entries(source.stream, after):
                after, name, data = (
                    identity.decode(),
                    fields[b"event"].decode(),
                    fields[b"data"].decode(),
                )
                if name == "status" and data == said:
                    continue  # the worker has begun anew
                said = data if name == "status" else said
                yield ServerSentEvent(id=after, event=name, data=data)
            if status is None:
                return
            if status in source.ends:
                yield ServerSentEvent(id=END, event=END, data=_data(status))
                return
            if (
                source.ending and after == BEGINNING and not said
            ):  # nobody has written events of this one
                said = _data(status)
                yield ServerSentEvent(event="status", data=said)
            await self._news(source, after)

    async def _entries(self, stream: str, after: str) -> list[Entry]:
        return cast("list[Entry]", await self._redis.xrange(stream, min=f"({after}"))

    async def _news(self, source: Source, after: str) -> None:
        """Return when there is an event, or an end, or after a while: some ends are only in the status."""
        block = int(1000 * _SLICE_SECONDS)
        streams = {source.stream: after} | ({source.ending: "$"} if source.ending else {})
        await self._redis.xread(cast("dict[Any, Any]", streams), block=block)


def resume_after(last_event_id: str | None) -> str:
    """Return after which event to go on; a client that names none, or no id of ours, gets all."""
    known = last_event_id is not None and _ID.fullmatch(last_event_id)
    return last_event_id if known and last_event_id else BEGINNING


def _data(status: str) -> str:
    return json.dumps({"status": status})


# Waiting for jobs without a thread for each, and without asking again and again.

_DONE: Final = frozenset({b"finished", b"failed", b"canceled", b"stopped"})
_RETRIED: Final = str(Result.Type.RETRIED.value).encode()
_WAIT_SLICE_SECONDS: Final = 2.0


class ResultWaiter:
    """Waits on the stream that RQ adds a job's result to, in the transaction that finishes it.

    Args:
        url: Redis's.
        max_waiting: how many may wait at once, each with a connection; others do not wait.
    """

    def __init__(self, url: str, *, max_waiting: int) -> None:
        # An answer may take a whole slice, so the socket must be more patient than that.
        self._redis = Redis.from_url(url, socket_timeout=_WAIT_SLICE_SECONDS + 3)
        self._places = asyncio.Semaphore(max_waiting)

    async def wait(self, job_id: str, seconds: float) -> None:
        """Return when a job is finished, failed, canceled or gone, or when the time is over.

        Raises:
            RedisError: if Redis is away.
        """
        if seconds <= 0 or self._places.locked():
            return
        deadline = time.monotonic() + seconds
        stream, last = str(Result.get_key(job_id)), b"0-0"  # type: ignore[no-untyped-call]
        async with self._places:
            while (left := deadline - time.monotonic()) > 0:
                block = max(1, int(1000 * min(left, _WAIT_SLICE_SECONDS)))
                entries = await self._read(stream, last, block)
                if any(fields[b"type"] != _RETRIED for _, fields in entries):
                    return
                if entries:
                    last = entries[-1][0]
                elif await self._is_done(job_id):
                    return

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def _read(self, stream: str, last: bytes, block: int) -> list[Entry]:
        """Return a stream's entries after one, as soon as there are any, or none after some milliseconds."""
        answer = await self._redis.xread({stream: last}, block=block)
        found = cast("list[tuple[bytes, list[Entry]]]", answer)
        return found[0][1] if found else []

    async def _is_done(self, job_id: str) -> bool:
        """Return whether a job has an end that is no result: canceled while it waited, or gone."""
        status = cast("bytes | None", await self._redis.hget(Job.key_for(job_id), "status"))
        return status is None or status in _DONE
