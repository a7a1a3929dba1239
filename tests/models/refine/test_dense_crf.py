from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.inference.postprocess import _one_minus_sum, _power_background
from models.refine.dense_crf import (
    COCO_KERNELS,
    VOC_KERNELS,
    _build_lattice,
    _DenseCrf,
    _Kernel,
    _place_lattice,
    dense_crf,
)

REFERENCE = {
    "voc_gaussian4x3_bilateral83x5x3": VOC_KERNELS,
    "coco_gaussian3x3_bilateral50x5x10": COCO_KERNELS,
    "clip_es_gaussian1x3_bilateral67x3x4": (_Kernel(1, None, 3), _Kernel(67, 3, 4)),
}


def two_halves() -> Tensor:
    """A picture, (3, 12, 16), whose left half is dark and whose right half is bright."""
    image = torch.full((3, 12, 16), 0.1)
    image[:, :, 8:] = 0.9
    return image


@pytest.mark.parametrize("name", REFERENCE)
def test_it_is_the_public_implementation(shared: Path, name: str) -> None:
    stored = np.load(shared / "reference" / "dense_crf.npz")
    image = torch.from_numpy(stored["image"]).permute(2, 0, 1).float() / 255
    found = dense_crf(image, torch.from_numpy(stored["probabilities"]), kernels=REFERENCE[name])
    expected = torch.from_numpy(stored[f"refined_{name}"])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert torch.equal(found.argmax(dim=0), expected.argmax(dim=0))
    assert (found - expected).abs().mean() < 1e-6


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_the_lattice_sums_gaussians(dimensions: int) -> None:
    points = torch.rand(400, dimensions) * 3
    values = torch.rand(400, 2)
    exact = (-0.5 * torch.cdist(points, points) ** 2).exp() @ values
    found = _build_lattice(points.t()).filter(values)
    # The lattice only approximates the sums, and by a factor that the normalization takes out.
    correlation = torch.corrcoef(torch.stack([exact.flatten(), found.flatten()]))[0, 1]
    assert correlation > 0.98
    assert 0.5 < (found / exact).median() < 1.25


def test_the_lattice_is_a_partition_of_unity() -> None:
    lattice = _build_lattice(torch.randn(5, 50) * 4)
    giving = torch.zeros(50).index_add_(0, lattice.splat.rows, lattice.splat.weights)
    torch.testing.assert_close(giving, torch.ones(50))
    assert lattice.splat.weights.min() >= -1e-5


def test_a_point_alone_gets_itself_back() -> None:
    far = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    found = _build_lattice(far.t()).normalized(strength=2.0).filter(torch.eye(3))
    torch.testing.assert_close(found, 2 * torch.eye(3), atol=1e-4, rtol=0)


def test_points_too_far_apart_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected points within 100000 deviations of 0, got 1e\+06"):
        _build_lattice(torch.tensor([[0.0] * 2, [1e6] * 2]).t())
    with pytest.raises(ValueError, match="expected points that 64 bits can number"):
        _build_lattice(torch.tensor([[0.0] * 5, [9e4] * 5]).t())
    with pytest.raises(ValueError, match="got nan"):
        _build_lattice(torch.full((5, 2), torch.nan))


def test_codes_of_32_and_64_bits_give_the_same_lattice() -> None:
    points = torch.rand(5, 300) * 20
    far = torch.cat([points, torch.full((5, 1), 1000.0)], dim=1)
    values = torch.rand(301, 2)
    found = _build_lattice(far).filter(values)
    torch.testing.assert_close(found[:-1], _build_lattice(points).filter(values[:-1]))


def test_another_image_of_the_size_reuses_the_lattice_of_place() -> None:
    probabilities = torch.rand(3, 12, 16).softmax(dim=0)
    _place_lattice.cache_clear()
    with torch.inference_mode():
        first = dense_crf(two_halves(), probabilities, kernels=VOC_KERNELS)
    again = dense_crf(two_halves(), probabilities, kernels=VOC_KERNELS)
    assert _place_lattice.cache_info().hits == 1
    assert torch.equal(again, first)
    # Nothing of one size is left for another.
    turned = dense_crf(two_halves().transpose(1, 2), probabilities.transpose(1, 2), kernels=VOC_KERNELS)
    assert turned.shape == (3, 16, 12)
    assert _place_lattice.cache_info().misses == 2


def test_high_compatibilities_stay_finite() -> None:
    probabilities = torch.rand(3, 12, 16).softmax(dim=0)
    found = dense_crf(two_halves(), probabilities, kernels=(_Kernel(4, None, 1e4),))
    torch.testing.assert_close(found.sum(dim=0), torch.ones(12, 16))


def test_equal_colors_come_to_one_opinion() -> None:
    # The dark half leans to class 0 on the whole, the bright one to class 1; single pixels think otherwise.
    probabilities = torch.full((2, 12, 16), 0.5)
    probabilities[0, :, :8] = 0.7
    probabilities[0, :, 8:] = 0.3
    probabilities[0, 5, 3], probabilities[0, 5, 12] = 0.2, 0.8
    probabilities[1] = 1 - probabilities[0]
    found = dense_crf(two_halves(), probabilities, kernels=VOC_KERNELS)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(12, 16))
    assert (found.argmax(dim=0)[:, :8] == 0).all()
    assert (found.argmax(dim=0)[:, 8:] == 1).all()


def test_without_iterations_the_probabilities_come_back() -> None:
    probabilities = torch.rand(3, 12, 16).softmax(dim=0)
    found = dense_crf(two_halves(), probabilities, kernels=VOC_KERNELS, iterations=0)
    torch.testing.assert_close(found, probabilities)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_probabilities_given_are_left_alone(channels: int) -> None:
    probabilities = torch.zeros(channels, 12, 16)
    dense_crf(two_halves(), probabilities, kernels=VOC_KERNELS)
    assert not probabilities.any()


def test_the_background_takes_part() -> None:
    image, low = two_halves()[None], torch.full((1, 1, 12, 16), 0.2)
    refiner = _DenseCrf(_power_background(0.4))
    assert refiner(image, low).max() < 0.05
    assert refiner(image, 1 - low).min() > 0.95


def test_backgrounds_by_hand() -> None:
    scores = torch.tensor([[[0.5, 0.0]], [[0.25, 1.0]]])
    assert _one_minus_sum(scores).tolist() == [[0.25, 0.0]]
    torch.testing.assert_close(_power_background(0.5)(scores), torch.tensor([[0.5, 0.0]]))
    even = _power_background(0.4)(torch.full((1, 1, 1), 0.4))
    torch.testing.assert_close(even, torch.tensor([[0.4]]))
