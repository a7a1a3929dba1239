"""Batches in Redis: made, found, ended, canceled, opened again, forgotten. Wire layer."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast

from redis import Redis
from redis.client import Pipeline
from redis.lock import Lock

from worker.batches.records import (
    ITEM_STATUSES,
    KNOWN_KEY,
    OPEN_KEY,
    OPEN_SECONDS,
    BatchItem,
    BatchRecord,
    ItemOutcome,
    ItemStatus,
    batch_events_key,
    batch_key,
    blobs_key,
    items_key,
    keys_of,
    outcomes_key,
    status_key,
    zip_key,
)
from worker.queue.events import MAX_EVENTS
from worker.queue.schema import JOB_ID, RESULT_SECONDS

# What must happen to a batch at once, as Redis's scripts. Wire layer.

OPEN_NEW: Final = """
if redis.call('HEXISTS', KEYS[1], 'status') == 1 then return 0 end
for at = 1, #ARGV - 4 do
    if redis.call('EXISTS', ARGV[at + 4]) == 1 then redis.call('RENAME', ARGV[at + 4], KEYS[at + 4]) end
end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'status', 'open')
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
redis.call('SADD', KEYS[4], ARGV[4])
return 1
"""
"""Make a batch of what was written under other names, unless there is one, and have it keep its zip: the same batch
may have been forgotten since that was stored. Keys: its hash, the sets of open and of known batches, its blobs, then
what names are to come. Arguments: id, record, time, zip, then the names there are."""

MOVE: Final = """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[1])
if ARGV[2] == '' then redis.call('HDEL', KEYS[3], ARGV[1]) else redis.call('HSET', KEYS[3], ARGV[1], ARGV[2]) end
if ARGV[3] ~= '' then redis.call('SADD', KEYS[4], ARGV[3]) end
return 1
"""
"""Move an item from one state to another, if it is in the first. Keys: both states', outcomes, blobs. Arguments: its
number, the outcome, a blob that is kept from now on; empty for none."""

END: Final = """
if redis.call('HGET', KEYS[1], 'status') ~= 'open' then return 0 end
for at = 3, 5 do
    if redis.call('ZCARD', KEYS[at]) > 0 then return 0 end
end
redis.call('HSET', KEYS[1], 'status', 'finished', 'ended_at', ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""
"""End a batch if all is done. Keys: hash, open batches, waiting, queued, running. Arguments: id, moment."""

CANCEL: Final = """
if redis.call('HGET', KEYS[1], 'status') ~= 'open' then return {} end
redis.call('HSET', KEYS[1], 'status', 'canceled', 'ended_at', ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
local taken = {}
for at = 4, 5 do
    for _, number in ipairs(redis.call('ZRANGE', KEYS[at], 0, -1)) do taken[#taken + 1] = number end
end
redis.call('ZUNIONSTORE', KEYS[6], 4, KEYS[6], KEYS[3], KEYS[4], KEYS[5], 'AGGREGATE', 'MAX')
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5])
return taken
"""
"""Cancel a batch; return the numbers of items whose jobs are under way. As END, and the key of canceled items."""

REOPEN: Final = """
if redis.call('HEXISTS', KEYS[1], 'status') == 0 or redis.call('ZCARD', KEYS[3]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'status', 'open')
redis.call('HDEL', KEYS[1], 'ended_at')
redis.call('ZADD', KEYS[2], 'NX', ARGV[2], ARGV[1])
return 1
"""
"""Have a batch go on if an item waits. Keys: hash, open batches, waiting. Arguments: id, time."""


# The items of a batch in Redis, each in exactly one state; it is moved once, whoever else tries it too. Wire layer.

Row = tuple[int, BatchItem, ItemOutcome]
"""An item with its number, and what became of it."""

CHUNK: Final = 1000
"""Items in one round trip."""


def counts_of(redis: Redis, batch_id: str) -> dict[ItemStatus, int]:
    """Return how many items are in which state."""
    with redis.pipeline() as pipeline:
        for status in ITEM_STATUSES:
            pipeline.zcard(status_key(batch_id, status))
        return dict(zip(ITEM_STATUSES, pipeline.execute(), strict=True))


def numbers_in(
    redis: Redis, batch_id: str, status: ItemStatus, *, after: int = 0, limit: int
) -> list[int]:
    """Return the numbers of items in a state, ascending, beginning after one."""
    key = status_key(batch_id, status)
    found = redis.zrangebyscore(key, f"({after}", "+inf", start=0, num=limit)
    return [int(each) for each in cast("list[bytes]", found)]


def states_of(redis: Redis, batch_id: str, first: int, last: int) -> dict[int, ItemStatus]:
    """Return the states of the items from one number to another."""
    with redis.pipeline() as pipeline:
        for status in ITEM_STATUSES:
            pipeline.zrangebyscore(status_key(batch_id, status), first, last)
        found = pipeline.execute()
    return {
        int(number): status
        for status, numbers in zip(ITEM_STATUSES, found, strict=True)
        for number in numbers
    }


def outcomes_of(redis: Redis, batch_id: str, numbers: Sequence[int]) -> list[ItemOutcome]:
    """Return what became of items."""
    if not numbers:
        return []
    found = redis.hmget(outcomes_key(batch_id), [str(number) for number in numbers])
    return [
        ItemOutcome() if each is None else ItemOutcome.model_validate_json(each)
        for each in cast("list[bytes | None]", found)
    ]


def items_of(redis: Redis, batch_id: str, numbers: Sequence[int]) -> list[BatchItem]:
    """Return items by number, those of a run of numbers in one go."""
    if not numbers:
        return []
    first, last = min(numbers), max(numbers)
    if last - first < 2 * len(numbers) + 10:
        stored = cast("list[bytes]", redis.lrange(items_key(batch_id), first - 1, last - 1))
        found = [stored[number - first] for number in numbers]
    else:
        with redis.pipeline(transaction=False) as pipeline:
            for number in numbers:
                pipeline.lindex(items_key(batch_id), number - 1)
            found = pipeline.execute()
    return [BatchItem.model_validate_json(each) for each in found]


def each_in(redis: Redis, batch_id: str, status: ItemStatus) -> Iterator[Row]:
    """Give all items in a state, a thousand a round trip."""
    after = 0
    while numbers := numbers_in(redis, batch_id, status, after=after, limit=CHUNK):
        items, outcomes = items_of(redis, batch_id, numbers), outcomes_of(redis, batch_id, numbers)
        yield from zip(numbers, items, outcomes, strict=True)
        after = numbers[-1]


def move(
    pipeline: Redis | Pipeline,
    batch_id: str,
    number: int,
    states: tuple[ItemStatus, ItemStatus],
    outcome: ItemOutcome | None,
) -> object:
    """Move an item from a state to another, if it is in the first one; the answer is whether it was.

    Args:
        pipeline: or Redis itself.
        batch_id: of the batch.
        number: of the item.
        states: from, to.
        outcome: what has become of it; None to forget that.
    """
    keys = [status_key(batch_id, each) for each in states]
    keys += [outcomes_key(batch_id), blobs_key(batch_id)]
    written = "" if outcome is None else outcome.model_dump_json(exclude_none=True)
    mask = outcome.result.mask if outcome is not None and outcome.result is not None else ""
    return pipeline.eval(MOVE, len(keys), *keys, number, written, mask)


def tell_counts(redis: Redis, batch_id: str, counts: dict[ItemStatus, int]) -> None:
    """Write how many items are in which state at the end of the batch's stream."""
    key, entry = batch_events_key(batch_id), {"event": "counts", "data": json.dumps(counts)}
    with redis.pipeline() as pipeline:
        pipeline.xadd(key, cast("dict[Any, Any]", entry), maxlen=MAX_EVENTS)
        pipeline.expire(key, OPEN_SECONDS)
        pipeline.execute()


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
    made = redis.eval(OPEN_NEW, len(keys), *keys, *arguments, *names.values())
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
    ended = redis.eval(END, len(keys), *keys, batch_id, _now())
    if ended:
        renew(redis, batch_id, ENDED_SECONDS)
    return bool(ended)


def cancel_items(redis: Redis, batch_id: str) -> list[int]:
    """Cancel a batch that has not ended; return the numbers of the items whose jobs were under way."""
    keys = [batch_key(batch_id), OPEN_KEY, *_under_way(batch_id), status_key(batch_id, "canceled")]
    taken = redis.eval(CANCEL, len(keys), *keys, batch_id, _now())
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
    goes_on = redis.eval(REOPEN, len(keys), *keys, batch_id, moment)
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
