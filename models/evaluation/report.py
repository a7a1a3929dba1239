"""One HTML file about a run: configuration, training curves, masks, pictures. No script, no external resources.

The private dataclasses and dictionaries hold what the template ``models/reports/page.html`` shows.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel

from models.bundle.bundle import load_bundle
from models.bundle.manifest import BundleInfo
from models.config import dump_config
from models.data.classes import Sample, labeled_samples, read_class_list
from models.data.mask_files import software_version
from models.data.mask_folder import SUMMARY
from models.data.provenance import SOFTWARE
from models.evaluation import plots
from models.evaluation.metrics import IouReport, Sweep, find_files, measure, nan_to_none
from models.evaluation.plots import Line, Plot, Point, choose_samples, draw, photo_parts, thin
from models.inference.predictor import Predictor
from models.io import read_json, write_atomically
from models.refine import NO_REFINER
from models.training.loop import Step
from models.training.run import PRETRAIN_STAGE, SEGMENTER_STAGE, Run

_STAGES = ("train-generator", "learn-prompts", "refine-generator", SEGMENTER_STAGE)
_LOG = "log.jsonl"
_MAX_POINTS = 200  # of a curve
_SUM = "loss"  # the sum of the loss terms
_MAX_NAMED = 5  # classes in describe_masks
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy")


@dataclass(frozen=True)
class Sources:
    """Inputs of a report beside the run; the sections of missing ones are empty."""

    samples: Sequence[Sample]
    masks: Path | None = None  # output folder of make-pseudo-masks
    bundle: Path | None = None
    ground_truth: Path | None = None  # folder of STEM.png, in the masks' class indices


@dataclass(frozen=True)
class _ClassRow:
    """A class's masks: means over its photos, and the photos with an empty mask."""

    name: str
    photos: int
    area: float | None
    confidence: float | None
    to_class: float | None
    to_background: float | None
    empty: tuple[str, ...]


@dataclass(frozen=True)
class _MasksPart:
    """A folder of masks: numbers, (photo, reason) of failures, the options in words, and rows by class."""

    made: int
    unlabeled: int
    failed: tuple[tuple[str, str], ...]
    options: str
    rows: tuple[_ClassRow, ...]

    @property
    def empty(self) -> int:
        """Number of labels whose mask has no pixel."""
        return sum(len(row.empty) for row in self.rows)


@dataclass(frozen=True)
class _Term:
    """A loss term's mean over the first and over the last epoch."""

    name: str
    first: float
    last: float


@dataclass(frozen=True)
class _StagePart:
    """A stage's log: its state, and means and plots of its losses."""

    name: str
    state: Literal["done", "unfinished", "not run"]
    epochs: int
    steps: int
    terms: tuple[_Term, ...]
    plots: tuple[Plot, ...]


def write_report(
    run: Run,
    sources: Sources,
    output: Path,
    *,
    photos: int = 6,
    on_fraction: Callable[[float], None] = lambda _: None,
) -> Path:
    """Write the HTML file and return its path. It has no times or paths, so equal runs give equal files."""
    samples, masks, truth = sources.samples, sources.masks, sources.ground_truth
    content: dict[str, Any] = {
        "name": run.config.name,
        "generator": f"{SOFTWARE} {software_version()}",
        "facts": _facts(run, samples),
        "classes": run.classes.names,
        "config": dump_config(run.config),
        "stages": _stage_parts(run.work),
        "masks": masks_part(masks) if masks else None,
        "truth": _truth_part(masks, truth) if masks and truth else None,
        "has_truth": truth is not None,
        "bundle": None,
        "options": "",
        "photos": (),
        "prompts": (),
        "frame": plots,
    }
    if sources.bundle:
        bundle = load_bundle(sources.bundle, device=run.device)
        if bundle.info.classes.names != run.classes.names:
            raise ValueError(f"expected a bundle with the run's classes, got {sources.bundle} with others")
        predictor = Predictor(bundle)
        chosen = choose_samples(samples, photos)
        content |= {
            "bundle": predictor.info,
            "options": _describe_options(asdict(predictor.options())),
            "photos": photo_parts(predictor, chosen, ground_truth=truth, on_fraction=on_fraction),
            "prompts": _prompt_rows(samples, predictor.info),
        }
    write_atomically(output, _render(content).encode(errors="backslashreplace"))
    return output


def masks_part(folder: Path) -> _MasksPart | None:
    """Describe the output of make-pseudo-masks; None if it is not complete."""
    path = folder / SUMMARY
    if not path.is_file():
        return None
    summary = read_json(path)
    try:
        return _MasksPart(
            made=summary["masks"],
            unlabeled=summary["unlabeled"],
            failed=tuple((each["image"], each["reason"]) for each in summary["failed"]),
            options=_describe_options(summary["options"]),
            rows=tuple(_class_row(name, found) for name, found in summary["classes"].items()),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"expected a summary of make-pseudo-masks in {path}, got {error}") from error


def describe_masks(part: _MasksPart) -> str:
    """Say how many labels have an empty mask, with the classes that have most of them, and how many photos failed."""
    labels = sum(row.photos for row in part.rows)
    rows = sorted((row for row in part.rows if row.empty), key=lambda row: -len(row.empty))
    counts = [f"{row.name} {len(row.empty)} of {row.photos}" for row in rows[:_MAX_NAMED]]
    named = f" ({', '.join(counts)}{', …' if len(rows) > _MAX_NAMED else ''})" if rows else ""
    failed = f"; photos that failed: {len(part.failed)}" if part.failed else ""
    return f"{part.empty} empty of {labels} labels{named}{failed}"


def _describe_options(options: Mapping[str, Any]) -> str:
    """Describe mask options: refiner chain, background, minimum confidence."""
    power, thresholds, least = (options[key] for key in ("background_power", "class_thresholds", "min_confidence"))
    slope = options.get("threshold_slope")  # masks of an earlier version have none
    words = [
        "not refined" if options["refine"] == NO_REFINER else f"refined by {options['refine']}",
        f"background threshold {options['background_threshold']}" if power is None else f"background power {power}",
        f"higher for small maps by a slope of {slope}" if slope else "",
        f"thresholds of their own for {len(thresholds)} classes" if thresholds else "",
        f"least confidence {least}" if least else "",
    ]
    return ", ".join(filter(None, words))


def _stage_parts(work: Path) -> tuple[_StagePart, ...]:
    """Describe the method's stages in order, pre-training first if it was run, and any others with a log last."""
    logged = {path.parent.name for path in work.glob(f"*/{_LOG}")}
    first = [PRETRAIN_STAGE] if PRETRAIN_STAGE in logged else []
    others = sorted(logged - {PRETRAIN_STAGE, *_STAGES})
    return tuple(_stage_part(work / name) for name in (*first, *_STAGES, *others))


def _read_steps(log: Path) -> list[Step]:
    """Read a stage's log without malformed lines, which a kill can leave; no steps if it is missing."""
    if not log.is_file():
        return []
    steps = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            steps.append(Step(**json.loads(line)))
        except (TypeError, ValueError):
            continue
    return steps


def _render(content: Mapping[str, Any]) -> str:
    # Names of classes and files are user input: everything is escaped.
    environment = Environment(
        loader=PackageLoader("models", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(content)


def _facts(run: Run, samples: Sequence[Sample]) -> dict[str, str]:
    config = run.config
    labeled = len(labeled_samples(samples))
    return {
        "CLIP": _describe_section(config.clip),
        "mask generator": _describe_section(config.generator),
        "segmenter": _describe_section(config.segmenter),
        "prompts": _describe_section(config.prompts),
        "classes": str(len(run.classes)),
        "photos": f"{labeled} labeled, {len(samples) - labeled} without a label",
        "seed": str(config.seed),
        "page made by": ", ".join(
            [f"semples {software_version()}", f"Python {platform.python_version()}"]
            + [f"{name} {version(name)}" for name in _PACKAGES]
        ),
    }


def _describe_section(section: BaseModel) -> str:
    values = section.model_dump(mode="json", exclude_none=True)
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def _prompt_rows(samples: Sequence[Sample], info: BundleInfo) -> list[dict[str, Any]]:
    photos = Counter(channel for sample in samples for channel in sample.channels)
    return [
        {"name": name, "photos": photos[info.classes.channel(name)], "nouns": nouns}
        for name, nouns in info.nearest_nouns.items()
    ]


def _class_row(name: str, found: Mapping[str, Any]) -> _ClassRow:
    return _ClassRow(
        name=name,
        photos=found["images"],
        area=found["mean_area"],
        confidence=found["mean_confidence"],
        to_class=found["mean_alignment_class"],
        to_background=found["mean_alignment_background"],
        empty=tuple(found["empty"]),
    )


def _stage_part(folder: Path) -> _StagePart:
    steps = _read_steps(folder / _LOG)
    done = any(folder.glob("*.safetensors"))
    return _StagePart(
        name=folder.name,
        state="done" if done else "unfinished" if steps else "not run",
        epochs=len({step.epoch for step in steps}),
        steps=len(steps),
        terms=tuple(_term(name, steps) for name in _term_names(steps)),
        plots=_plots(folder.name, steps),
    )


def _plots(stage: str, steps: Sequence[Step]) -> tuple[Plot, ...]:
    losses = [Line(name, _curve(steps, [step.losses.get(name) for step in steps])) for name in _term_names(steps)]
    rate = Line("learning rate", _curve(steps, [step.learning_rate for step in steps]))
    # Whole epochs, so that a single step is not drawn in the middle of an arbitrary range.
    span = (0, 1 + max((step.epoch for step in steps), default=0))
    drawn = (
        draw(losses, title=f"Losses of {stage} by epoch", x_name="epoch", x_span=span),
        draw([rate], title=f"Learning rate of {stage} by epoch", x_name="epoch", x_span=span),
    )
    return tuple(plot for plot in drawn if plot)


def _term_names(steps: Sequence[Step]) -> list[str]:
    """The loss terms' names; the sum is left out beside a single term, to which it is equal."""
    names = list(dict.fromkeys(name for step in steps for name in step.losses))
    return [name for name in names if name != _SUM] if len(names) == 2 else names


def _curve(steps: Sequence[Step], values: Sequence[float | None]) -> list[Point]:
    """Points (epoch, value); step s of n in epoch e is at e + s / n."""
    length = 1 + max((step.step for step in steps), default=0)
    points = [
        (step.epoch + step.step / length, value) for step, value in zip(steps, values, strict=True) if value is not None
    ]
    return thin(points, most=_MAX_POINTS)


def _term(name: str, steps: Sequence[Step]) -> _Term:
    by_epoch: dict[int, list[float]] = {}
    for step in steps:
        if name in step.losses:
            by_epoch.setdefault(step.epoch, []).append(step.losses[name])
    return _Term(name, fmean(by_epoch[min(by_epoch)]), fmean(by_epoch[max(by_epoch)]))


def _truth_part(masks: Path, ground_truth: Path) -> dict[str, Any] | None:
    """Compare the output of make-pseudo-masks with ground truth, IoU in [0, 1]; None if there are no masks."""
    if not any((masks / "masks").glob("*.png")):
        return None
    scores = masks / "scores"
    classes = read_class_list(masks / "classes.txt")
    files = find_files(
        ground_truth,
        masks=masks / "masks",
        scores=scores if any(scores.glob("*.npz")) else None,
        allow_missing=True,
    )
    measured = measure(files, classes)
    if measured.fixed is None:
        return None
    threshold, best = measured.oracle.best if measured.oracle else (None, None)
    fixed, pixels = measured.fixed, measured.fixed.pixels
    return {
        "images": measured.images,
        "missing": files.missing,
        "fixed": nan_to_none(fixed.mean_iou),
        "oracle": best and nan_to_none(best.mean_iou),
        "threshold": threshold,
        "rows": [
            {
                "name": name,
                "pixels": int(pixels[index]),
                "fixed": nan_to_none(float(fixed.iou[index])),
                "oracle": best and nan_to_none(float(best.iou[index])),
            }
            for index, name in classes.names_by_index.items()
            if pixels[index]
        ],
        "plot": _threshold_curve(measured.oracle, fixed) if measured.oracle else None,
    }


def _threshold_curve(sweep: Sweep, fixed: IouReport) -> Plot | None:
    points = [
        (threshold, 100 * report.mean_iou) for threshold, report in zip(sweep.thresholds, sweep.reports, strict=True)
    ]
    level = [(x, 100 * fixed.mean_iou) for x in (sweep.thresholds[0], sweep.thresholds[-1])]
    threshold, best = sweep.best
    return draw(
        [Line("mean IoU in percent", points), Line("fixed", level)],
        title="Mean IoU in percent by background threshold, with its maximum (oracle) marked",
        x_name="background threshold",
        marks=[(threshold, 100 * best.mean_iou)],
    )
