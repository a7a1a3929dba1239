"""Doing something even if what it needs is away for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from redis.exceptions import RedisError

log = logging.getLogger(__name__)

T = TypeVar("T")


@contextmanager
def whether_or_not_redis_answers(what: str) -> Iterator[None]:
    """Go on where Redis is away, and log what was left out."""
    try:
        yield
    except RedisError as error:
        log.warning("%s: %s", what, error)


PATIENCE_SECONDS = 600.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0


def persistently(
    action: Callable[[], T],
    *,
    passes: Callable[[Exception], bool] = lambda error: isinstance(error, RedisError),
    patience: float = PATIENCE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Return what an action returns, tried again with growing pauses while what it needs is away.

    Args:
        action: may be done more than once.
        passes: whether an exception is one of those that pass by themselves; those of Redis.
        patience: seconds after which to give up.
        sleep: how to pause for some seconds.
        clock: seconds that never go back.

    Raises:
        Exception: the action's own, at once if it does not pass, else when patience is at its end.
    """
    end, pause = clock() + patience, FIRST_PAUSE
    while True:
        try:
            return action()
        except Exception as error:
            if not passes(error) or clock() + pause > end:
                raise
            log.warning("trying again in %.2g s: %s", pause, error)
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
