"""What training a head is worth, class by class: the same labels by the trained head, and as labels never trained on.

For the latter the bundle is made to forget its classes' names, so that each label goes the way of `vocabulary=open`:
its row of the head is written by CLIP's text. The photos' labels are given to both.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.refiners import MIN_PIXELS, Photo, read_photos, without_fusion
from models.bundle.bundle import Bundle, load_bundle
from models.bundle.manifest import find_bundle
from models.data.classes import IGNORE_INDEX, ClassInfo, ClassList, with_open_labels
from models.evaluation.metrics import IouReport, confusion_matrix, iou_report
from models.inference.predictor import Predictor


def main() -> None:
    """Print a table of means, and one of classes by the default refiner."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", required=True, help="with a text tower")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bundle = load_bundle(find_bundle(arguments.bundle), device=torch.device("cpu"))
    classes, default = bundle.info.classes, bundle.info.mask_options.refine
    photos = list(read_photos(arguments.data, classes))
    heads = {
        "trained": without_fusion(Predictor(bundle)),
        "zero-shot": without_fusion(Predictor(forgetful(bundle))),
    }
    print("| refine | head | large | all |\n|---|---|---|---|")
    reports: dict[str, torch.Tensor] = {}
    for refine in ("none", default):
        for name, predictor in heads.items():
            reports[name] = measure(predictor, photos, classes, refine)
            large, every = (_report(reports[name], pixels).mean_iou for pixels in (MIN_PIXELS, 1))
            print(f"| {refine} | {name} | {100 * large:.1f} | {100 * every:.1f} |", flush=True)
    trained, zero_shot = (_report(matrix, 1) for matrix in reports.values())
    print(f"\n{default}:\n\n| class | trained | zero-shot |\n|---|---|---|")
    for info in classes.classes:
        if trained.pixels[info.index] >= MIN_PIXELS:
            ours, theirs = (100 * float(each.iou[info.index]) for each in (trained, zero_shot))
            print(f"| {info.name} | {ours:.1f} | {theirs:.1f} |")


def forgetful(bundle: Bundle) -> Bundle:
    """Return the bundle with other names for its classes, so that their own mean nothing to it."""
    renamed = ClassList(tuple(ClassInfo(info.index, f"class {info.index}") for info in bundle.info.classes.classes))
    return replace(bundle, info=bundle.info.model_copy(update={"classes": renamed}))


def measure(predictor: Predictor, photos: Sequence[Photo], classes: ClassList, refine: str) -> torch.Tensor:
    """Segment all photos by the bundle's one threshold; return the confusion matrix of the classes' own indices."""
    options = replace(predictor.options(refine=refine), class_thresholds={})
    indices = max(info.index for info in classes.classes) + 1
    matrix = torch.zeros(indices, indices + 1, dtype=torch.int64)
    for photo in photos:
        known = with_open_labels(predictor.info.classes, photo.labels)
        made = predictor.pseudo_mask(photo.pixels, photo.labels, options, classes=known)
        own: NDArray[np.uint8] = np.zeros(256, dtype=np.uint8)
        own[IGNORE_INDEX] = IGNORE_INDEX
        for each in made.classes:
            own[each.index] = classes.classes[classes.channel(each.name)].index
        truth, found = torch.from_numpy(photo.truth), torch.from_numpy(own[made.label_map])
        matrix += confusion_matrix(truth, found, indices=indices)
    return matrix


def _report(matrix: torch.Tensor, min_pixels: int) -> IouReport:
    return iou_report(matrix, min_pixels=min_pixels)


if __name__ == "__main__":
    main()
