"""A conveyor for tests: a predictor that notes what it gets, a desk whose jobs are all there, jobs for both."""

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

from models.inference.masks import MaskOptions, Segmentation
from tests.helpers.service_doubles import DoublePredictor, HalfDone
from tests.helpers.service_fixtures import png
from worker.inference.batcher import Conveyor, Sizes
from worker.inference.consumer import Hand
from worker.inference.pipeline import Runtime, decode
from worker.inference.watchdog import Activity
from worker.queue.registry import ModelInfo
from worker.queue.rq import JobCanceledError
from worker.queue.schema import JobRequest, JobResult, ModelRef
from worker.storage import BlobStore


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
    """A desk whose jobs are all there from the start; a desk of ``worker.inference.batcher``."""

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
            options=MaskOptions(refine="none", min_confidence=0.0, background_threshold=0.4),
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
