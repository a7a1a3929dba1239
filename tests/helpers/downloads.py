"""Tiny downloads of PASCAL VOC 2012 with SBD and of MS COCO 2014, in their original layouts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

from models.data.coco import COCO_CLASSES, COCO_SPLITS, _coco_list
from models.data.mask_files import label_map_png
from models.data.official import Listed, evenly_spaced
from models.data.voc import VOC_CLASSES, VOC_SPLITS, voc_list

SIZE = (30, 40)  # height, width


def photo(path: Path) -> None:
    """A noisy JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(SIZE[::-1], 60).convert("RGB").save(path)


def voc_map(listed: Listed) -> NDArray[np.uint8]:
    """A label map with a stripe of each class."""
    label_map = np.zeros(SIZE, dtype=np.uint8)
    for channel in listed.channels:
        label_map[:, channel : channel + 1] = VOC_CLASSES.classes[channel].index
    return label_map


def make_voc(root: Path, *, photos: int, sbd: bool = True) -> Path:
    """Make a download that holds so many photos of each list; returns ``VOC2012``."""
    folder = root / "VOCdevkit" / "VOC2012"
    mats = root / "benchmark_RELEASE" / "dataset" / "cls"
    lists = folder / "ImageSets" / "Segmentation"
    for each in (lists, folder / "SegmentationClass", folder / "Annotations", *([mats] if sbd else [])):
        each.mkdir(parents=True)
    own = set()
    for split in ("train", "val"):
        stems = [each.stem for each in voc_list(split)]
        own |= set(stems)
        (lists / f"{split}.txt").write_text("\n".join(stems) + "\n")
    for listed in {each for split in VOC_SPLITS for each in evenly_spaced(voc_list(split), photos)}:
        photo(folder / "JPEGImages" / listed.file_name)
        (folder / "Annotations" / f"{listed.stem}.xml").write_text(voc_xml(listed))
        if listed.stem in own:
            png = label_map_png(voc_map(listed))
            (folder / "SegmentationClass" / f"{listed.stem}.png").write_bytes(png)
        elif sbd:
            truth = {"GTcls": {"Segmentation": voc_map(listed), "CategoriesPresent": np.arange(3)}}
            savemat(mats / f"{listed.stem}.mat", truth, do_compression=True)
    return folder


def voc_xml(listed: Listed) -> str:
    """A photo's annotation, with an object of each class, and a head that is none."""
    objects = "".join(
        f"<object><name>{VOC_CLASSES.names[channel]}</name><part><name>head</name></part></object>"
        for channel in listed.channels
    )
    size = f"<size><width>{SIZE[1]}</width><height>{SIZE[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{listed.file_name}</filename>{size}{objects}</annotation>\n"


def square(left: int, top: int, right: int, bottom: int) -> list[float]:
    """A polygon."""
    return [left, top, right, top, right, bottom, left, bottom]


def crowd(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Run lengths as COCO's files have them for crowds: numbers, not text."""
    flat = np.concatenate([[False], mask.ravel(order="F"), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return {"size": list(mask.shape), "counts": counts}


def annotation(number: int, image: int, category: int, segmentation: object) -> dict[str, Any]:
    return {
        "id": number, "image_id": image, "category_id": category, "segmentation": segmentation,
        "iscrowd": int(isinstance(segmentation, dict)),
    }  # fmt: skip


def make_coco(root: Path, *, photos: int) -> Path:
    """Make a download that holds so many photos of each list; returns its folder."""
    (root / "annotations").mkdir(parents=True)
    for split in COCO_SPLITS:
        listed = evenly_spaced(_coco_list(split), photos)
        for each in listed:
            photo(root / f"{split}2014" / each.file_name)
        write_json(root / "annotations" / f"instances_{split}2014.json", instances(listed))
    return root


def instances(listed: list[Listed]) -> dict[str, Any]:
    """The content of an annotation file: a square of each class, one beside the other."""
    images, annotations = [], []
    for number, each in enumerate(listed):
        images.append({"id": number, "file_name": each.file_name, "height": SIZE[0], "width": SIZE[1]})
        for place, channel in enumerate(each.channels):
            category = COCO_CLASSES.classes[channel].index
            corners = [square(2 * place, 5, 2 * place + 2, 15)]
            annotations.append(annotation(len(annotations) + 1, number, category, corners))
    categories = [{"id": each.index, "name": each.name, "supercategory": ""} for each in COCO_CLASSES.classes]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def compressed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Run lengths as text."""
    found = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}
