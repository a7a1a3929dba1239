"""Means over pixels whose labels are partly wrong."""

import pytest
import torch

from models.losses import masked_mean, noise_aware_mean


def test_mean_of_the_valid() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 100.0]]])
    valid = torch.tensor([[[True, True], [True, False]]])
    assert masked_mean(values, valid).item() == 2
    assert noise_aware_mean(values, valid).item() == 2  # above 1.2 nothing is clipped


def test_clipping_by_hand() -> None:
    # Two tiles of 2 × 2. Means: left 0.1, right 0.8 over its three valid pixels; of all 2.8 / 7 = 0.4.
    values = torch.tensor([[[0.1, 0.1, 0.2, 0.1], [0.1, 0.1, 2.1, 9.0]]], requires_grad=True)
    valid = torch.ones(1, 2, 4, dtype=torch.bool)
    valid[0, 1, 3] = False
    loss = noise_aware_mean(values, valid, tile=2)
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
    assert noise_aware_mean(values, valid, tile=2).item() == pytest.approx(5 / 8)


@pytest.mark.parametrize("size", [(64, 64), (120, 130), (121, 250)])
def test_tiles_cover_any_size(size: tuple[int, int]) -> None:
    values = torch.rand(2, *size)
    loss = noise_aware_mean(values, torch.ones(2, *size, dtype=torch.bool))
    assert 0 < loss < values.mean()


def test_gradcheck() -> None:
    values = torch.rand(1, 4, 6, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(1, 4, 6) < 0.8
    assert torch.autograd.gradcheck(lambda x: masked_mean(x, valid), (values,))
    # The limits are constants to the gradient, which is 1/n where a loss is below its own and 0 above.
    noise_aware_mean(values, valid, tile=2).backward()
    assert values.grad is not None
    shares = (values.grad * valid.sum()).unique()
    torch.testing.assert_close(shares, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_no_valid_pixel_gives_zero_with_a_gradient() -> None:
    values = torch.ones(1, 2, 2, requires_grad=True)
    for mean in (masked_mean, noise_aware_mean):
        loss = mean(values, torch.zeros(1, 2, 2, dtype=torch.bool))
        loss.backward()
        assert loss.item() == 0
    assert values.grad is not None
    assert not values.grad.any()


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected equal shapes \(B, H, W\)"):
        masked_mean(torch.ones(1, 2, 2), torch.ones(1, 2, 3, dtype=torch.bool))
