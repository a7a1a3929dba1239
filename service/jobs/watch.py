"""Waits on Redis streams for jobs and batches: server-sent events and ``?wait=``. Holds no thread."""

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
from rq.results import Result
from sse_starlette import ServerSentEvent

from worker.batches.store import batch_events_key, batch_key
from worker.queue.jobs import FINISHED_STATUSES, read_status_async
from worker.queue.schema import events_key

END: Final = "end"
"""Id of the last event; a client that has it has all of them."""

_START: Final = "0-0"
_SLICE_SECONDS: Final = 1.0  # between reads of the status: a canceled job has no result
_ID: Final = re.compile(r"\d{1,15}-\d{1,15}")
_RETRIED: Final = str(Result.Type.RETRIED.value).encode()

_log = logging.getLogger(__name__)

_Entry = tuple[bytes, dict[bytes, bytes]]


@dataclass(frozen=True)
class EventSource:
    """What events are about: a job or a batch."""

    name: str  # for the log
    stream: str  # key of its events
    results: str  # key of the stream that its result is added to; empty if there is none
    status: Callable[[Redis], Awaitable[str | None]]  # None if it is gone
    ends: frozenset[str]  # statuses that it ends with


def job_source(job_id: str) -> EventSource:
    """Return a job's events; RQ adds its result in the transaction that finishes it."""

    async def status(redis: Redis) -> str | None:
        return await read_status_async(redis, job_id)

    results = str(Result.get_key(job_id))  # type: ignore[no-untyped-call]
    ends = frozenset[str](FINISHED_STATUSES)
    return EventSource(f"job {job_id}", events_key(job_id), results, status, ends)


def batch_source(batch_id: str) -> EventSource:
    """Return a batch's events."""

    async def status(redis: Redis) -> str | None:
        stored = cast("bytes | None", await redis.hget(batch_key(batch_id), "status"))
        return None if stored is None else stored.decode()

    ends = frozenset({"finished", "canceled"})
    return EventSource(f"batch {batch_id}", batch_events_key(batch_id), "", status, ends)


class EventStream:
    """Reads events and awaits results, for bounded numbers of clients, each of which takes a connection."""

    def __init__(self, url: str, *, max_listening: int, max_waiting: int) -> None:
        # A blocking read takes up to a slice, so the socket's timeout must be longer.
        self._redis = Redis.from_url(url, socket_timeout=_SLICE_SECONDS + 3)
        self._listening = asyncio.Semaphore(max_listening)
        self._waiting = asyncio.Semaphore(max_waiting)

    @property
    def full(self) -> bool:
        """Whether no more clients may read events."""
        return self._listening.locked()

    async def listen(self, source: EventSource, *, last_event_id: str | None) -> AsyncIterator[ServerSentEvent]:
        """Yield the events after one until the end, or until the source or Redis is gone; all if the id is unknown."""
        known = last_event_id is not None and _ID.fullmatch(last_event_id)
        after = last_event_id if known and last_event_id else _START
        async with self._listening:
            try:
                async for event in self._events(source, after):
                    yield event
            except RedisError as error:
                # The client connects again with the last id that it has.
                _log.warning("events of %s cut off: %s", source.name, error)

    async def wait_for_job(self, job_id: str, seconds: float) -> None:
        """Return when a job has ended or is gone, the time is over, or too many clients wait; RedisError."""
        if seconds <= 0 or self._waiting.locked():
            return
        source = job_source(job_id)
        deadline = time.monotonic() + seconds
        after = _START
        async with self._waiting:
            while (left := deadline - time.monotonic()) > 0:
                results = (await self._read({source.results: after}, left)).get(source.results, [])
                if any(fields[b"type"] != _RETRIED for _, fields in results):
                    return
                if results:
                    after = results[-1][0].decode()
                elif await source.status(self._redis) in (None, *source.ends):
                    return

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def _events(self, source: EventSource, after: str) -> AsyncIterator[ServerSentEvent]:
        last_status = ""
        while True:
            # Status first: all that is written before the end is in the stream once the end is seen.
            status = await source.status(self._redis)
            for identity, fields in (await self._read({source.stream: after})).get(source.stream, []):
                after, name = identity.decode(), fields[b"event"].decode()
                data = fields[b"data"].decode()
                if name == "status" and data == last_status:
                    continue  # a worker has started the job again
                last_status = data if name == "status" else last_status
                yield ServerSentEvent(id=after, event=name, data=data)
            if status is None:
                return
            if status in source.ends:
                yield ServerSentEvent(id=END, event=END, data=_status_data(status))
                return
            if source.results and after == _START and not last_status:  # no events were written
                last_status = _status_data(status)
                yield ServerSentEvent(event="status", data=last_status)
            streams = {source.stream: after} | ({source.results: "$"} if source.results else {})
            await self._read(streams, _SLICE_SECONDS)

    async def _read(self, after: dict[str, str], seconds: float = 0) -> dict[str, list[_Entry]]:
        """Return the entries of streams behind some ids; without any, wait up to a slice for the first."""
        block = max(1, int(1000 * min(seconds, _SLICE_SECONDS))) if seconds else None
        found = await self._redis.xread(cast("dict[Any, Any]", after), block=block)
        return {key.decode(): entries for key, entries in cast("list[Any]", found or [])}


def _status_data(status: str) -> str:
    return json.dumps({"status": status})
