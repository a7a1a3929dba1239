"""Seconds of the dense CRF beside the public C++ extension: 500×375, 10 iterations, VOC's kernels, on a CPU.

Measured from an image and probabilities to refined probabilities, with the building of the lattices. The two sides take
turns; a ratio is the median of the turns' ratios. Our first image of a size builds the lattice of place, the next one
of that size finds it in a cache: both are measured. The extension is single-threaded; `--threads` are ours.

The extension is optional: `pip install pydensecrf2`, which compiles it. Without it only our seconds are printed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.refine import dense_crf as ours
from models.refine.dense_crf import ITERATIONS, VOC_KERNELS, dense_crf

try:
    from pydensecrf.densecrf import DenseCRF2D
except ImportError:
    DenseCRF2D = None

PHOTO = Path(__file__).parent / "photos" / "cat.jpg"
SIZE = (500, 375)
CHANNELS = (4, 21)


def main() -> None:
    """Print the machine's load and a Markdown table of medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--turns", type=int, default=11)
    arguments = parser.parse_args()
    if DenseCRF2D is None:
        print("The C++ extension is not installed (pip install pydensecrf2): ours alone.\n")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, medians of {arguments.turns} turns\n")
    print(
        "| channels | our threads | C++ s | ours, new size, s | ours, same size, s "
        "| C++ ÷ new size | C++ ÷ same size | mean difference |\n|" + "---|" * 8
    )
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for channels in CHANNELS:
            print(_row(channels, threads, arguments.turns), flush=True)


def _row(channels: int, threads: int, turns: int) -> str:
    """Measure both sides; return a row of the table."""
    pixels = np.array(Image.open(PHOTO).convert("RGB").resize(SIZE))
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(channels, *image.shape[1:], generator=generator).softmax(dim=0)
    results: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {"C++": [], "new": [], "same": []}

    def measure(name: str, refine: Callable[[], Tensor]) -> None:
        started = time.perf_counter()
        results[name] = refine()
        seconds[name].append(time.perf_counter() - started)

    def measure_ours() -> None:
        ours._place_lattice.cache_clear()
        for name in ("new", "same"):
            measure(name, lambda: dense_crf(image, probabilities, kernels=VOC_KERNELS))

    def measure_extension() -> None:
        if DenseCRF2D is not None:
            measure("C++", lambda: _extension(pixels, probabilities))

    for turn in range(turns + 1):
        sides = [measure_ours, measure_extension]
        for side in sides if turn % 2 else reversed(sides):
            side()
    medians = [_median(values[1:]) for values in seconds.values()]  # without the first turn
    ratios = [
        _median([a / b for a, b in zip(seconds["C++"], seconds[name], strict=False)][1:], "{:.2f}")
        for name in ("new", "same")
    ]
    return f"| {' | '.join([str(channels), str(threads), *medians, *ratios, _difference(results)])} |"


def _median(values: list[float], form: str = "{:.3f}") -> str:
    return form.format(median(values)) if values else "–"


def _difference(results: dict[str, Tensor]) -> str:
    """Return the mean absolute difference of both sides."""
    if "C++" not in results:
        return "–"
    return f"{(results['same'] - results['C++']).abs().mean():.1e}"


def _extension(pixels: np.ndarray, probabilities: Tensor) -> Tensor:
    """Refine (C, H, W) probabilities with the C++ extension."""
    channels, height, width = probabilities.shape
    field = DenseCRF2D(width, height, channels)
    field.setUnaryEnergy(-probabilities.flatten(1).log().numpy())
    for kernel in VOC_KERNELS:
        if kernel.colors is None:
            field.addPairwiseGaussian(sxy=kernel.spread, compat=kernel.compatibility)
        else:
            field.addPairwiseBilateral(sxy=kernel.spread, srgb=kernel.colors, rgbim=pixels, compat=kernel.compatibility)
    return torch.from_numpy(np.array(field.inference(ITERATIONS))).view(channels, height, width)


if __name__ == "__main__":
    main()
