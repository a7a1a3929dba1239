"""The predictor alone, in a process of its own: decoded photos in memory, one after the other, then in batches.

Prints JSON; ``benchmarks.serve`` runs it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.service_load.load import Bounds, read_photos
from models import find_bundle, load_bundle
from models.data.images import read_image
from models.inference.masks import LabeledImage, Segmentation
from models.inference.predictor import Predictor

# The predictor and its options, for the programs that measure it without the service.


class MaskMaker:
    """A bundle on the CPU with a refiner chain; all else as the bundle has it, as the service does.

    Args:
        bundle: name or folder.
        refine: refiner chain.
        threads: CPU threads; 0 leaves the choice to torch.
    """

    def __init__(self, bundle: str, *, refine: str, threads: int) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._predictor = Predictor(load_bundle(find_bundle(bundle), device=torch.device("cpu")))
        self._options = self._predictor.options(refine=refine)

    def one(self, pixels: NDArray[np.uint8], labels: Sequence[str]) -> Segmentation:
        """Segment one photo, (H, W, 3)."""
        return self._predictor.pseudo_mask(pixels, labels, self._options)

    def together(self, batch: Sequence[tuple[NDArray[np.uint8], Sequence[str]]]) -> list[Segmentation]:
        """Segment photos of one ``size``."""
        return self._predictor.pseudo_masks([LabeledImage(pixels, labels, self._options) for pixels, labels in batch])

    def size(self, pixels: NDArray[np.uint8]) -> tuple[int, int]:
        """Return the (H, W) at which a photo goes through the networks."""
        return self._predictor.working_size(*pixels.shape[:2])


def grouped(keys: Sequence[Hashable], *, most: int) -> list[list[int]]:
    """Return the positions of equal keys together, at most so many, in the order of each group's first."""
    groups: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    chunks = [group[start : start + most] for group in groups.values() for start in range(0, len(group), most)]
    return sorted(chunks)


Photo = tuple[NDArray[np.uint8], Sequence[str]]


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--refine", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    arguments = parser.parse_args()
    maker = MaskMaker(arguments.bundle, refine=arguments.refine, threads=arguments.threads)
    photos = [(read_image(photo.data).pixels, photo.labels) for photo in read_photos(arguments.data)]
    bounds = Bounds(arguments.requests, arguments.seconds)
    for number in range(arguments.warm_up):
        maker.one(*photos[number % len(photos)])
    print(
        json.dumps(
            {
                "alone": alone(maker, photos, bounds),
                "batches": batches(maker, photos, bounds, most=arguments.batch),
            }
        )
    )


def alone(maker: MaskMaker, photos: Sequence[Photo], bounds: Bounds) -> dict[str, Any]:
    """Segment photos one by one; return the seconds of each and of all."""
    return _timed([[photos[i % len(photos)]] for i in range(bounds.requests)], maker, bounds)


def batches(maker: MaskMaker, photos: Sequence[Photo], bounds: Bounds, *, most: int) -> dict[str, Any]:
    """Segment the same photos in batches of equal size, sorted beforehand, which no service can; the same return.

    A photo takes as long as its batch does.
    """
    chosen = [photos[i % len(photos)] for i in range(bounds.requests)]
    groups = grouped([maker.size(pixels) for pixels, _ in chosen], most=most)
    return _timed([[chosen[i] for i in group] for group in groups], maker, bounds)


def _timed(work: Sequence[Sequence[Photo]], maker: MaskMaker, bounds: Bounds) -> dict[str, Any]:
    seconds: list[float] = []
    started = time.perf_counter()
    for batch in work:
        began = time.perf_counter()
        if began - started >= bounds.seconds:
            break
        if len(batch) == 1:
            maker.one(*batch[0])
        else:
            maker.together(batch)
        seconds += [time.perf_counter() - began] * len(batch)
    return {"seconds": seconds, "wall": time.perf_counter() - started}


if __name__ == "__main__":
    main()
