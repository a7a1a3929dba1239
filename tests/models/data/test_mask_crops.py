"""Photos with pseudo masks: how they are paired, cropped and shared."""

import json
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from models.data.classes import ClassInfo, ClassList
from models.data.loaders import MaskCrops, RandomBatches, mask_augmentation
from models.data.mask_folder import MaskSample, read_mask_folder
from tests.conftest import CLASSES


@pytest.fixture
def masks(tiny_masks: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_masks, tmp_path / "masks"))


def write_results(masks: Path, differences: dict[str, float | None]) -> None:
    rows = [
        {
            "stem": stem,
            "image": f"{stem}.jpg",
            "model": {},
            "classes": [
                {
                    "index": CLASSES.classes[number % 4].index,
                    "name": "x",
                    "box": [0, 0, 1, 1],
                    "alignment_class": None if value is None else 0.2 + value,
                    "alignment_background": 0.2,
                }
            ],
        }
        for number, (stem, value) in enumerate(differences.items())
    ]
    (masks / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_masks_become_channel_numbers_by_class_name(tiny_data: Path, masks: Path) -> None:
    # The run has the same classes in another order and with other indices.
    names = tuple(reversed(CLASSES.names))
    classes = ClassList(tuple(ClassInfo(50 + at, name) for at, name in enumerate(names)))
    samples = read_mask_folder(tiny_data / "images", masks, classes)
    assert [sample.image.name for sample in samples] == [f"photo{number}.jpg" for number in range(8)]
    for number, sample in enumerate(samples):
        wanted = 1 + names.index(CLASSES.names[number % 4])
        label_map = sample.read_mask()
        assert set(np.unique(label_map)) == {0, wanted}
        assert (label_map[15:45, 20:60] == wanted).all()


def test_badly_aligned_masks_are_ignored(tiny_data: Path, masks: Path) -> None:
    write_results(masks, {f"photo{number}": number / 10 for number in range(8)})
    samples = read_mask_folder(tiny_data / "images", masks, CLASSES, min_alignment=0.3)
    kinds = [int(sample.read_mask()[30, 40]) for sample in samples]
    assert kinds == [255, 255, 255, 4, 1, 2, 3, 4]
    assert samples[0].read_mask()[0, 0] == 0
    write_results(masks, {f"photo{number}": None for number in range(8)})
    with pytest.raises(ValueError, match=r"expected masks with alignment scores, got none"):
        read_mask_folder(tiny_data / "images", masks, CLASSES, min_alignment=0.3)
    (masks / "results.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"expected a result of photo0.png in results.jsonl"):
        read_mask_folder(tiny_data / "images", masks, CLASSES, min_alignment=0.3)


def test_what_does_not_fit_is_refused(tiny_data: Path, masks: Path, tmp_path: Path) -> None:
    images = tiny_data / "images"
    with pytest.raises(ValueError, match=r"expected the output of make-pseudo-masks .* got no masks"):
        read_mask_folder(images, tmp_path, CLASSES)
    with pytest.raises(ValueError, match=r"classes.txt: expected a known label, got 'dining table'"):
        read_mask_folder(images, masks, ClassList(CLASSES.classes[:3]))
    Image.new("L", (4, 4), 77).save(masks / "masks" / "photo0.png")
    sample = read_mask_folder(images, masks, CLASSES)[0]
    with pytest.raises(ValueError, match=r"expected indices of classes in .*photo0.png, got \[77\]"):
        sample.read_mask()
    Image.new("RGB", (4, 4)).save(masks / "masks" / "photo0.png")
    with pytest.raises(ValueError, match="in mode L or P"):
        sample.read_mask()
    Image.new("L", (4, 4)).save(masks / "masks" / "photo0.png")
    crops = MaskCrops([sample], transform=lambda image, mask: (image, mask), seed=0)
    with pytest.raises(ValueError, match=r"expected a mask of photo0.jpg's size \(60, 80\)"):
        crops[0]
    Image.new("L", (4, 4)).save(masks / "masks" / "lonely.png")
    with pytest.raises(ValueError, match=r"expected a photo in .* got none for lonely.png"):
        read_mask_folder(images, masks, CLASSES)


def test_image_and_mask_move_together() -> None:
    """A mask that is the image's own brightness stays so, whatever scale, crop and flip."""
    label_map = torch.arange(40).repeat_interleave(3)[None].expand(90, 120).to(torch.uint8)
    image = (label_map * 6)[None].expand(3, 90, 120)
    transform = mask_augmentation(64, scale=(0.5, 2.0), color_jitter=0.0)
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


def samples_of(tiny_data: Path, masks: Path) -> list[MaskSample]:
    return read_mask_folder(tiny_data / "images", masks, CLASSES)


def epochs(
    samples: list[MaskSample], *, workers: int = 0, share: tuple[int, int] = (0, 1)
) -> list[list[tuple[Tensor, Tensor]]]:
    transform = mask_augmentation(64, scale=(0.5, 2.0), color_jitter=0.4)
    batches = RandomBatches(
        lambda seed: MaskCrops(samples, transform=transform, seed=seed),
        len(samples),
        batch_size=4,
        seed=3,
        workers=workers,
        share=share,
    )
    assert len(batches) == 2
    return [list(batches.epoch(number)) for number in range(2)]


def test_crops_depend_on_seed_and_number_alone(tiny_data: Path, tiny_masks: Path) -> None:
    samples = samples_of(tiny_data, tiny_masks)
    alone = epochs(samples)
    torch.rand(5)
    with_workers = epochs(samples, workers=2)
    for one, two in zip(chain(*alone), chain(*with_workers), strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])
    assert not torch.equal(alone[0][0][0], alone[1][0][0])  # other crops each epoch


def test_processes_share_each_batch(tiny_data: Path, tiny_masks: Path) -> None:
    samples = samples_of(tiny_data, tiny_masks)
    whole = epochs(samples)[0][0][0]
    parts = [epochs(samples, share=(rank, 2))[0][0][0] for rank in range(2)]
    assert torch.equal(torch.stack(parts, dim=1).flatten(0, 1), whole)
    with pytest.raises(ValueError, match="expected a batch that 3 processes can share, got 4"):
        epochs(samples, share=(0, 3))
