"""Batches in Redis: each has a record, its items, and every item's state and outcome."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, cast

from redis import Redis
from redis.lock import Lock

from worker.batches.records import ITEM_STATUSES, BatchItem, BatchRecord, ItemOutcome, ItemStatus
from worker.queue.schema import FAILURE_SECONDS, JOB_ID, MAX_EVENTS, RESULT_SECONDS

KNOWN_KEY: Final = "semples:batches"
"""Sorted set of all batches by the time of their creation."""
OPEN_KEY: Final = "semples:batches:open"
"""Likewise, of those that have not ended."""

_OPEN_SECONDS: Final = FAILURE_SECONDS  # lifetime of an open batch that no janitor renews
_ENDED_SECONDS: Final = RESULT_SECONDS
_CREATING_SECONDS: Final = 3600
_LOCK_SECONDS: Final = 300.0  # more than a call of any store takes, with its retries
_LOCK_WAIT_SECONDS: Final = 30.0
_CHUNK: Final = 1000  # items in one round trip

_ACTIVE: Final[tuple[ItemStatus, ...]] = ("waiting", "queued", "running")
_REDO: Final[tuple[ItemStatus, ...]] = ("failed", "canceled")
_NEW: Final = ("items", "outcomes", "waiting", "failed")

# Creates a batch from keys under temporary names, unless there is one, and pins its zip: the same batch may have been
# deleted since that was stored. Keys: the batch's hash, open and known batches, its blobs, then the final names.
# Arguments: id, record, time, zip, then the temporary names.
_CREATE: Final = """
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
# Moves an item from one state to another, if it is in the first. Keys: both states, outcomes, blobs. Arguments: its
# number, the outcome and a blob to pin, either may be empty.
_MOVE: Final = """
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('ZADD', KEYS[2], ARGV[1], ARGV[1])
if ARGV[2] == '' then redis.call('HDEL', KEYS[3], ARGV[1]) else redis.call('HSET', KEYS[3], ARGV[1], ARGV[2]) end
if ARGV[3] ~= '' then redis.call('SADD', KEYS[4], ARGV[3]) end
return 1
"""
# Ends a batch if no item is active. Keys: hash, open batches, waiting, queued, running. Arguments: id, time.
_FINISH: Final = """
if redis.call('HGET', KEYS[1], 'status') ~= 'open' then return 0 end
for at = 3, 5 do
    if redis.call('ZCARD', KEYS[at]) > 0 then return 0 end
end
redis.call('HSET', KEYS[1], 'status', 'finished', 'ended_at', ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""
# Cancels an open batch and returns the numbers of items in flight. Keys and arguments: as _FINISH, and canceled.
_CANCEL: Final = """
if redis.call('HGET', KEYS[1], 'status') ~= 'open' then return {} end
redis.call('HSET', KEYS[1], 'status', 'canceled', 'ended_at', ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[1])
local in_flight = {}
for at = 4, 5 do
    for _, number in ipairs(redis.call('ZRANGE', KEYS[at], 0, -1)) do in_flight[#in_flight + 1] = number end
end
redis.call('ZUNIONSTORE', KEYS[6], 4, KEYS[6], KEYS[3], KEYS[4], KEYS[5], 'AGGREGATE', 'MAX')
redis.call('DEL', KEYS[3], KEYS[4], KEYS[5])
return in_flight
"""
# Opens a batch again if an item waits. Keys: hash, open batches, waiting. Arguments: id, time.
_REOPEN: Final = """
if redis.call('HEXISTS', KEYS[1], 'status') == 0 or redis.call('ZCARD', KEYS[3]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'status', 'open')
redis.call('HDEL', KEYS[1], 'ended_at')
redis.call('ZADD', KEYS[2], 'NX', ARGV[2], ARGV[1])
return 1
"""

Row = tuple[int, BatchItem, ItemOutcome]
"""An item's number, the item, and its outcome."""


@dataclass(frozen=True)
class BatchState:
    """A batch, and whether and when it ended."""

    record: BatchRecord
    end: Literal["finished", "canceled"] | None
    ended_at: datetime | None


class Move(NamedTuple):
    """An item's change of state, and its new outcome; None deletes the old one."""

    number: int
    before: ItemStatus
    after: ItemStatus
    outcome: ItemOutcome | None = None


class _ItemInFlight(NamedTuple):
    """An item whose job is queued or running, as far as it is recorded."""

    number: int
    status: ItemStatus
    job: str


def batch_key(batch_id: str) -> str:
    """Return the key of a batch's hash: ``record``, ``status`` (open, finished or canceled), ``ended_at``."""
    return f"semples:batch:{batch_id}"


def batch_events_key(batch_id: str) -> str:
    """Return the key of the stream of a batch's counts."""
    return f"{batch_key(batch_id)}:events"


class BatchStore:
    """All batches in Redis; every item of one is in exactly one state.

    All methods raise RedisError if Redis does not answer.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    # Batches.

    def archive_lock(self, archive: str) -> Lock:
        """Return the lock under which batches of one zip are created and deleted; waiting too long is a LockError."""
        key = f"semples:batches:{archive}"
        return Lock(self._redis, key, timeout=_LOCK_SECONDS, blocking_timeout=_LOCK_WAIT_SECONDS)

    def pin_archive(self, record: BatchRecord) -> None:
        """Pin a batch's zip before the batch is created, so that the zip can be stored first."""
        key = _blobs_key(record.id)
        with self._redis.pipeline() as pipeline:
            pipeline.sadd(key, record.request.archive)
            pipeline.expire(key, _OPEN_SECONDS)
            pipeline.zadd(KNOWN_KEY, {record.id: record.created_at.timestamp()})
            pipeline.execute()

    def create(self, record: BatchRecord, items: Sequence[BatchItem], failed: Mapping[int, ItemOutcome]) -> bool:
        """Create a batch; return False if there is one already. ``failed`` are items without a job, by number."""
        names = {each: f"{batch_key(record.id)}:{uuid.uuid4().hex}:{each}" for each in _NEW}
        for start in range(0, len(items), _CHUNK):
            self._write_new(names, items[start : start + _CHUNK], failed, first=start + 1)
        arguments: list[str | float] = [
            record.id,
            record.model_dump_json(),
            record.created_at.timestamp(),
            record.request.archive,
        ]
        keys = [batch_key(record.id), OPEN_KEY, KNOWN_KEY, _blobs_key(record.id)]
        keys += [f"{batch_key(record.id)}:{each}" for each in _NEW]
        created = self._redis.eval(_CREATE, len(keys), *keys, *arguments, *names.values())
        self._redis.delete(*names.values())
        self.renew(record.id)
        if created:
            self.publish_counts(record.id, self.counts(record.id))
        return bool(created)

    def _write_new(
        self,
        names: Mapping[str, str],
        items: Sequence[BatchItem],
        failed: Mapping[int, ItemOutcome],
        *,
        first: int,
    ) -> None:
        """Write items under temporary names."""
        numbers = range(first, first + len(items))
        by_status = {
            "waiting": {str(number): number for number in numbers if number not in failed},
            "failed": {str(number): number for number in numbers if number in failed},
        }
        outcomes = {number: failed[int(number)].model_dump_json() for number in by_status["failed"]}
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.rpush(names["items"], *(item.model_dump_json() for item in items))
            for status, scores in by_status.items():
                if scores:
                    pipeline.zadd(names[status], scores)
            if outcomes:
                pipeline.hset(names["outcomes"], mapping=cast("dict[Any, Any]", outcomes))
            for name in names.values():
                pipeline.expire(name, _CREATING_SECONDS)
            pipeline.execute()

    def find(self, batch_id: str) -> BatchState | None:
        """Return a batch, or None if there is none with this id."""
        if not JOB_ID.fullmatch(batch_id):
            return None
        stored = self._redis.hmget(batch_key(batch_id), "record", "status", "ended_at")
        record, status, ended = cast("list[bytes | None]", stored)
        if record is None or status is None:
            return None
        end = None if status == b"open" else cast('Literal["finished", "canceled"]', status.decode())
        ended_at = None if ended is None else datetime.fromisoformat(ended.decode())
        return BatchState(BatchRecord.model_validate_json(record), end, ended_at)

    def open_ids(self) -> list[str]:
        """Return the ids of the batches that have not ended, the oldest first."""
        return [each.decode() for each in cast("list[bytes]", self._redis.zrange(OPEN_KEY, 0, -1))]

    def known_ids(self) -> list[str]:
        """Return the ids of all batches, the oldest first; expired ones are dropped."""
        ids = [each.decode() for each in cast("list[bytes]", self._redis.zrange(KNOWN_KEY, 0, -1))]
        with self._redis.pipeline(transaction=False) as pipeline:
            for each in ids:
                # Not the hash: before a batch is created, only its blobs are there.
                pipeline.exists(_blobs_key(each))
            exists = dict(zip(ids, pipeline.execute(), strict=True))
        if gone := [each for each in ids if not exists[each]]:
            self._redis.zrem(KNOWN_KEY, *gone)
            self._redis.zrem(OPEN_KEY, *gone)
        return [each for each in ids if exists[each]]

    def pinned(self, keys: Sequence[str]) -> frozenset[str]:
        """Return those of some blobs that a batch needs: zips and masks."""
        if not keys:
            return frozenset()
        with self._redis.pipeline(transaction=False) as pipeline:
            for batch_id in self.known_ids():
                pipeline.smismember(_blobs_key(batch_id), list(keys))
            answers: list[list[int]] = pipeline.execute()
        return frozenset(key for key, *has in zip(keys, *answers, strict=True) if any(has))

    def renew(self, batch_id: str, *, seconds: int = _OPEN_SECONDS) -> None:
        """Set the lifetime of all of a batch's keys."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for key in _all_keys(batch_id):
                pipeline.expire(key, seconds)
            pipeline.execute()

    def finish_if_done(self, batch_id: str) -> bool:
        """End a batch if no item waits or is in flight; return whether it ended just now."""
        keys = [batch_key(batch_id), OPEN_KEY, *_status_keys(batch_id, _ACTIVE)]
        ended = self._redis.eval(_FINISH, len(keys), *keys, batch_id, _now())
        if ended:
            self.renew(batch_id, seconds=_ENDED_SECONDS)
        return bool(ended)

    def cancel(self, batch_id: str) -> set[str]:
        """Cancel an open batch; return the jobs of the items that were in flight."""
        keys = [batch_key(batch_id), OPEN_KEY]
        keys += _status_keys(batch_id, (*_ACTIVE, "canceled"))
        in_flight = self._redis.eval(_CANCEL, len(keys), *keys, batch_id, _now())
        self.renew(batch_id, seconds=_ENDED_SECONDS)
        self.publish_counts(batch_id, self.counts(batch_id))
        outcomes = self.outcomes(batch_id, [int(each) for each in in_flight])
        return {each.job for each in outcomes if each.job}

    def reopen(self, state: BatchState) -> None:
        """Let canceled items, and those that failed for a transient reason, wait again."""
        batch_id = state.record.id
        self.renew(batch_id)
        for status in _REDO:
            again = [
                Move(number, status, "waiting")
                for number, _item, outcome in self.rows(batch_id, status)
                if outcome.failure is None or outcome.failure.repeatable
            ]
            self.move(batch_id, again)
        keys = [batch_key(batch_id), OPEN_KEY, *_status_keys(batch_id, ("waiting",))]
        moment = state.record.created_at.timestamp()
        reopened = self._redis.eval(_REOPEN, len(keys), *keys, batch_id, moment)
        if not reopened and state.end is not None:
            self.renew(batch_id, seconds=_ENDED_SECONDS)

    def delete(self, batch_id: str) -> None:
        """Delete everything about a batch."""
        with self._redis.pipeline() as pipeline:
            pipeline.delete(*_all_keys(batch_id))
            pipeline.zrem(KNOWN_KEY, batch_id)
            pipeline.zrem(OPEN_KEY, batch_id)
            pipeline.execute()

    def publish_counts(self, batch_id: str, counts: Mapping[ItemStatus, int]) -> None:
        """Append a batch's counts to its stream of events."""
        key, entry = batch_events_key(batch_id), {"event": "counts", "data": json.dumps(counts)}
        with self._redis.pipeline() as pipeline:
            pipeline.xadd(key, cast("dict[Any, Any]", entry), maxlen=MAX_EVENTS)
            pipeline.expire(key, _OPEN_SECONDS)
            pipeline.execute()

    # Items of a batch.

    def counts(self, batch_id: str) -> dict[ItemStatus, int]:
        """Return the number of items by state."""
        with self._redis.pipeline() as pipeline:
            for key in _status_keys(batch_id):
                pipeline.zcard(key)
            return dict(zip(ITEM_STATUSES, pipeline.execute(), strict=True))

    def numbers(self, batch_id: str, status: ItemStatus, *, after: int = 0, limit: int) -> list[int]:
        """Return the numbers of items in a state, ascending, from the one after ``after``."""
        [key] = _status_keys(batch_id, (status,))
        found = self._redis.zrangebyscore(key, f"({after}", "+inf", start=0, num=limit)
        return [int(each) for each in cast("list[bytes]", found)]

    def statuses(self, batch_id: str, first: int, last: int) -> dict[int, ItemStatus]:
        """Return the states of the items from one number to another."""
        return self._statuses(batch_id, ITEM_STATUSES, first, last)

    def in_flight(self, batch_id: str) -> list[_ItemInFlight]:
        """Return the items whose jobs are queued or running."""
        statuses = self._statuses(batch_id, ("queued", "running"), "-inf", "+inf")
        outcomes = self.outcomes(batch_id, list(statuses))
        return [
            _ItemInFlight(number, status, outcome.job or "")
            for (number, status), outcome in zip(statuses.items(), outcomes, strict=True)
        ]

    def _statuses(
        self, batch_id: str, statuses: Sequence[ItemStatus], first: int | str, last: int | str
    ) -> dict[int, ItemStatus]:
        with self._redis.pipeline() as pipeline:
            for key in _status_keys(batch_id, statuses):
                pipeline.zrangebyscore(key, first, last)
            found = pipeline.execute()
        return {int(n): status for status, ns in zip(statuses, found, strict=True) for n in ns}

    def items(self, batch_id: str, numbers: Sequence[int]) -> list[BatchItem]:
        """Return items by number; a dense range is one call of Redis."""
        if not numbers:
            return []
        key, first, last = _items_key(batch_id), min(numbers), max(numbers)
        if last - first < 2 * len(numbers) + 10:
            stored = cast("list[bytes]", self._redis.lrange(key, first - 1, last - 1))
            found = [stored[number - first] for number in numbers]
        else:
            with self._redis.pipeline(transaction=False) as pipeline:
                for number in numbers:
                    pipeline.lindex(key, number - 1)
                found = pipeline.execute()
        return [BatchItem.model_validate_json(each) for each in found]

    def outcomes(self, batch_id: str, numbers: Sequence[int]) -> list[ItemOutcome]:
        """Return the outcomes of items, an empty one for an item that waits."""
        if not numbers:
            return []
        found = self._redis.hmget(_outcomes_key(batch_id), [str(number) for number in numbers])
        return [
            ItemOutcome() if each is None else ItemOutcome.model_validate_json(each)
            for each in cast("list[bytes | None]", found)
        ]

    def rows(self, batch_id: str, status: ItemStatus) -> Iterator[Row]:
        """Yield all items in a state."""
        after = 0
        while numbers := self.numbers(batch_id, status, after=after, limit=_CHUNK):
            items, outcomes = self.items(batch_id, numbers), self.outcomes(batch_id, numbers)
            yield from zip(numbers, items, outcomes, strict=True)
            after = numbers[-1]

    def move(self, batch_id: str, moves: Sequence[Move]) -> list[bool]:
        """Change states of items; return for each whether it was in the state before."""
        moved: list[bool] = []
        for start in range(0, len(moves), _CHUNK):
            with self._redis.pipeline(transaction=False) as pipeline:
                for number, before, after, outcome in moves[start : start + _CHUNK]:
                    keys = _status_keys(batch_id, (before, after))
                    keys += [_outcomes_key(batch_id), _blobs_key(batch_id)]
                    stored = "" if outcome is None else outcome.model_dump_json(exclude_none=True)
                    mask = outcome.result.mask if outcome and outcome.result else ""
                    pipeline.eval(_MOVE, len(keys), *keys, number, stored, mask)
                moved += map(bool, pipeline.execute())
        return moved


def _items_key(batch_id: str) -> str:
    """Of a list, number 1 first."""
    return f"{batch_key(batch_id)}:items"


def _outcomes_key(batch_id: str) -> str:
    """Of a hash by number."""
    return f"{batch_key(batch_id)}:outcomes"


def _blobs_key(batch_id: str) -> str:
    """Of the set of pinned blobs: the zip and the masks."""
    return f"{batch_key(batch_id)}:blobs"


def _status_keys(batch_id: str, statuses: Sequence[ItemStatus] = ITEM_STATUSES) -> list[str]:
    """Of the sorted sets of the numbers of the items in each state."""
    return [f"{batch_key(batch_id)}:{status}" for status in statuses]


def _all_keys(batch_id: str) -> list[str]:
    return [
        batch_key(batch_id),
        _items_key(batch_id),
        _outcomes_key(batch_id),
        _blobs_key(batch_id),
        batch_events_key(batch_id),
        *_status_keys(batch_id),
    ]


def _now() -> str:
    return datetime.now(UTC).isoformat()
