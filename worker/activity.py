"""Whether the main thread gets ahead: it says so itself; another thread looks, which alone can act."""

from __future__ import annotations

import time
from collections.abc import Callable

IDLE_SECONDS = 60.0
"""A wait for jobs ends after 5 s; on a connection that is dead, after three tries of 15 s each."""

LATE_SECONDS = 2.0
"""Trouble begins so much after the moment that was promised: a job that timed out must be failed yet."""


class Activity:
    """When the main thread last got ahead, how long its next step may take, and what is wrong.

    The lease alone proves that a process lives: its thread renews it while the main thread hangs.

    Args:
        clock: seconds from anywhere, never backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failure = ""
        self.rest()

    def expect(self, seconds: float) -> None:
        """Say that the main thread got ahead, and will again within so many seconds."""
        # One tuple, so that the other thread never sees half of a change.
        self._mark = (self._clock(), seconds)

    def rest(self) -> None:
        """Say that the main thread has nothing to do but to wait for jobs."""
        self.expect(IDLE_SECONDS)

    def fail(self, reason: str) -> None:
        """Say for good that this worker is of no use any more, in one line."""
        self._failure = reason

    @property
    def silent(self) -> float:
        """Seconds since the main thread last got ahead."""
        return self._clock() - self._mark[0]

    def overdue(self) -> float:
        """Return for how many seconds what was expected has not happened; 0 if all is well."""
        since, seconds = self._mark
        return max(0.0, self._clock() - since - seconds)

    @property
    def trouble(self) -> str:
        """What is wrong, in one line; empty if nothing is."""
        if self._failure:
            return self._failure
        if self.overdue() <= LATE_SECONDS:
            return ""
        return f"no progress for {self.silent:.0f} s, expected some within {self._mark[1]:.0f} s"
