"""How well a mask's alignment ranks masks by their true IoU, beside its mean confidence.

Alignment is what every result carries: the cosine of the masked region to its class text, minus that to the learned
background prompt.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks.refiners import read_photos
from models.bundle.bundle import find_bundle, load_bundle
from models.inference.predictor import Predictor


@dataclass(frozen=True)
class Mask:
    """One class in one photo: its IoU with the label map, and what the result says of it."""

    iou: float
    confidence: float
    to_class: float
    to_background: float
    area: float


def main() -> None:
    """Print rank correlations, and the mean IoU of what a threshold would keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bundle", default="coco-demo")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    predictor = Predictor(load_bundle(find_bundle(arguments.bundle), device=torch.device("cpu")))
    masks = measure(predictor, arguments.data)
    iou = np.array([mask.iou for mask in masks])
    signals = {
        "alignment (class - background)": [mask.to_class - mask.to_background for mask in masks],
        "cosine to the class": [mask.to_class for mask in masks],
        "minus cosine to the background": [-mask.to_background for mask in masks],
        "mean confidence": [mask.confidence for mask in masks],
        "area": [mask.area for mask in masks],
    }
    print(f"{len(masks)} masks, mean IoU {iou.mean():.3f}\n")
    print("| signal | Spearman | IoU of the best 90 % | 75 % | 50 % |\n|---|---|---|---|---|")
    for name, values in signals.items():
        order = np.argsort(values)[::-1]
        kept = [iou[order[: round(len(order) * share)]].mean() for share in (0.9, 0.75, 0.5)]
        cells = " | ".join(f"{value:.3f}" for value in kept)
        print(f"| {name} | {spearmanr(values, iou).statistic:.2f} | {cells} |")
    differences = np.array(signals["alignment (class - background)"])
    quantiles = ", ".join(f"{np.quantile(differences, q):.3f}" for q in (0.05, 0.1, 0.25, 0.5))
    print(f"\nalignment at the 5, 10, 25 and 50 % quantile: {quantiles}")


def measure(predictor: Predictor, data: Path) -> list[Mask]:
    """Make the pseudo mask of every labeled photo and compare each class with its label map."""
    found = []
    for photo in read_photos(data, predictor.info.classes):
        result = predictor.pseudo_mask(photo.pixels, photo.labels, predictor.options())
        counted = photo.truth != 255
        for each in result.classes:
            if each.confidence is None or each.alignment_class is None:
                continue  # nothing was found: there is no mask to rank
            region, truth = (result.label_map == each.index) & counted, photo.truth == each.index
            union = (region | truth).sum()
            found.append(
                Mask(
                    iou=float((region & truth).sum() / union) if union else 0.0,
                    confidence=each.confidence,
                    to_class=each.alignment_class,
                    to_background=each.alignment_background or 0.0,
                    area=each.area,
                )
            )
    return found


if __name__ == "__main__":
    main()
