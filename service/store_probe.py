"""Checks that the blob store can be written, for ``GET /ready``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from worker.storage import BlobError, BlobStore


class StoreProbe:
    """Writes to the blob store at intervals and caches the outcome; a store that hangs takes one thread, not more.

    ``patience`` is the seconds to wait for an outcome, ``fresh`` those for which it is cached.
    """

    def __init__(
        self,
        blobs: BlobStore,
        *,
        patience: float = 2.0,
        fresh: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blobs = blobs
        self._patience = patience
        self._fresh = fresh
        self._clock = clock
        self._lock = threading.Lock()
        self._outcome: Future[None] | None = None
        self._started = 0.0

    def require_writable(self) -> None:
        """Return if the store can be written; BlobError if it cannot, or does not answer in time."""
        outcome = self._latest()
        try:
            outcome.result(timeout=self._patience)
        except TimeoutError as error:
            silent = self._clock() - self._started
            raise BlobError(f"the blob store has not answered for {silent:.0f} s") from error

    def _latest(self) -> Future[None]:
        with self._lock:
            outcome = self._outcome
            old = self._clock() - self._started > self._fresh
            if outcome is None or (outcome.done() and old):
                self._outcome = outcome = Future()
                self._started = self._clock()
                # A daemon thread: a store that hangs must not keep the process from ending.
                threading.Thread(target=self._write, args=(outcome,), name="store probe", daemon=True).start()
            return outcome

    def _write(self, outcome: Future[None]) -> None:
        try:
            self._blobs.try_to_write()
        except Exception as error:  # raised again by require_writable
            outcome.set_exception(error)
        else:
            outcome.set_result(None)
