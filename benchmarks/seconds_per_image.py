"""Time ``make-pseudo-masks`` on a folder: ``python -m benchmarks.seconds_per_image --data ../shared/data/coco100``.

Prints seconds per image for each refiner, in one run and after a warm-up, decoding and writing included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from models.bundle import find_bundle, load_bundle
from models.data.folder import read_folder
from models.make_masks import make_pseudo_masks
from models.predictor import Predictor


def main() -> None:
    """Print one line a refiner."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="coco-demo")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=98)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bundle = load_bundle(find_bundle(arguments.bundle), device=torch.device("cpu"))
    predictor = Predictor(bundle)
    labels = arguments.data / "labels.csv"
    samples = read_folder(arguments.data / "images", labels, bundle.info.classes)
    labeled = [sample for sample in samples if sample.channels][: arguments.images]
    for refine in ("none", "pamr"):
        options = predictor.options(refine=refine)
        seconds = 0.0
        for chosen in (labeled[:3], labeled):
            with tempfile.TemporaryDirectory() as output:
                start = time.perf_counter()
                make_pseudo_masks(
                    predictor, chosen, Path(output), options, save_scores=False, on_image=_nothing
                )
                seconds = (time.perf_counter() - start) / len(chosen)
        print(f"{refine}: {seconds:.3f} s per image over {len(labeled)} images")


def _nothing() -> None:
    pass


if __name__ == "__main__":
    main()
