"""A thread that repeats a task."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from redis.exceptions import RedisError

from worker.storage import BlobError

_log = logging.getLogger(__name__)


class PeriodicThread(threading.Thread):
    """Runs a task at once and then at an interval, until it is stopped.

    Errors of Redis and the blob store are logged, and the task runs again ``interval`` seconds later. Any other
    exception ends the thread and is given to ``on_error``.
    """

    def __init__(
        self,
        task: Callable[[], object],
        *,
        interval: float,
        name: str,
        on_error: Callable[[Exception], object],
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._task = task
        self._interval = interval
        self._on_error = on_error
        self._stopped = threading.Event()

    def run(self) -> None:
        """Repeat the task; see threading.Thread."""
        while not self._stopped.is_set():
            try:
                self._task()
            except (RedisError, BlobError, OSError) as error:
                _log.warning("%s: %s", self.name, error)
            except Exception as error:
                _log.exception("%s: ended by an error", self.name)
                self._on_error(error)
                return
            self._stopped.wait(self._interval)

    def stop(self) -> None:
        """Stop, and wait up to ten seconds for a run that has begun."""
        self._stopped.set()
        if self.is_alive():
            self.join(timeout=10)
