import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.pamr import naive_pamr
from models.refine.pamr import _affinities, _neighbor_index, pamr


def random_pair(channels: int, height: int, width: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(channels + height + width)
    image = torch.rand(batch, 3, height, width, generator=generator)
    return image, torch.rand(batch, channels, height, width, generator=generator)


def index_for(height: int, width: int, dilations: tuple[int, ...]) -> torch.Tensor:
    return _neighbor_index(height, width, dilations=dilations, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "dilations"), [("refined_default", (1, 2, 4, 8, 12, 24)), ("refined_small", (1, 2, 4))]
)
def test_equals_the_public_implementation(shared: Path, name: str, dilations: tuple[int, ...]) -> None:
    with np.load(shared / "reference" / "pamr.npz") as reference:
        image = torch.from_numpy(reference["image"]).permute(2, 0, 1)[None] / 255
        scores, expected = (torch.from_numpy(reference[key]) for key in ("scores", name))
    refined = pamr(image, scores, iterations=10, dilations=dilations)
    torch.testing.assert_close(refined, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (30, 70), (61, 50)])
@pytest.mark.parametrize("dilations", [(1,), (2, 5), (1, 2, 4, 8, 12, 24)])
def test_equals_the_formula_written_out(size: tuple[int, int], dilations: Sequence[int]) -> None:
    image, scores = random_pair(4, *size, batch=2)
    refined = pamr(image, scores, dilations=dilations)
    expected = naive_pamr(image, scores, dilations=dilations)
    torch.testing.assert_close(refined, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 64, 1000])
def test_chunks_leave_no_seam(chunk: int) -> None:
    image, _ = random_pair(3, 37, 29)
    index = index_for(37, 29, (1, 8))
    torch.testing.assert_close(_affinities(image[0], index, chunk=chunk), _affinities(image[0], index))


def test_two_pixels_by_hand() -> None:
    # One color channel is (0, 1), the others flat. The left pixel's 3x3 window holds six zeros and
    # three ones: variance (6/9 + 12/9) / 8 = 1/4. A neighbor on the right thus has the logit
    # -(1 / (0.1 * 1/2)) / 3 = -20/3, and there are three of them beside five copies of the pixel.
    image = torch.zeros(1, 3, 1, 2)
    image[0, 1, 0, 1] = 1
    other = 3 * math.exp(-20 / 3) / (5 + 3 * math.exp(-20 / 3))
    refined = pamr(image, torch.tensor([[[[1.0, 0.0]]]]), iterations=1, dilations=(1,))
    expected = torch.tensor([[[[1 - other, other]]]])
    torch.testing.assert_close(refined, expected, atol=1e-7, rtol=1e-5)


def test_without_edges_a_pixel_becomes_the_mean_of_its_neighbors() -> None:
    scores = torch.zeros(1, 1, 5, 5)
    scores[0, 0, 2, 2] = 1
    refined = pamr(torch.full((1, 3, 5, 5), 0.7), scores, iterations=1, dilations=(1,))
    expected = torch.zeros(5, 5)
    expected[1:4, 1:4] = 1 / 8
    expected[2, 2] = 0
    torch.testing.assert_close(refined[0, 0], expected)


def test_an_edge_keeps_the_sides_apart() -> None:
    image = torch.zeros(1, 3, 20, 20)
    image[..., 10:] = 1
    scores = torch.where(image[:, :1] > 0, 0.9, 0.1)
    torch.testing.assert_close(pamr(image, scores, dilations=(1, 2)), scores, atol=0.02, rtol=0)


def test_a_constant_stays_constant() -> None:
    image, _ = random_pair(1, 40, 33)
    refined = pamr(image, torch.full((1, 2, 40, 33), 0.3))
    torch.testing.assert_close(refined, torch.full_like(refined, 0.3), atol=2e-6, rtol=0)


def test_the_range_never_grows() -> None:
    image, scores = random_pair(3, 40, 33)
    refined = pamr(image, scores)
    assert refined.min() >= scores.min() - 1e-6
    assert refined.max() <= scores.max() + 1e-6
    assert refined.std() < 0.6 * scores.std()


def test_channels_do_not_mix_and_each_is_linear() -> None:
    image, scores = random_pair(3, 31, 26)
    refined = pamr(image, scores)
    for channel in range(3):
        alone = pamr(image, scores[:, channel : channel + 1])
        torch.testing.assert_close(refined[:, channel : channel + 1], alone, atol=1e-6, rtol=0)
    combined = pamr(image, 2 * scores[:, :1] - 3 * scores[:, 1:2])
    torch.testing.assert_close(combined, 2 * refined[:, :1] - 3 * refined[:, 1:2], atol=1e-5, rtol=0)


def test_each_pixel_s_affinities_sum_to_one() -> None:
    image, _ = random_pair(1, 12, 15)
    weights = _affinities(image[0], index_for(12, 15, (1, 3)))
    assert weights.shape == (12 * 15, 16)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(12 * 15))


def test_an_outlier_on_a_flat_photo_gives_finite_affinities() -> None:
    # The hardest case for the unshifted softmax: all neighbors equally far from the pixel.
    image = torch.full((1, 3, 9, 9), 1 / 255)
    image[..., 4, 4] = 1
    scores = torch.rand(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pamr(image, scores), naive_pamr(image, scores), atol=1e-5, rtol=0)


def test_nearly_flat_photos_keep_their_affinities() -> None:
    image = torch.full((1, 3, 12, 12), 0.9)
    image[..., 5, 6] += 1 / 255
    image[..., 2, :] -= 1e-4
    scores = torch.rand(1, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    expected = naive_pamr(image.double(), scores.double()).float()
    torch.testing.assert_close(pamr(image, scores), expected, atol=1e-5, rtol=0)


def test_neighbors_of_a_corner_repeat_the_border() -> None:
    # A 2x3 image, its pixels numbered 0 1 2 / 3 4 5; the pixel at the upper left.
    near, far = index_for(2, 3, (1, 4))[0].view(2, 8).tolist()
    assert near == [0, 0, 1, 0, 1, 3, 3, 4]
    assert far == [0, 0, 2, 0, 2, 3, 3, 5]


def test_no_iteration_copies() -> None:
    image, scores = random_pair(2, 6, 7)
    refined = pamr(image, scores, iterations=0)
    assert torch.equal(refined, scores)
    assert refined.data_ptr() != scores.data_ptr()


@pytest.mark.parametrize("dilations", [(), (0, 1), (-2,)])
def test_dilations_must_be_positive(dilations: tuple[int, ...]) -> None:
    image, scores = random_pair(2, 6, 7)
    with pytest.raises(ValueError, match="expected dilations of at least 1, got"):
        pamr(image, scores, dilations=dilations)


def test_iterations_must_not_be_negative() -> None:
    image, scores = random_pair(2, 6, 7)
    with pytest.raises(ValueError, match="expected iterations of at least 0, got -1"):
        pamr(image, scores, iterations=-1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_agrees_with_the_cpu() -> None:
    image, scores = random_pair(5, 64, 80, batch=2)
    refined = pamr(image.cuda(), scores.cuda()).cpu()
    torch.testing.assert_close(refined, pamr(image, scores), atol=1e-5, rtol=0)
