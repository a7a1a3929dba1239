"""Waiting for jobs without a thread for each, and without asking again and again."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, cast

from redis.asyncio import Redis
from rq.job import Job
from rq.results import Result

_DONE: Final = frozenset({b"finished", b"failed", b"canceled", b"stopped"})
_SLICE_SECONDS: Final = 2.0


class ResultWaiter:
    """Waits on the stream that RQ adds a job's result to, in the transaction that finishes it.

    Args:
        url: Redis's.
        max_waiting: how many may wait at once, each with a connection; others do not wait.
    """

    def __init__(self, url: str, *, max_waiting: int) -> None:
        # An answer may take a whole slice, so the socket must be more patient than that.
        self._redis = Redis.from_url(url, socket_timeout=_SLICE_SECONDS + 3)
        self._places = asyncio.Semaphore(max_waiting)

    async def wait(self, job_id: str, seconds: float) -> None:
        """Return when a job is finished, failed, canceled or gone, or when the time is over.

        Raises:
            RedisError: if Redis is away.
        """
        if seconds <= 0 or self._places.locked():
            return
        deadline = time.monotonic() + seconds
        async with self._places:
            while (left := deadline - time.monotonic()) > 0:
                last, done = await self._look(job_id)
                if done:
                    return
                block = max(1, int(1000 * min(left, _SLICE_SECONDS)))
                await self._redis.xread({_stream(job_id): last}, block=block)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def _look(self, job_id: str) -> tuple[bytes, bool]:
        """Return the id of a job's last result, and whether the job is done."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            # In this order nothing is missed: what comes after the look at the status is newer
            # than the last entry.
            pipeline.xrevrange(_stream(job_id), count=1)
            pipeline.hget(Job.key_for(job_id), "status")
            found = await pipeline.execute()
        entries, status = cast("tuple[list[tuple[bytes, Any]], bytes | None]", tuple(found))
        return entries[0][0] if entries else b"0-0", status is None or status in _DONE


def _stream(job_id: str) -> str:
    return str(Result.get_key(job_id))  # type: ignore[no-untyped-call]
