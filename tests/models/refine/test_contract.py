"""What holds for every refiner, and the names of chains."""

import pytest
import torch
from torch import Tensor

from models.inference.postprocess import _identity, _match_range, _one_minus_sum, _power_background
from models.refine import REFINERS, Refiner, RefinerContext, _Chain, build_refiner, parse_chain
from models.refine.regions import superpixels


def color_affinity(images: Tensor) -> Tensor:
    """How alike the colors of a 4 × 4 grid are, (B, 4, 4, 4, 4)."""
    colors = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(2)
    return (-torch.cdist(colors.transpose(1, 2), colors.transpose(1, 2))).exp().view(-1, 4, 4, 4, 4)


CONTEXT = RefinerContext(color_affinity, _power_background(0.4), superpixels, _match_range, 0.4)


@pytest.fixture(params=sorted(REFINERS))
def refiner(request: pytest.FixtureRequest) -> Refiner:
    return build_refiner(request.param, CONTEXT)


def example(batch: int = 2, channels: int = 3, height: int = 9, width: int = 13) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    image = torch.rand(batch, 3, height, width, generator=generator)
    return image, torch.rand(batch, channels, height, width, generator=generator)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (9, 13)])
@pytest.mark.parametrize("channels", [1, 2, 21])
def test_shape_dtype_and_finiteness(refiner: Refiner, size: tuple[int, int], channels: int) -> None:
    image, scores = example(2, channels, *size)
    refined = refiner(image, scores)
    assert refined.shape == scores.shape
    assert refined.dtype == scores.dtype
    assert refined.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_keep_their_dtype(refiner: Refiner, dtype: torch.dtype) -> None:
    image, scores = example()
    refined = refiner(image.to(dtype), scores.to(dtype))
    assert refined.dtype == dtype
    torch.testing.assert_close(refined.float(), refiner(image, scores), atol=0.05, rtol=0.05)


def test_a_batch_equals_its_items_alone(refiner: Refiner) -> None:
    image, scores = example(3)
    alone = torch.cat([refiner(image[i : i + 1], scores[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(refiner(image, scores), alone, atol=0, rtol=0)


def test_twice_the_same(refiner: Refiner) -> None:
    image, scores = example()
    torch.testing.assert_close(refiner(image, scores), refiner(image, scores), atol=0, rtol=0)


def test_arguments_are_left_alone(refiner: Refiner) -> None:
    image, scores = example()
    before = image.clone(), scores.clone()
    refiner(image, scores)
    assert torch.equal(image, before[0])
    assert torch.equal(scores, before[1])


def test_memory_layout_does_not_matter(refiner: Refiner) -> None:
    image, scores = example()
    strided = refiner(image.to(memory_format=torch.channels_last), scores.to(memory_format=torch.channels_last))
    torch.testing.assert_close(strided, refiner(image, scores))


def test_works_in_inference_mode_and_with_gradients_required(refiner: Refiner) -> None:
    image, scores = example()
    expected = refiner(image, scores)
    with torch.inference_mode():
        assert torch.equal(refiner(image, scores), expected)
    assert torch.equal(refiner(image, scores.requires_grad_()).detach(), expected)


def test_no_image_gives_no_scores(refiner: Refiner) -> None:
    assert refiner(torch.zeros(0, 3, 4, 5), torch.zeros(0, 2, 4, 5)).shape == (0, 2, 4, 5)


@pytest.mark.parametrize(
    ("image", "scores", "message"),
    [
        ((1, 1, 4, 5), (1, 2, 4, 5), r"expected an image of shape \(B, 3, H, W\)"),
        ((3, 4, 5), (1, 2, 4, 5), r"expected an image of shape \(B, 3, H, W\)"),
        ((1, 3, 4, 5), (1, 2, 5, 4), r"expected scores of shape \(1, C, 4, 5\)"),
        ((1, 3, 4, 5), (2, 2, 4, 5), r"expected scores of shape \(1, C, 4, 5\)"),
        ((1, 3, 4, 5), (2, 4, 5), r"expected scores of shape \(1, C, 4, 5\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    refiner: Refiner, image: tuple[int, ...], scores: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        refiner(torch.zeros(image), torch.zeros(scores))


def test_integers_are_refused(refiner: Refiner) -> None:
    image, scores = example()
    with pytest.raises(ValueError, match="expected floating point"):
        refiner((image * 255).to(torch.uint8), scores)


def test_none_returns_the_scores() -> None:
    image, scores = example()
    assert build_refiner("none", CONTEXT)(image, scores) is scores


def test_a_chain_runs_first_to_last() -> None:
    image, scores = example()
    chain = _Chain((lambda image, scores: scores + 1, lambda image, scores: scores * 2))
    assert torch.equal(chain(image, scores), (scores + 1) * 2)


@pytest.mark.parametrize("name", sorted(REFINERS))
def test_probabilities_stay_probabilities(name: str) -> None:
    image = torch.rand(1, 3, 32, 48)
    smooth = torch.nn.functional.interpolate(torch.randn(1, 4, 4, 6), size=(32, 48), mode="bicubic")
    shares = (3 * smooth).softmax(dim=1)[:, 1:]
    refiner = build_refiner(name, RefinerContext(color_affinity, _one_minus_sum, superpixels, _identity, 0.4))
    refined = refiner(image, shares)
    assert refined.min() >= -1e-6
    assert refined.sum(dim=1).max() <= 1 + 1e-5


@pytest.mark.parametrize("chain", ["", "crayon", "PAMR", "pamr+", "pamr+crayon", "none+pamr", " "])
def test_unknown_names_are_refused_with_the_known_ones(chain: str) -> None:
    with pytest.raises(ValueError, match="expected one of none, pamr") as error:
        parse_chain(chain)
    assert repr(chain) in str(error.value)


def test_a_refiner_may_come_only_once() -> None:
    with pytest.raises(ValueError, match="at most once"):
        parse_chain("pamr+pamr")


def test_names_are_usable_in_a_chain() -> None:
    assert parse_chain("none") == ()
    assert parse_chain("pamr") == ("pamr",)
    assert parse_chain("+".join(REFINERS)) == tuple(REFINERS)
    assert not any("+" in name or name == "none" for name in REFINERS)
