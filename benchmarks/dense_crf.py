"""Seconds of the dense CRF at 500×375, 10 iterations, VOC's kernels, on CPU; building the lattices included."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.refine.dense_crf import VOC_KERNELS, dense_crf

PHOTO = Path(__file__).parent / "photos" / "cat.jpg"
SIZE = (500, 375)


def main() -> None:
    """Print a Markdown table: best and median of some runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pixels = np.array(Image.open(PHOTO).convert("RGB").resize(SIZE))
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    print("| channels | best s | median s |\n|---|---|---|")
    for channels in (4, 21):
        generator = torch.Generator().manual_seed(0)
        probabilities = torch.rand(channels, *image.shape[1:], generator=generator).softmax(dim=0)
        seconds = []
        for _ in range(arguments.repeat):
            started = time.perf_counter()
            dense_crf(image, probabilities, kernels=VOC_KERNELS)
            seconds.append(time.perf_counter() - started)
        print(f"| {channels} | {min(seconds):.2f} | {sorted(seconds)[len(seconds) // 2]:.2f} |")


if __name__ == "__main__":
    main()
