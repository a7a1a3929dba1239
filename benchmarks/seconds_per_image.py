"""Seconds per photo of `semples make-pseudo-masks`, by refiner and number of processes, in one run."""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from models import find_bundle, load_bundle
from models.data.labels import read_folder
from models.inference.folder import MaskJob, make_here, make_in_processes, make_pseudo_masks
from models.inference.predictor import Predictor

WARM = 3


def main() -> None:
    """Print a Markdown table; loading models is not counted, starting processes is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="coco-demo")
    arguments = parser.parse_args()
    load = partial(load_predictor, arguments.bundle)
    predictor = load(threads=2)
    samples = read_folder(arguments.data / "images", arguments.data / "labels.csv", predictor.info.classes)
    labeled = sum(bool(sample.channels) for sample in samples)
    print("| refine | processes × threads | s per photo | photos/s |\n|---|---|---|---|")
    for refine in (predictor.info.mask_options.refine, "none"):
        options = predictor.options(refine=refine)
        for processes, threads in ((1, 1), (1, 2), (2, 1)):
            torch.set_num_threads(threads)
            with tempfile.TemporaryDirectory() as folder:
                job = MaskJob(Path(folder), options, save_scores=False)
                alone = partial(make_here, predictor, job)
                spread = partial(make_in_processes, partial(load, threads=threads), job, processes=processes)
                for _ in alone(samples[:WARM]):
                    pass
                started = time.perf_counter()
                make_pseudo_masks(
                    predictor.info,
                    samples,
                    job,
                    spread if processes > 1 else alone,
                    on_image=lambda: None,
                )
                seconds = (time.perf_counter() - started) / labeled
            print(
                f"| {refine} | {processes} × {threads} | {seconds:.3f} | {1 / seconds:.2f} |",
                flush=True,
            )


def load_predictor(bundle: str, threads: int) -> Predictor:
    """Load a bundle on the CPU."""
    torch.set_num_threads(threads)
    return Predictor(load_bundle(find_bundle(bundle), device=torch.device("cpu")))


if __name__ == "__main__":
    main()
