import torch

from models.refine.regions import Regions, from_masks, partition, superpixels, vote

SCORES = torch.tensor([[[0.9, 0.5, 0.1, 0.0]], [[0.0, 0.2, 0.4, 0.8]]])


def test_a_partition_by_hand() -> None:
    voted = vote(SCORES, partition(torch.tensor([[7, 7, 2, 2]])))
    expected = torch.tensor([[[0.7, 0.7, 0.05, 0.05]], [[0.1, 0.1, 0.6, 0.6]]])
    torch.testing.assert_close(voted, expected)


def test_the_more_confident_region_paints_over_the_less() -> None:
    masks = torch.tensor([[[True, True, True, True]], [[True, False, False, False]]])
    expected = torch.tensor([[[0.9, 0.375, 0.375, 0.375]], [[0.0, 0.35, 0.35, 0.35]]])
    torch.testing.assert_close(vote(SCORES, from_masks(masks)), expected)
    torch.testing.assert_close(vote(SCORES, from_masks(masks.flip(0))), expected)


def test_pixels_without_a_region_keep_their_scores() -> None:
    masks = torch.tensor([[[False, True, True, False]], [[False] * 4]])
    expected = torch.tensor([[[0.9, 0.3, 0.3, 0.0]], [[0.0, 0.3, 0.3, 0.8]]])
    torch.testing.assert_close(vote(SCORES, from_masks(masks)), expected)


def test_without_regions_nothing_changes() -> None:
    nothing = Regions(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(vote(SCORES, nothing), SCORES)


def test_numbers_say_whose_pixel_it_is() -> None:
    regions = from_masks(torch.tensor([[[True, True, False]], [[False, True, True]]]))
    assert regions.pixels.tolist() == [0, 1, 1, 2]
    assert regions.numbers().tolist() == [0, 0, 1, 1]


def test_superpixels_follow_colors() -> None:
    image = torch.zeros(3, 40, 60)
    image[:, :, 30:] = 1
    regions = superpixels(image)
    assert len(regions.offsets) == 2
    left = set(regions.pixels[: regions.offsets[1]].tolist())
    assert left == {60 * row + column for row in range(40) for column in range(30)}


def test_superpixels_cover_the_image_once() -> None:
    regions = superpixels(torch.rand(3, 32, 48))
    assert sorted(regions.pixels.tolist()) == list(range(32 * 48))
