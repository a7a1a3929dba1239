"""Jobs on their way through the worker: decoding and concluding in threads, the networks in this one.

While one batch is in the networks, the next is being decoded and the one before refined, encoded and stored. Nothing
waits for a batch to fill: whatever is decoded when the networks are free goes through them.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

from models.photos import OnProgress
from worker.batching import mates, run_batch
from worker.device import DeviceLostError, is_device_lost, is_out_of_memory
from worker.hand import Hand
from worker.protocol import JobResult
from worker.runtime import HalfDone, Runtime
from worker.sizes import Sizes
from worker.steps import Photo, activate, conclude
from worker.watch import Watch

log = logging.getLogger(__name__)

# How often the queue is looked at while there is nothing for the networks to do, in seconds.
POLL_SECONDS = 0.01


class Desk(Protocol):
    """Where jobs come from and go to; see ``worker.loop``."""

    def more(self, most: int) -> list[Hand]:
        """Return jobs that wait, at most so many; does not wait itself."""
        ...

    def settle(self, hands: Sequence[Hand]) -> None:
        """Finish jobs that are concluded."""
        ...

    def reporter(self, hands: Sequence[Hand]) -> OnProgress:
        """Return what tells how far jobs are, and raises JobCanceledError if none is wanted any more."""
        ...


class ThreadsStuckError(Exception):
    """Too many threads work on jobs whose time is over, and cannot be stopped."""


class Conveyor:
    """Works on jobs until there are none.

    Args:
        runtime: what to do the work with.
        sizes: how many at once.
        watch: told what to expect of this thread.
    """

    def __init__(self, runtime: Runtime, *, sizes: Sizes, watch: Watch) -> None:
        self._runtime = runtime
        self._watch = watch
        self._sizes = sizes
        self._stuck = 0
        self._pool = ThreadPoolExecutor(sizes.threads, thread_name_prefix="job")
        self._waiting: list[Hand] = []
        self._ending: list[Hand] = []

    @property
    def pool(self) -> Executor:
        """The threads in which photos are decoded."""
        return self._pool

    def work(self, first: Sequence[Hand], desk: Desk, *, alone: bool) -> None:
        """Work on some jobs and, unless they are to be alone, on all that come meanwhile.

        Args:
            first: what there is to begin with.
            desk: where jobs come from and go to.
            alone: whether no others are to be in hand meanwhile.

        Raises:
            DeviceLostError: if the model's device does not work any more.
            ThreadsStuckError: if no thread is left.
        """
        self._waiting += first
        while self._waiting or self._ending:
            self._give_up_late()
            self._watch.rest()  # the desk may wait for Redis, and that is no reason to end
            self._settle(desk)
            if not alone:
                self._waiting += desk.more(2 * self._sizes.batch - len(self._waiting))
            self._watch.expect(
                max((hand.timeout for hand in (*self._waiting, *self._ending)), default=0.0)
            )
            ready = [hand for hand in self._waiting if hand.decoded.done()]
            if ready and len(self._ending) <= 2 * self._sizes.batch:
                self._through_networks(ready, desk)
            elif self._waiting or self._ending:
                self._wait()
        self._watch.rest()

    def close(self) -> None:
        """End the threads once they have nothing to do."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _wait(self) -> None:
        decoding: list[Future[Any]] = [hand.decoded for hand in self._waiting]
        concluding = [hand.concluded for hand in self._ending if hand.concluded is not None]
        pending = [each for each in (*decoding, *concluding) if not each.done()]
        if len(pending) == len(decoding) + len(concluding):
            wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)

    def _settle(self, desk: Desk) -> None:
        done = [hand for hand in self._ending if hand.concluded and hand.concluded.done()]
        if done:
            self._ending = [hand for hand in self._ending if hand not in done]
            desk.settle(done)

    def _give_up_late(self) -> None:
        """Fail what has been in a thread for longer than its job may take; the thread itself cannot be stopped."""
        for hand in (*self._waiting, *self._ending):
            if hand.is_late():
                self._stuck += 1
                hand.fail(JobTimeoutException(f"expected a result within {hand.timeout} s"))
        late = [hand for hand in self._waiting if hand.concluded is not None]
        self._waiting = [hand for hand in self._waiting if hand not in late]
        self._ending += late
        if self._stuck >= self._sizes.threads:
            raise ThreadsStuckError(f"expected threads that end, got {self._stuck} that do not")

    def _through_networks(self, ready: Sequence[Hand], desk: Desk) -> None:
        """Send the oldest decoded job and its mates through the networks, and have them concluded."""
        oldest = ready[0]
        error = oldest.decoded.exception()
        batch = [oldest] if error else mates(ready, key=_key, most=self._most(oldest))
        self._waiting = [hand for hand in self._waiting if hand not in batch]
        self._ending += batch
        if error is not None:
            oldest.fail(error)
            return
        outcomes = run_batch(
            batch,
            partial(self._activate, desk=desk),
            is_memory=is_out_of_memory,
            on_halved=self._halved,
        )
        for hand, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                hand.fail(outcome)
            else:
                hand.conclude_with(self._pool.submit(self._conclude, hand, *outcome))

    def _most(self, hand: Hand) -> int:
        return self._sizes.most(hand.decoded.result().size)

    def _activate(self, batch: Sequence[Hand], *, desk: Desk) -> list[tuple[HalfDone, float]]:
        photos = [hand.decoded.result() for hand in batch]
        limit = max(hand.timeout for hand in batch)
        self._watch.expect(limit)
        try:
            with _time_limit(limit):
                made, seconds = activate(photos, self._runtime, desk.reporter(batch))
        except Exception as error:
            if is_device_lost(error):
                raise DeviceLostError(str(error)) from error
            raise
        return [(each, seconds) for each in made]

    def _conclude(self, hand: Hand, half_done: HalfDone, seconds: float) -> JobResult:
        photo: Photo = hand.decoded.result()
        return conclude(photo, half_done, self._runtime, waited=hand.waited, activated=seconds)

    def _halved(self, batch: Sequence[Hand]) -> None:
        height, width = batch[0].decoded.result().size
        self._sizes = replace(self._sizes, pixels=len(batch) * height * width // 2)
        self._runtime.predictor.release_memory()
        log.warning(
            "out of memory with %d photos at once: no more than half from now on", len(batch)
        )


def _time_limit(seconds: float) -> AbstractContextManager[None]:
    """Raise JobTimeoutException in this thread, the main one, when the time is over; C code is not interrupted."""
    return UnixSignalDeathPenalty(int(seconds), JobTimeoutException)  # type: ignore[no-untyped-call]


def _key(hand: Hand) -> Hashable:
    """What failed to be decoded has no mates."""
    return id(hand) if hand.decoded.exception() else hand.decoded.result().key
