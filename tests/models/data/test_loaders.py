"""Augmentation and batches that depend on the seed alone."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.data.classes import Sample
from models.data.loaders import (
    Crops,
    RandomBatches,
    _seeded,
    derive_seed,
    light_augmentation,
    ordered_batches,
    strong_augmentation,
)


@pytest.mark.parametrize("augment", [light_augmentation, strong_augmentation])
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
    crops = Crops(
        [Sample(tmp_path / "bad.jpg", (0,), tmp_path)],
        classes=4,
        transform=light_augmentation(32, min_area=1.0),
        seed=0,
    )
    for batches in (
        RandomBatches(lambda _: crops, 1, batch_size=1, seed=0, workers=workers).epoch(0),
        ordered_batches(crops, batch_size=1, workers=workers),
    ):
        with pytest.raises(ValueError, match=r"bad.jpg: ") as caught:
            list(batches)
        assert "Traceback" not in str(caught.value)


def test_augmentation_at_its_strongest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation comes up in some of these draws; posterizing to 0 bits, which Pillow refuses, in none."""
    monkeypatch.setattr(random, "gauss", lambda mean, deviation: mean + 10 * deviation)
    transform = strong_augmentation(32, min_area=0.5)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    with _seeded(0):
        assert all(transform(pixels).isfinite().all() for _ in range(100))


def test_batches(tiny_samples: list[Sample]) -> None:
    crops = Crops(tiny_samples, classes=4, transform=light_augmentation(32, min_area=1.0), seed=0)
    ordered = list(ordered_batches(crops, batch_size=3, workers=0))
    assert [len(images) for images, _ in ordered] == [3, 3, 2]
    assert ordered[0][1].argmax(dim=1).tolist() == [0, 1, 2]


def crop_batches(
    samples: list[Sample], *, batch_size: int = 3, workers: int = 0, share: tuple[int, int] = (0, 1)
) -> RandomBatches[tuple[Tensor, Tensor]]:
    transform = strong_augmentation(32, min_area=0.5)  # it draws from random, NumPy and torch
    return RandomBatches(
        lambda seed: Crops(samples, classes=4, transform=transform, seed=seed),
        len(samples),
        batch_size=batch_size,
        seed=7,
        workers=workers,
        share=share,
    )


def test_random_batches_depend_on_seed_and_epoch_alone(tiny_samples: list[Sample]) -> None:
    batches = crop_batches(tiny_samples)
    first = list(batches.epoch(0))
    assert [len(images) for images, _ in first] == [3, 3]
    assert [len(images) for images, _ in crop_batches(tiny_samples, batch_size=64).epoch(0)] == [8]
    torch.rand(3)  # whatever else the process draws
    np.random.rand(3)
    random.random()
    for other in (batches, crop_batches(tiny_samples, workers=2)):
        for (images, labels), (same, known) in zip(other.epoch(0), first, strict=True):
            assert torch.equal(images, same)
            assert torch.equal(labels, known)
    (last,) = batches.epoch(0, skip=1)
    assert torch.equal(last[0], first[1][0])
    assert not torch.equal(next(batches.epoch(1))[0], first[0][0])


def test_processes_share_random_batches(tiny_samples: list[Sample]) -> None:
    whole = next(crop_batches(tiny_samples, batch_size=4).epoch(0))[0]
    sharing = [crop_batches(tiny_samples, batch_size=4, share=(rank, 2)) for rank in (0, 1)]
    parts = [next(batches.epoch(0))[0] for batches in sharing]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole)


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
    with _seeded(5):
        inside = draw()
    assert (before, draw()) == undisturbed
    with _seeded(5):
        assert draw() == inside
    assert derive_seed(1, 2) != derive_seed(2, 1)
    assert derive_seed(-1, 0) >= 0
