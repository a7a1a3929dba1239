import numpy as np
import pytest

from benchmarks.boundary import boundary_scores


def square(top: int, left: int, size: int = 40, value: int = 3) -> np.ndarray:
    label_map = np.zeros((100, 100), dtype=np.uint8)
    label_map[top : top + size, left : left + size] = value
    return label_map


def test_itself_is_perfect_and_nothing_is_zero() -> None:
    truth = square(20, 20)
    assert boundary_scores(truth, truth) == {3: 1.0}
    assert boundary_scores(truth, np.zeros_like(truth)) == {3: 0.0}
    assert boundary_scores(truth, square(20, 20, value=4)) == {3: 0.0}


def test_by_hand() -> None:
    # The right half of a square of 40: of its outline of 2 · 40 + 2 · 18 pixels only the new left side, but for what is
    # within a pixel of the top and the bottom, is away from the true one; and 156 - 40 - 2 · 19 true ones are met.
    truth, guess = square(20, 20), square(20, 20)
    guess[:, 20:40] = 0
    near_guess = (116 - 36) / 116
    near_truth = (40 + 2 * 20) / 156
    expected = 2 * near_guess * near_truth / (near_guess + near_truth)
    assert boundary_scores(truth, guess, tolerance=0)[3] == pytest.approx(expected, abs=0.01)


def test_a_small_shift_is_within_the_tolerance() -> None:
    assert boundary_scores(square(20, 20), square(21, 20)) == {3: 1.0}
    assert boundary_scores(square(20, 20), square(26, 26))[3] < 0.5


def test_outlines_in_unlabeled_pixels_do_not_count() -> None:
    truth, guess = square(20, 20), square(20, 20)
    truth[70:, :] = 255
    guess[75:90, 10:90] = 3
    assert boundary_scores(truth, guess) == {3: 1.0}


def test_a_ring_of_unlabeled_pixels_forgives_only_what_ends_in_it() -> None:
    truth = square(15, 15, size=50, value=255)
    truth[20:60, 20:60] = 3
    assert boundary_scores(truth, square(19, 19, size=42))[3] == 1.0
    assert boundary_scores(truth, square(10, 10, size=60))[3] == 0.0


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"expected a prediction of the ground truth's size"):
        boundary_scores(square(0, 0), np.zeros((5, 5), dtype=np.uint8))
