from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.inference import multi_scale


def local(images: Tensor) -> Tensor:
    """A network without any context: softmax of the four-pixel means of R, G, B."""
    return F.avg_pool2d(images * 5, 4).softmax(dim=1)


def lopsided(images: Tensor) -> Tensor:
    return local(images.roll(3, dims=-1))


def constant(images: Tensor) -> Tensor:
    share = torch.tensor([0.7, 0.2, 0.1]).view(1, 3, 1, 1)
    return share.expand(len(images), 3, images.shape[-2] // 4, images.shape[-1] // 4)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(1, 3, 96, 160)


@pytest.mark.parametrize("window", [None, 64])
def test_a_constant_network_gives_constants(images: Tensor, window: int | None) -> None:
    found = multi_scale.segment_images(constant, images, scales=(0.8, 1.0, 1.5), flip=True, window=window)
    assert found.shape == (1, 3, 96, 160)
    torch.testing.assert_close(found, constant(images)[..., :1, :1].expand_as(found))


def test_probabilities_sum_to_one(images: Tensor) -> None:
    found = multi_scale.segment_images(local, images, scales=(0.5, 1.0), flip=True, window=64)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, 96, 160))


@pytest.mark.parametrize("window", [None, 64])
def test_flip_equivariance(images: Tensor, window: int | None) -> None:
    straight = multi_scale.segment_images(lopsided, images, scales=(1.0, 1.5), flip=True, window=window)
    mirrored = multi_scale.segment_images(lopsided, images.flip(-1), scales=(1.0, 1.5), flip=True, window=window)
    torch.testing.assert_close(mirrored, straight.flip(-1), atol=1e-5, rtol=0)


def test_one_window_is_no_window(images: Tensor) -> None:
    whole = multi_scale._in_windows(local, images, window=None)
    assert torch.equal(multi_scale._in_windows(local, images, window=160), whole)


def test_windows_of_a_local_network_agree_with_the_whole(images: Tensor) -> None:
    def nearest(batch: Tensor) -> Tensor:
        return local(batch).repeat_interleave(4, -1).repeat_interleave(4, -2)

    torch.testing.assert_close(multi_scale._in_windows(nearest, images, window=64), nearest(images))


def test_windows_never_exceed_their_side(images: Tensor) -> None:
    sizes: list[tuple[int, ...]] = []

    def watched(batch: Tensor) -> Tensor:
        sizes.append(tuple(batch.shape[-2:]))
        return local(batch)

    multi_scale._in_windows(watched, torch.rand(1, 3, 32, 320), window=128)
    assert set(sizes) == {(32, 128)}


@pytest.mark.parametrize("window", [32, 64, 96, 512])
@pytest.mark.parametrize("length", [32, 64, 96, 320, 1056])
def test_windows_cover_everything(length: int, window: int) -> None:
    starts = multi_scale._window_starts(length, window=window)
    assert starts[0] == 0
    assert max(starts) + window >= length
    assert all(start % 32 == 0 for start in starts)
    assert all(0 < after - before <= max(2 * window / 3, 32) for before, after in pairwise(starts))


def test_winners_are_kept_and_stay_the_best() -> None:
    scores = torch.tensor([[0.5, 0.1], [0.3, 0.3], [0.1, 0.4], [0.1, 0.2]]).view(1, 4, 1, 2)
    channels, kept = multi_scale.upsampled_argmax_classes(scores, (1, 2))
    assert channels.tolist() == [1]
    shares, total = multi_scale.renormalize(kept)
    torch.testing.assert_close(shares[0, :, 0], torch.tensor([[5 / 6, 1 / 5], [1 / 6, 4 / 5]]))
    torch.testing.assert_close(total.flatten(), torch.tensor([0.6, 0.5]))


def test_where_the_background_wins_everywhere_no_class_is_left() -> None:
    scores = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1)
    channels, kept = multi_scale.upsampled_argmax_classes(scores, (1, 1))
    shares, total = multi_scale.renormalize(kept)
    assert (shares.shape, channels.tolist()) == ((1, 1, 1, 1), [])
    assert (shares.item(), total.item()) == (1.0, pytest.approx(0.9))


def test_one_scale_without_windows_stays_on_the_segmenters_grid(images: Tensor) -> None:
    found = multi_scale.segment_images(lopsided, images, scales=(1.0,), flip=True, window=160)
    assert found.shape == (1, 3, 24, 40)
    wide = (lopsided(images) + lopsided(images.flip(-1)).flip(-1)) / 2
    torch.testing.assert_close(found, wide)
    for scales, window in (((1.0,), 64), ((1.5,), None), ((1.0, 1.0), None)):
        seen = multi_scale.segment_images(lopsided, images, scales=scales, flip=True, window=window)
        assert seen.shape == (1, 3, 96, 160)


@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (2, 3), (12, 16)])
@pytest.mark.parametrize("sharpness", [0.5, 3.0, 30.0])
def test_candidates_are_known_before_upsampling(grid: tuple[int, int], sharpness: float) -> None:
    coarse = (torch.randn(1, 12, *grid) * sharpness).softmax(dim=1)
    fine = F.interpolate(coarse, size=(64, 96), mode="bilinear", align_corners=False)
    channels, maps = multi_scale.upsampled_argmax_classes(coarse, (64, 96))
    assert torch.equal(channels, multi_scale.argmax_classes(fine))
    torch.testing.assert_close(maps, fine[:, [0, *(channels + 1).tolist()]])
    assert set(channels.tolist()) <= set(multi_scale._candidate_classes(coarse).tolist())


def test_a_class_that_another_tops_everywhere_cannot_win() -> None:
    coarse = torch.tensor([0.1, 0.5, 0.3, 0.1]).view(1, 4, 1, 1).expand(1, 4, 5, 6)
    assert multi_scale._candidate_classes(coarse).tolist() == [0]


def blocks(images: Tensor, present: Tensor) -> Tensor:
    """A stand-in generator: channel averages of 16×16 blocks."""
    return F.avg_pool2d(images, 16)[present[:, 0], present[:, 1]]


CHANNELS = (0, 2)


def every(images: Tensor) -> Tensor:
    """The pairs of each image with both channels."""
    return torch.tensor([(image, channel) for image in range(len(images)) for channel in CHANNELS])


def cams(images: Tensor, scales: tuple[float, ...] = (1.0, 0.5), flip: bool = True) -> Tensor:
    found = multi_scale.multi_scale_cams(blocks, images, every(images), scales=scales, flip=flip)
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
    only = multi_scale.multi_scale_cams(blocks, images, asked, scales=(1.0,), flip=flip)
    both = cams(images, (1.0,), flip=flip)
    torch.testing.assert_close(only, torch.stack([both[0, 1], both[1, 0], both[1, 1]]))


def test_an_image_is_the_same_alone_and_in_a_batch() -> None:
    images = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(cams(images)[1:2], cams(images[1:2]))


def test_labels_of_an_image_compete_at_each_place() -> None:
    pixels = torch.zeros(2, 3, 32, 64)
    pixels[0, 0] = torch.tensor([0.8, 0.4]).repeat_interleave(32)
    pixels[0, 2] = torch.tensor([0.4, 0.6]).repeat_interleave(32)
    pixels[1, 0] = 1.0  # another image, and one without a rival
    present = torch.tensor([(0, 0), (0, 2), (1, 0)])

    def found(cams_of: Tensor) -> list[float]:
        return multi_scale._compete(cams_of, present[:, 0], share=0.5)[:, 0, [0, -1]].flatten().tolist()

    # 0.8 - 0.2, 0.4 - 0.3; 0.4 - 0.4, 0.6 - 0.2; 1, 1
    assert found(blocks(pixels, present)) == pytest.approx([0.6, 0.1, 0.0, 0.4, 1.0, 1.0], abs=1e-5)
    whole = multi_scale.multi_scale_cams(blocks, pixels, present, scales=(1.0,), flip=False, competition=0.5)
    assert whole[0, 0, [0, -1]].tolist() == pytest.approx([1, 0], abs=1e-5)
    assert whole[1, 0, [0, -1]].tolist() == pytest.approx([0, 1], abs=1e-5)
    assert not whole[2].any()  # constant evidence


def test_scales_report_and_can_stop() -> None:
    seen: list[float] = []
    images = torch.rand(1, 3, 64, 64)
    scales = (1.0, 0.5)
    multi_scale.multi_scale_cams(blocks, images, every(images), scales=scales, flip=False, on_scale=seen.append)
    assert seen == [0, 0.5]
    with pytest.raises(ValueError, match="expected at least one scale, got none"):
        cams(images, ())
    with pytest.raises(ValueError, match="expected at least one scale"):
        multi_scale.segment_images(local, images, scales=(), flip=True, window=None)


def test_constant_maps_become_zero() -> None:
    flat = F.interpolate(torch.full((1, 1, 3, 3), 5.0), size=(64, 64), mode="bilinear")
    assert multi_scale.normalize_cams(flat).abs().max() == 0
    assert cams(torch.zeros(1, 3, 64, 64)).abs().max() == 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (320, 448)), ((640, 480), (448, 320)), ((1, 1), (448, 448)), ((1, 9000), (32, 448))],
)
def test_grid_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert multi_scale.grid_size(*size, longer_side=448) == expected


def test_resizing_does_not_overshoot() -> None:
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    resized = multi_scale.resize_images(edge, (32, 32))
    assert 0 <= resized.min() <= resized.max() <= 1
