"""Commands that make masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
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
    WorkArgument,
    WorkersOption,
    pick_device,
    progress,
    report_stage,
    training_processes,
)
from models.data.labels import split_labels

# The files that one photo's segmentation leaves: STEM.png, STEM_overlay.png and STEM.json.

if TYPE_CHECKING:
    from models.bundle.manifest import BundleInfo
    from models.data.images import UprightImage
    from models.inference.masks import MaskOptions, Segmentation


def check_keeps(output: Path, image: Path) -> None:
    """Raise ValueError if results in a folder would overwrite the photo."""
    if (output / f"{image.stem}.png").resolve() == image.resolve():
        raise ValueError(f"expected an output folder that keeps {image}, got its own")


def write_results(
    output: Path,
    image: Path,
    upright: UprightImage,
    segmentation: Segmentation,
    options: MaskOptions,
    *,
    info: BundleInfo,
) -> Path:
    """Write a photo's results; returns their path without ending.

    Raises:
        OSError: if the folder cannot be written.
    """
    from models.data.mask_files import OVERLAY, describe, label_map_png, overlay_png, provenance
    from models.io import write_atomically, write_json

    stem = output / image.stem
    names = [each.name for each in segmentation.classes]
    text = provenance(info, segmentation.classes, asdict(options.for_classes(names)))
    mask = label_map_png(segmentation.label_map, text=text)
    write_atomically(stem.with_name(f"{image.stem}.png"), mask)
    overlay = overlay_png(upright.pixels, segmentation.label_map)
    write_atomically(stem.with_name(f"{image.stem}{OVERLAY}.png"), overlay)
    record = describe(segmentation, info, options, image=image.name)
    write_json(
        stem.with_name(f"{image.stem}.json"),
        {**record, "exif_orientation": upright.exif_orientation},
    )
    return stem


if TYPE_CHECKING:
    from models.bundle.manifest import BundleInfo
    from models.inference.folder import Outcome
    from models.inference.predictor import Predictor

DEFAULT_BUNDLE = "coco-demo"


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
    from models.bundle.manifest import find_bundle, read_info
    from models.data.classes import with_open_labels
    from models.data.images import read_image

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
    from models.bundle.manifest import find_bundle, read_info
    from models.data.labels import classes_with_open_labels, read_folder
    from models.inference.folder import MaskJob, make_here, make_in_processes, make_pseudo_masks
    from models.inference.masks import fill_defaults

    info = read_info(find_bundle(bundle))
    classes = info.classes
    if vocabulary == "open":
        _require_open(info)
        classes = classes_with_open_labels(labels, classes)
    samples = read_folder(images, labels, classes)
    options = fill_defaults(
        info.mask_options,
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
    from models.data.classes import why_closed

    if not info.open_vocabulary:
        raise ValueError(
            f"expected a bundle with an open vocabulary, got {info.name!r}: {why_closed(info.kind)}"
        )


def _load_predictor(bundle: str, device: str, threads: int) -> Predictor:
    from models.bundle.bundle import load_bundle
    from models.bundle.manifest import find_bundle
    from models.inference.predictor import Predictor

    return Predictor(load_bundle(find_bundle(bundle), device=pick_device(device, threads)))


# The command that decides masks anew from stored scores.


def rethreshold(
    folder: Annotated[Path, typer.Argument(help="Output of make-pseudo-masks --save-scores.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for masks, classes, summary.")],
    bundle: BundleOption = DEFAULT_BUNDLE,
    background_threshold: BackgroundOption = None,
    background_power: PowerOption = None,
    min_confidence: ConfidenceOption = None,
    per_class: Annotated[
        bool,
        typer.Option("--per-class", help="Estimate a threshold for each class from its scores."),
    ] = False,
) -> None:
    """Make the masks of other thresholds from stored scores, as a fresh run would, without the model."""
    from models.bundle.manifest import find_bundle, read_info
    from models.data.mask_files import read_soft_maps
    from models.data.mask_folder import read_settings
    from models.inference.folder import (
        MaskJob,
        make_pseudo_masks,
        redecide,
        stored_classes,
        stored_samples,
    )
    from models.inference.masks import MIN_PHOTOS, estimate_thresholds, fill_defaults
    from models.io import write_json

    if output.resolve() == folder.resolve():
        raise ValueError(f"expected an output folder other than {folder}, got the same")
    info = read_info(find_bundle(bundle))
    samples = stored_samples(folder, info)
    before = read_settings(folder)["options"]
    options = fill_defaults(
        info.mask_options,
        refine=before["refine"],
        background_threshold=background_threshold,
        background_power=background_power,
        min_confidence=min_confidence,
    )
    if per_class:
        if background_power is not None:
            raise ValueError("expected --per-class or --background-power, got both")
        files = (folder / "scores" / f"{sample.stem}.npz" for sample in samples)
        estimated = estimate_thresholds(map(read_soft_maps, files))
        occurring = {channel for sample in samples for channel in sample.channels}
        if not estimated:
            raise ValueError(
                f"expected a class with at least {MIN_PHOTOS} photos for --per-class, got none"
            )
        print(f"thresholds estimated for {len(estimated)} of {len(occurring)} classes")
        # The others keep the bundle's, or what --background-threshold says.
        options = replace(options, class_thresholds={**options.class_thresholds, **estimated})
    job = MaskJob(output, options, save_scores=False, classes=stored_classes(folder, info))
    with progress("masks", len(samples)) as (bar, task):
        outcome = make_pseudo_masks(
            info,
            samples,
            job,
            partial(redecide, folder, info, job),
            on_image=lambda: bar.advance(task),
        )
    if per_class:
        write_json(output / "thresholds.json", options.class_thresholds)
    report_outcome(outcome, output)


# Commands around the segmenter: train it, and segment photos without labels.

MinAlignmentOption = Annotated[
    float | None,
    typer.Option(
        help="Ignore masks less aligned: cosine to the class minus cosine to its background."
    ),
]


def segment(
    images: Annotated[
        list[Path], typer.Argument(help="JPEG, PNG or WebP photos, or folders of them.")
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder for the results.")],
    bundle: BundleOption = "coco-demo",
    refine: RefineOption = None,
    min_confidence: ConfidenceOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Segment photos without labels: STEM.png, STEM_overlay.png and STEM.json of each."""
    from models.bundle.bundle import load_bundle
    from models.bundle.manifest import find_bundle
    from models.data.images import ImageError, read_image
    from models.inference.predictor import Predictor

    photos = _photos(images)
    for photo in photos:
        check_keeps(output, photo)
    alone = read_image(photos[0].read_bytes()) if len(photos) == 1 else None
    predictor = Predictor(load_bundle(find_bundle(bundle), device=pick_device(device, threads)))
    options = predictor.segment_options(refine=refine, min_confidence=min_confidence)
    failed = 0
    with progress("segment", len(photos)) as (bar, task):
        for photo in photos:
            try:
                upright = alone or read_image(photo.read_bytes())
            except (ImageError, OSError) as error:
                failed += 1
                Console(stderr=True).print(f"semples: {photo}: {error}", markup=False)
                bar.advance(task)
                continue
            result = predictor.segment(upright.pixels, options)
            write_results(output, photo, upright, result, options, info=predictor.info)
            found = ", ".join(
                f"{each.name} {each.area:.1%}" for each in result.classes if each.area
            )
            print(f"{photo.name}: {found or 'nothing found'}")
            bar.advance(task)
    print(f"{len(photos) - failed} photos segmented, {failed} failed: {output}")
    if failed:
        raise typer.Exit(1)


def _photos(paths: Sequence[Path]) -> list[Path]:
    """The photos that paths name, each once; their stems name results, so they must differ."""
    from models.data.images import PHOTO_SUFFIXES

    photos: dict[str, Path] = {}
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        for photo in inside:
            if path.is_dir() and (photo.suffix.lower() not in PHOTO_SUFFIXES or photo.is_dir()):
                continue
            if photos.setdefault(photo.stem, photo) != photo:
                raise ValueError(f"expected distinct stems, got {photos[photo.stem]} and {photo}")
    if not photos:
        raise ValueError("expected at least one photo, got none")
    return list(photos.values())


def train_segmenter(
    work: WorkArgument,
    images: ImagesOption,
    masks: Annotated[Path, typer.Option("--masks", help="Output folder of make-pseudo-masks.")],
    min_alignment: MinAlignmentOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Train the segmentation network on pseudo masks. Goes on after a kill; runs under torchrun too."""
    from models.data.mask_folder import read_mask_folder
    from models.training.run import open_run
    from models.training.segmenter import STAGE, epochs_of, train_segmenter

    with training_processes(device, threads) as (chosen, processes):
        run = open_run(work, device=chosen, workers=workers, processes=processes)
        samples = read_mask_folder(images, masks, run.classes, min_alignment=min_alignment)
        epochs = epochs_of(run.config.train_segmenter, photos=len(samples))
        report_stage(train_segmenter, run, samples, STAGE, epochs=epochs)
