"""Doing something to Redis even if it is away for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from redis.exceptions import RedisError

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS = 600.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0


def persistently(
    action: Callable[[], T],
    *,
    patience: float = PATIENCE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Return what an action returns, tried again with growing pauses while Redis is away.

    Args:
        action: may be done more than once.
        patience: seconds after which to give up.
        sleep: how to pause for some seconds.
        clock: seconds that never go back.

    Raises:
        RedisError: the action's own, when patience is at its end.
    """
    end, pause = clock() + patience, FIRST_PAUSE
    while True:
        try:
            return action()
        except RedisError as error:
            if clock() + pause > end:
                raise
            log.warning("Redis is away, trying again in %.2g s: %s", pause, error)
        sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
