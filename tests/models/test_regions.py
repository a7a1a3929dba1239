import pytest
import torch

from models.losses import mask_images, present_pairs, soft_masks


def test_present_pairs_go_image_by_image() -> None:
    labels = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 0, 0]])
    assert present_pairs(labels).tolist() == [[0, 1], [0, 2], [2, 0]]
    with pytest.raises(ValueError, match=r"expected labels \(B, K\), got \(3,\)"):
        present_pairs(torch.ones(3))


def test_masks_by_hand() -> None:
    cams = torch.zeros(1, 2, 2, 2)
    cams[0, 1] = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    mask = soft_masks(cams, torch.tensor([[0, 1]]), size=(2, 3), epsilon=0.5)
    # Corners aligned: columns 1, 2, 3; then (cam - 1) / (2 + 0.5).
    torch.testing.assert_close(mask, torch.tensor([[[0.0, 0.4, 0.8]] * 2]))


def test_a_flat_cam_gives_an_empty_mask() -> None:
    flat = torch.full((1, 1, 2, 2), 5.0)
    mask = soft_masks(flat, torch.tensor([[0, 0]]), size=(4, 4), epsilon=0.1)
    torch.testing.assert_close(mask, torch.zeros(1, 4, 4), atol=1e-4, rtol=0)


def test_absent_classes_get_no_gradient() -> None:
    cams = torch.rand(1, 3, 4, 4, requires_grad=True)
    soft_masks(cams, torch.tensor([[0, 2]]), size=(8, 8), epsilon=0.1).sum().backward()
    assert cams.grad is not None
    assert cams.grad[0, :2].abs().max() == 0
    assert cams.grad[0, 2].abs().max() > 0


def test_no_present_class_keeps_the_gradient() -> None:
    cams = torch.rand(2, 3, 4, 4, requires_grad=True)
    masks = soft_masks(cams, torch.zeros(0, 2, dtype=torch.long), size=(8, 8), epsilon=0.1)
    assert masks.shape == (0, 8, 8)
    masks.sum().backward()
    assert cams.grad is not None


def test_regions_add_up_to_the_image() -> None:
    images, masks = torch.randn(2, 3, 4, 4), torch.rand(3, 4, 4)
    present = torch.tensor([[0, 0], [1, 0], [1, 1]])
    regions = mask_images(images, masks, present)
    torch.testing.assert_close(regions.foreground + regions.background, images[[0, 1, 1]])
    torch.testing.assert_close(regions.foreground[2], masks[2] * images[1])


def test_sizes_must_agree() -> None:
    present = torch.tensor([[0, 0]])
    with pytest.raises(ValueError, match="expected one mask of the images' size for each of 1"):
        mask_images(torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 5), present)
    with pytest.raises(ValueError, match="expected one mask"):
        mask_images(torch.zeros(1, 3, 4, 4), torch.zeros(2, 4, 4), present)
