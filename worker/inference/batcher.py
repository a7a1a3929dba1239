"""Jobs on their way through the worker: decoding and concluding in threads, the networks in this one.

While one batch is in the networks, the next is being decoded and the one before refined, encoded and stored. Nothing
waits for a batch to fill: whatever is decoded when the networks are free goes through them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

from models.inference.masks import OnProgress
from worker.inference.consumer import Hand
from worker.inference.pipeline import HalfDone, Photo, Runtime, activate, conclude
from worker.inference.watchdog import Activity
from worker.queue.schema import JobResult

# Which jobs go through the model together, and what becomes of a batch that fails. Pure functions.

T = TypeVar("T")
R = TypeVar("R")


def mates(waiting: Sequence[T], *, key: Callable[[T], Hashable], most: int) -> list[T]:
    """Return the first that waits and those that may share its batch, in their order.

    Args:
        waiting: oldest first, not empty.
        key: equal for those that may share a batch.
        most: how many a batch of the first one's key may hold, at least 1.
    """
    wanted = key(waiting[0])
    return [each for each in waiting if key(each) == wanted][:most]


def run_batch(
    batch: Sequence[T],
    call: Callable[[Sequence[T]], Sequence[R]],
    *,
    is_memory: Callable[[Exception], bool],
    on_halved: Callable[[Sequence[T]], None],
) -> list[R | Exception]:
    """Call for a batch; where that fails, for smaller ones, so that each gets its own outcome.

    Out of memory, the batch is halved; after anything else its members are tried one by one, and what fails alone has
    failed.

    Args:
        batch: not empty.
        call: the same number of results, or an exception.
        is_memory: whether an exception says that the memory did not suffice.
        on_halved: told which ones were too many.

    Returns:
        For each member its result, or the exception that it raised alone.
    """
    try:
        made = call(batch)
    except Exception as error:
        if len(batch) == 1:
            return [error]
        size = 1
        if is_memory(error):
            on_halved(batch)
            size = (len(batch) + 1) // 2
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
    else:
        return list(made)
    # Out here, for an exception's frames would keep the failed batch's tensors in memory.
    return [
        outcome
        for part in parts
        for outcome in run_batch(part, call, is_memory=is_memory, on_halved=on_halved)
    ]


# How many jobs a worker has where at once.


def usual_batch(device: str) -> int:
    """Return how many photos are best sent through the networks together.

    A GPU is filled by several; on a CPU one fills the caches, and eight took longer than one after the other
    (``docs/results.md``).
    """
    return 1 if device == "cpu" else Sizes.batch


@dataclass(frozen=True)
class Sizes:
    """Bounds of batches and threads.

    Attributes:
        batch: most photos that go through the networks together.
        ahead: most that wait for the networks decoded, and about as many that wait to be concluded.
        pixels: most pixels that do, at the networks' own size; one photo always may.
        held: pixels of decoded photos in hand, beyond which no more jobs are taken.
        threads: that decode photos, refine and store.
    """

    batch: int = 8
    ahead: int = 16
    pixels: int = 4_000_000
    held: int = 200_000_000
    threads: int = 2

    def most(self, size: tuple[int, int]) -> int:
        """Return how many photos of a size, (H, W), go through the networks together."""
        height, width = size
        return max(1, min(self.batch, self.pixels // (height * width)))


# What a model's exceptions say of the device. torch is not imported here: its errors are known by name.

_NO_MEMORY = ("out of memory", "ALLOC_FAILED")


class DeviceLostError(BaseException):
    """The device does not work any more, and only a new process can have it back.

    No Exception, so that nothing that tries again swallows it.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory did not suffice: fewer photos at once may do."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    # The libraries below torch say it in words alone.
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Return whether every further call would fail: CUDA keeps its first error until the process ends."""
    if is_out_of_memory(error):
        return False
    return type(error).__name__ == "AcceleratorError" or str(error).startswith("CUDA error")


log = logging.getLogger(__name__)

# How often the queue is looked at while there is nothing for the networks to do, in seconds.
POLL_SECONDS = 0.01

# Of a batch of jobs that may take for ever.
LONGEST_SECONDS = 3600.0


class Desk(Protocol):
    """Where jobs come from and go to; see ``worker.inference.worker``."""

    def more(self, most: int) -> list[Hand]:
        """Return jobs that wait, at most so many; does not wait itself."""
        ...

    def is_closing(self) -> bool:
        """Return whether no more jobs are welcome."""
        ...

    def release(self, hands: Sequence[Hand]) -> None:
        """Put jobs back that have not been through the networks."""
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

    def __init__(self, runtime: Runtime, *, sizes: Sizes, watch: Activity) -> None:
        self._runtime = runtime
        self._watch = watch
        self._sizes = sizes
        self._pool = ThreadPoolExecutor(sizes.threads, thread_name_prefix="job")
        self._waiting: list[Hand] = []
        self._ending: list[Hand] = []
        self._late: list[Future[Any]] = []

    @property
    def pool(self) -> Executor:
        """The threads in which photos are decoded."""
        return self._pool

    @property
    def stuck(self) -> int:
        """How many threads work on jobs that have failed because their time was over."""
        self._late = [each for each in self._late if not each.done()]
        return len(self._late)

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
            # The desk may wait for Redis; what threads do is looked at here. Only the networks have this thread to
            # themselves, and are watched from outside.
            self._watch.rest()
            self._give_up_late()
            self._settle(desk)
            if desk.is_closing():
                desk.release(self._waiting)
                self._waiting = []
            elif not alone and self._has_room():
                self._waiting += desk.more(self._sizes.ahead - len(self._waiting))
            ready = [hand for hand in self._waiting if hand.decoded.done()]
            if ready and len(self._ending) <= self._sizes.ahead:
                self._through_networks(ready, desk)
            elif self._waiting or self._ending:
                self._wait()
        self._watch.rest()

    def close(self) -> None:
        """End the threads once they have nothing to do."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _has_room(self) -> bool:
        """Return whether more jobs are welcome: several at a time, which takes no more round trips than one."""
        if 2 * len(self._waiting) > self._sizes.ahead:
            return False
        photos = (hand.decoded for hand in (*self._waiting, *self._ending))
        held = (each.result() for each in photos if each.done() and not each.exception())
        return sum(photo.pixels for photo in held) < self._sizes.held

    def _wait(self) -> None:
        """Wait for a thread to be done with something, though not long: there may be more in the queue."""
        if not any(hand.pending.done() for hand in self._ending):
            pending: list[Future[Any]] = [hand.pending for hand in (*self._waiting, *self._ending)]
            undone = [each for each in pending if not each.done()]
            wait(undone, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)

    def _settle(self, desk: Desk) -> None:
        done = [hand for hand in self._ending if hand.concluded and hand.concluded.done()]
        self._ending = [hand for hand in self._ending if hand not in done]
        for hand in done:
            self._look_at_device(hand)
        if settled := [hand for hand in done if hand.concluded is not None]:
            desk.settle(settled)

    def _look_at_device(self, hand: Hand) -> None:
        """See whether a job failed by the device, which refinement uses too, and not by itself.

        Raises:
            DeviceLostError: if the device does not work any more.
        """
        error = hand.error
        if error is None:
            return
        if is_device_lost(error):
            raise DeviceLostError(str(error)) from error
        if is_out_of_memory(error) and hand.decoded.exception() is None and not hand.again:
            # Others had the memory: once more, when they are done.
            self._runtime.predictor.release_memory()
            hand.again, hand.concluded = True, None
            self._waiting.append(hand)

    def _give_up_late(self) -> None:
        """Fail what a thread has had for longer than it may; the thread itself cannot be stopped."""
        late = [hand for hand in (*self._waiting, *self._ending) if hand.is_late()]
        for hand in late:
            self._late.append(hand.pending)
            hand.fail(JobTimeoutException(f"expected a result within {hand.timeout} s"))
        self._ending += [hand for hand in self._waiting if hand in late]
        self._waiting = [hand for hand in self._waiting if hand not in late]
        if self.stuck >= self._sizes.threads:
            raise ThreadsStuckError(f"expected threads that end, got {self.stuck} that do not")

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
                hand.again = True  # it was alone, and this thread has let go of all memory
                hand.fail(outcome)
            else:
                hand.concluded = self._pool.submit(
                    hand.timed(partial(self._conclude, hand, *outcome))
                )

    def _most(self, hand: Hand) -> int:
        return self._sizes.most(hand.decoded.result().size)

    def _activate(self, batch: Sequence[Hand], *, desk: Desk) -> list[tuple[HalfDone, float]]:
        photos = [hand.decoded.result() for hand in batch]
        limit = min(max(hand.timeout for hand in batch), LONGEST_SECONDS)
        self._watch.expect(limit)
        try:
            with _time_limit(limit):
                made, seconds = activate(photos, self._runtime, desk.reporter(batch))
            self._runtime.meters.batch(size=len(batch), seconds=seconds)
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
        self._runtime.meters.halved()
        log.warning(
            "out of memory with %d photos at once: no more than half from now on", len(batch)
        )


def _time_limit(seconds: float) -> AbstractContextManager[None]:
    """Raise JobTimeoutException in this thread, the main one, when the time is over; C code is not interrupted."""
    return UnixSignalDeathPenalty(int(seconds), JobTimeoutException)  # type: ignore[no-untyped-call]


def _key(hand: Hand) -> Hashable:
    """What failed to be decoded has no mates."""
    return id(hand) if hand.decoded.exception() else hand.decoded.result().key
