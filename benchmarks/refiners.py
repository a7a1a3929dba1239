"""Compare refiners and their chains: mean IoU, boundary F-score and seconds per photo.

Scores are stored in half precision and decided as `semples make-pseudo-masks` does it. Data is a folder of images,
masks, labels.csv and classes.txt, or, with --split, the generated world's.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.boundary import boundary_scores
from benchmarks.contexts.world import read_samples
from models import find_bundle, load_bundle
from models.data.classes import ClassList, read_class_list
from models.data.images import read_image
from models.data.labels import read_folder
from models.evaluation.metrics import confusion_matrix, iou_report, sweep_soft_maps
from models.inference.masks import Segmentation, SoftMaps
from models.inference.predictor import Predictor

CHAINS = (
    "none",
    "pamr",
    "dense_crf",
    "random_walk",
    "region_vote",
    "pamr+region_vote",
    "random_walk+pamr",
    "random_walk+dense_crf",
    "random_walk+region_vote",
    "random_walk+pamr+region_vote",
    "random_walk+region_vote+dense_crf",
)
SCALES = ((1.0,), (0.8, 1.0))
MIN_PIXELS = 30_000
THRESHOLDS = [percent / 100 for percent in range(5, 96)]


@dataclass(frozen=True)
class Photo:
    """A labeled photo and its label map."""

    pixels: np.ndarray
    labels: tuple[str, ...]
    truth: np.ndarray


@dataclass(frozen=True)
class Row:
    """What a chain is worth: mean IoU by both rules, boundary F at the fixed threshold, all in [0, 1]."""

    fixed: float
    oracle: float
    threshold: float
    boundary: float
    seconds: float


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", help="of the generated world's data")
    parser.add_argument("--bundle", default="coco-demo")
    parser.add_argument("--min-pixels", type=int, default=MIN_PIXELS, help="of a class that counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chains", nargs="*", default=CHAINS)
    parser.add_argument("--scales", nargs="*", help="e.g. 0.8,1.0")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    predictor = Predictor(load_bundle(find_bundle(arguments.bundle), device=torch.device("cpu")))
    classes = predictor.info.classes
    photos = list(read_photos(arguments.data, classes, arguments.split))
    chosen = [tuple(map(float, each.split(","))) for each in arguments.scales or ()] or SCALES
    print("| scales | refine | fixed | oracle (t) | boundary F | s per photo |\n|---|---|---|---|---|---|")
    for scales in chosen:
        scaled = with_scales(predictor, scales)
        for chain in arguments.chains:
            row = measure(scaled, photos, chain, min_pixels=arguments.min_pixels)
            print(
                f"| {', '.join(map(str, scales))} | {chain} | {100 * row.fixed:.1f} | "
                f"{100 * row.oracle:.1f} ({row.threshold:.2f}) | {100 * row.boundary:.1f} | {row.seconds:.2f} |",
                flush=True,
            )


def read_photos(data: Path, classes: ClassList, split: str | None = None) -> Iterator[Photo]:
    """Read the labeled photos of a folder, or a split of the generated world, with their label maps."""
    known = {(each.index, each.name) for each in classes.classes}
    if unknown := {(each.index, each.name) for each in read_class_list(data / "classes.txt").classes} - known:
        raise ValueError(f"expected a bundle of the data's own classes, got one without {unknown}")
    if split is None:
        samples, masks = read_folder(data / "images", data / "labels.csv", classes), data / "masks"
    else:
        samples, masks = read_samples(data, split), data / "SegmentationClass"
    for sample in samples:
        if sample.channels:
            yield Photo(
                read_image(sample.path.read_bytes()).pixels,
                tuple(classes.names[channel] for channel in sample.channels),
                np.array(Image.open(masks / f"{sample.stem}.png")),
            )


def with_scales(predictor: Predictor, scales: tuple[float, ...]) -> Predictor:
    """Return the same predictor at other scales."""
    info = predictor.info
    changed = info.model_copy(update={"inference": info.inference.model_copy(update={"scales": scales})})
    return without_fusion(Predictor(replace(predictor.bundle, info=changed)))


def without_fusion(predictor: Predictor) -> Predictor:
    """Return the same predictor without the segmenter's say in pseudo masks: its "none" is the bare CAM."""
    info = predictor.info
    if info.segment is None:
        return predictor
    segment = info.segment.model_copy(update={"fusion_weight": 0.0})
    return Predictor(replace(predictor.bundle, info=info.model_copy(update={"segment": segment})))


def measure(predictor: Predictor, photos: list[Photo], chain: str, *, min_pixels: int) -> Row:
    """Segment all photos with a chain and compare with their label maps."""
    # One rule for all chains: thresholds for each class would suit the chain that they were estimated from.
    options = replace(predictor.options(refine=chain), class_thresholds={})
    started = time.perf_counter()
    made = [predictor.pseudo_mask(photo.pixels, photo.labels, options) for photo in photos]
    seconds = (time.perf_counter() - started) / len(photos)
    sweep = sweep_soft_maps(
        zip((torch.from_numpy(photo.truth) for photo in photos), map(soft_maps, made), strict=True),
        predictor.info.classes,
        thresholds=THRESHOLDS,
        min_pixels=min_pixels,
    )
    threshold, oracle = sweep.best
    indices = len(oracle.pixels)
    pairs = (
        (torch.from_numpy(photo.truth), torch.from_numpy(each.label_map))
        for photo, each in zip(photos, made, strict=True)
    )
    matrix = torch.stack([confusion_matrix(*pair, indices=indices) for pair in pairs]).sum(dim=0)
    return Row(
        fixed=iou_report(matrix, min_pixels=min_pixels).mean_iou,
        oracle=oracle.mean_iou,
        threshold=threshold,
        boundary=mean_boundary(photos, made, lambda index: oracle.pixels[index] >= min_pixels),
        seconds=seconds,
    )


def soft_maps(made: Segmentation) -> SoftMaps:
    """Return what a segmentation was decided from."""
    height, width = made.label_map.shape
    return SoftMaps(
        made.scores,
        np.array([each.index for each in made.classes]),
        tuple(each.name for each in made.classes),
        (height, width),
    )


def mean_boundary(photos: list[Photo], made: list[Segmentation], counts: Callable[[int], bool | torch.Tensor]) -> float:
    """Return the boundary F-score, mean over photos and then over classes."""
    found: dict[int, list[float]] = defaultdict(list)
    for photo, each in zip(photos, made, strict=True):
        for index, score in boundary_scores(photo.truth, each.label_map).items():
            if counts(index):
                found[index].append(score)
    return float(np.mean([np.mean(scores) for scores in found.values()]))


if __name__ == "__main__":
    main()
