"""PAMR's time and memory against its formula written out plainly.

    python -m benchmarks.pamr [--threads 2] [--repeats 5]

The baseline gathers all 48 neighbors with `unfold`, for the affinities and in every iteration, and
so holds (C, 48, H, W) tensors. Both run in turn, in one process; times are the best of the repeats.
Memory is the growth of a fresh process's peak, plain / ours.
"""

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from models.refine.pamr import DILATIONS, ITERATIONS, pamr

CHANNELS = (4, 21)


def naive_pamr(
    image: Tensor,
    scores: Tensor,
    *,
    iterations: int = ITERATIONS,
    dilations: Sequence[int] = DILATIONS,
) -> Tensor:
    """Compute PAMR as the formula reads; shapes as `models.refine.pamr.pamr`."""
    windows = _windows(image, dilations)
    deviation = windows.flatten(2, 3).std(2, keepdim=True)
    difference = (_without_center(windows) - image.unsqueeze(2)).abs()
    weights = (-difference / (1e-8 + 0.1 * deviation)).mean(1, keepdim=True).softmax(2)
    for _ in range(iterations):
        scores = (weights * _without_center(_windows(scores, dilations))).sum(2)
    return scores


def _windows(values: Tensor, dilations: Sequence[int]) -> Tensor:
    """(B, C, H, W) → (B, C, dilations, 9, H, W), pixels outside repeating the border."""
    batch, channels, height, width = values.shape
    per_dilation = []
    for dilation in dilations:
        padded = functional.pad(values, (dilation,) * 4, mode="replicate")
        window = functional.unfold(padded, 3, dilation=dilation)
        per_dilation.append(window.view(batch, channels, 9, height, width))
    return torch.stack(per_dilation, 2)


def _without_center(windows: Tensor) -> Tensor:
    return torch.cat((windows[:, :, :, :4], windows[:, :, :, 5:]), 3).flatten(2, 3)


def example(channels: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Make a smooth random image and random scores, always the same ones."""
    generator = torch.Generator().manual_seed(channels)
    coarse = torch.rand(1, 3, -(-height // 8), -(-width // 8), generator=generator)
    image = functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return image, torch.rand(1, channels, height, width, generator=generator)


def race(image: Tensor, scores: Tensor, repeats: int) -> tuple[float, float, float]:
    """Run both in turn: best seconds of the plain one, of ours, and the largest difference."""
    best = [float("inf")] * 2
    results = [scores] * 2
    for _ in range(repeats):
        for side, refine in enumerate((naive_pamr, pamr)):
            start = time.perf_counter()
            results[side] = refine(image, scores)
            best[side] = min(best[side], time.perf_counter() - start)
    return best[0], best[1], (results[0] - results[1]).abs().max().item()


def extra_mib(side: int, channels: int, height: int, width: int) -> float:
    """Return by how much the peak of a fresh process grows in one call; MiB."""
    image, scores = example(channels, height, width)
    with torch.inference_mode():
        (naive_pamr, pamr)[side](image[..., :8, :8], scores[..., :8, :8])  # loads the kernels
        before = _peak_mib()
        (naive_pamr, pamr)[side](image, scores)
    return _peak_mib() - before


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time PAMR against its plain formula.")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads that torch may use")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; the best counts")
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = (options.height, options.width)
    title = f"{options.width}×{options.height}, {ITERATIONS} iterations, {options.threads} threads"
    table = Table(title=f"PAMR, {title}")
    for heading in ("channels", "plain s", "ours s", "ratio", "difference", "extra MiB"):
        table.add_column(heading, justify="right")
    spawn = get_context("spawn")
    memory = {}
    for channels in CHANNELS:  # before any race, for a child inherits its parent's peak
        for side in range(2):
            with spawn.Pool(1) as fresh:
                memory[channels, side] = fresh.apply(extra_mib, (side, channels, *size))
    for channels in CHANNELS:
        with torch.inference_mode():
            plain, ours, difference = race(*example(channels, *size), options.repeats)
        cells = f"{channels}|{plain:.3f}|{ours:.3f}|{plain / ours:.1f}×|{difference:.1e}"
        table.add_row(*cells.split("|"), f"{memory[channels, 0]:.0f} / {memory[channels, 1]:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
