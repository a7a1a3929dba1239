import math
from functools import partial

import pytest
import torch
from torch import Tensor

from models import losses


def pair(cosine: float) -> tuple[Tensor, Tensor]:
    """Two unit vectors (1, 2) with the given cosine."""
    return (
        torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        torch.tensor([[cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64),
    )


def test_matching_by_hand() -> None:
    text, foreground = pair(0.5)
    _, background = pair(0.2)
    loss = losses.segment_label_matching(foreground, background, text, background_weight=2.4)
    assert loss.item() == pytest.approx(-math.log(0.5) - 2.4 * math.log(0.8))


def test_prompt_learning_by_hand() -> None:
    prompt, background = pair(0.4)
    _, text = pair(0.3)
    loss = losses.contrastive_prompt_learning(background, prompt, text, text_weight=0.02)
    assert loss.item() == pytest.approx(-math.log(0.4) + 0.02 * math.log(0.3))


def test_refinement_by_hand() -> None:
    prompt, foreground = pair(0.6)
    loss = losses.semantic_refinement(foreground, prompt, refinement_weight=0.05)
    assert loss.item() == pytest.approx(-0.05 * math.log(0.4))


def test_mean_runs_over_all_regions() -> None:
    (a, b), (c, d) = pair(0.6), pair(0.2)
    loss = losses.semantic_refinement(torch.cat([b, d]), torch.cat([a, c]), refinement_weight=1.0)
    assert loss.item() == pytest.approx(-(math.log(0.4) + math.log(0.8)) / 2)


@pytest.mark.parametrize(("cosine", "clamped"), [(-0.5, 1e-4), (1.0, 0.9999)])
def test_cosines_are_clamped(cosine: float, clamped: float) -> None:
    a, b = pair(cosine)
    loss = losses.segment_label_matching(b, b, a, background_weight=1.0)
    assert loss.item() == pytest.approx(-math.log(clamped) - math.log(1 - clamped), rel=1e-9)


def test_gradient_of_the_text_term_is_one_over_cosine() -> None:
    prompt, text = pair(0.25)
    text.requires_grad_()
    losses.contrastive_prompt_learning(prompt, prompt, text, text_weight=1.0).backward()
    assert text.grad is not None
    assert text.grad[0, 0].item() == pytest.approx(1 / 0.25)


def unit(seed: int) -> Tensor:
    # Positive coordinates keep every cosine inside the clamp, where the losses are smooth.
    values = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values + 0.1, dim=1).requires_grad_()


def test_gradcheck() -> None:
    f, b, t, p = unit(0), unit(1), unit(2), unit(3)
    for loss, inputs in (
        (partial(losses.segment_label_matching, background_weight=2.4), (f, b, t)),
        (partial(losses.contrastive_prompt_learning, text_weight=0.02), (b, p, t)),
        (partial(losses.semantic_refinement, refinement_weight=0.2), (f, p)),
    ):
        assert torch.autograd.gradcheck(loss, inputs)


def test_no_region_gives_zero_with_a_gradient() -> None:
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = (
        losses.segment_label_matching(empty, empty, empty, background_weight=1.0)
        + losses.contrastive_prompt_learning(empty, empty, empty, text_weight=1.0)
        + losses.semantic_refinement(empty, empty, refinement_weight=1.0)
    )
    loss.backward()
    assert loss.item() == 0
    assert empty.grad is not None


def test_different_shapes_are_refused() -> None:
    a, b = torch.zeros(2, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"expected equal shapes .* background \(3, 4\)"):
        losses.segment_label_matching(a, b, a, background_weight=1.0)
    with pytest.raises(ValueError, match="expected equal shapes"):
        losses.contrastive_prompt_learning(a, a, b, text_weight=1.0)
    with pytest.raises(ValueError, match="expected equal shapes"):
        losses.semantic_refinement(a, b, refinement_weight=1.0)


def test_present_pairs_go_image_by_image() -> None:
    labels = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0]])
    assert losses.present_pairs(labels).tolist() == [[0, 1], [0, 2], [2, 0]]
    with pytest.raises(ValueError, match=r"expected labels \(B, K\), got \(3,\)"):
        losses.present_pairs(torch.ones(3))


def test_masks_by_hand() -> None:
    cams = torch.zeros(1, 2, 2, 2)
    cams[0, 1] = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    mask = losses.soft_masks(cams[:, 1], size=(2, 3), epsilon=0.5)
    # Corners aligned: columns 1, 2, 3; then (cam - 1) / (2 + 0.5).
    torch.testing.assert_close(mask, torch.tensor([[[0.0, 0.4, 0.8]] * 2]))


def test_a_flat_cam_gives_an_empty_mask() -> None:
    flat = torch.full((1, 1, 2, 2), 5.0)
    mask = losses.soft_masks(flat[:, 0], size=(4, 4), epsilon=0.1)
    torch.testing.assert_close(mask, torch.zeros(1, 4, 4), atol=1e-4, rtol=0)


def test_absent_classes_get_no_gradient() -> None:
    cams = torch.rand(1, 3, 4, 4, requires_grad=True)
    losses.soft_masks(cams[:, 2], size=(8, 8), epsilon=0.1).sum().backward()
    assert cams.grad is not None
    assert cams.grad[0, :2].abs().max() == 0
    assert cams.grad[0, 2].abs().max() > 0


def test_no_present_class_keeps_the_gradient() -> None:
    cams = torch.rand(2, 3, 4, 4, requires_grad=True)
    masks = losses.soft_masks(cams[:0, 0], size=(8, 8), epsilon=0.1)
    assert masks.shape == (0, 8, 8)
    masks.sum().backward()
    assert cams.grad is not None


def test_regions_add_up_to_the_image() -> None:
    images, masks = torch.randn(2, 3, 4, 4), torch.rand(3, 4, 4)
    present = torch.tensor([[0, 0], [1, 0], [1, 1]])
    regions = losses.mask_images(images, masks, present)
    torch.testing.assert_close(regions.foreground + regions.background, images[[0, 1, 1]])
    torch.testing.assert_close(regions.foreground[2], masks[2] * images[1])


def test_sizes_must_agree() -> None:
    present = torch.tensor([[0, 0]])
    with pytest.raises(ValueError, match="expected one mask of the images' size for each of 1"):
        losses.mask_images(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 5), present)
    with pytest.raises(ValueError, match="expected one mask"):
        losses.mask_images(torch.zeros(1, 3, 4, 4), torch.zeros(2, 4, 4), present)


def test_mean_of_the_valid() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 100.0]]])
    valid = torch.tensor([[[True, True], [True, False]]])
    assert losses.masked_mean(values, valid).item() == 2
    assert losses.noise_aware_mean(values, valid).item() == 2  # above 1.2 nothing is clipped


def test_clipping_by_hand() -> None:
    # Two tiles of 2 × 2. Means: left 0.1, right 0.8 over its three valid pixels; of all 2.8 / 7 = 0.4.
    values = torch.tensor([[[0.1, 0.1, 0.2, 0.1], [0.1, 0.1, 2.1, 9.0]]], requires_grad=True)
    valid = torch.ones(1, 2, 4, dtype=torch.bool)
    valid[0, 1, 3] = False
    loss = losses.noise_aware_mean(values, valid, tile=2)
    # Only 2.1 is above its limit, max(0.8, 0.4): (0.4 + 0.2 + 0.1 + 0.8) / 7
    assert loss.item() == pytest.approx(1.5 / 7)
    loss.backward()
    assert values.grad is not None
    share = pytest.approx(1 / 7)
    assert values.grad[0].tolist() == [[share] * 4, [share, share, 0, 0]]


def test_the_batch_mean_is_the_lower_bound_of_limits() -> None:
    # The left tile's mean is 0.25, the batch's 0.625: 0.6 is above its tile's, but not above the batch's.
    values = torch.tensor([[[0.6, 0.1, 1.0, 1.0], [0.1, 0.2, 1.0, 1.0]]])
    valid = torch.ones(1, 2, 4, dtype=torch.bool)
    assert losses.noise_aware_mean(values, valid, tile=2).item() == pytest.approx(5 / 8)


@pytest.mark.parametrize("size", [(64, 64), (120, 130), (121, 250)])
def test_tiles_cover_any_size(size: tuple[int, int]) -> None:
    values = torch.rand(2, *size)
    loss = losses.noise_aware_mean(values, torch.ones(2, *size, dtype=torch.bool))
    assert 0 < loss < values.mean()


def test_gradcheck_of_means() -> None:
    values = torch.rand(1, 4, 6, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(1, 4, 6) < 0.8
    assert torch.autograd.gradcheck(lambda x: losses.masked_mean(x, valid), (values,))
    # The limits are constants to the gradient, which is 1/n where a loss is below its own and 0 above.
    losses.noise_aware_mean(values, valid, tile=2).backward()
    assert values.grad is not None
    shares = (values.grad * valid.sum()).unique()
    torch.testing.assert_close(shares, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_no_valid_pixel_gives_zero_with_a_gradient() -> None:
    values = torch.ones(1, 2, 2, requires_grad=True)
    for mean in (losses.masked_mean, losses.noise_aware_mean):
        loss = mean(values, torch.zeros(1, 2, 2, dtype=torch.bool))
        loss.backward()
        assert loss.item() == 0
    assert values.grad is not None
    assert not values.grad.any()


def test_different_shapes_are_refused_of_means() -> None:
    with pytest.raises(ValueError, match=r"expected equal shapes \(B, H, W\)"):
        losses.masked_mean(torch.ones(1, 2, 2), torch.ones(1, 2, 3, dtype=torch.bool))
