"""Batches in Redis: made, found, ended, canceled, opened again, forgotten. Wire layer."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal, cast

from redis import Redis
from redis.lock import Lock

from worker import batch_scripts as scripts
from worker.batch_items import CHUNK, each_in, move
from worker.batch_keys import (
    KNOWN_KEY,
    OPEN_KEY,
    ItemStatus,
    batch_key,
    blobs_key,
    items_key,
    keys_of,
    outcomes_key,
    status_key,
    zip_key,
)
from worker.batch_records import OPEN_SECONDS, BatchItem, BatchRecord, ItemOutcome
from worker.protocol import JOB_ID, RESULT_SECONDS

ENDED_SECONDS: Final = RESULT_SECONDS
"""How long one is known that has ended."""
_MAKING_SECONDS: Final = 3600
_TURN_SECONDS: Final = 300.0  # more than a call of any store takes, with its tries
_WAIT_SECONDS: Final = 30.0
_NEW: Final = ("items", "outcomes", "waiting", "failed")

BatchEnd = Literal["finished", "canceled"]


@dataclass(frozen=True)
class Standing:
    """A batch, and whether and when it ended."""

    record: BatchRecord
    end: BatchEnd | None
    ended_at: datetime | None


def turn_with(redis: Redis, archive: str) -> Lock:
    """Return the lock under which batches with one zip are opened and forgotten, so that none is opened on a zip that
    is just being deleted; a context manager.

    It raises LockError if others have it for long.
    """
    return Lock(redis, zip_key(archive), timeout=_TURN_SECONDS, blocking_timeout=_WAIT_SECONDS)


def keep_archive(redis: Redis, record: BatchRecord) -> None:
    """Have a batch keep its zip, even before it is made: then the zip can be stored."""
    key = blobs_key(record.id)
    with redis.pipeline() as pipeline:
        pipeline.sadd(key, record.request.archive)
        pipeline.expire(key, OPEN_SECONDS)
        pipeline.zadd(KNOWN_KEY, {record.id: record.created_at.timestamp()})
        pipeline.execute()


def make_batch(
    redis: Redis,
    record: BatchRecord,
    items: Sequence[BatchItem],
    failed: Mapping[int, ItemOutcome],
) -> bool:
    """Open a batch; return False if there is one already.

    Args:
        redis: where it will be.
        record: of it.
        items: in their order.
        failed: those that cannot even be tried, by number.
    """
    names = {each: f"{batch_key(record.id)}:{uuid.uuid4().hex}:{each}" for each in _NEW}
    for start in range(0, len(items), CHUNK):
        numbers = range(start + 1, min(start + CHUNK, len(items)) + 1)
        with redis.pipeline(transaction=False) as pipeline:
            pipeline.rpush(names["items"], *(items[n - 1].model_dump_json() for n in numbers))
            for status, part in (
                ("waiting", [n for n in numbers if n not in failed]),
                ("failed", [n for n in numbers if n in failed]),
            ):
                if part:
                    pipeline.zadd(names[status], {str(n): n for n in part})
            for number in failed.keys() & set(numbers):
                pipeline.hset(names["outcomes"], str(number), failed[number].model_dump_json())
            for name in names.values():
                pipeline.expire(name, _MAKING_SECONDS)
            pipeline.execute()
    keys = [items_key(record.id), outcomes_key(record.id)]
    keys += [status_key(record.id, status) for status in ("waiting", "failed")]
    arguments: list[str | float] = [
        record.id,
        record.model_dump_json(),
        record.created_at.timestamp(),
        record.request.archive,
    ]
    keys = [batch_key(record.id), OPEN_KEY, KNOWN_KEY, blobs_key(record.id), *keys]
    made = redis.eval(scripts.OPEN_NEW, len(keys), *keys, *arguments, *names.values())
    redis.delete(*names.values())
    renew(redis, record.id, OPEN_SECONDS)
    return bool(made)


def renew(redis: Redis, batch_id: str, seconds: int) -> None:
    """Have all that is known of a batch live for so long from now on."""
    with redis.pipeline(transaction=False) as pipeline:
        for key in keys_of(batch_id):
            pipeline.expire(key, seconds)
        pipeline.execute()


def find_batch(redis: Redis, batch_id: str) -> Standing | None:
    """Return a batch, or None if there is none of this id."""
    if not JOB_ID.fullmatch(batch_id):
        return None
    stored = redis.hmget(batch_key(batch_id), "record", "status", "ended_at")
    record, status, ended = cast("list[bytes | None]", stored)
    if record is None or status is None:
        return None
    end = None if status == b"open" else cast("BatchEnd", status.decode())
    moment = None if ended is None else datetime.fromisoformat(ended.decode())
    return Standing(BatchRecord.model_validate_json(record), end, moment)


def open_batches(redis: Redis) -> list[str]:
    """Return the ids of the batches that have not ended, the oldest first."""
    return [each.decode() for each in cast("list[bytes]", redis.zrange(OPEN_KEY, 0, -1))]


def end_if_done(redis: Redis, batch_id: str) -> bool:
    """End a batch if no item waits or is under way; return whether it ended just now."""
    keys = [batch_key(batch_id), OPEN_KEY, *_under_way(batch_id)]
    ended = redis.eval(scripts.END, len(keys), *keys, batch_id, _now())
    if ended:
        renew(redis, batch_id, ENDED_SECONDS)
    return bool(ended)


def cancel_items(redis: Redis, batch_id: str) -> list[int]:
    """Cancel a batch that has not ended; return the numbers of the items whose jobs were under way."""
    keys = [batch_key(batch_id), OPEN_KEY, *_under_way(batch_id), status_key(batch_id, "canceled")]
    taken = redis.eval(scripts.CANCEL, len(keys), *keys, batch_id, _now())
    renew(redis, batch_id, ENDED_SECONDS)
    return [int(each) for each in taken]


def reopen(redis: Redis, standing: Standing) -> None:
    """Have items wait again that were canceled or failed for a reason that may have passed, and the batch go on."""
    batch_id = standing.record.id
    renew(redis, batch_id, OPEN_SECONDS)
    for status in cast("tuple[ItemStatus, ...]", ("failed", "canceled")):
        again = [
            number
            for number, _item, outcome in each_in(redis, batch_id, status)
            if outcome.failure is None or outcome.failure.repeatable
        ]
        for start in range(0, len(again), CHUNK):
            with redis.pipeline(transaction=False) as pipeline:
                for number in again[start : start + CHUNK]:
                    move(pipeline, batch_id, number, (status, "waiting"), None)
                pipeline.execute()
    keys = [batch_key(batch_id), OPEN_KEY, status_key(batch_id, "waiting")]
    moment = standing.record.created_at.timestamp()
    goes_on = redis.eval(scripts.REOPEN, len(keys), *keys, batch_id, moment)
    if not goes_on and standing.end is not None:
        renew(redis, batch_id, ENDED_SECONDS)


def forget_batch(redis: Redis, batch_id: str) -> list[str]:
    """Delete all that is known of a batch; return the blobs that it kept."""
    found = [each.decode() for each in cast("set[bytes]", redis.smembers(blobs_key(batch_id)))]
    with redis.pipeline() as pipeline:
        pipeline.delete(*keys_of(batch_id))
        pipeline.zrem(KNOWN_KEY, batch_id)
        pipeline.zrem(OPEN_KEY, batch_id)
        pipeline.execute()
    return found


def _under_way(batch_id: str) -> list[str]:
    states: tuple[ItemStatus, ...] = ("waiting", "queued", "running")
    return [status_key(batch_id, status) for status in states]


def _now() -> str:
    return datetime.now(UTC).isoformat()
