"""Commands that make masks."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from models.cli.options import (
    BackgroundOption,
    BundleOption,
    ConfidenceOption,
    DeviceOption,
    ImagesOption,
    LabelsFileOption,
    PowerOption,
    RefineOption,
    ThreadsOption,
    VocabularyOption,
    pick_device,
    progress,
)
from models.cli.results import check_keeps, write_results
from models.data.labels import split_labels

if TYPE_CHECKING:
    from models.bundle_info import BundleInfo
    from models.make_masks import Outcome
    from models.predictor import Predictor

DEFAULT_BUNDLE = "coco-demo"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("predict")(predict)
    app.command("make-pseudo-masks")(make_masks)


def predict(
    image: Annotated[Path, typer.Argument(help="A JPEG, PNG or WebP photo.")],
    labels: Annotated[
        list[str],
        typer.Option(
            "--labels",
            help="A class that the photo shows; repeat for more, or separate by commas or semicolons.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder for the results.")],
    vocabulary: VocabularyOption = "closed",
    bundle: BundleOption = DEFAULT_BUNDLE,
    refine: RefineOption = None,
    background_threshold: BackgroundOption = None,
    background_power: PowerOption = None,
    min_confidence: ConfidenceOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Make the pseudo mask of one photo: STEM.png, STEM_overlay.png and STEM.json."""
    from models.bundle_info import find_bundle, read_info
    from models.data.open_labels import with_open_labels
    from models.images import read_image

    # The photo and the labels are checked before the model is loaded, so that mistakes answer at once.
    labels = list(split_labels(labels))
    upright = read_image(image.read_bytes())
    check_keeps(output, image)
    info = read_info(find_bundle(bundle))
    classes = info.classes
    if vocabulary == "open":
        _require_open(info)
        classes = with_open_labels(classes, labels)
    classes.resolve(labels)
    predictor = _load_predictor(bundle, device, threads)
    options = predictor.options(
        refine=refine,
        background_threshold=background_threshold,
        background_power=background_power,
        min_confidence=min_confidence,
    )
    segmentation = predictor.pseudo_mask(upright.pixels, labels, options, classes=classes)
    stem = write_results(output, image, upright, segmentation, options, info=predictor.info)
    for each in segmentation.classes:
        print(each)
    print(f"written to {stem}.png, {stem}_overlay.png and {stem}.json")


def make_masks(
    images: ImagesOption,
    labels: LabelsFileOption,
    output: Annotated[Path, typer.Option("--output", help="Folder for masks, classes, summary.")],
    vocabulary: VocabularyOption = "closed",
    bundle: BundleOption = DEFAULT_BUNDLE,
    refine: RefineOption = None,
    background_threshold: BackgroundOption = None,
    background_power: PowerOption = None,
    min_confidence: ConfidenceOption = None,
    save_scores: Annotated[
        bool, typer.Option("--save-scores", help="Keep soft scores too, to sweep thresholds.")
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share the photos, each with its own model.")
    ] = 1,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Make pseudo masks of a folder: masks/STEM.png, classes.txt, summary.json. Continues where it stopped."""
    from models.bundle_info import find_bundle, read_info
    from models.data.folder import classes_with_open_labels, read_folder
    from models.make_masks import make_pseudo_masks
    from models.mask_job import MaskJob, make_here, make_in_processes
    from models.mask_options import pseudo_mask_options

    info = read_info(find_bundle(bundle))
    classes = info.classes
    if vocabulary == "open":
        _require_open(info)
        classes = classes_with_open_labels(labels, classes)
    samples = read_folder(images, labels, classes)
    options = pseudo_mask_options(
        info.inference,
        refine=refine,
        background_threshold=background_threshold,
        background_power=background_power,
        min_confidence=min_confidence,
    )
    job = MaskJob(output, options, save_scores=save_scores, classes=classes)
    if processes == 1:
        make = partial(make_here, _load_predictor(bundle, device, threads), job)
    else:
        each = threads or max((os.cpu_count() or 1) // processes, 1)
        load = partial(_load_predictor, bundle, device, each)
        make = partial(make_in_processes, load, job, processes=processes)
    labeled = sum(bool(sample.channels) for sample in samples)
    with progress("pseudo masks", labeled) as (bar, task):
        outcome = make_pseudo_masks(info, samples, job, make, on_image=lambda: bar.advance(task))
    report_outcome(outcome, output)


def report_outcome(outcome: Outcome, output: Path) -> None:
    """Print what became of a folder; exit code 1 if a photo failed."""
    print(f"{outcome.made} masks made, {outcome.kept} kept, {len(outcome.failed)} failed: {output}")
    for name, reason in outcome.failed:
        Console(stderr=True).print(f"semples: {name}: {reason}", markup=False)
    if outcome.failed:
        raise typer.Exit(1)


def _require_open(info: BundleInfo) -> None:
    from models.data.open_labels import why_closed

    if not info.open_vocabulary:
        raise ValueError(
            f"expected a bundle with an open vocabulary, got {info.name!r}: {why_closed(info.kind)}"
        )


def _load_predictor(bundle: str, device: str, threads: int) -> Predictor:
    from models.bundle import load_bundle
    from models.bundle_info import find_bundle
    from models.predictor import Predictor

    return Predictor(load_bundle(find_bundle(bundle), device=pick_device(device, threads)))
