from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.inference import masks
from models.inference.masks import Decision, MaskOptions, SoftMaps, decide, fill_defaults, upsample_bilinear


def run(
    scores: NDArray[np.floating],
    size: tuple[int, int],
    threshold: float | None = 0.4,
    confidence: float = 0.0,
    power: float | None = None,
    **class_thresholds: float,
) -> Decision:
    maps = SoftMaps(scores.astype(np.float16), np.array([3, 9]), ("cat", "cup"), size)
    options = MaskOptions(
        "none", confidence, background_threshold=threshold, background_power=power, class_thresholds=class_thresholds
    )
    return decide(maps, options)


def random(*shape: int) -> NDArray[np.floating]:
    return np.random.default_rng(0).random(shape)


BY_HAND = np.array([[[0.9, 0.1, 0.5]], [[0.3, 0.2, 0.6]]])


def test_a_constant_background_by_hand() -> None:
    decision = run(BY_HAND, (1, 3))
    assert decision.label_map.tolist() == [[3, 0, 9]]
    expected = [[0.9 / 1.6, 0.4 / 0.7, 0.6 / 1.5]]
    np.testing.assert_allclose(decision.confidence, expected, atol=1e-3)
    assert run(BY_HAND, (1, 3), confidence=0.5).label_map.tolist() == [[3, 0, 255]]


def test_a_power_background_by_hand() -> None:
    decision = run(BY_HAND, (1, 3), None, power=2.0)  # background 0.01, 0.64, 0.16
    assert decision.label_map.tolist() == [[3, 0, 9]]
    expected = [[0.9 / 1.21, 0.64 / 0.94, 0.6 / 1.26]]
    np.testing.assert_allclose(decision.confidence, expected, atol=1e-3)
    assert run(BY_HAND, (1, 3), None, power=0.5).label_map.tolist() == [[3, 0, 0]]


def test_the_background_that_classes_leave_by_hand() -> None:
    scores = np.array([[[0.5, 0.1, 0.4]], [[0.3, 0.2, 0.1]]])  # background 0.2, 0.7, 0.5
    decision = run(scores, (1, 3), None)
    assert decision.label_map.tolist() == [[3, 0, 0]]
    np.testing.assert_allclose(decision.confidence, [[0.5, 0.7, 0.5]], atol=1e-3)


def test_a_small_map_stands_against_a_higher_threshold() -> None:
    scores = np.zeros((2, 2, 10))
    scores[0, 0, :3] = 1.0, 0.5, 0.5  # mean 0.1
    scores[1, 1] = 0.5  # mean 0.25
    scores[1, 1, :3] = 1.0, 0.45, 0.05
    maps = SoftMaps(scores.astype(np.float16), np.array([3, 9]), ("cat", "cup"), (2, 10))
    plain = MaskOptions("none", 0.0, background_threshold=0.4)
    assert (decide(maps, plain).label_map > 0).sum(axis=1).tolist() == [3, 9]
    sloped = replace(plain, threshold_slope=1.0)  # 0.55 against the cat, 0.4 against the cup
    assert (decide(maps, sloped).label_map > 0).sum(axis=1).tolist() == [1, 9]
    # A class with a threshold of its own keeps it, and computed ones stay within 0.1 and 0.9.
    own = replace(sloped, class_thresholds={"cat": 0.45})
    assert (decide(maps, own).label_map > 0).sum(axis=1).tolist() == [3, 9]
    low = replace(sloped, background_threshold=0.95)
    assert (decide(maps, low).label_map > 0).sum(axis=1).tolist() == [1, 1]
    # A request's own background rule is meant as it is.
    assert fill_defaults(sloped, background_threshold=0.3).threshold_slope == 0
    assert fill_defaults(sloped, refine="pamr").threshold_slope == 1
    with pytest.raises(ValueError, match=r"expected threshold_slope in \[0, 1\], got 1.5"):
        replace(plain, threshold_slope=1.5)


def test_a_class_stands_against_its_own_threshold() -> None:
    decision = run(BY_HAND, (1, 3), cup=0.7)
    assert decision.label_map.tolist() == [[3, 0, 0]]
    np.testing.assert_allclose(decision.confidence[0, 2], 0.7 / 1.8, atol=1e-3)


def test_without_any_class_all_is_background() -> None:
    maps = SoftMaps(np.zeros((0, 4, 4), dtype=np.float16), np.zeros(0, dtype=np.int64), (), (5, 6))
    decision = decide(maps, MaskOptions("none", 0.5))
    assert decision.label_map.tolist() == [[0] * 6] * 5
    assert decision.confidence.tolist() == [[1.0] * 6] * 5


def test_a_score_equal_to_the_background_is_background() -> None:
    assert run(np.full((2, 1, 1), 0.5), (1, 1), threshold=0.5).label_map.item() == 0


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = random(2, 5, 7)
    whole = run(scores, (64, 90))
    monkeypatch.setattr(masks, "_BAND_VALUES", 1000)
    banded = run(scores, (64, 90))
    assert np.array_equal(banded.confidence, whole.confidence)
    assert np.array_equal(banded.label_map, whole.label_map)


@pytest.mark.parametrize("size", [(64, 90), (3, 2), (5, 7)])
def test_stretching_is_bilinear(size: tuple[int, int]) -> None:
    maps = random(2, 5, 7).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[None], size=size, mode="bilinear", align_corners=False
    )
    found = upsample_bilinear(upsample_bilinear(maps, size[1], axis=2), size[0], axis=1)
    np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-6)


def test_a_higher_threshold_only_removes() -> None:
    scores = random(2, 8, 8)
    low, high = run(scores, (32, 32), 0.3).label_map, run(scores, (32, 32), 0.6).label_map
    assert np.array_equal(high[high > 0], low[high > 0])
    assert (high > 0).sum() < (low > 0).sum()


def test_an_image_smaller_than_its_scores() -> None:
    assert run(random(2, 28, 28), (1, 1)).label_map.shape == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background_threshold": 0.0}, r"expected background_threshold in \(0, 1\), got 0.0"),
        ({"background_threshold": float("nan")}, "background_threshold"),
        ({"background_power": 0.0}, r"expected background_power in \(0, 10\], got 0.0"),
        ({"background_threshold": 0.4, "background_power": 1.0}, "got both of them: 0.4 and 1.0"),
        ({"class_thresholds": {"cat": 1.0}}, r"expected the threshold of cat in \(0, 1\)"),
        ({"min_confidence": 1.0}, r"expected min_confidence in \[0, 1\), got 1.0"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskOptions(**{"refine": "none", "min_confidence": 0.0, **options})  # type: ignore[arg-type]


def test_one_map_a_class() -> None:
    with pytest.raises(ValueError, match="expected one map for each of 2 classes"):
        run(random(3, 4, 4), (4, 4))
