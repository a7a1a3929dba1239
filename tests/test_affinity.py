import pytest
import torch

from models.generators.affinity import propagate


def test_by_hand() -> None:
    # Two places alike, a third orthogonal to both: evidence is shared by the two alone.
    features = torch.tensor([[[[1.0, 2.0, 0.0]], [[0.0, 0.0, 1.0]]]])
    cams = torch.tensor([[[[1.0, 0.0, 0.6]]]])
    torch.testing.assert_close(
        propagate(cams, features, steps=1), torch.tensor([[[[0.5, 0.5, 0.6]]]])
    )


def test_constant_stays_constant_and_range_never_grows() -> None:
    features, cams = torch.rand(2, 8, 5, 6), torch.rand(2, 3, 5, 6)
    flat = torch.full((2, 1, 5, 6), 0.7)
    torch.testing.assert_close(propagate(flat, features, steps=3), flat)
    spread = propagate(cams, features, steps=3)
    assert (spread.amax(dim=(2, 3)) <= cams.amax(dim=(2, 3)) + 1e-6).all()
    assert (spread.amin(dim=(2, 3)) >= cams.amin(dim=(2, 3)) - 1e-6).all()


def test_no_step_changes_nothing_and_two_are_one_twice() -> None:
    features, cams = torch.rand(1, 8, 4, 4), torch.rand(1, 2, 4, 4)
    assert propagate(cams, features, steps=0) is cams
    once = propagate(cams, features, steps=1)
    torch.testing.assert_close(
        propagate(cams, features, steps=2), propagate(once, features, steps=1)
    )


def test_places_without_features_are_zero_not_nan() -> None:
    features = torch.zeros(1, 8, 2, 2)
    assert propagate(torch.rand(1, 1, 2, 2), features, steps=2).abs().max() == 0


def test_gradient() -> None:
    features = torch.rand(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    cams = torch.rand(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c, f: propagate(c, f, steps=2), (cams, features))


def test_grids_must_agree() -> None:
    with pytest.raises(ValueError, match="expected CAMs on the features' grid"):
        propagate(torch.zeros(1, 1, 2, 3), torch.zeros(1, 8, 2, 2), steps=1)
