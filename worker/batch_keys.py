"""Where in Redis batches are, and which blobs they keep. Wire layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, cast, get_args

from redis import Redis

ItemStatus = Literal["waiting", "queued", "running", "finished", "failed", "canceled"]
ITEM_STATUSES: Final[tuple[ItemStatus, ...]] = get_args(ItemStatus)
"""Waiting: not yet handed to the queue."""

KNOWN_KEY: Final = "semples:batches"
"""Sorted set of the batches that are known, by the time they were made."""

OPEN_KEY: Final = "semples:batches:open"
"""Likewise, of those that have not ended."""

TURN_KEY: Final = "semples:batches:turn"
"""There while a janitor feeds the queue."""


def batch_key(batch_id: str) -> str:
    """Return the key of a batch's hash: ``record``, ``status`` (open, finished or canceled), ``ended_at``."""
    return f"semples:batch:{batch_id}"


def items_key(batch_id: str) -> str:
    """Return the key of the list of a batch's items, number 1 first."""
    return f"{batch_key(batch_id)}:items"


def status_key(batch_id: str, status: ItemStatus) -> str:
    """Return the key of the sorted set of the numbers of the items in a state; each item is in one."""
    return f"{batch_key(batch_id)}:{status}"


def outcomes_key(batch_id: str) -> str:
    """Return the key of the hash of what became of items, by number."""
    return f"{batch_key(batch_id)}:outcomes"


def blobs_key(batch_id: str) -> str:
    """Return the key of the set of blobs that a batch keeps: its zip, and its masks."""
    return f"{batch_key(batch_id)}:blobs"


def batch_events_key(batch_id: str) -> str:
    """Return the key of the stream of a batch's counts."""
    return f"{batch_key(batch_id)}:events"


def zip_key(archive: str) -> str:
    """Return the key that is there while a batch with a zip is opened or forgotten."""
    return f"semples:batches:{archive}"


def keys_of(batch_id: str) -> list[str]:
    """Return all keys of a batch, its own first."""
    return [
        batch_key(batch_id),
        items_key(batch_id),
        outcomes_key(batch_id),
        blobs_key(batch_id),
        batch_events_key(batch_id),
        *(status_key(batch_id, status) for status in ITEM_STATUSES),
    ]


def known_batches(redis: Redis) -> list[str]:
    """Return the ids of the batches that there are, the oldest first; those that have expired are dropped."""
    ids = [each.decode() for each in cast("list[bytes]", redis.zrange(KNOWN_KEY, 0, -1))]
    with redis.pipeline(transaction=False) as pipeline:
        for each in ids:
            # Not the hash: while a batch is being made, only its blobs are there.
            pipeline.exists(blobs_key(each))
        there = dict(zip(ids, pipeline.execute(), strict=True))
    gone = [each for each in ids if not there[each]]
    if gone:
        redis.zrem(KNOWN_KEY, *gone)
        redis.zrem(OPEN_KEY, *gone)
    return [each for each in ids if there[each]]


def kept(redis: Redis, keys: Sequence[str]) -> frozenset[str]:
    """Return those of some blobs that a batch keeps.

    Raises:
        RedisError: if Redis is away.
    """
    if not keys:
        return frozenset()
    with redis.pipeline(transaction=False) as pipeline:
        for batch_id in known_batches(redis):
            pipeline.smismember(blobs_key(batch_id), list(keys))
        answers: list[list[int]] = pipeline.execute()
    return frozenset(key for key, *has in zip(keys, *answers, strict=True) if any(has))
