"""``semples run-all``: all stages of a run in order, without those whose result is up to date."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from models.bundle.bundle import load_bundle
from models.bundle.manifest import MANIFEST
from models.data.classes import Sample, labeled_samples
from models.data.mask_folder import SETTINGS, SUMMARY, read_mask_folder, read_settings
from models.evaluation.report import Sources, write_report
from models.inference.folder import MaskJob, make_here, make_pseudo_masks
from models.inference.predictor import Predictor
from models.io import write_atomically
from models.training.export import export_bundle
from models.training.generator import pretrain_generator, refine_generator, train_generator
from models.training.prompts import has_adopted_prompts, learn_prompts
from models.training.run import FINAL_STAGE, GENERATOR_WEIGHTS, PHOTOS, PRETRAIN_STAGE, SEGMENTER_STAGE, Run
from models.training.segmenter import SEGMENTER_WEIGHTS, segmenter_epochs, train_segmenter

_OnFraction = Callable[[float], None]  # called with the completed fraction of a stage, in [0, 1]

REPORT, MASKS = "report.html", "pseudo-masks"


@dataclass(frozen=True)
class Stage:
    """One stage of ``run-all``, which ``start`` runs or continues."""

    name: str
    result: Path  # the file that it writes last
    start: Callable[[_OnFraction], object]
    always: bool = False  # it is quick, and its options may have changed
    stale: bool = False  # its inputs have changed since

    @property
    def done(self) -> bool:
        """Whether its result exists and need not be made again."""
        return self.result.is_file() and not self.always and not self.stale


def check_samples(run: Run, samples: Sequence[Sample]) -> None:
    """Write the photos and labels to PHOTOS, or check that existing results were made from the same ones."""
    content = "".join(f"{each.name} {each.path.stat().st_size} {each.channels}\n" for each in samples)
    path = run.work / PHOTOS
    has_results = any(run.work.glob("*/*.safetensors"))
    if has_results and path.is_file() and path.read_text(encoding="utf-8") != content:
        raise ValueError(
            f"expected the photos and labels that {run.work} was begun with, see {path}; or a new work directory"
        )
    write_atomically(path, content.encode())


def build_stages(
    run: Run,
    samples: Sequence[Sample],
    images: Path,
    output: Path,
    *,
    licence: str,
    trained_on: str,
) -> tuple[Stage, ...]:
    """Return the stages from labeled photos in the folder ``images`` to a bundle in ``output``, and a report."""
    work, masks = run.work, run.work / MASKS

    def make_masks(on_fraction: _OnFraction) -> None:
        _make_masks(run, samples, masks, on_fraction)

    def segmenter(on_fraction: _OnFraction) -> None:
        found = read_mask_folder(images, masks, run.classes)
        epochs = segmenter_epochs(run.config.train_segmenter, photos=len(found))
        train_segmenter(run, found, lambda step: on_fraction(step.epochs_done / epochs))

    def export(_: _OnFraction) -> None:
        export_bundle(run, output, stage=FINAL_STAGE, licence=licence, trained_on=trained_on)

    def report(on_fraction: _OnFraction) -> None:
        sources = Sources(samples, masks=masks, bundle=output)
        write_report(run, sources, work / REPORT, on_fraction=on_fraction)

    return (
        *_generator_stages(run, samples),
        Stage("make-pseudo-masks", masks / SUMMARY, make_masks),
        Stage(
            SEGMENTER_STAGE,
            work / SEGMENTER_STAGE / SEGMENTER_WEIGHTS,
            segmenter,
            stale=not run.is_current(SEGMENTER_STAGE),
        ),
        Stage("export-bundle", output / MANIFEST, export, always=True),
        Stage("report", work / REPORT, report, always=True),
    )


def _generator_stages(run: Run, samples: Sequence[Sample]) -> list[Stage]:
    """Pre-training if it is configured, and stages (a) to (c)."""
    config = run.config

    def fitting(name: str, stage: Callable[..., Path], epochs: int, weights: str = GENERATOR_WEIGHTS) -> Stage:
        def start(on_fraction: _OnFraction) -> Path:
            return stage(run, samples, lambda step: on_fraction(step.epochs_done / epochs))

        return Stage(name, run.work / name / weights, start, stale=not run.is_current(name))

    stages = []
    if config.pretrain_generator:
        epochs = config.pretrain_generator.epochs
        stages.append(fitting(PRETRAIN_STAGE, pretrain_generator, epochs))
    if not has_adopted_prompts(run):  # imported prompts replace (b), and only (b) needs (a)
        stages += [
            fitting("train-generator", train_generator, config.train_generator.epochs),
            fitting("learn-prompts", learn_prompts, config.learn_prompts.epochs, "prompts.safetensors"),
        ]
    stages.append(fitting(FINAL_STAGE, refine_generator, config.refine_generator.epochs))
    return stages


def _make_masks(run: Run, samples: Sequence[Sample], output: Path, on_fraction: _OnFraction) -> None:
    """Make the pseudo masks from a bundle, with the same code as serving."""
    bundle = run.work / "generator-bundle"
    export_bundle(
        run,
        bundle,
        stage=FINAL_STAGE,
        licence="internal",
        trained_on="see the run",
        parts=(),
    )
    predictor = Predictor(load_bundle(bundle, device=run.device))
    if (output / SETTINGS).is_file() and read_settings(output)["model"]["version"] != predictor.info.version:
        shutil.rmtree(output)  # masks of an earlier generator of this run
    labeled = len(labeled_samples(samples))
    made = 0

    def on_image() -> None:
        nonlocal made
        made += 1
        on_fraction(made / labeled)

    job = MaskJob(output, predictor.options(), save_scores=False)
    make = partial(make_here, predictor, job)
    make_pseudo_masks(predictor.info, samples, job, make, on_image=on_image)
