"""Whether the blob store can be written: asked seldom, by one thread at a time, and never waited for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from worker.storage import BlobError, BlobStore

PATIENCE_SECONDS: Final = 2.0
FRESH_SECONDS: Final = 5.0


class StoreProbe:
    """Writes to the blob store now and then, and remembers what came of it.

    A store that hangs costs one thread, however often it is asked for.

    Args:
        blobs: the store.
        patience: seconds that an answer is waited for.
        fresh: seconds for which an answer holds.
        clock: seconds from anywhere, never backwards.
    """

    def __init__(
        self,
        blobs: BlobStore,
        *,
        patience: float = PATIENCE_SECONDS,
        fresh: float = FRESH_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blobs = blobs
        self._patience = patience
        self._fresh = fresh
        self._clock = clock
        self._lock = threading.Lock()
        self._answer: Future[None] | None = None
        self._asked = 0.0

    def require_writable(self) -> None:
        """Return if the store can be written; blocks no longer than its patience.

        Raises:
            BlobError: if it cannot, or does not answer in time.
        """
        answer = self._latest()
        try:
            answer.result(timeout=self._patience)
        except TimeoutError as error:
            silent = self._clock() - self._asked
            raise BlobError(f"the blob store has not answered for {silent:.0f} s") from error

    def _latest(self) -> Future[None]:
        with self._lock:
            answer = self._answer
            old = self._clock() - self._asked > self._fresh
            if answer is None or (answer.done() and old):
                self._answer = answer = Future()
                self._asked = self._clock()
                # A daemon: a store that hangs must not keep the process from ending.
                threading.Thread(
                    target=self._ask, args=(answer,), name="store probe", daemon=True
                ).start()
            return answer

    def _ask(self, answer: Future[None]) -> None:
        try:
            self._blobs.try_to_write()
        except Exception as error:  # whoever waits gets it, whatever it is
            answer.set_exception(error)
        else:
            answer.set_result(None)
