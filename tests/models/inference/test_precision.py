from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.bundle.bundle import load_bundle
from models.inference.optimize import PRECISIONS, autocast
from models.inference.predictor import LabeledImage, Predictor, UnlabeledImage
from models.refine import REFINERS
from tests.conftest import CPU
from worker.__main__ import load_predictor
from worker.settings import WorkerSettings

LOWER = [name for name in PRECISIONS if name != "float32"]
CHAIN = "random_walk+pamr+region_vote"


@pytest.fixture(scope="module")
def full(tiny_segmenter_bundle: Path) -> Predictor:
    return Predictor(load_bundle(tiny_segmenter_bundle, device=CPU))


@pytest.fixture(scope="module", params=LOWER)
def lower(tiny_segmenter_bundle: Path, request: pytest.FixtureRequest) -> Predictor:
    return Predictor(load_bundle(tiny_segmenter_bundle, device=CPU), precision=request.param)


def photos() -> NDArray[np.uint8]:
    """Squares on a noisy ground, as the tiny bundle was trained on."""
    pixels = np.random.default_rng(0).integers(0, 80, (3, 60, 80, 3), dtype=np.uint8)
    pixels[:, 15:45, 20:60, 1] = 220
    return pixels


@pytest.mark.parametrize("refine", ["none", *REFINERS, CHAIN])
def test_masks_of_lower_precision_are_alike(full: Predictor, lower: Predictor, refine: str) -> None:
    options = full.options(refine=refine)
    batch = [LabeledImage(each, ["cat", "cup"], options) for each in photos()]
    for one, two in zip(full.pseudo_masks(batch), lower.pseudo_masks(batch), strict=True):
        assert two.scores.dtype == two.confidence.dtype == np.float16
        assert not np.array_equal(one.cams, two.cams)
        np.testing.assert_allclose(two.cams, one.cams, atol=0.1)
        assert (
            one.label_map == two.label_map
        ).mean() >= 0.9  # a weak network, whose CAMs are stretched


@pytest.mark.parametrize("refine", ["none", CHAIN])
def test_segments_of_lower_precision_are_alike(
    full: Predictor, lower: Predictor, refine: str
) -> None:
    batch = [UnlabeledImage(each, full.segment_options(refine=refine)) for each in photos()]
    for one, two in zip(full.segments(batch), lower.segments(batch), strict=True):
        assert (
            one.label_map == two.label_map
        ).mean() >= 0.9  # a weak network, whose CAMs are stretched


def test_networks_give_lower_precision_and_refiners_get_single(lower: Predictor) -> None:
    seen: list[torch.dtype] = []
    handle = lower.bundle.generator.head.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.dtype)
    )
    batch = [LabeledImage(each, ["cat"], lower.options(refine=CHAIN)) for each in photos()]
    try:
        outputs = lower.forward_cam(batch)
    finally:
        handle.remove()
    assert seen
    assert set(seen) <= {torch.bfloat16, torch.float16}
    for each in outputs:
        assert each.maps.dtype == torch.float32
        assert each.refiner_inputs.features is not None
        assert each.refiner_inputs.features.dtype == torch.float32


def test_a_batch_equals_its_images_alone(lower: Predictor) -> None:
    batch = [LabeledImage(each, ["cat"], lower.options()) for each in photos()]
    for each, made in zip(batch, lower.pseudo_masks(batch), strict=True):
        alone = lower.pseudo_mask(each.image, each.labels, each.options)
        assert (made.label_map == alone.label_map).mean() >= 0.99


def test_an_unknown_precision_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a precision of float32, .*, got 'int8'"):
        Predictor(load_bundle(tiny_bundle, device=CPU), precision="int8")


def test_single_precision_is_left_alone() -> None:
    with autocast("float32", device=CPU):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("bfloat16", device=CPU):
        assert torch.is_autocast_enabled("cpu")


def test_a_worker_takes_the_precision(tiny_bundle: Path) -> None:
    settings = WorkerSettings(
        "unix:///none", "none", bundle=str(tiny_bundle), device="cpu", precision="bfloat16"
    )
    predictor = load_predictor(settings)
    single = Predictor(load_bundle(tiny_bundle, device=CPU))
    made = [
        each.pseudo_mask(photos()[0], ["cat"], single.options(refine="none"))
        for each in (predictor, single)
    ]
    assert not np.array_equal(made[0].cams, made[1].cams)
