import pytest
import torch
from torch import Tensor

from models import pseudo_masks
from models.pseudo_masks import decide

INDICES = torch.tensor([3, 9])


def run(scores: Tensor, size: tuple[int, int], threshold: float = 0.4, confidence: float = 0.0):  # type: ignore[no-untyped-def]
    return decide(
        scores, INDICES, size=size, background_threshold=threshold, min_confidence=confidence
    )


def test_by_hand() -> None:
    scores = torch.tensor([[[0.9, 0.1, 0.5]], [[0.3, 0.2, 0.6]]])
    decision = run(scores, (1, 3))
    assert decision.label_map.tolist() == [[3, 0, 9]]
    expected = torch.tensor([[0.9 / 1.6, 0.4 / 0.7, 0.6 / 1.5]])
    torch.testing.assert_close(decision.confidence.float(), expected, atol=1e-3, rtol=0)
    doubtful = run(scores, (1, 3), confidence=0.5)
    assert doubtful.label_map.tolist() == [[3, 0, 255]]


def test_a_score_equal_to_the_background_is_background() -> None:
    assert run(torch.full((2, 1, 1), 0.5), (1, 1), threshold=0.5).label_map.item() == 0


def test_upsampling_is_bilinear(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.rand(2, 5, 7)
    full = torch.nn.functional.interpolate(scores[None], size=(64, 90), mode="bilinear")[0]
    whole = run(full, (64, 90))
    monkeypatch.setattr(pseudo_masks, "_BAND_VALUES", 1000)  # several bands
    banded = run(scores, (64, 90))
    torch.testing.assert_close(banded.confidence, whole.confidence, atol=1e-3, rtol=0)
    assert (banded.label_map == whole.label_map).float().mean() > 0.999


def test_a_higher_threshold_only_removes() -> None:
    scores = torch.rand(2, 8, 8)
    low, high = run(scores, (32, 32), 0.3).label_map, run(scores, (32, 32), 0.6).label_map
    assert torch.equal(high[high > 0], low[high > 0])
    assert (high > 0).sum() < (low > 0).sum()


def test_an_image_smaller_than_its_scores() -> None:
    assert run(torch.rand(2, 28, 28), (1, 1)).label_map.shape == (1, 1)


@pytest.mark.parametrize(
    ("threshold", "confidence", "message"),
    [
        (0.0, 0.0, r"expected background_threshold in \(0, 1\), got 0.0"),
        (float("nan"), 0.0, "background_threshold"),
        (0.4, 1.0, r"expected min_confidence in \[0, 1\), got 1.0"),
    ],
)
def test_thresholds_out_of_range(threshold: float, confidence: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(torch.rand(2, 4, 4), (4, 4), threshold, confidence)


def test_one_map_a_class() -> None:
    with pytest.raises(ValueError, match="expected one map for each of 2 classes"):
        run(torch.rand(3, 4, 4), (4, 4))
