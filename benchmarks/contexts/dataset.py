"""The data set on disk in VOC's layout: JPEGImages, SegmentationClass, ImageSets; labels and captions as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.contexts.captions import caption
from benchmarks.contexts.scenes import (
    Place,
    Scene,
    compose,
    lone_contexts,
    shuffled_places,
    usual_places,
)
from benchmarks.contexts.world import CLASSES
from models.data.classes import Sample, write_class_list
from models.data.labels import read_folder
from models.data.mask_files import label_map_png
from models.io import to_json, write_atomically

PAIR_SHARE = 0.5
"""How many scenes show two objects."""
CAPTIONED_LONE_SHARE = 1 / 3
"""How many captioned scenes show contexts alone."""
CAPTIONED_OWN_SHARE = 0.5
"""How often an object of a captioned scene comes with its own context: CLIP has seen more of the world than S."""
EMPTY_SHARE = 0.12
"""How many captioned scenes show a backdrop alone, so that CLIP knows what nothing looks like."""


@dataclass(frozen=True)
class Sizes:
    """Scenes of each split.

    Attributes:
        captions: for CLIP, with a sentence each; a third of them are contexts alone.
        train: for the mask generator and the prompts, with image-level labels.
        usual: held out, of the same kind as those to train on.
        shuffled: held out, two objects each, which have swapped their contexts.
    """

    captions: int = 2400
    train: int = 640
    usual: int = 200
    shuffled: int = 200


SPLITS = tuple(asdict(Sizes()))


def scenes(split: str, count: int, *, seed: int) -> Iterator[tuple[str, Scene, str]]:
    """Make a split's scenes: name, scene, caption. A scene depends on seed, split and its number alone."""
    places: dict[str, Callable[[np.random.Generator, int], tuple[Place, ...]]] = {
        "captions": _captioned,
        "train": usual_places,
        "usual": usual_places,
        "shuffled": lambda random, _: shuffled_places(random),
    }
    for number in range(count):
        random = np.random.default_rng([seed, SPLITS.index(split), number])
        shown = places[split](random, 2 if random.random() < PAIR_SHARE else 1)
        scene = compose(random, shown)
        yield f"{split}{number:05}", scene, caption(random, scene)


def _captioned(random: np.random.Generator, count: int) -> tuple[Place, ...]:
    draw = random.random()
    if draw < EMPTY_SHARE:
        return ()
    if draw < EMPTY_SHARE + CAPTIONED_LONE_SHARE:
        return lone_contexts(random, count)
    return usual_places(random, count, own_share=CAPTIONED_OWN_SHARE)


def write_dataset(folder: Path, sizes: Sizes, *, seed: int) -> None:
    """Write all splits, unless they are there already.

    Each split has ``labels_SPLIT.csv`` (image, labels) and ``captions_SPLIT.csv`` (image, caption).

    Raises:
        OSError: if the folder cannot be written.
    """
    note = to_json({"seed": seed, **asdict(sizes)})
    done = folder / "world.json"
    if done.is_file() and done.read_text(encoding="utf-8") == note:
        return
    for split, count in asdict(sizes).items():
        _write_split(folder, split, count, seed=seed)
    write_class_list(folder / "classes.txt", CLASSES)
    write_atomically(done, note.encode())


def _write_split(folder: Path, split: str, count: int, *, seed: int) -> None:
    labels, captions = [["image", "labels"]], [["image", "caption"]]
    for name, scene, sentence in scenes(split, count, seed=seed):
        photo = io.BytesIO()
        Image.fromarray(scene.pixels).save(photo, "JPEG", quality=92)
        write_atomically(folder / "JPEGImages" / f"{name}.jpg", photo.getvalue())
        truth = label_map_png(scene.truth)
        write_atomically(folder / "SegmentationClass" / f"{name}.png", truth)
        labels.append([f"{name}.jpg", ";".join(scene.things)])
        captions.append([f"{name}.jpg", sentence])
    names = "".join(f"{row[0][:-4]}\n" for row in labels[1:])
    write_atomically(folder / "ImageSets" / "Segmentation" / f"{split}.txt", names.encode())
    _write_csv(folder / f"labels_{split}.csv", labels)
    _write_csv(folder / f"captions_{split}.csv", captions)


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())


def read_samples(folder: Path, split: str) -> list[Sample]:
    """Return a split's scenes with their image-level labels, for the library's stages."""
    return read_folder(folder / "JPEGImages", folder / f"labels_{split}.csv", CLASSES)


def read_truth(folder: Path, stem: str) -> np.ndarray:
    """Return a scene's label map, (S, S) uint8."""
    with Image.open(folder / "SegmentationClass" / f"{stem}.png") as picture:
        return np.array(picture)


def read_captions(folder: Path, split: str) -> list[tuple[Path, str]]:
    """Return a split's pictures with their sentences."""
    with (folder / f"captions_{split}.csv").open(encoding="utf-8", newline="") as file:
        return [
            (folder / "JPEGImages" / row["image"], row["caption"]) for row in csv.DictReader(file)
        ]
