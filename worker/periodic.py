"""A thread that repeats a task, whatever the main thread is busy with."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from redis.exceptions import RedisError

from worker.storage import BlobError

log = logging.getLogger(__name__)


class PeriodicThread(threading.Thread):
    """Runs a task at once and then at an interval, until it is stopped.

    Errors of Redis and the blob store are logged, and the task runs again. Any other exception ends the thread.

    Args:
        task: what to do.
        interval: seconds between one run's end and the next.
        name: of the thread, for the log.
        on_error: called with the exception that ended the thread.
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
                log.warning("%s: %s", self.name, error)
            except Exception as error:
                log.exception("%s: ended by an error", self.name)
                self._on_error(error)
                return
            self._stopped.wait(self._interval)

    def stop(self) -> None:
        """Stop, and wait up to ten seconds for a run that has begun."""
        self._stopped.set()
        if self.is_alive():
            self.join(timeout=10)
