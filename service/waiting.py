"""Waiting for jobs without a thread for each, and without asking again and again."""

from __future__ import annotations

import asyncio
import time
from typing import Final, cast

from redis.asyncio import Redis
from rq.job import Job
from rq.results import Result

_DONE: Final = frozenset({b"finished", b"failed", b"canceled", b"stopped"})
_RETRIED: Final = str(Result.Type.RETRIED.value).encode()
_WAIT_SLICE_SECONDS: Final = 2.0

Entry = tuple[bytes, dict[bytes, bytes]]


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
