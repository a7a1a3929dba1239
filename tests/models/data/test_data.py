import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.data.classes import (
    ClassInfo,
    ClassList,
    Sample,
    UnknownLabelError,
    read_class_list,
    write_class_list,
)
from models.data.labels import classes_of, read_folder
from models.data.loaders import (
    Crops,
    RandomBatches,
    derive_seed,
    light_augmentation,
    ordered_batches,
    seeded,
    strong_augmentation,
)
from tests.conftest import CLASSES as UNNAMED

CLASSES = UNNAMED.with_synonyms({"cup": ["mug"]})


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_labels_resolve_to_unique_classes_in_channel_order() -> None:
    found = CLASSES.resolve(["MUG", "cat", "Cup", "dining_table", " cat "])
    assert [each.name for each in found] == ["cat", "cup", "dining table"]


def test_unknown_labels_come_with_the_nearest() -> None:
    with pytest.raises(UnknownLabelError, match="got 'cats'; nearest known: cat") as caught:
        CLASSES.resolve(["bowl", "cats"])
    assert caught.value.label == "cats"
    assert caught.value.nearest[0] == "cat"
    with pytest.raises(UnknownLabelError) as far:
        CLASSES.resolve(["zzzz" * 100_000])
    assert far.value.nearest == ()


def test_the_number_of_labels_is_bounded() -> None:
    with pytest.raises(ValueError, match="expected at least one label, got none"):
        CLASSES.resolve([])
    with pytest.raises(ValueError, match="expected at most 32 labels, got 10000"):
        CLASSES.resolve(["cat"] * 10_000)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "expected at least one class"),
        ((ClassInfo(0, "a"),), "from 1 to 254, got 0"),
        ((ClassInfo(255, "a"),), "from 1 to 254, got 255"),
        ((ClassInfo(1, "a"), ClassInfo(1, "b")), "distinct class indices"),
        ((ClassInfo(1, "a"), ClassInfo(2, "b", ("A",))), "distinct class names"),
    ],
)
def test_bad_class_lists(classes: tuple[ClassInfo, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassList(classes)


def test_synonyms_must_be_free() -> None:
    assert UNNAMED.classes[2].synonyms == ()
    with pytest.raises(ValueError, match="distinct class names and synonyms"):
        CLASSES.with_synonyms({"bowl": ["Cat"]})
    with pytest.raises(UnknownLabelError, match="got 'mugg'"):
        CLASSES.with_synonyms({"mugg": ["x"]})


def test_class_files(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    write_class_list(path, CLASSES)
    assert path.read_text().splitlines()[:2] == ["0 background", "3 bowl"]
    assert read_class_list(path).names == CLASSES.names
    with pytest.raises(ValueError, match=r"classes.txt:2: expected 'index name', got 'cat'"):
        read_class_list(write(path, "1 bowl\ncat\n"))


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.png").touch()
    labels = write(tmp_path / "labels.csv", "image,labels\r\na.jpg,cup;cat;mug\r\nb.png,\r\n")
    samples = read_folder(tmp_path, labels, CLASSES)
    assert [(each.stem, each.channels) for each in samples] == [("a", (1, 2)), ("b", ())]
    assert classes_of(labels).names == ("cat", "cup", "mug")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,labels\na.jpg,cat\n", ":1: expected the header 'image,labels'"),
        ("image,labels\na.jpg,cat\na.jpg,cup\n", ":3: expected each image once, got 'a.jpg'"),
        ("image,labels\na.jpg\n", ":2: expected 'image,label;label'"),
        ("image,labels\na.jpg,cat,cup\n", ":2: expected 'image,label;label'"),
        ("image,labels\na.jpg,dog\n", "a.jpg: expected a known label, got 'dog'"),
        ("image,labels\nz.jpg,cat\n", "expected an image 'z.jpg'"),
        (
            "image,labels\na.jpg,cat\na.png,cat\n",
            "expected distinct stems, got 'a.jpg' and 'a.png'",
        ),
        ("image,labels\na.jpg,\n", "expected at least one labeled image"),
    ],
)
def test_bad_label_files(tmp_path: Path, text: str, message: str) -> None:
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        read_folder(tmp_path, write(tmp_path / "labels.csv", text), CLASSES)


@pytest.mark.parametrize("name", ["../a.jpg", "{folder}/a.jpg"])
def test_photos_lie_below_their_folder(name: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "a.jpg").touch()
    labels = write(tmp_path / "labels.csv", f"image,labels\n{name.format(folder=images)},cat\n")
    with pytest.raises(ValueError, match=r"labels.csv: expected an image below .*images, got '"):
        read_folder(images, labels, CLASSES)


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
    with seeded(0):
        assert all(transform(pixels).isfinite().all() for _ in range(100))


def test_batches(tiny_data: Path) -> None:
    samples = read_folder(tiny_data / "images", tiny_data / "labels.csv", CLASSES)
    crops = Crops(samples, classes=4, transform=light_augmentation(32, min_area=1.0), seed=0)
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


def test_random_batches_depend_on_seed_and_epoch_alone(tiny_data: Path) -> None:
    samples = read_folder(tiny_data / "images", tiny_data / "labels.csv", CLASSES)
    batches = crop_batches(samples)
    first = list(batches.epoch(0))
    assert [len(images) for images, _ in first] == [3, 3]
    assert [len(images) for images, _ in crop_batches(samples, batch_size=64).epoch(0)] == [8]
    torch.rand(3)  # whatever else the process draws
    np.random.rand(3)
    random.random()
    for other in (batches, crop_batches(samples, workers=2)):
        for (images, labels), (same, known) in zip(other.epoch(0), first, strict=True):
            assert torch.equal(images, same)
            assert torch.equal(labels, known)
    (last,) = batches.epoch(0, skip=1)
    assert torch.equal(last[0], first[1][0])
    assert not torch.equal(next(batches.epoch(1))[0], first[0][0])


def test_processes_share_random_batches(tiny_data: Path) -> None:
    samples = read_folder(tiny_data / "images", tiny_data / "labels.csv", CLASSES)
    whole = next(crop_batches(samples, batch_size=4).epoch(0))[0]
    parts = [next(crop_batches(samples, batch_size=4, share=(rank, 2)).epoch(0))[0] for rank in (0, 1)]  # fmt: skip
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
    with seeded(5):
        inside = draw()
    assert (before, draw()) == undisturbed
    with seeded(5):
        assert draw() == inside
    assert derive_seed(1, 2) != derive_seed(2, 1)
    assert derive_seed(-1, 0) >= 0


def test_a_broken_photo_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", "not a photo")
    labels = write(tmp_path / "labels.csv", "image,labels\na.jpg,cat\n")
    crops = Crops(
        read_folder(tmp_path, labels, CLASSES),
        classes=4,
        transform=light_augmentation(32, min_area=1),
        seed=0,
    )
    with pytest.raises(ValueError, match=r"a\.jpg: "):
        crops[0]
