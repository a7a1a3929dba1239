"""Which jobs share a batch, what a failure does to the others, and jobs on their way through threads and networks."""

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from rq.timeouts import JobTimeoutException

from models.inference.masks import MaskOptions, Segmentation
from tests.helpers.service_doubles import DoublePredictor, HalfDone
from tests.helpers.service_fixtures import png, wait_for
from tests.helpers.undisturbed import context_of
from worker.inference.batcher import (
    Batcher,
    BatchLimits,
    DeviceLostError,
    ThreadsStuckError,
    _is_device_lost,
    _is_out_of_memory,
    _run_with_split,
    _select_compatible,
    default_batch_size,
)
from worker.inference.consumer import InFlightJob
from worker.inference.pipeline import preprocess
from worker.inference.watchdog import StallDetector
from worker.queue.rq import JobCanceledError
from worker.queue.schema import JobRequest, JobResult, ModelRef
from worker.storage import BlobMissingError


def test_a_batch_has_one_key_and_keeps_the_order() -> None:
    waiting = ["a1", "b1", "a2", "a3", "b2"]
    assert _select_compatible(waiting, key=lambda each: each[0], most=8) == ["a1", "a2", "a3"]
    assert _select_compatible(waiting, key=lambda each: each[0], most=2) == ["a1", "a2"]
    assert _select_compatible(waiting[1:], key=lambda each: each[0], most=8) == ["b1", "b2"]


@pytest.mark.parametrize(("pixels", "most"), [(100, 1), (599, 1), (1200, 2), (1799, 2), (10_000, 4)])
def test_batches_are_bounded_by_number_and_pixels(pixels: int, most: int) -> None:
    limits = BatchLimits(max_batch_size=4, max_pixels=pixels, threads=1)
    assert limits.batch_size((20, 30)) == most


def test_a_cpu_takes_one_image_at_a_time() -> None:
    assert [default_batch_size(device) for device in ("cpu", "cuda", "cuda:1")] == [1, 8, 8]


class Model:
    """Doubles numbers; has no memory for more than ``fits`` at once, and fails at negative ones."""

    def __init__(self, fits: int = 100) -> None:
        self.fits = fits
        self.calls: list[list[int]] = []

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.calls.append(list(batch))
        if len(batch) > self.fits:
            raise MemoryError
        if min(batch) < 0:
            raise ValueError(f"expected no negative number, got {min(batch)}")
        return [2 * each for each in batch]


def run(model: Model, batch: Sequence[int]) -> tuple[list[int | Exception], list[int]]:
    halved: list[int] = []
    outcomes = _run_with_split(
        batch, model, is_memory=_is_out_of_memory, on_halved=lambda part: halved.append(len(part))
    )
    return outcomes, halved


def test_a_batch_that_works_is_one_call() -> None:
    model = Model()
    assert run(model, [1, 2, 3]) == ([2, 4, 6], [])
    assert model.calls == [[1, 2, 3]]


def test_a_batch_that_fails_is_tried_one_by_one() -> None:
    model = Model()
    outcomes, halved = run(model, [1, -2, 3])
    assert (outcomes[0], outcomes[2]) == (2, 6)
    assert str(outcomes[1]) == "expected no negative number, got -2"
    assert model.calls == [[1, -2, 3], [1], [-2], [3]]
    assert halved == []


def test_out_of_memory_halves() -> None:
    model = Model(fits=2)
    assert run(model, [1, 2, 3, 4, 5]) == ([2, 4, 6, 8, 10], [5, 3])
    assert model.calls == [[1, 2, 3, 4, 5], [1, 2, 3], [1, 2], [3], [4, 5]]


def test_one_that_does_not_fit_alone_has_no_memory() -> None:
    outcomes, halved = run(Model(fits=0), [1, 2])
    assert all(isinstance(each, MemoryError) for each in outcomes)
    assert halved == [2]


def test_what_ends_the_process_is_not_tried_again() -> None:
    def call(batch: Sequence[int]) -> list[int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _run_with_split([1, 2], call, is_memory=_is_out_of_memory, on_halved=lambda _part: None)


def test_what_exceptions_say_of_the_device() -> None:
    # As torch names them.
    class OutOfMemoryError(RuntimeError):
        pass

    class AcceleratorError(RuntimeError):
        pass

    assert _is_out_of_memory(OutOfMemoryError("CUDA out of memory"))
    assert not _is_device_lost(OutOfMemoryError("CUDA error: out of memory"))
    assert _is_device_lost(AcceleratorError("device-side assert triggered"))
    assert _is_device_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not _is_device_lost(RuntimeError("expected 3 channels"))


class Recorder(DoublePredictor):
    """Notes what goes through its networks together, and waits in ``postprocess`` where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []
        self.labels: list[str] = []
        self.released = 0
        self.hold: threading.Event | None = None
        self.pause = 0.0
        self.errors: list[Exception] = []

    def _activate(self, batch: Any, found: Any, on_progress: Any) -> Any:
        self.batches.append([each.image.shape[:2] for each in batch])
        self.labels += [each.labels[0] for each in batch]
        on_progress("cam", 0.0)
        return super()._activate(batch, found, on_progress)

    def postprocess(self, half_done: HalfDone) -> Segmentation:
        if self.hold is not None:
            self.hold.wait(30)
        if self.errors:
            raise self.errors.pop()
        time.sleep(self.pause)
        return super().postprocess(half_done)

    def release_memory(self) -> None:
        self.released += 1


@dataclass
class Line:
    """A consumer whose jobs are all there from the start."""

    jobs: list[InFlightJob]
    ended: dict[str, Future[JobResult]] = field(default_factory=dict)
    canceled: set[str] = field(default_factory=set)
    asked: int = 0
    closing: bool = False
    put_back: list[InFlightJob] = field(default_factory=list)

    def prefetch(self, count: int) -> list[InFlightJob]:
        self.asked += 1
        taken, self.jobs = self.jobs[: max(0, count)], self.jobs[max(0, count) :]
        return taken

    def is_stopping(self) -> bool:
        return self.closing

    def nack(self, jobs: Sequence[InFlightJob]) -> None:
        self.put_back += jobs

    def ack(self, jobs: Sequence[InFlightJob]) -> None:
        for each in jobs:
            assert each.job.id not in self.ended
            assert each.result is not None
            self.ended[each.job.id] = each.result

    def progress_reporter(self, jobs: Sequence[InFlightJob]) -> Any:
        def report(stage: str, fraction: float) -> None:
            if all(each.job.id in self.canceled for each in jobs):
                raise JobCanceledError("expected a job that is not canceled")

        return report

    def outcomes(self) -> list[str]:
        """The end of each job, by label."""
        return sorted(
            f"{job_id.partition('-')[0]} {type(each.exception() or each.result()).__name__}"
            for job_id, each in self.ended.items()
        )


class Works:
    """A batcher with a recording predictor, and jobs for it."""

    def __init__(self, *, batch: int = 4, pixels: int = 10**6, in_memory: int = 10**9) -> None:
        self.predictor = Recorder()
        self.context = context_of(self.predictor)
        self.stall = StallDetector()
        limits = BatchLimits(max_batch_size=batch, max_pixels=pixels, max_pixels_in_memory=in_memory)
        self.batcher = Batcher(self.context, limits=limits, stall=self.stall)

    def job(
        self, label: str, *, width: int = 30, timeout: int = 30, behind: bool = False, image: Future[Any] | None = None
    ) -> InFlightJob:
        """A job named by its label and a number; preprocessed at once, so that batches are no matter of luck."""
        request = JobRequest(
            image=self.context.blobs.put("uploads", png(width=width)),
            labels=(label,),
            options=MaskOptions(refine="none", min_confidence=0.0, background_threshold=0.4),
            model=ModelRef(name="double", version="1"),
        )
        job: Any = SimpleNamespace(id=f"{label}-{uuid.uuid4().hex}", timeout=timeout)
        lease: Any = None  # nothing looks at it here
        if image is None:
            image = Future()
            image.set_result(preprocess(request, self.context))
        return InFlightJob(job, lease, 0.0, behind, image)

    def work(self, jobs: list[InFlightJob], line: Line | None = None, *, alone: bool = False) -> Line:
        line = line or Line(jobs[1:])
        consumer: Any = line
        self.batcher.work(jobs[:1], consumer, alone=alone)
        return line


@pytest.fixture
def works() -> Iterator[Works]:
    works = Works()
    yield works
    works.batcher.close()


def test_jobs_of_one_size_share_a_batch(works: Works) -> None:
    wide = [works.job("cat", width=30) for _ in range(3)]
    narrow = [works.job("cat", width=20) for _ in range(2)]
    line = works.work([wide[0], narrow[0], wide[1], narrow[1], wide[2]])
    assert works.predictor.batches == [[(20, 30)] * 3, [(20, 20)] * 2]
    assert line.outcomes() == ["cat JobResult"] * 5
    assert works.stall.overdue() == 0


def test_batches_are_no_larger_than_they_may_be() -> None:
    works = Works(pixels=3 * 20 * 30)
    line = works.work([works.job("cat") for _ in range(7)])
    assert [len(batch) for batch in works.predictor.batches] == [3, 3, 1]
    assert len(line.ended) == 7
    works.batcher.close()


def test_interactive_jobs_go_through_the_networks_before_items_of_batches() -> None:
    works = Works(batch=1)
    items = [works.job("bowl", behind=True) for _ in range(3)]
    line = works.work([items[0]], Line([*items[1:], works.job("cat")]))
    assert works.predictor.labels == ["cat", "bowl", "bowl", "bowl"]
    assert len(line.ended) == 4
    works.batcher.close()


def test_a_job_that_is_to_be_alone_is(works: Works) -> None:
    line = works.work([works.job("cat"), works.job("bowl")], alone=True)
    assert line.outcomes() == ["cat JobResult"]
    assert line.asked == 0


def test_canceled_jobs_stop_a_batch_of_their_own_alone(works: Works) -> None:
    jobs = [works.job("cat") for _ in range(3)]
    line = works.work(jobs[:1], Line(jobs[1:], canceled={jobs[0].job.id}))
    assert line.outcomes() == ["cat JobResult"] * 3  # the consumer drops the canceled one
    alone = works.job("cat")
    line = works.work([alone], Line([], canceled={alone.job.id}))
    assert line.outcomes() == ["cat JobCanceledError"]


def test_waiting_for_a_thread_is_not_being_late(works: Works) -> None:
    works.predictor.pause = 0.2
    jobs = [works.job("cat", timeout=1) for _ in range(14)]  # 1.4 s for two threads
    assert works.work(jobs).outcomes() == ["cat JobResult"] * 14


def test_jobs_before_the_networks_are_put_back_when_the_worker_is_to_stop(works: Works) -> None:
    jobs = [works.job("cat", width=20), works.job("cat", width=30)]
    line = Line(jobs[1:])

    def stop(stage: str, fraction: float) -> None:
        line.closing = True

    line.progress_reporter = lambda jobs: stop  # type: ignore[method-assign]
    works.work(jobs[:1], line)
    assert list(line.ended) == [jobs[0].job.id]
    assert line.put_back == [jobs[1]]


def test_no_more_images_are_taken_than_memory_holds() -> None:
    works = Works(batch=1, in_memory=20 * 30)
    line = works.work([works.job("cat") for _ in range(3)])
    assert [len(batch) for batch in works.predictor.batches] == [1, 1, 1]
    assert len(line.ended) == 3
    works.batcher.close()


def test_a_poison_in_a_batch_fails_alone(works: Works) -> None:
    line = works.work([works.job("cat"), works.job("raises"), works.job("bowl")])
    assert line.outcomes() == ["bowl JobResult", "cat JobResult", "raises RuntimeError"]
    assert [len(batch) for batch in works.predictor.batches] == [3, 1, 1, 1]


def test_one_that_hangs_in_a_batch_times_out_alone(works: Works) -> None:
    jobs = [works.job("cat", timeout=1), works.job("hangs", timeout=1)]
    assert works.work(jobs).outcomes() == ["cat JobResult", "hangs JobTimeoutException"]


def test_an_upload_that_is_none_shares_no_batch(works: Works) -> None:
    lost: Future[Any] = Future()
    lost.set_exception(BlobMissingError("expected a blob, found none"))
    line = works.work([works.job("cat", image=lost), works.job("cat"), works.job("cat")])
    assert line.outcomes() == ["cat BlobMissingError", "cat JobResult", "cat JobResult"]
    assert [len(batch) for batch in works.predictor.batches] == [2]


def test_out_of_memory_makes_batches_smaller_for_good(works: Works) -> None:
    line = works.work([works.job("wide") for _ in range(6)])
    assert line.outcomes() == ["wide JobResult"] * 6
    # Four do not fit, nor two; no later ones are tried together.
    assert [len(batch) for batch in works.predictor.batches] == [4, 2, 1, 1, 2, 1, 1, 1, 1]
    assert works.predictor.released == 3


def test_one_that_fits_into_no_memory_fails(works: Works) -> None:
    assert works.work([works.job("huge")]).outcomes() == ["huge MemoryError"]
    assert works.predictor.released == 0


def test_a_broken_device_stops_everything(works: Works) -> None:
    with pytest.raises(DeviceLostError, match="CUDA error"):
        works.work([works.job("cat"), works.job("breaks")])


def test_a_thread_that_does_not_end_costs_its_job_and_two_the_worker(works: Works) -> None:
    works.predictor.hold = threading.Event()
    line = works.work([works.job("cat", timeout=1)])
    (result,) = line.ended.values()
    assert isinstance(result.exception(), JobTimeoutException)
    assert works.batcher.stuck_threads == 1
    with pytest.raises(ThreadsStuckError, match="got 2 that do not"):
        works.work([works.job("cat", timeout=1)])
    works.predictor.hold.set()
    wait_for(lambda: works.batcher.stuck_threads == 0)  # late, but they ended


def test_postprocessing_without_memory_is_tried_again_when_the_others_are_done(works: Works) -> None:
    works.predictor.errors = [MemoryError()]
    assert works.work([works.job("cat"), works.job("cat")]).outcomes() == ["cat JobResult"] * 2
    assert works.predictor.released == 1
    works.predictor.errors = [MemoryError(), MemoryError()]
    assert works.work([works.job("cat")]).outcomes() == ["cat MemoryError"]


def test_a_device_that_postprocessing_finds_broken_stops_everything(works: Works) -> None:
    works.predictor.errors = [RuntimeError("CUDA error: unspecified launch failure")]
    with pytest.raises(DeviceLostError, match="unspecified launch failure"):
        works.work([works.job("cat")])
