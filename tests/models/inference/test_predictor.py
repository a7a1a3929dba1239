from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.bundle.bundle import load_bundle
from models.data.classes import UnknownLabelError
from models.inference.masks import MaskOptions, SoftMaps, decide
from models.inference.predictor import LabeledImage, Predictor
from tests.conftest import CPU


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Path) -> Predictor:
    return Predictor(load_bundle(tiny_bundle, device=CPU))


def photo(height: int = 60, width: int = 80) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_segmentation_is_complete(predictor: Predictor) -> None:
    result = predictor.pseudo_mask(photo(), ["cup", "cat"], predictor.options())
    assert result.label_map.shape == result.confidence.shape == (60, 80)
    assert result.label_map.dtype == np.uint8
    assert set(np.unique(result.label_map)) <= {0, 4, 7}
    assert [each.name for each in result.classes] == ["cat", "cup"]
    assert result.scores.dtype == result.cams.dtype == np.float16
    assert result.scores.shape == (2, 64, 64)
    assert result.cams.shape == (2, 4, 4)
    for each in result.classes:
        region = result.label_map == each.index
        assert each.area == pytest.approx(region.mean())
        if each.box is not None:
            left, top, right, bottom = each.box
            assert region[top:bottom, left:right].sum() == region.sum()
            assert region[top].any()
            assert region[:, right - 1].any()
            assert each.confidence is not None
            assert -1 <= (each.alignment_class or 0) <= 1
            assert each.alignment_background is not None


def test_stored_scores_give_the_fresh_result_at_any_threshold(predictor: Predictor) -> None:
    first = predictor.pseudo_mask(photo(), ["cat", "cup"], predictor.options())
    other = predictor.options(background_threshold=0.7, min_confidence=0.5)
    fresh = predictor.pseudo_mask(photo(), ["cat", "cup"], other)
    again = decide(SoftMaps(first.scores, np.array([4, 7]), ("cat", "cup"), (60, 80)), other)
    assert (fresh.label_map == 255).any()
    assert np.array_equal(again.label_map, fresh.label_map)
    assert fresh.ignored == pytest.approx((fresh.label_map == 255).mean())


def test_a_class_without_pixels_has_no_figures(predictor: Predictor) -> None:
    strict = predictor.options(background_threshold=0.9999, refine="pamr")
    result = predictor.pseudo_mask(photo(), ["cat"], strict).classes[0]
    assert (result.area, result.confidence, result.box) == (0, None, None)
    assert result.alignment_class is result.alignment_background is None


@pytest.mark.parametrize("refine", ["none", "pamr", "random_walk+pamr+region_vote"])
def test_a_batch_equals_its_images_alone(predictor: Predictor, refine: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 60, 80, 3), dtype=np.uint8)
    threshold = predictor.options(refine=refine, background_threshold=0.3)
    batch = [
        LabeledImage(pixels[0], ["cat"], predictor.options(refine=refine)),
        LabeledImage(pixels[1], ["cup", "cat"], threshold),
        LabeledImage(pixels[2, :, :75], ["cup"], predictor.options(refine="none")),
    ]
    together = predictor.pseudo_masks(batch)
    for each, made in zip(batch, together, strict=True):
        alone = predictor.pseudo_mask(each.image, each.labels, each.options)
        assert [found.name for found in made.classes] == [found.name for found in alone.classes]
        np.testing.assert_allclose(made.scores, alone.scores, atol=1e-3)  # half precision
        assert (made.label_map == alone.label_map).mean() >= 0.9999


def test_a_cpu_has_no_memory_of_its_own(predictor: Predictor) -> None:
    assert predictor.device_memory() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_says_how_much_of_its_memory_is_used(tiny_bundle: Path) -> None:
    assert Predictor(load_bundle(tiny_bundle, device=torch.device("cuda"))).device_memory()


def test_a_batch_has_one_working_size(predictor: Predictor) -> None:
    assert predictor.working_size(60, 80) == (64, 64)
    assert predictor.working_size(30, 80) == (32, 64)
    options = predictor.options()
    mixed = [LabeledImage(photo(), ["cat"], options), LabeledImage(photo(30), ["cat"], options)]
    sizes = r"expected images of one working size, got \[\(32, 64\), \(64, 64\)\]"
    with pytest.raises(ValueError, match=sizes):
        predictor.pseudo_masks(mixed)


def test_label_order_does_not_matter(predictor: Predictor) -> None:
    options = predictor.options()
    one = predictor.pseudo_mask(photo(), ["cat", "cup"], options)
    two = predictor.pseudo_mask(photo(), ["CUP", "cat", "cat"], options)
    assert np.array_equal(one.label_map, two.label_map)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 5), (333, 1)])
def test_odd_sizes(predictor: Predictor, size: tuple[int, int]) -> None:
    result = predictor.pseudo_mask(photo(*size), ["cat"], predictor.options())
    assert result.label_map.shape == size


def test_refinement_changes_scores_not_cams(predictor: Predictor) -> None:
    plain = predictor.pseudo_mask(photo(), ["cat"], predictor.options(refine="none"))
    refined = predictor.pseudo_mask(photo(), ["cat"], predictor.options(refine="pamr"))
    assert np.array_equal(plain.cams, refined.cams)
    assert not np.array_equal(plain.scores, refined.scores)


def test_progress_can_stop_the_work(predictor: Predictor) -> None:
    seen: list[tuple[str, float]] = []

    def stop_at_refine(stage: str, fraction: float) -> None:
        seen.append((stage, fraction))
        if stage == "refine":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        predictor.pseudo_mask(photo(), ["cat"], predictor.options(), on_progress=stop_at_refine)
    assert [stage for stage, _ in seen] == ["cam", "refine"]
    assert [fraction for _, fraction in seen] == sorted(fraction for _, fraction in seen)


def test_wrong_input(predictor: Predictor) -> None:
    options = predictor.options()
    with pytest.raises(UnknownLabelError, match="nearest known: cat"):
        predictor.pseudo_mask(photo(), ["catt"], options)
    with pytest.raises(ValueError, match=r"expected an image \(H, W, 3\) uint8, got \(60, 80\)"):
        predictor.pseudo_mask(photo()[..., 0], ["cat"], options)
    with pytest.raises(ValueError, match="expected background_threshold"):
        predictor.options(background_threshold=2)
    with pytest.raises(ValueError, match="expected one of none, pamr"):
        predictor.options(refine="magic")
    assert predictor.options() == MaskOptions("pamr", 0.0, background_threshold=0.4)
