"""What the predictor's ways of saving time are worth: each against going without, as ratios in one process.

Both sides of a row take turns on the same photos, all of one working size; a ratio is the median over the turns.
Seconds are a photo's. Beside the ratios: on which share of pixels the two sides' label maps are equal.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from models.bundle.bundle import Bundle, load_bundle
from models.bundle.manifest import find_bundle
from models.data.images import read_image
from models.data.labels import read_folder
from models.generators.weaktr import WeakTrGenerator
from models.inference.masks import Segmentation
from models.inference.predictor import LabeledImage, Predictor, UnlabeledImage
from models.weaktr_sizes import WeakTrSizes

Photo = TypeVar("Photo", LabeledImage, UnlabeledImage)
Side = Callable[[], Sequence[Segmentation]]


@dataclass(frozen=True)
class Row:
    """Two ways to the same.

    Attributes:
        title: what differs.
        before: the way without.
        after: the way with.
    """

    title: str
    before: Side
    after: Side


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="coco-demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--weaktr", action="store_true", help="a random DeiT-S WeakTr generator")
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="bfloat16", help="compared with float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bundle = load_bundle(find_bundle(arguments.bundle), device=torch.device(arguments.device))
    if arguments.weaktr:
        bundle = with_weaktr(bundle)
    predictor = Predictor(bundle)
    photos = photos_of_one_size(predictor, arguments.data, count=arguments.photos)
    print("| what | CPU s | CPU ratio | wall s | wall ratio | label maps equal |")
    print("|---|---|---|---|---|---|")
    for row in rows(bundle, predictor, photos, precision=arguments.precision):
        print(measured(row, predictor, turns=arguments.turns, count=len(photos)), flush=True)


def rows(bundle: Bundle, predictor: Predictor, photos: Sequence[LabeledImage], *, precision: str) -> Iterator[Row]:
    """Give what is compared."""
    unfused = Predictor(bundle)
    unfused.bundle = bundle
    lower = Predictor(bundle, precision=precision)
    plain = [replace(photo, options=predictor.options(refine="none")) for photo in photos]
    masks = partial(predictor.pseudo_masks, photos)
    alone = partial(one_by_one, predictor.pseudo_masks)
    yield Row("batch norms fused, no refiner",
              partial(one_by_one, unfused.pseudo_masks, plain), partial(alone, plain))  # fmt: skip
    yield Row(f"float32 → {precision}, no refiner",
              partial(alone, plain), partial(one_by_one, lower.pseudo_masks, plain))  # fmt: skip
    yield Row(f"batch of 1 → {len(photos)}, no refiner",
              partial(alone, plain), partial(predictor.pseudo_masks, plain))  # fmt: skip
    yield Row(f"batch of 1 → {len(photos)}", partial(alone, photos), masks)
    yield Row("halves in sequence → at once", partial(in_sequence, predictor, photos),
              partial(overlapping, predictor, photos))  # fmt: skip
    yield Row("threads as given → all", masks, partial(with_all_threads, masks))
    if bundle.segmenter is None:
        return
    unlabeled = [UnlabeledImage(photo.image, predictor.segment_options()) for photo in photos]
    segments = partial(one_by_one, predictor.segments, unlabeled)
    yield Row("segment: batch norms fused", partial(one_by_one, unfused.segments, unlabeled), segments)  # fmt: skip
    yield Row(f"segment: float32 → {precision}", segments, partial(one_by_one, lower.segments, unlabeled))  # fmt: skip
    yield Row(f"segment: batch of 1 → {len(photos)}", segments, partial(predictor.segments, unlabeled))  # fmt: skip


def one_by_one(segment: Callable[[Sequence[Photo]], list[Segmentation]], photos: Sequence[Photo]) -> list[Segmentation]:
    """Segment each photo alone."""
    return [made for photo in photos for made in segment([photo])]


def in_sequence(predictor: Predictor, photos: Sequence[LabeledImage]) -> list[Segmentation]:
    """Run both halves on photos in pairs."""
    return [made for pair in pairs(photos) for made in predictor.pseudo_masks(pair)]


def overlapping(predictor: Predictor, photos: Sequence[LabeledImage]) -> list[Segmentation]:
    """Run the networks on photos in pairs, and postprocess each pair meanwhile."""
    with ThreadPoolExecutor(2) as pool:
        futures = [
            pool.submit(predictor.postprocess, each) for pair in pairs(photos) for each in predictor.forward_cam(pair)
        ]
        return [future.result() for future in futures]


def pairs(photos: Sequence[LabeledImage]) -> Iterator[Sequence[LabeledImage]]:
    return (photos[at : at + 2] for at in range(0, len(photos), 2))


def with_all_threads(side: Side) -> Sequence[Segmentation]:
    """Do it with as many threads as there are cores."""
    given = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        return side()
    finally:
        torch.set_num_threads(given)


def measured(row: Row, predictor: Predictor, *, turns: int, count: int) -> str:
    """Return a row of the table."""
    equal = agreement(row.before(), row.after())  # warms up, too
    seconds = [[timed(side, predictor) for side in (row.before, row.after)] for _ in range(turns)]
    cells = [row.title]
    for clock in range(2):
        before, after = ([turn[side][clock] for turn in seconds] for side in range(2))
        ratios = [one / two for one, two in zip(before, after, strict=True)]
        low, high = statistics.median(before) / count, statistics.median(after) / count
        cells += [f"{low:.3f} → {high:.3f}", f"{statistics.median(ratios):.2f}"]
    return "| " + " | ".join([*cells, f"{100 * equal:.3f} %"]) + " |"


def timed(side: Side, predictor: Predictor) -> tuple[float, float]:
    """Return the processor's and the wall clock's seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    side()
    if predictor.device.type == "cuda":
        torch.cuda.synchronize(predictor.device)
    return time.process_time() - cpu, time.perf_counter() - wall


def agreement(one: Sequence[Segmentation], two: Sequence[Segmentation]) -> float:
    """Return the share of pixels on which label maps are equal."""
    shares = [(a.label_map == b.label_map).mean() for a, b in zip(one, two, strict=True)]
    return float(statistics.mean(shares))


def with_weaktr(bundle: Bundle) -> Bundle:
    """Return a bundle whose mask generator is a WeakTr that knows nothing; its time is the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = WeakTrGenerator(WeakTrSizes(), classes=len(bundle.info.classes))
        generator.draw_weights()
    still = generator.eval().requires_grad_(False)
    return replace(bundle, generator=still.to(bundle.class_text.device))


def photos_of_one_size(predictor: Predictor, data: Path, *, count: int) -> list[LabeledImage]:
    """Return labeled photos of the working size that most have, at most so many."""
    classes = predictor.info.classes
    by_size: dict[tuple[int, int], list[LabeledImage]] = {}
    for sample in read_folder(data / "images", data / "labels.csv", classes):
        if sample.channels:
            image = read_image(sample.path.read_bytes()).pixels
            labels = [classes.names[channel] for channel in sample.channels]
            size = predictor.working_size(*image.shape[:2])
            by_size.setdefault(size, []).append(LabeledImage(image, labels, predictor.options()))
    return max(by_size.values(), key=len)[:count]


if __name__ == "__main__":
    main()
