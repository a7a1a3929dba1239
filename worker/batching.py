"""Which jobs go through the model together, and what becomes of a batch that fails. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def mates(waiting: Sequence[T], *, key: Callable[[T], Hashable], most: int) -> list[T]:
    """Return the first that waits and those that may share its batch, in their order.

    Args:
        waiting: oldest first, not empty.
        key: equal for those that may share a batch.
        most: how many a batch of the first one's key may hold, at least 1.
    """
    wanted = key(waiting[0])
    return [each for each in waiting if key(each) == wanted][:most]


def run_batch(
    batch: Sequence[T],
    call: Callable[[Sequence[T]], Sequence[R]],
    *,
    is_memory: Callable[[Exception], bool],
    on_halved: Callable[[Sequence[T]], None],
) -> list[R | Exception]:
    """Call for a batch; where that fails, for smaller ones, so that each gets its own outcome.

    Out of memory, the batch is halved; after anything else its members are tried one by one, and what fails alone has
    failed.

    Args:
        batch: not empty.
        call: the same number of results, or an exception.
        is_memory: whether an exception says that the memory did not suffice.
        on_halved: told which ones were too many.

    Returns:
        For each member its result, or the exception that it raised alone.
    """
    try:
        made = call(batch)
    except Exception as error:
        if len(batch) == 1:
            return [error]
        size = 1
        if is_memory(error):
            on_halved(batch)
            size = (len(batch) + 1) // 2
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
    else:
        return list(made)
    # Out here, for an exception's frames would keep the failed batch's tensors in memory.
    return [
        outcome
        for part in parts
        for outcome in run_batch(part, call, is_memory=is_memory, on_halved=on_halved)
    ]
