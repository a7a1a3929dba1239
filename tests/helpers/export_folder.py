"""A small folder of masks as ``make-pseudo-masks`` leaves it: holes, parts, ignored pixels, odd photos."""

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.data.classes import ClassInfo, ClassList, write_class_list
from models.data.images import ImageHeader
from models.data.mask_files import label_map_png
from models.data.mask_folder import MaskedImage

CLASSES = ClassList((ClassInfo(3, "bowl"), ClassInfo(4, "cat"), ClassInfo(9, "dining table")))
INDICES = {"background": 0, "ignored": 255, **{each.name: each.index for each in CLASSES.classes}}
SIZES = {"flat.jpg": (40, 50), "große Katze.jpg": (33, 47), "picture.png": (20, 30)}
TURNED = "turned.jpg"  # lies on its side: 24 x 36 pixels with EXIF orientation 6


def label_map(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Blocks of all classes with rings, specks and ignored pixels; a photo of seed 2 has background only."""
    random = np.random.default_rng(seed)
    found = np.zeros(size, dtype=np.uint8)
    if seed == 2:
        return found
    found[2:15, 3:20] = 3
    found[5:9, 6:12] = 0
    found[6:8, 8:10] = 3
    found[10:, 15:] = np.where(random.random((size[0] - 10, size[1] - 15)) < 0.5, 4, 9)
    found[-1, :] = 4
    found[0, -7:] = 255
    found[12:14, 5:8] = 255
    return found


def label_maps() -> dict[str, NDArray[np.uint8]]:
    """The folder's label maps by photo, upright."""
    sizes = {**SIZES, TURNED: (36, 24)}
    return {name: label_map(size, seed) for seed, (name, size) in enumerate(sizes.items())}


def make_folder(place: Path) -> tuple[Path, Path]:
    """Write the folder and its photos; return both."""
    run, images = place / "run", place / "images"
    (run / "masks").mkdir(parents=True)
    images.mkdir()
    write_class_list(run / "classes.txt", CLASSES)
    lines = []
    for name, found in label_maps().items():
        height, width = found.shape
        stem, exif = Path(name).stem, Image.Exif()
        if name == TURNED:
            exif[0x0112], height, width = 6, width, height
        Image.effect_noise((width, height), 50).convert("RGB").save(images / name, exif=exif)
        png = label_map_png(found, text={"Model": "tiny 1"})
        (run / "masks" / f"{stem}.png").write_bytes(png)
        confidence = {3: 0.8, 4: 0.6, 9: 0.9}
        classes = [
            {"index": index, "confidence": value if (found == index).any() else None}
            for index, value in confidence.items()
        ]
        model = {"name": "tiny", "version": "1"}
        record = {"stem": stem, "image": name, "model": model, "classes": classes}
        lines.append(json.dumps(record) + "\n")
    (run / "results.jsonl").write_text("".join(lines[:1] + lines))  # the first was made twice
    (run / "summary.json").write_text("{}")
    return run, images


def photo(name: str, found: NDArray[np.uint8]) -> MaskedImage:
    """A photo that exists in memory only."""
    height, width = found.shape
    header = ImageHeader(width, height, 1, "JPEG")
    return MaskedImage(Path(name), name, Path(name).stem, header, found, {}, "tiny 1", {})


def reader(name: str) -> Any:
    """A format's own library (tests/readers.txt); CI must have it."""
    if os.environ.get("CI") == "true":
        return importlib.import_module(name)
    return pytest.importorskip(name)
