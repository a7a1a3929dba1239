"""All stages of a run in order, each left out if its result is there already."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from models.bundle.bundle import load_bundle
from models.bundle.manifest import MANIFEST
from models.data.classes import Sample
from models.data.mask_folder import SETTINGS, SUMMARY, read_mask_folder, read_settings
from models.evaluation.report import Sources, write_report
from models.inference.folder import MaskJob, make_here, make_pseudo_masks
from models.inference.predictor import Predictor
from models.io import write_atomically
from models.training import generator
from models.training.export import export_bundle
from models.training.generator import pretrain_generator
from models.training.run import Run, is_current
from models.training.segmenter import STAGE, WEIGHTS, epochs_of, train_segmenter

OnShare = Callable[[float], None]  # the share of a stage that is done, in [0, 1]

REPORT, MASKS = "report.html", "pseudo-masks"
_GENERATOR = "refine-generator"


@dataclass(frozen=True)
class Stage:
    """One stage of the whole run.

    Attributes:
        name: of the command that does it alone.
        result: the file that it leaves last.
        start: does it; whatever an earlier call did of it is not done again.
        quick: done each time, for what it is told may have changed.
        stale: its result is of other files than earlier stages have left by now.
    """

    name: str
    result: Path
    start: Callable[[OnShare], object]
    quick: bool = False
    stale: bool = False

    @property
    def done(self) -> bool:
        """Whether its result is there, and need not be made again."""
        return self.result.is_file() and not self.quick and not self.stale


def claim(run: Run, samples: Sequence[Sample]) -> None:
    """Note in the work directory which photos and labels it is for, or check that they are the same as before.

    Raises:
        ValueError: if it was begun with others.
        OSError: if it cannot be written.
    """
    content = "".join(
        f"{each.name} {each.path.stat().st_size} {each.channels}\n" for each in samples
    )
    path = run.work / "photos.txt"
    begun = any(run.work.glob("*/*.safetensors"))  # without any result nothing would be mixed
    if begun and path.is_file() and path.read_text(encoding="utf-8") != content:
        raise ValueError(
            f"expected the photos and labels that {run.work} was begun with, see {path}; or a new work directory"
        )
    write_atomically(path, content.encode())


def plan(
    run: Run,
    samples: Sequence[Sample],
    images: Path,
    output: Path,
    *,
    licence: str,
    trained_on: str,
) -> tuple[Stage, ...]:
    """Return the stages from photos with labels to a bundle that can segment, and a page about it all.

    Args:
        run: a work directory, new or begun.
        samples: labeled photos.
        images: their folder.
        output: the bundle's folder.
        licence: under which others may use the weights.
        trained_on: the data, in words.
    """
    work, config = run.work, run.config
    masks = work / MASKS

    def segmenter(on_share: OnShare) -> Path:
        found = read_mask_folder(images, masks, run.classes)
        settings = config.train_segmenter
        epochs = epochs_of(settings, photos=len(found))
        return train_segmenter(run, found, lambda step: on_share(step.epochs_done / epochs))

    def export(_: OnShare) -> object:
        return export_bundle(run, output, stage=_GENERATOR, licence=licence, trained_on=trained_on)

    def report(on_share: OnShare) -> Path:
        sources = Sources(samples, masks=masks, bundle=output)
        return write_report(run, sources, work / REPORT, on_share=on_share)

    def fitting(
        name: str, stage: Callable[..., Path], epochs: int, weights: str = "generator.safetensors"
    ) -> Stage:
        def start(on_share: OnShare) -> Path:
            return stage(run, samples, lambda step: on_share(step.epochs_done / epochs))

        return Stage(name, work / name / weights, start, stale=not is_current(work, config, name))

    pretrain = config.pretrain_generator
    learning = (
        fitting("train-generator", generator.train_generator, config.train_generator.epochs),
        fitting(
            "learn-prompts",
            generator.learn_prompts,
            config.learn_prompts.epochs,
            "prompts.safetensors",
        ),
    )
    return (
        *((fitting("pretrain-generator", pretrain_generator, pretrain.epochs),) if pretrain else ()),
        # Imported prompts stand in place of (b), and only (b) needs (a).
        *(() if generator.has_adopted_prompts(run) else learning),
        fitting(_GENERATOR, generator.refine_generator, config.refine_generator.epochs),
        Stage(
            "make-pseudo-masks",
            masks / SUMMARY,
            lambda on_share: _make_masks(run, samples, masks, on_share),
        ),
        Stage(STAGE, work / STAGE / WEIGHTS, segmenter),
        Stage("export-bundle", output / MANIFEST, export, quick=True),
        Stage("report", work / REPORT, report, quick=True),
    )  # fmt: skip


def _make_masks(run: Run, samples: Sequence[Sample], output: Path, on_share: OnShare) -> None:
    """Make the pseudo masks with the same code that serves bundles, and so with a bundle."""
    folder = run.work / "generator-bundle"
    export_bundle(
        run, folder, stage=_GENERATOR, licence="internal", trained_on="see the run", parts=()
    )  # fmt: skip
    predictor = Predictor(load_bundle(folder, device=run.device))
    if _made_with_another(output, predictor):
        shutil.rmtree(output)  # of an earlier generator of this run
    labeled = sum(bool(sample.channels) for sample in samples)
    seen = 0

    def on_image() -> None:
        nonlocal seen
        seen += 1
        on_share(seen / labeled)

    job = MaskJob(output, predictor.options(), save_scores=False)
    make = partial(make_here, predictor, job)
    make_pseudo_masks(predictor.info, samples, job, make, on_image=on_image)


def _made_with_another(masks: Path, predictor: Predictor) -> bool:
    if not (masks / SETTINGS).is_file():
        return False
    return bool(read_settings(masks)["model"]["version"] != predictor.info.version)
