import math

import pytest
import torch
from torch import Tensor

from models.losses import contrastive_prompt_learning, segment_label_matching, semantic_refinement


def pair(cosine: float) -> tuple[Tensor, Tensor]:
    """Two unit vectors (1, 2) with the given cosine."""
    return (
        torch.tensor([[1.0, 0.0]], dtype=torch.float64),
        torch.tensor([[cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64),
    )


def test_matching_by_hand() -> None:
    text, foreground = pair(0.5)
    _, background = pair(0.2)
    loss = segment_label_matching(foreground, background, text, background_weight=2.4)
    assert loss.item() == pytest.approx(-math.log(0.5) - 2.4 * math.log(0.8))


def test_prompt_learning_by_hand() -> None:
    prompt, background = pair(0.4)
    _, text = pair(0.3)
    loss = contrastive_prompt_learning(background, prompt, text, text_weight=0.02)
    assert loss.item() == pytest.approx(-math.log(0.4) + 0.02 * math.log(0.3))


def test_refinement_by_hand() -> None:
    prompt, foreground = pair(0.6)
    loss = semantic_refinement(foreground, prompt, refinement_weight=0.05)
    assert loss.item() == pytest.approx(-0.05 * math.log(0.4))


def test_mean_runs_over_all_regions() -> None:
    (a, b), (c, d) = pair(0.6), pair(0.2)
    loss = semantic_refinement(torch.cat([b, d]), torch.cat([a, c]), refinement_weight=1.0)
    assert loss.item() == pytest.approx(-(math.log(0.4) + math.log(0.8)) / 2)


@pytest.mark.parametrize(("cosine", "clamped"), [(-0.5, 1e-4), (1.0, 0.9999)])
def test_cosines_are_clamped(cosine: float, clamped: float) -> None:
    a, b = pair(cosine)
    loss = segment_label_matching(b, b, a, background_weight=1.0)
    assert loss.item() == pytest.approx(-math.log(clamped) - math.log(1 - clamped), rel=1e-9)


def test_gradient_of_the_text_term_is_one_over_cosine() -> None:
    prompt, text = pair(0.25)
    text.requires_grad_()
    contrastive_prompt_learning(prompt, prompt, text, text_weight=1.0).backward()
    assert text.grad is not None
    assert text.grad[0, 0].item() == pytest.approx(1 / 0.25)


def unit(seed: int) -> Tensor:
    # Positive coordinates keep every cosine inside the clamp, where the losses are smooth.
    values = torch.rand(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values + 0.1, dim=1).requires_grad_()


def test_gradcheck() -> None:
    f, b, t, p = unit(0), unit(1), unit(2), unit(3)
    assert torch.autograd.gradcheck(
        lambda *x: segment_label_matching(*x, background_weight=2.4), (f, b, t)
    )
    assert torch.autograd.gradcheck(
        lambda *x: contrastive_prompt_learning(*x, text_weight=0.02), (b, p, t)
    )
    assert torch.autograd.gradcheck(
        lambda *x: semantic_refinement(*x, refinement_weight=0.2), (f, p)
    )


def test_no_region_gives_zero_with_a_gradient() -> None:
    empty = torch.zeros(0, 4, requires_grad=True)
    loss = (
        segment_label_matching(empty, empty, empty, background_weight=1.0)
        + contrastive_prompt_learning(empty, empty, empty, text_weight=1.0)
        + semantic_refinement(empty, empty, refinement_weight=1.0)
    )
    loss.backward()
    assert loss.item() == 0
    assert empty.grad is not None


def test_different_shapes_are_refused() -> None:
    a, b = torch.zeros(2, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"expected equal shapes .* background \(3, 4\)"):
        segment_label_matching(a, b, a, background_weight=1.0)
    with pytest.raises(ValueError, match="expected equal shapes"):
        contrastive_prompt_learning(a, a, b, text_weight=1.0)
    with pytest.raises(ValueError, match="expected equal shapes"):
        semantic_refinement(a, b, refinement_weight=1.0)
