import pytest
import torch
from torch import Tensor

from models.inference.multi_scale import grid_size, multi_scale_cams, normalize_cams, resize_images


def blocks(images: Tensor) -> Tensor:
    """A stand-in generator: channel averages of 16×16 blocks."""
    return torch.nn.functional.avg_pool2d(images, 16)


CHANNELS = (0, 2)


def every(images: Tensor) -> Tensor:
    """The pairs of each image with both channels."""
    return torch.tensor([(image, channel) for image in range(len(images)) for channel in CHANNELS])


def cams(images: Tensor, scales: tuple[float, ...] = (1.0, 0.5), flip: bool = True) -> Tensor:
    found = multi_scale_cams(blocks, images, every(images), scales=scales, flip=flip)
    return found.unflatten(0, (len(images), len(CHANNELS)))


def test_shape_and_range() -> None:
    result = cams(torch.rand(2, 3, 64, 96))
    assert result.shape == (2, 2, 64, 96)
    assert result.amin(dim=(2, 3)).abs().max() == 0
    torch.testing.assert_close(result.amax(dim=(2, 3)), torch.ones(2, 2))


def test_flip_averaging_is_flip_equivariant() -> None:
    images = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(cams(images.flip(-1)).flip(-1), cams(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("flip", [False, True])
def test_each_image_has_the_classes_that_it_is_asked_for(flip: bool) -> None:
    images = torch.rand(2, 3, 64, 64)
    asked = torch.tensor([(0, 2), (1, 0), (1, 2)])
    only = multi_scale_cams(blocks, images, asked, scales=(1.0,), flip=flip)
    both = cams(images, (1.0,), flip=flip)
    torch.testing.assert_close(only, torch.stack([both[0, 1], both[1, 0], both[1, 1]]))


def test_an_image_is_the_same_alone_and_in_a_batch() -> None:
    images = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(cams(images)[1:2], cams(images[1:2]))


def test_scales_report_and_can_stop() -> None:
    seen: list[float] = []
    images = torch.rand(1, 3, 64, 64)
    multi_scale_cams(
        blocks, images, every(images), scales=(1.0, 0.5), flip=False, on_scale=seen.append
    )
    assert seen == [0, 0.5]
    with pytest.raises(ValueError, match="expected at least one scale, got none"):
        cams(images, ())


def test_constant_maps_become_zero() -> None:
    flat = torch.nn.functional.interpolate(
        torch.full((1, 1, 3, 3), 5.0), size=(64, 64), mode="bilinear"
    )
    assert normalize_cams(flat).abs().max() == 0
    assert cams(torch.zeros(1, 3, 64, 64)).abs().max() == 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (320, 448)),
        ((640, 480), (448, 320)),
        ((1, 1), (448, 448)),
        ((1, 9000), (32, 448)),
    ],
)
def test_grid_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert grid_size(*size, longer_side=448) == expected


def test_resizing_does_not_overshoot() -> None:
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    resized = resize_images(edge, (32, 32))
    assert 0 <= resized.min() <= resized.max() <= 1
