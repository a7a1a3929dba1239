"""Jobs that fail on their way through threads and networks, and what they do to the others."""

from __future__ import annotations

import threading

import pytest
from rq.timeouts import JobTimeoutException

from tests.helpers.conveyor_works import Works, outcomes
from tests.helpers.service_fixtures import wait_for
from worker.inference.batcher import DeviceLostError, ThreadsStuckError
from worker.storage import BlobMissingError


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
