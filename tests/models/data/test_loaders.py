import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.data import loaders
from models.data.classes import Sample
from models.data.mask_folder import read_mask_folder
from tests.conftest import CLASSES


@pytest.mark.parametrize("augment", [loaders.light_augmentation, loaders.strong_augmentation])
def test_crops(augment: object) -> None:
    transform = augment(48, min_area=0.5)  # type: ignore[operator]
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    crops = [transform(pixels) for _ in range(20)]
    assert {tuple(crop.shape) for crop in crops} == {(3, 48, 48)}
    assert all(0 <= crop.min() <= crop.max() <= 1 for crop in crops)
    assert not torch.equal(crops[0], crops[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_photo_is_named(workers: int, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    crops = loaders.Crops(
        [Sample(tmp_path / "bad.jpg", (0,), tmp_path)],
        classes=4,
        transform=loaders.light_augmentation(32, min_area=1.0),
        seed=0,
    )
    for batches in (
        loaders.RandomBatches(lambda _: crops, 1, batch_size=1, seed=0, workers=workers).epoch(0),
        loaders.ordered_batches(crops, batch_size=1, workers=workers),
    ):
        with pytest.raises(ValueError, match=r"bad.jpg: ") as caught:
            list(batches)
        assert "Traceback" not in str(caught.value)


def test_augmentation_at_its_strongest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation comes up in some of these draws; posterizing to 0 bits, which Pillow refuses, in none."""
    monkeypatch.setattr(random, "gauss", lambda mean, deviation: mean + 10 * deviation)
    transform = loaders.strong_augmentation(32, min_area=0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    with loaders._seeded(0):
        assert all(transform(pixels).isfinite().all() for _ in range(100))


def test_batches(tiny_samples: list[Sample]) -> None:
    crops = loaders.Crops(tiny_samples, classes=4, transform=loaders.light_augmentation(32, min_area=1.0), seed=0)
    ordered = list(loaders.ordered_batches(crops, batch_size=3, workers=0))
    assert [len(images) for images, _ in ordered] == [3, 3, 2]
    assert ordered[0][1].argmax(dim=1).tolist() == [0, 1, 2]


@pytest.fixture(params=["photos", "masks"])
def batches(
    request: pytest.FixtureRequest, tiny_samples: list[Sample], tiny_data: Path, tiny_masks: Path
) -> Callable[..., loaders.RandomBatches[tuple[Tensor, Tensor]]]:
    if request.param == "photos":
        transform = loaders.strong_augmentation(32, min_area=0.5)  # it draws from random, NumPy and torch
        crops = partial(loaders.Crops, tiny_samples, classes=4, transform=transform)
    else:
        samples = read_mask_folder(tiny_data / "images", tiny_masks, CLASSES)
        crops = partial(
            loaders.MaskCrops, samples, transform=loaders.mask_augmentation(64, scale=(0.5, 2.0), color_jitter=0.4)
        )
    return partial(loaders.RandomBatches, lambda seed: crops(seed=seed), 8, seed=7)


def test_random_batches_depend_on_seed_and_epoch_alone(batches: Callable[..., loaders.RandomBatches[Any]]) -> None:
    alone = batches(batch_size=3, workers=0)
    first, second = list(alone.epoch(0)), list(alone.epoch(1))
    assert [len(images) for images, _ in first] == [3, 3]
    assert [len(images) for images, _ in batches(batch_size=64, workers=0).epoch(0)] == [8]
    torch.rand(3)  # the process may draw other numbers
    np.random.rand(3)
    random.random()
    for other in (alone, batches(batch_size=3, workers=2)):
        again = [*other.epoch(0), *other.epoch(1)]
        for (images, labels), (same, known) in zip(again, [*first, *second], strict=True):
            assert torch.equal(images, same)
            assert torch.equal(labels, known)
    (last,) = alone.epoch(0, skip=1)
    assert torch.equal(last[0], first[1][0])
    assert not torch.equal(second[0][0], first[0][0])


def test_processes_share_random_batches(batches: Callable[..., loaders.RandomBatches[Any]]) -> None:
    make = partial(batches, batch_size=4, workers=0)
    assert len(make()) == 2
    whole = next(make().epoch(0))[0]
    parts = [next(make(share=(rank, 2)).epoch(0))[0] for rank in (0, 1)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole)
    with pytest.raises(ValueError, match="expected a batch that 3 processes can share, got 4"):
        next(make(share=(0, 3)).epoch(0))


def test_seeding_for_a_while_leaves_no_trace() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed_all() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed_all()
    undisturbed = draw(), draw()
    seed_all()
    before = draw()
    with loaders._seeded(5):
        inside = draw()
    assert (before, draw()) == undisturbed
    with loaders._seeded(5):
        assert draw() == inside
    assert loaders.derive_seed(1, 2) != loaders.derive_seed(2, 1)
    assert loaders.derive_seed(-1, 0) >= 0


def test_image_and_mask_move_together() -> None:
    """A mask that is the image's own brightness stays so, whatever scale, crop and flip."""
    label_map = torch.arange(40).repeat_interleave(3)[None].expand(90, 120).to(torch.uint8)
    image = (label_map * 6)[None].expand(3, 90, 120)
    transform = loaders.mask_augmentation(64, scale=(0.5, 2.0), color_jitter=0.0)
    beyond = 0
    for seed in range(20):
        torch.manual_seed(seed)
        crop, cropped = transform(image, label_map)
        assert crop.shape == (3, 64, 64)
        assert cropped.dtype == torch.int64
        assert set(cropped.unique().tolist()) <= {*range(40), 255}  # nearest: no new values
        shown = cropped != 255
        beyond += int((~shown).sum())
        difference = (crop[0] * 255 - cropped * 6)[shown].abs()
        assert difference.median() <= 6
        assert torch.equal(crop[0][~shown], torch.full_like(crop[0][~shown], 124 / 255))
    assert beyond
