"""One run as one HTML file: what it is, how it trained, what its masks are like. No script, nothing from elsewhere."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel

from models.bundle.bundle import load_bundle
from models.bundle.manifest import BundleInfo, NearNoun
from models.config import dump_config
from models.data.classes import BACKGROUND_INDEX, Sample, read_class_list
from models.data.mask_files import software_version
from models.data.mask_folder import SUMMARY
from models.evaluation import plots
from models.evaluation.metrics import IouReport, Sweep, find_files, measure, number
from models.evaluation.plots import Line, Plot, Point, choose, draw, photo_parts, thin
from models.inference.predictor import Predictor
from models.io import read_json, write_atomically
from models.refine import NO_REFINER
from models.training.loop import Step
from models.training.run import SEGMENTER_STAGE, Run

# The parts of the page that ``models.evaluation.report`` writes: what each shows, as small values for the template.


# What became of the pseudo masks, class by class.

_MOST_NAMED = 5


@dataclass(frozen=True)
class ClassRow:
    """A class's masks over all photos that are labeled with it.

    Attributes:
        name: of the class.
        photos: how many.
        area: mean share of a photo, in [0, 1].
        confidence: mean over the masks that are not empty, in (0, 1]; None if all are.
        to_class: their mean cosine to the class text; None without CLIP.
        to_background: their mean cosine to the learned background prompt; likewise.
        empty: photos whose mask has no pixel.
    """

    name: str
    photos: int
    area: float | None
    confidence: float | None
    to_class: float | None
    to_background: float | None
    empty: tuple[str, ...]


@dataclass(frozen=True)
class MasksPart:
    """A whole folder of masks.

    Attributes:
        made: masks.
        unlabeled: photos without a label, which get none.
        failed: (photo, reason).
        options: how they were made, in words.
        rows: by class name.
    """

    made: int
    unlabeled: int
    failed: tuple[tuple[str, str], ...]
    options: str
    rows: tuple[ClassRow, ...]

    @property
    def empty(self) -> int:
        """How many masks of a class in a photo have no pixel."""
        return sum(len(row.empty) for row in self.rows)


def outcome_in_words(part: MasksPart) -> str:
    """Say how many labels have a mask without a pixel, and of which classes, the emptiest first; and what failed."""
    labels = sum(row.photos for row in part.rows)
    rows = sorted((row for row in part.rows if row.empty), key=lambda row: -len(row.empty))
    shares = [f"{row.name} {len(row.empty)} of {row.photos}" for row in rows[:_MOST_NAMED]]
    named = f" ({', '.join(shares)}{', …' if len(rows) > _MOST_NAMED else ''})" if rows else ""
    failed = f"; photos that failed: {len(part.failed)}" if part.failed else ""
    return f"{part.empty} empty of {labels} labels{named}{failed}"


def masks_part(folder: Path) -> MasksPart | None:
    """Describe the output of make-pseudo-masks; None while it is not whole.

    Raises:
        ValueError: if its summary is no JSON.
        OSError: if it cannot be read.
    """
    path = folder / SUMMARY
    if not path.is_file():
        return None
    summary = read_json(path)
    try:
        return MasksPart(
            made=summary["masks"],
            unlabeled=summary["unlabeled"],
            failed=tuple((each["image"], each["reason"]) for each in summary["failed"]),
            options=options_in_words(summary["options"]),
            rows=tuple(_row(name, found) for name, found in summary["classes"].items()),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected a summary of make-pseudo-masks in {path}, got {error}"
        ) from error


def options_in_words(options: Mapping[str, Any]) -> str:
    """Say how masks are made: refiner chain, background, least confidence."""
    power, own, least = (
        options[key] for key in ("background_power", "class_thresholds", "min_confidence")
    )
    words = [
        "not refined" if options["refine"] == NO_REFINER else f"refined by {options['refine']}",
        f"background threshold {options['background_threshold']}"
        if power is None
        else f"background power {power}",
        f"thresholds of their own for {len(own)} classes" if own else "",
        f"least confidence {least}" if least else "",
    ]
    return ", ".join(filter(None, words))


def _row(name: str, found: Mapping[str, Any]) -> ClassRow:
    return ClassRow(
        name=name,
        photos=found["images"],
        area=found["mean_area"],
        confidence=found["mean_confidence"],
        to_class=found["mean_alignment_class"],
        to_background=found["mean_alignment_background"],
        empty=tuple(found["empty"]),
    )


# What the stages' logs say: how far each came, and its curves.

_STAGES = ("train-generator", "learn-prompts", "refine-generator", SEGMENTER_STAGE)
_PRETRAINING = "pretrain-generator"  # not part of every run
_LOG = "log.jsonl"
_MOST_POINTS = 200
_SUM = "loss"


@dataclass(frozen=True)
class Term:
    """A loss term's mean over the first and over the last epoch."""

    name: str
    first: float
    last: float


@dataclass(frozen=True)
class StagePart:
    """One stage.

    Attributes:
        name: of its command.
        state: "done", "unfinished" or "not run".
        epochs: that were begun.
        steps: that were made.
        terms: of its loss.
        plots: losses and learning rate; none before the first step.
    """

    name: str
    state: str
    epochs: int
    steps: int
    terms: tuple[Term, ...]
    plots: tuple[Plot, ...]


def stage_parts(work: Path) -> tuple[StagePart, ...]:
    """Describe the method's stages in their order, pre-training before them, and any other that has left a log."""
    logged = {path.parent.name for path in work.glob(f"*/{_LOG}")}
    begun = [_PRETRAINING] if _PRETRAINING in logged else []
    others = sorted(logged - {_PRETRAINING, *_STAGES})
    return tuple(_stage_part(work / name) for name in (*begun, *_STAGES, *others))


def read_steps(log: Path) -> list[Step]:
    """Read a stage's log; lines that a kill left unreadable are passed over, a missing log has no step.

    Raises:
        OSError: if it cannot be read.
    """
    if not log.is_file():
        return []
    steps = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(line)
            steps.append(Step(**found))
        except (TypeError, ValueError):
            continue
    return steps


def _stage_part(folder: Path) -> StagePart:
    steps = read_steps(folder / _LOG)
    done = any(folder.glob("*.safetensors"))
    return StagePart(
        name=folder.name,
        state="done" if done else "unfinished" if steps else "not run",
        epochs=len({step.epoch for step in steps}),
        steps=len(steps),
        terms=tuple(_term(name, steps) for name in _names(steps)),
        plots=_plots(folder.name, steps),
    )


def _plots(stage: str, steps: Sequence[Step]) -> tuple[Plot, ...]:
    losses = [
        Line(name, _curve(steps, [step.losses.get(name) for step in steps]))
        for name in _names(steps)
    ]
    rate = Line("learning rate", _curve(steps, [step.learning_rate for step in steps]))
    # Whole epochs, so that one of a single step is no point in the middle of nowhere.
    span = (0, 1 + max((step.epoch for step in steps), default=0))
    plots = (
        draw(losses, title=f"Losses of {stage} by epoch", x_name="epoch", x_span=span),
        draw([rate], title=f"Learning rate of {stage} by epoch", x_name="epoch", x_span=span),
    )
    return tuple(plot for plot in plots if plot)


def _names(steps: Sequence[Step]) -> list[str]:
    """The loss terms' names; their sum only if it is one of several."""
    names = list(dict.fromkeys(name for step in steps for name in step.losses))
    return [name for name in names if name != _SUM] if len(names) == 2 else names


def _curve(steps: Sequence[Step], values: Sequence[float | None]) -> list[Point]:
    """Values over epochs: step s of n in epoch e lies at e + s / n."""
    length = 1 + max((step.step for step in steps), default=0)
    points = [
        (step.epoch + step.step / length, value)
        for step, value in zip(steps, values, strict=True)
        if value is not None
    ]
    return thin(points, most=_MOST_POINTS)


def _term(name: str, steps: Sequence[Step]) -> Term:
    by_epoch: dict[int, list[float]] = {}
    for step in steps:
        if name in step.losses:
            by_epoch.setdefault(step.epoch, []).append(step.losses[name])
    means = [sum(values) / len(values) for _, values in sorted(by_epoch.items())]
    return Term(name, means[0], means[-1])


# The pseudo masks against ground truth, under both rules.


@dataclass(frozen=True)
class IouRow:
    """A class's IoU under each rule, in [0, 1]; None where it has none."""

    name: str
    pixels: int
    fixed: float | None
    oracle: float | None


@dataclass(frozen=True)
class TruthPart:
    """What was measured.

    Attributes:
        images: photos with mask and ground truth.
        missing: ground truths without a mask.
        fixed: mean IoU in [0, 1]; None if no class occurs.
        oracle: mean IoU at the best threshold; None without stored scores.
        threshold: that one.
        rows: the background and the classes that occur in the ground truth.
        plot: mean IoU over the threshold; None without stored scores.
    """

    images: int
    missing: int
    fixed: float | None
    oracle: float | None
    threshold: float | None
    rows: tuple[IouRow, ...]
    plot: Plot | None


def truth_part(masks: Path, ground_truth: Path) -> TruthPart | None:
    """Compare a folder of make-pseudo-masks with ground truth; None if it has no masks.

    Raises:
        ValueError: if no mask has a ground truth, or a file is not what it should be.
    """
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
    names = {BACKGROUND_INDEX: "background"} | {each.index: each.name for each in classes.classes}
    fixed, pixels = measured.fixed, measured.fixed.pixels
    return TruthPart(
        images=measured.images,
        missing=files.missing,
        fixed=number(fixed.mean_iou),
        oracle=None if best is None else number(best.mean_iou),
        threshold=threshold,
        rows=tuple(
            IouRow(name, int(pixels[index]), _iou(fixed, index), _iou(best, index))
            for index, name in names.items()
            if pixels[index]
        ),
        plot=_threshold_curve(measured.oracle, fixed) if measured.oracle else None,
    )


def _iou(report: IouReport | None, index: int) -> float | None:
    return None if report is None else number(float(report.iou[index]))


def _threshold_curve(sweep: Sweep, fixed: IouReport) -> Plot | None:
    points = [
        (threshold, 100 * report.mean_iou)
        for threshold, report in zip(sweep.thresholds, sweep.reports, strict=True)
    ]
    level = [(x, 100 * fixed.mean_iou) for x in (sweep.thresholds[0], sweep.thresholds[-1])]
    threshold, best = sweep.best
    return draw(
        [Line("mean IoU in percent", points), Line("fixed", level)],
        title="Mean IoU in percent by background threshold, with its maximum (oracle) marked",
        x_name="background threshold",
        marks=[(threshold, 100 * best.mean_iou)],
    )


PHOTOS: Final = 6
_PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy")


@dataclass(frozen=True)
class Sources:
    """Where a report finds what the run's work directory does not say; the page does without what is not there.

    Attributes:
        samples: the run's photos.
        masks: output folder of make-pseudo-masks.
        bundle: of the run, for pictures and for what the prompts learned.
        ground_truth: folder of ``STEM.png``, in the masks' class indices.
    """

    samples: Sequence[Sample]
    masks: Path | None = None
    bundle: Path | None = None
    ground_truth: Path | None = None


@dataclass(frozen=True)
class PromptRow:
    """What a class's background prompt learned, and from how many photos."""

    name: str
    photos: int
    nouns: tuple[NearNoun, ...]


def write_report(
    run: Run,
    sources: Sources,
    output: Path,
    *,
    photos: int = PHOTOS,
    on_share: Callable[[float], None] = lambda _: None,
) -> Path:
    """Write the page, and return its path. Equal runs give equal pages: it holds no time and no place.

    Args:
        run: begun, however far it came.
        sources: what else there is.
        output: the HTML file.
        photos: of how many to show pictures.
        on_share: called with the share of the pictures that is made, in [0, 1].

    Raises:
        ValueError: if the bundle, the masks or the ground truth are damaged, or do not belong together.
        OSError: if a file cannot be read or written.
    """
    masks, truth = sources.masks, sources.ground_truth
    predictor = _predictor(run, sources.bundle) if sources.bundle else None
    content = {
        "name": run.config.name,
        "facts": _facts(run, sources.samples),
        "classes": run.classes.names,
        "config": dump_config(run.config),
        "stages": stage_parts(run.work),
        "masks": masks_part(masks) if masks else None,
        "truth": truth_part(masks, truth) if masks and truth else None,
        "has_truth": truth is not None,
        "bundle": predictor.info if predictor else None,
        "options": options_in_words(asdict(predictor.options())) if predictor else "",
        "photos": photo_parts(
            predictor, choose(sources.samples, photos), ground_truth=truth, on_share=on_share
        )
        if predictor
        else (),
        "prompts": _prompts(sources.samples, predictor.info) if predictor else (),
        "frame": plots,
    }
    write_atomically(output, _render(content).encode())
    return output


def _predictor(run: Run, bundle: Path) -> Predictor:
    loaded = load_bundle(bundle, device=run.device)
    if loaded.info.classes.names != run.classes.names:
        raise ValueError(f"expected a bundle with the run's classes, got {bundle} with others")
    return Predictor(loaded)


def _render(content: Mapping[str, Any]) -> str:
    # Names of classes and files come from outside: everything is escaped.
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
    labeled = sum(bool(each.channels) for each in samples)
    return {
        "CLIP": _in_words(config.clip),
        "mask generator": _in_words(config.generator),
        "segmenter": _in_words(config.segmenter),
        "prompts": _in_words(config.prompts),
        "classes": str(len(run.classes)),
        "photos": f"{labeled} labeled, {len(samples) - labeled} without a label",
        "seed": str(config.seed),
        "page made by": ", ".join(
            [f"semples {software_version()}", f"Python {platform.python_version()}"]
            + [f"{name} {version(name)}" for name in _PACKAGES]
        ),
    }


def _in_words(section: BaseModel) -> str:
    """A section of the configuration, what is null left out."""
    values = section.model_dump(mode="json", exclude_none=True)
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def _prompts(samples: Sequence[Sample], info: BundleInfo) -> tuple[PromptRow, ...]:
    photos = Counter(channel for sample in samples for channel in sample.channels)
    return tuple(
        PromptRow(name, photos[info.classes.channel(name)], nouns)
        for name, nouns in info.nearest_nouns.items()
    )
