"""Dynamic batching: threads preprocess and postprocess, the main thread sends batches through the networks.

While one batch is in the networks, the next is preprocessed and the one before refined, encoded and stored. Nothing
waits for a batch to fill: whatever is preprocessed when the networks are free goes through them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rq.timeouts import JobTimeoutException, UnixSignalDeathPenalty

from worker.inference.consumer import InFlightJob, JobConsumer
from worker.inference.pipeline import WorkerContext, forward, postprocess
from worker.inference.watchdog import StallDetector
from worker.queue.schema import JobResult

if TYPE_CHECKING:
    from models.inference.forward import ForwardOutput

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_R = TypeVar("_R")

_POLL_SECONDS: Final = 0.01
"""Between two looks at the queue while the networks have nothing to do."""

_LONGEST_SECONDS: Final = 3600.0
"""Of a batch of jobs without a timeout."""

_NO_MEMORY: Final = ("out of memory", "ALLOC_FAILED")


class DeviceLostError(BaseException):
    """The device does not work any more, and only a new process can use it again.

    A BaseException, so that code that retries does not catch it.
    """


class ThreadsStuckError(Exception):
    """Too many threads work on jobs that have timed out, and cannot be stopped."""


@dataclass(frozen=True)
class BatchLimits:
    """Bounds of batches and threads."""

    max_batch_size: int = 8  # images that go through the networks together
    prefetch: int = 16  # preprocessed images that wait, and about as many for postprocessing
    max_pixels: int = 4_000_000  # of a batch, at the networks' own size; a single image may exceed it
    max_pixels_in_memory: int = 200_000_000  # of decoded uploads, beyond which none is prefetched
    threads: int = 2  # that preprocess and postprocess

    def batch_size(self, size: tuple[int, int]) -> int:
        """Return how many images of a size, (H, W), go through the networks together."""
        height, width = size
        return max(1, min(self.max_batch_size, self.max_pixels // (height * width)))


def default_batch_size(device: str) -> int:
    """Return the best batch size: on a CPU eight images took longer than one by one (``docs/results.md``)."""
    return 1 if device == "cpu" else BatchLimits.max_batch_size


def _select_compatible(waiting: Sequence[_T], *, key: Callable[[_T], Hashable], most: int) -> list[_T]:
    """Return the first element, and those after it whose key is the same: at most ``most``, in their order."""
    wanted = key(waiting[0])
    return [each for each in waiting if key(each) == wanted][:most]


def _run_with_split(
    batch: Sequence[_T],
    call: Callable[[Sequence[_T]], Sequence[_R]],
    *,
    is_memory: Callable[[Exception], bool],
    on_halved: Callable[[Sequence[_T]], None],
) -> list[_R | Exception]:
    """Call for a batch; where that fails, for smaller ones, so that each member gets its own result or exception."""
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
    # Outside the except block, because the exception's frames would keep the failed batch's tensors in memory.
    return [
        outcome for part in parts for outcome in _run_with_split(part, call, is_memory=is_memory, on_halved=on_halved)
    ]


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory did not suffice: fewer images at once may do."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def _is_device_lost(error: BaseException) -> bool:
    """Return whether every further call would fail: CUDA keeps its first error until the process ends."""
    if _is_out_of_memory(error):
        return False
    return type(error).__name__ == "AcceleratorError" or str(error).startswith("CUDA error")


class Batcher:
    """Works on jobs until there are none; ``stall`` gets the deadlines of the main thread."""

    def __init__(self, context: WorkerContext, *, limits: BatchLimits, stall: StallDetector) -> None:
        self._context = context
        self._stall = stall
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="job")
        self._waiting: list[InFlightJob] = []  # for their image, then for the networks
        self._ending: list[InFlightJob] = []  # for postprocessing and ack
        self._late: list[Future[Any]] = []

    @property
    def pool(self) -> Executor:
        """The threads that preprocess."""
        return self._pool

    @property
    def stuck_threads(self) -> int:
        """How many threads work on jobs that have failed by their timeout."""
        self._late = [each for each in self._late if not each.done()]
        return len(self._late)

    def work(self, first: Sequence[InFlightJob], consumer: JobConsumer, *, alone: bool) -> None:
        """Work on some jobs and, unless ``alone``, on all that come meanwhile; DeviceLostError, ThreadsStuckError."""
        self._waiting += first
        while self._waiting or self._ending:
            # The consumer may wait for Redis. Only the networks have this thread to themselves.
            self._stall.idle()
            self._fail_late()
            self._ack(consumer)
            if consumer.is_stopping():
                consumer.nack(self._waiting)
                self._waiting = []
            elif not alone and self._has_room():
                self._waiting += consumer.prefetch(self._limits.prefetch - len(self._waiting))
                self._waiting.sort(key=lambda each: each.behind)  # stable: else the oldest first
            ready = [each for each in self._waiting if each.image.done()]
            if ready and len(self._ending) <= self._limits.prefetch:
                self._run_batch(ready, consumer)
            elif self._waiting or self._ending:
                self._wait()
        self._stall.idle()

    def close(self) -> None:
        """End the threads once they have nothing to do."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _has_room(self) -> bool:
        """Return whether to prefetch: several at a time, which takes no more round trips than one."""
        if 2 * len(self._waiting) > self._limits.prefetch:
            return False
        images = (each.image for each in (*self._waiting, *self._ending))
        decoded = (each.result() for each in images if each.done() and not each.exception())
        return sum(each.pixels for each in decoded) < self._limits.max_pixels_in_memory

    def _wait(self) -> None:
        """Wait for a thread to be done with something, though not long: there may be more in the queue."""
        if not any(each.pending.done() for each in self._ending):
            pending: list[Future[Any]] = [each.pending for each in (*self._waiting, *self._ending)]
            undone = [each for each in pending if not each.done()]
            wait(undone, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)

    def _ack(self, consumer: JobConsumer) -> None:
        done = [each for each in self._ending if each.result and each.result.done()]
        self._ending = [each for each in self._ending if each not in done]
        for each in done:
            self._check_device(each)
        if ended := [each for each in done if each.result is not None]:
            consumer.ack(ended)

    def _check_device(self, in_flight: InFlightJob) -> None:
        """Raise DeviceLostError if postprocessing lost the device; where it had no memory, try once more."""
        error = in_flight.error
        if error is None:
            return
        if _is_device_lost(error):
            raise DeviceLostError(str(error)) from error
        if _is_out_of_memory(error) and in_flight.image.exception() is None and not in_flight.retried:
            # Others had the memory: once more, when they are done.
            self._context.predictor.release_memory()
            in_flight.retried, in_flight.result = True, None
            self._waiting.append(in_flight)

    def _fail_late(self) -> None:
        """Fail jobs that a thread has worked on for longer than it may; the thread itself cannot be stopped."""
        late = [each for each in (*self._waiting, *self._ending) if each.is_late()]
        for each in late:
            self._late.append(each.pending)
            each.fail(JobTimeoutException(f"expected a result within {each.timeout} s"))
        self._ending += [each for each in self._waiting if each in late]
        self._waiting = [each for each in self._waiting if each not in late]
        if self.stuck_threads >= self._limits.threads:
            raise ThreadsStuckError(f"expected threads that end, got {self.stuck_threads} that do not")

    def _run_batch(self, ready: Sequence[InFlightJob], consumer: JobConsumer) -> None:
        """Send the first preprocessed job, and those that may share its batch, through the networks."""
        first = ready[0]
        error = first.image.exception()
        if error is not None:
            batch = [first]
        else:
            most = self._limits.batch_size(first.image.result().size)
            batch = _select_compatible(ready, key=_batch_key, most=most)
        self._waiting = [each for each in self._waiting if each not in batch]
        self._ending += batch
        if error is not None:
            first.fail(error)
            return
        outcomes = _run_with_split(
            batch,
            partial(self._forward, consumer=consumer),
            is_memory=_is_out_of_memory,
            on_halved=self._halve,
        )
        for in_flight, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                in_flight.retried = True  # it was alone, and this thread holds no memory any more
                in_flight.fail(outcome)
            else:
                work = partial(self._postprocess, in_flight, *outcome)
                in_flight.result = self._pool.submit(in_flight.timed(work))

    def _forward(self, batch: Sequence[InFlightJob], *, consumer: JobConsumer) -> list[tuple[ForwardOutput, float]]:
        images = [each.image.result() for each in batch]
        limit = min(max(each.timeout for each in batch), _LONGEST_SECONDS)
        self._stall.deadline(limit)
        try:
            # Raises in this thread, the main one, though not while C code runs.
            with UnixSignalDeathPenalty(int(limit), JobTimeoutException):  # type: ignore[no-untyped-call]
                report = consumer.progress_reporter(batch)
                outputs, seconds = forward(images, self._context, report)
            self._context.metrics.batch(size=len(batch), seconds=seconds)
        except Exception as error:
            if _is_device_lost(error):
                raise DeviceLostError(str(error)) from error
            raise
        return [(each, seconds) for each in outputs]

    def _postprocess(self, in_flight: InFlightJob, output: ForwardOutput, seconds: float) -> JobResult:
        image, waited = in_flight.image.result(), in_flight.waited
        return postprocess(image, output, self._context, waited=waited, forward_seconds=seconds)

    def _halve(self, batch: Sequence[InFlightJob]) -> None:
        height, width = batch[0].image.result().size
        self._limits = replace(self._limits, max_pixels=len(batch) * height * width // 2)
        self._context.predictor.release_memory()
        self._context.metrics.halved()
        _log.warning("out of memory with %d images: at most half from now on", len(batch))


def _batch_key(in_flight: InFlightJob) -> Hashable:
    """An image that failed to be preprocessed shares no batch."""
    return id(in_flight) if in_flight.image.exception() else in_flight.image.result().batch_key
