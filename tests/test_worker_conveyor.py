"""Jobs through threads and networks: who shares a batch, and what one that fails does to the others."""

from __future__ import annotations

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

from models.segmentation import Segmentation
from tests.service_doubles import DoublePredictor, HalfDone
from tests.service_fixtures import png, wait_for
from worker.activity import Activity
from worker.blobs import BlobMissingError, BlobStore
from worker.cancel import JobCanceledError
from worker.conveyor import Conveyor, ThreadsStuckError
from worker.device import DeviceLostError
from worker.hand import Hand
from worker.presence import ModelInfo
from worker.protocol import JobRequest, JobResult, ModelRef, Options
from worker.runtime import Runtime
from worker.sizes import Sizes
from worker.steps import decode


class Recorder(DoublePredictor):
    """Notes what goes through its networks together, and waits in ``finish`` where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []
        self.released = 0
        self.hold: threading.Event | None = None
        self.pause = 0.0
        self.errors: list[Exception] = []

    def _activate(self, batch: Any, found: Any, on_progress: Any) -> Any:
        self.batches.append([each.image.shape[:2] for each in batch])
        on_progress("cam", 0.0)
        return super()._activate(batch, found, on_progress)

    def finish(self, half_done: HalfDone) -> Segmentation:
        if self.hold is not None:
            self.hold.wait(30)
        if self.errors:
            raise self.errors.pop()
        time.sleep(self.pause)
        return super().finish(half_done)

    def release_memory(self) -> None:
        self.released += 1


@dataclass
class Line:
    """A desk whose jobs are all there from the start; a desk of ``worker.conveyor``."""

    hands: list[Hand]
    settled: dict[str, Future[JobResult]] = field(default_factory=dict)
    unwanted: set[str] = field(default_factory=set)
    asked: int = 0
    closing: bool = False
    released: list[Hand] = field(default_factory=list)

    def more(self, most: int) -> list[Hand]:
        self.asked += 1
        taken, self.hands = self.hands[: max(0, most)], self.hands[max(0, most) :]
        return taken

    def is_closing(self) -> bool:
        return self.closing

    def release(self, hands: Sequence[Hand]) -> None:
        self.released += hands

    def settle(self, hands: Sequence[Hand]) -> None:
        for hand in hands:
            assert hand.job.id not in self.settled
            assert hand.concluded is not None
            self.settled[hand.job.id] = hand.concluded

    def reporter(self, hands: Sequence[Hand]) -> Any:
        def report(stage: str, fraction: float) -> None:
            if all(hand.job.id in self.unwanted for hand in hands):
                raise JobCanceledError("expected a job that somebody waits for")

        return report


class Works:
    """A conveyor with a recording predictor, and jobs for it."""

    def __init__(self, *, batch: int = 4, pixels: int = 10**6, held: int = 10**9) -> None:
        self.predictor = Recorder()
        model = ModelInfo.model_validate(self.predictor.info.to_json())
        blobs = BlobStore.open(f"memory://{uuid.uuid4().hex}")
        self.runtime = Runtime(self.predictor, model, blobs, "w")
        self.watch = Activity()
        sizes = Sizes(batch=batch, pixels=pixels, held=held, threads=2)
        self.conveyor = Conveyor(self.runtime, sizes=sizes, watch=self.watch)

    def hand(self, label: str, *, width: int = 30, timeout: int = 30, decoded: bool = True) -> Hand:
        """A job named by its label and a number; decoded at once, so that batches are no matter of luck."""
        request = JobRequest(
            image=self.runtime.blobs.put("uploads", png(width=width)),
            labels=(label,),
            options=Options(refine="none", min_confidence=0.0, background_threshold=0.4),
            model=ModelRef(name="double", version="1"),
        )
        job: Any = SimpleNamespace(id=f"{label}-{uuid.uuid4().hex}", timeout=timeout)
        photo: Future[Any] = Future()
        if decoded:
            photo.set_result(decode(request, self.runtime))
        return Hand(job, None, 0.0, photo)  # type: ignore[arg-type] # no lease is looked at here

    def work(self, hands: list[Hand], *, alone: bool = False) -> Line:
        line = Line(hands[1:])
        self.conveyor.work(hands[:1], line, alone=alone)
        return line


@pytest.fixture
def works() -> Iterator[Works]:
    works = Works()
    yield works
    works.conveyor.close()


def outcomes(line: Line) -> list[str]:
    """What became of each job, by label."""
    return sorted(
        f"{job_id.partition('-')[0]} {type(each.exception() or each.result()).__name__}"
        for job_id, each in line.settled.items()
    )


def test_jobs_of_one_size_share_a_batch(works: Works) -> None:
    wide = [works.hand("cat", width=30) for _ in range(3)]
    narrow = [works.hand("cat", width=20) for _ in range(2)]
    line = works.work([wide[0], narrow[0], wide[1], narrow[1], wide[2]])
    assert works.predictor.batches == [[(20, 30)] * 3, [(20, 20)] * 2]
    assert outcomes(line) == ["cat JobResult"] * 5
    assert works.watch.overdue() == 0


def test_batches_are_no_larger_than_they_may_be() -> None:
    works = Works(batch=4, pixels=3 * 20 * 30)
    line = works.work([works.hand("cat") for _ in range(7)])
    assert [len(batch) for batch in works.predictor.batches] == [3, 3, 1]
    assert len(line.settled) == 7
    works.conveyor.close()


def test_a_job_that_is_to_be_alone_is(works: Works) -> None:
    line = works.work([works.hand("cat"), works.hand("bowl")], alone=True)
    assert outcomes(line) == ["cat JobResult"]
    assert line.asked == 0


def test_a_poison_in_a_batch_fails_alone(works: Works) -> None:
    line = works.work([works.hand("cat"), works.hand("raises"), works.hand("bowl")])
    assert outcomes(line) == ["bowl JobResult", "cat JobResult", "raises RuntimeError"]
    assert [len(batch) for batch in works.predictor.batches] == [3, 1, 1, 1]


def test_one_that_hangs_in_a_batch_times_out_alone(works: Works) -> None:
    hands = [works.hand("cat", timeout=1), works.hand("hangs", timeout=1)]
    assert outcomes(works.work(hands)) == ["cat JobResult", "hangs JobTimeoutException"]


def test_an_upload_that_is_none_has_no_mates(works: Works) -> None:
    lost = works.hand("cat", decoded=False)
    lost.decoded.set_exception(BlobMissingError("expected a blob, found none"))
    line = works.work([lost, works.hand("cat"), works.hand("cat")])
    assert outcomes(line) == ["cat BlobMissingError", "cat JobResult", "cat JobResult"]
    assert [len(batch) for batch in works.predictor.batches] == [2]


def test_out_of_memory_makes_batches_smaller_for_good(works: Works) -> None:
    line = works.work([works.hand("wide") for _ in range(6)])
    assert outcomes(line) == ["wide JobResult"] * 6
    # Four do not fit, nor two; what comes later is not tried in company again.
    assert [len(batch) for batch in works.predictor.batches] == [4, 2, 1, 1, 2, 1, 1, 1, 1]
    assert works.predictor.released == 3


def test_one_that_fits_into_no_memory_fails(works: Works) -> None:
    assert outcomes(works.work([works.hand("huge")])) == ["huge MemoryError"]
    assert works.predictor.released == 0


def test_a_broken_device_stops_everything(works: Works) -> None:
    with pytest.raises(DeviceLostError, match="CUDA error"):
        works.work([works.hand("cat"), works.hand("breaks")])


def test_canceled_jobs_are_left_and_their_mates_are_not(works: Works) -> None:
    hands = [works.hand("cat") for _ in range(3)]
    line = Line(hands[1:], unwanted={hands[0].job.id})
    works.conveyor.work(hands[:1], line, alone=False)
    assert outcomes(line) == ["cat JobResult"] * 3  # the desk drops what nobody wants
    alone = works.hand("cat")
    line = Line([], unwanted={alone.job.id})
    works.conveyor.work([alone], line, alone=False)
    assert outcomes(line) == ["cat JobCanceledError"]


def test_a_thread_that_does_not_come_back_costs_its_job_and_two_the_worker(works: Works) -> None:
    works.predictor.hold = threading.Event()
    line = works.work([works.hand("cat", timeout=1)])
    (outcome,) = line.settled.values()
    assert isinstance(outcome.exception(), JobTimeoutException)
    assert works.conveyor.stuck == 1
    with pytest.raises(ThreadsStuckError, match="got 2 that do not"):
        works.work([works.hand("cat", timeout=1)])
    works.predictor.hold.set()
    wait_for(lambda: works.conveyor.stuck == 0)  # late, but they came


def test_waiting_for_a_thread_is_not_being_late(works: Works) -> None:
    works.predictor.pause = 0.2
    hands = [works.hand("cat", timeout=1) for _ in range(14)]  # 1.4 s for two threads
    assert outcomes(works.work(hands)) == ["cat JobResult"] * 14


def test_refinement_that_finds_no_memory_is_tried_again_when_the_others_are_done(
    works: Works,
) -> None:
    works.predictor.errors = [MemoryError()]
    assert outcomes(works.work([works.hand("cat"), works.hand("cat")])) == ["cat JobResult"] * 2
    assert works.predictor.released == 1
    works.predictor.errors = [MemoryError(), MemoryError()]
    assert outcomes(works.work([works.hand("cat")])) == ["cat MemoryError"]


def test_a_device_that_refinement_finds_broken_stops_everything(works: Works) -> None:
    works.predictor.errors = [RuntimeError("CUDA error: unspecified launch failure")]
    with pytest.raises(DeviceLostError, match="unspecified launch failure"):
        works.work([works.hand("cat")])


def test_what_has_not_been_through_the_networks_is_put_back_when_the_worker_is_to_stop(
    works: Works,
) -> None:
    hands = [works.hand("cat", width=20), works.hand("cat", width=30)]
    line = Line([])

    def stop(stage: str, fraction: float) -> None:
        line.closing = True

    line.reporter = lambda hands: stop  # type: ignore[method-assign]
    works.conveyor.work(hands, line, alone=False)
    assert list(line.settled) == [hands[0].job.id]
    assert line.released == [hands[1]]


def test_no_more_photos_are_taken_than_memory_holds() -> None:
    works = Works(batch=1, held=20 * 30)
    line = works.work([works.hand("cat") for _ in range(3)])
    assert [len(batch) for batch in works.predictor.batches] == [1, 1, 1]
    assert len(line.settled) == 3
    works.conveyor.close()
