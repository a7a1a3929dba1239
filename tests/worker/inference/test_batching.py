"""Who goes through the model with whom, and what becomes of a batch that fails."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from worker.inference.batcher import (
    Sizes,
    is_device_lost,
    is_out_of_memory,
    mates,
    run_batch,
    usual_batch,
)


def test_mates_are_of_one_key_in_their_order() -> None:
    waiting = ["a1", "b1", "a2", "a3", "b2"]
    assert mates(waiting, key=lambda each: each[0], most=8) == ["a1", "a2", "a3"]
    assert mates(waiting, key=lambda each: each[0], most=2) == ["a1", "a2"]
    assert mates(waiting[1:], key=lambda each: each[0], most=8) == ["b1", "b2"]


@pytest.mark.parametrize(
    ("pixels", "most"), [(100, 1), (599, 1), (1200, 2), (1799, 2), (10_000, 4)]
)
def test_batches_are_bounded_by_number_and_pixels(pixels: int, most: int) -> None:
    assert Sizes(batch=4, pixels=pixels, threads=1).most((20, 30)) == most


def test_a_cpu_takes_one_photo_at_a_time() -> None:
    assert [usual_batch(device) for device in ("cpu", "cuda", "cuda:1")] == [1, 8, 8]


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
    outcomes = run_batch(
        batch, model, is_memory=is_out_of_memory, on_halved=lambda part: halved.append(len(part))
    )
    return outcomes, halved


def test_a_batch_that_works_is_one_call() -> None:
    model = Model()
    assert run(model, [1, 2, 3]) == ([2, 4, 6], [])
    assert model.calls == [[1, 2, 3]]


def test_what_fails_in_company_is_tried_alone_and_fails_alone() -> None:
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
        run_batch([1, 2], call, is_memory=is_out_of_memory, on_halved=lambda _part: None)


def test_what_exceptions_say_of_the_device() -> None:
    # As torch names them.
    class OutOfMemoryError(RuntimeError):
        pass

    class AcceleratorError(RuntimeError):
        pass

    assert is_out_of_memory(OutOfMemoryError("CUDA out of memory"))
    assert not is_device_lost(OutOfMemoryError("CUDA error: out of memory"))
    assert is_device_lost(AcceleratorError("device-side assert triggered"))
    assert is_device_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_device_lost(RuntimeError("expected 3 channels"))
