"""The items of a batch in Redis, each in exactly one state; it is moved once, whoever else tries it too. Wire layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

from redis import Redis
from redis.client import Pipeline

from worker import batch_scripts as scripts
from worker.batch_keys import (
    ITEM_STATUSES,
    ItemStatus,
    batch_events_key,
    blobs_key,
    items_key,
    outcomes_key,
    status_key,
)
from worker.batch_records import OPEN_SECONDS, BatchItem, ItemOutcome
from worker.events import MAX_EVENTS

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
    return pipeline.eval(scripts.MOVE, len(keys), *keys, number, written, mask)


def tell_counts(redis: Redis, batch_id: str, counts: dict[ItemStatus, int]) -> None:
    """Write how many items are in which state at the end of the batch's stream."""
    key, entry = batch_events_key(batch_id), {"event": "counts", "data": json.dumps(counts)}
    with redis.pipeline() as pipeline:
        pipeline.xadd(key, cast("dict[Any, Any]", entry), maxlen=MAX_EVENTS)
        pipeline.expire(key, OPEN_SECONDS)
        pipeline.execute()
