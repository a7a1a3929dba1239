import math

import pytest
import torch

from models.evaluation.metrics import confusion_matrix, iou_report


def test_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [2, 2, 255, 1]])
    guess = torch.tensor([[0, 1, 1, 255], [2, 0, 1, 1]])
    matrix = confusion_matrix(truth, guess, indices=4)
    report = iou_report(matrix)
    # background: 1 of {2 true, 2 guessed}; 1: 2 of {3, 3}, an ignored pixel is missed; 2: 1 of {2, 1}
    expected = [1 / 3, 2 / 4, 1 / 2]
    assert report.iou[:3].tolist() == pytest.approx(expected)
    assert math.isnan(report.iou[3])
    assert report.pixels.tolist() == [2, 3, 2, 0]
    assert report.mean_iou == pytest.approx(sum(expected) / 3)
    assert iou_report(matrix, min_pixels=3).mean_iou == pytest.approx(0.5)


def test_a_class_only_predicted_counts_as_zero() -> None:
    report = iou_report(confusion_matrix(torch.tensor([0, 0]), torch.tensor([0, 1]), indices=2))
    assert report.iou.tolist() == [0.5, 0]


def test_sums_over_images() -> None:
    truth, guess = torch.randint(0, 3, (2, 8, 8)), torch.randint(0, 3, (2, 8, 8))
    both = sum(confusion_matrix(truth[each], guess[each], indices=3) for each in range(2))
    assert torch.equal(both, confusion_matrix(truth, guess, indices=3))
    assert iou_report(confusion_matrix(truth, truth, indices=3)).mean_iou == 1


def test_everything_ignored_is_nan() -> None:
    matrix = confusion_matrix(torch.full((2, 2), 255), torch.zeros(2, 2), indices=2)
    assert math.isnan(iou_report(matrix).mean_iou)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"size \(2, 2\), got \(2, 3\)"):
        confusion_matrix(torch.zeros(2, 2), torch.zeros(2, 3), indices=2)
    with pytest.raises(ValueError, match="expected ground truth below 2, got 7"):
        confusion_matrix(torch.tensor([7]), torch.tensor([0]), indices=2)
