import importlib
import pkgutil

import numpy as np
import pytest
import torch

import benchmarks
from benchmarks import clip_vit, plain_stages
from benchmarks.boundary import boundary_scores
from models.clip import FrozenClip
from models.generators.weaktr import WeakTrGenerator
from models.inference.multi_scale import multi_scale_cams
from models.losses import soft_masks
from models.prompts import BackgroundPrompts
from models.training.generator import Refinement, generator_losses
from models.training.prompts import embed_regions, prompt_losses
from models.weaktr_sizes import WeakTrSizes
from tests.conftest import CPU
from tests.helpers.vit import vit_generator

PROGRAMS = [each.name for each in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")]


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_that_it_imports_is_there(name: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "litserve":  # optional, see pyproject.toml
            raise
        pytest.skip("litserve is not installed")


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
    # within a pixel of the top and the bottom, is far from the true one; and 156 - 40 - 2 · 19 true ones are met.
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


NAMES = ("cat", "bowl", "cup")


def test_three_ways_to_grad_cams_agree() -> None:
    ways = clip_vit.sides(vit_generator(classes=2), torch.rand(1, 3, 64, 96), 2)
    maps, attention = ways["ours"]()
    assert maps.shape == (2, 4, 6)
    for other in ("plain", "CLIP-ES"):
        for one, same in zip(ways[other](), (maps, attention), strict=True):
            torch.testing.assert_close(one, same, atol=1e-4, rtol=1e-4)


def test_plain_and_library_agree(tiny_clip: FrozenClip) -> None:
    sizes = WeakTrSizes(native_size=64, width=48, depth=3, heads=3)
    generator = WeakTrGenerator(sizes, classes=3).eval()
    prompts = BackgroundPrompts(3, 4, tiny_clip.prompt_width, initialization="normal", generator=torch.Generator())
    images = torch.rand(2, 3, 64, 64)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    text = tiny_clip.embed_classes(NAMES)
    torch.testing.assert_close(plain_stages.plain_cams(generator, images), generator(images))
    torch.testing.assert_close(plain_stages.plain_texts(tiny_clip, NAMES), text)
    learned = tiny_clip.embed_prompts(prompts.context)
    torch.testing.assert_close(plain_stages.plain_prompts(tiny_clip, prompts.context), learned)

    def masks_of(images: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return soft_masks(generator.cams_of(images, present), size=tiny_clip.input_size, epsilon=plain_stages.EPSILON)

    plain = plain_stages.PlainStages(generator, tiny_clip, NAMES)
    for refinement, given in ((None, None), (Refinement(learned.detach(), plain_stages.REFINEMENT_WEIGHT), prompts)):
        generator.zero_grad()
        plain.generator_step(images, labels, given)
        expected = generator.head.weight.grad
        assert expected is not None
        generator.zero_grad()
        losses_of = generator_losses(
            masks_of, tiny_clip, text, background_weight=plain_stages.BACKGROUND_WEIGHT, refinement=refinement
        )
        torch.stack([*losses_of((images, labels)).values()]).sum().backward()
        torch.testing.assert_close(generator.head.weight.grad, expected, atol=1e-5, rtol=1e-3)

    plain.prompt_step(images, labels, prompts)
    expected = prompts.context.grad
    assert expected is not None
    prompts.zero_grad()
    regions = embed_regions([(images, labels)], masks_of, tiny_clip, device=CPU)
    losses = prompt_losses(prompts, tiny_clip, regions, text, text_weight=plain_stages.TEXT_WEIGHT)
    losses(torch.arange(4))["prompt"].backward()
    torch.testing.assert_close(prompts.context.grad, expected, atol=1e-5, rtol=1e-3)

    with torch.no_grad():
        channels = torch.tensor([0, 2])
        cams = plain.cams(images[:1], channels, scales=(1.0, 1.5))
        present = torch.tensor([(0, 0), (0, 2)])
        ours = multi_scale_cams(generator.cams_of, images[:1], present, scales=(1.0, 1.5), flip=True)
    torch.testing.assert_close(cams[0], ours, atol=2e-4, rtol=0.03)
