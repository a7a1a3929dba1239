"""A job's events for those who listen: what was written so far, what comes, and the end. Holds no thread."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Final, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError
from rq.job import Job, JobStatus
from rq.results import Result
from sse_starlette import ServerSentEvent

from worker.events import events_key
from worker.outcome import TERMINAL, Status, status_word

log = logging.getLogger(__name__)

END: Final = "end"
"""Id of the last event: who has it needs no other."""
BEGINNING: Final = "0-0"

_SLICE_SECONDS: Final = 1.0
_ID = re.compile(r"\d{1,15}-\d{1,15}")

Entry = tuple[bytes, dict[bytes, bytes]]


class Listeners:
    """Those who listen to jobs.

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

    async def listen(self, job_id: str, *, after: str) -> AsyncIterator[ServerSentEvent]:
        """Yield a job's events, and return after its end, or when it is gone or Redis is.

        Args:
            job_id: the job's.
            after: id of the last event that the client has; BEGINNING for none.
        """
        async with self._places:
            try:
                async for event in self._events(job_id, after):
                    yield event
            except RedisError as error:
                # The client asks again with the last id that it has.
                log.warning("events of job %s cut off: %s", job_id, error)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def _events(self, job_id: str, after: str) -> AsyncIterator[ServerSentEvent]:
        stream, result = events_key(job_id), str(Result.get_key(job_id))  # type: ignore[no-untyped-call]
        said = ""
        while True:
            # In this order nothing is missed: all that is written before the end is there once the end is seen.
            status = await self._status(job_id)
            for identity, fields in await self._entries(stream, after):
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
            if status in TERMINAL:
                yield ServerSentEvent(id=END, event=END, data=_data(status))
                return
            if after == BEGINNING and not said:  # nobody has written events of this one
                said = _data(status)
                yield ServerSentEvent(event="status", data=said)
            await self._news(stream, after, result)

    async def _status(self, job_id: str) -> Status | None:
        """Return a job's status, None if the job is gone."""
        stored = cast("bytes | None", await self._redis.hget(Job.key_for(job_id), "status"))
        return None if stored is None else status_word(JobStatus(stored.decode()))

    async def _entries(self, stream: str, after: str) -> list[Entry]:
        return cast("list[Entry]", await self._redis.xrange(stream, min=f"({after}"))

    async def _news(self, stream: str, after: str, result: str) -> None:
        """Return when there is an event, or a result, or after a while: some ends are only in the status."""
        block = int(1000 * _SLICE_SECONDS)
        await self._redis.xread({stream: after, result: "$"}, block=block)


def resume_after(last_event_id: str | None) -> str:
    """Return after which event to go on; a client that names none, or no id of ours, gets all."""
    known = last_event_id is not None and _ID.fullmatch(last_event_id)
    return last_event_id if known and last_event_id else BEGINNING


def _data(status: Status) -> str:
    return json.dumps({"status": status})
