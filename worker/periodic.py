"""A thread that does something again and again, whatever the main thread is busy with."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from redis.exceptions import RedisError

from worker.storage import BlobError

log = logging.getLogger(__name__)


class Pulse(threading.Thread):
    """Calls an action at once and then at an interval, until it is stopped.

    Redis or the blob store being away is logged and outlived; any other exception ends the thread,
    and ``on_death`` is told.

    Args:
        action: what to do.
        interval: seconds between one call's end and the next.
        name: for the log.
        on_death: called with the exception that ended the thread.
    """

    def __init__(
        self,
        action: Callable[[], object],
        *,
        interval: float,
        name: str,
        on_death: Callable[[Exception], object],
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._action = action
        self._interval = interval
        self._on_death = on_death
        self._stopped = threading.Event()

    def run(self) -> None:
        """Beat until stopped; see threading.Thread."""
        while not self._stopped.is_set():
            try:
                self._action()
            except (RedisError, BlobError, OSError) as error:
                log.warning("%s: %s", self.name, error)
            except Exception as error:
                log.exception("%s: died", self.name)
                self._on_death(error)
                return
            self._stopped.wait(self._interval)

    def stop(self) -> None:
        """Stop, and wait for a call that is under way."""
        self._stopped.set()
        if self.is_alive():
            self.join(timeout=10)
