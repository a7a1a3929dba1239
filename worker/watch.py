"""Whether the main thread gets ahead: looked at by another thread, which alone can act when it does not."""

from __future__ import annotations

import time
from collections.abc import Callable


class Watch:
    """Holds the moment until which something must have happened.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: float | None = None

    def expect(self, seconds: float) -> None:
        """Something will happen within so many seconds from now."""
        self._until = self._clock() + seconds

    def rest(self) -> None:
        """There is nothing to do."""
        self._until = None

    def overdue(self) -> float:
        """Return for how many seconds what should have happened has not; 0 if all is well."""
        until = self._until
        return 0.0 if until is None else max(0.0, self._clock() - until)
