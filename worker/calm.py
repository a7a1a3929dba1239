"""Whether a lease that has run out tells of a death: not when Redis was away and nobody could renew any."""

from __future__ import annotations

import time
from collections.abc import Callable


class Calm:
    """Sees from one worker's own beats whether the others can have made theirs.

    Args:
        lease: seconds within which every living worker renews its leases once Redis is there.
        pause: seconds between two beats that say that Redis was away.
        clock: seconds that never go back.
    """

    def __init__(
        self, *, lease: float, pause: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lease = lease
        self._pause = pause
        self._clock = clock
        self._last = self._since = float("-inf")

    def all_have_beaten(self) -> bool:
        """Note a beat that went well; return whether they have for a whole lease.

        A worker that has just started does not know what was before.
        """
        now = self._clock()
        if now - self._last > self._pause:
            self._since = now
        self._last = now
        return now - self._since >= self._lease
