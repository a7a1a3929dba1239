"""Commands that make masks: predict, make-pseudo-masks, rethreshold and segment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.cli.options import (
    BackgroundOption,
    BundleOption,
    ConfidenceOption,
    DeviceOption,
    ImagesOption,
    LabelsFileOption,
    OverwriteOption,
    PowerOption,
    RefineOption,
    ThreadsOption,
    VocabularyOption,
    pick_device,
    print_error,
    progress,
)
from models.data.classes import split_labels
from models.data.photos import describe_rules
from models.messages import printable

if TYPE_CHECKING:
    from models.bundle.manifest import BundleInfo
    from models.data.classes import Sample, Vocabulary
    from models.data.images import UprightImage
    from models.data.mask_folder import Outcome
    from models.inference.masks import MaskOptions, Segmentation
    from models.inference.predictor import Predictor

_DEFAULT_BUNDLE = "coco-demo"


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
    bundle: BundleOption = _DEFAULT_BUNDLE,
    refine: RefineOption = None,
    background_threshold: BackgroundOption = None,
    background_power: PowerOption = None,
    min_confidence: ConfidenceOption = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Make the pseudo mask of one photo: STEM.png, STEM_overlay.png and STEM.json."""
    from models.bundle.manifest import find_bundle, read_info
    from models.data.classes import with_open_labels
    from models.data.mask_files import check_results

    # Photo and labels are checked before the model is loaded, which takes seconds.
    labels = list(split_labels(labels))
    upright = _read_single_photo(image)
    check_results(output, [image], overwrite=overwrite)
    info = read_info(find_bundle(bundle))
    classes = info.classes
    if vocabulary == "open":
        _require_open_vocabulary(info)
        classes = with_open_labels(classes, labels)
    with _hint_at_open_vocabulary(info, vocabulary):
        classes.resolve(labels)
    predictor = _load_predictor(bundle, device, threads)
    options = predictor.options(
        refine=refine,
        background_threshold=background_threshold,
        background_power=background_power,
        min_confidence=min_confidence,
    )
    segmentation = predictor.pseudo_mask(upright.pixels, labels, options, classes=classes)
    stem = _write_results(output, image, upright, segmentation, options, info=predictor.info)
    for each in segmentation.classes:
        print(each)
    shown = printable(stem)
    print(f"written to {shown}.png, {shown}_overlay.png and {shown}.json")


def make_masks(
    images: ImagesOption,
    labels: LabelsFileOption,
    output: Annotated[Path, typer.Option("--output", help="Folder for masks, classes, summary.")],
    vocabulary: VocabularyOption = "closed",
    bundle: BundleOption = _DEFAULT_BUNDLE,
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
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Make pseudo masks of a folder: masks/STEM.png, classes.txt, summary.json. Continues where it stopped."""
    from models.bundle.manifest import find_bundle, read_info
    from models.data.classes import labeled_samples
    from models.data.labels import classes_with_open_labels, read_folder
    from models.inference.folder import MaskJob, make_here, make_in_processes, make_pseudo_masks
    from models.inference.masks import fill_defaults

    info = read_info(find_bundle(bundle))
    classes = info.classes
    if vocabulary == "open":
        _require_open_vocabulary(info)
        classes = classes_with_open_labels(labels, classes)
    with _hint_at_open_vocabulary(info, vocabulary):
        samples = read_folder(images, labels, classes)
    options = fill_defaults(
        info.mask_options,
        refine=refine,
        background_threshold=background_threshold,
        background_power=background_power,
        min_confidence=min_confidence,
    )
    job = MaskJob(output, options, save_scores=save_scores, classes=classes, overwrite=overwrite)
    if processes == 1:
        make = partial(make_here, _load_predictor(bundle, device, threads), job)
    else:
        threads_each = threads or max((os.cpu_count() or 1) // processes, 1)
        load = partial(_load_predictor, bundle, device, threads_each)
        make = partial(make_in_processes, load, job, processes=processes)
    with progress("pseudo masks", len(labeled_samples(samples))) as (bar, task):
        outcome = make_pseudo_masks(info, samples, job, make, on_image=lambda: bar.advance(task))
    _report_outcome(outcome, output)


def rethreshold(
    folder: Annotated[Path, typer.Argument(help="Output of make-pseudo-masks --save-scores.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for masks, classes, summary.")],
    bundle: BundleOption = _DEFAULT_BUNDLE,
    background_threshold: BackgroundOption = None,
    background_power: PowerOption = None,
    min_confidence: ConfidenceOption = None,
    per_class: Annotated[
        bool,
        typer.Option("--per-class", help="Estimate a threshold for each class from its scores."),
    ] = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Make masks with other thresholds from stored scores: what a new run would give, without the model."""
    from models.bundle.manifest import find_bundle, read_info
    from models.data.mask_folder import SETTINGS, THRESHOLDS, read_settings
    from models.data.provenance import refuse_foreign
    from models.inference.folder import (
        MaskJob,
        make_pseudo_masks,
        redecide,
        stored_classes,
        stored_samples,
    )
    from models.inference.masks import fill_defaults
    from models.io import write_json

    if output.resolve() == folder.resolve():
        raise ValueError(f"expected an output folder other than {folder}, got the same")
    if per_class and not (output / SETTINGS).exists():
        refuse_foreign([output / THRESHOLDS], overwrite=overwrite)
    info = read_info(find_bundle(bundle))
    samples = stored_samples(folder, info)
    options = fill_defaults(
        info.mask_options,
        refine=read_settings(folder)["options"]["refine"],
        background_threshold=background_threshold,
        background_power=background_power,
        min_confidence=min_confidence,
    )
    if per_class:
        if background_power is not None:
            raise ValueError("expected --per-class or --background-power, got both")
        # Classes without an estimate keep the bundle's threshold, or --background-threshold.
        thresholds = {**options.class_thresholds, **_estimate_thresholds(folder, samples)}
        options = replace(options, class_thresholds=thresholds)
    job = MaskJob(output, options, save_scores=False, classes=stored_classes(folder, info), overwrite=overwrite)
    make = partial(redecide, folder, info, job)
    with progress("masks", len(samples)) as (bar, task):
        outcome = make_pseudo_masks(info, samples, job, make, on_image=lambda: bar.advance(task))
    if per_class:
        write_json(output / THRESHOLDS, options.class_thresholds)
    _report_outcome(outcome, output)


def segment(
    images: Annotated[list[Path], typer.Argument(help="JPEG, PNG or WebP photos, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for the results.")],
    bundle: BundleOption = _DEFAULT_BUNDLE,
    refine: RefineOption = None,
    min_confidence: ConfidenceOption = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Segment photos without labels: STEM.png, STEM_overlay.png and STEM.json of each."""
    from models.data.images import ImageError, read_image
    from models.data.mask_files import check_results
    from models.data.photo_files import find_photos, is_of_one_file, read_photo

    photos = find_photos(images)
    check_results(output, photos, overwrite=overwrite)
    # A single photo is checked before the model is loaded, which takes seconds.
    single = _read_single_photo(photos[0]) if len(photos) == 1 else None
    predictor = _load_predictor(bundle, device, threads)
    options = predictor.segment_options(refine=refine, min_confidence=min_confidence)
    failed = 0
    with progress("segment", len(photos)) as (bar, task):
        for photo in bar.track(photos, task_id=task):
            try:
                upright = single or read_image(read_photo(photo))
                result = predictor.segment(upright.pixels, options)
                _write_results(output, photo, upright, result, options, info=predictor.info)
            except (ImageError, OSError) as error:
                if isinstance(error, OSError) and not is_of_one_file(error):
                    raise
                failed += 1
                print_error(f"{printable(photo)}: {error}")
                continue
            found = ", ".join(f"{each.name} {each.area:.1%}" for each in result.classes if each.area)
            print(f"{printable(photo.name)}: {found or 'nothing found'}")
    print(f"{len(photos) - failed} photos segmented, {failed} failed: {printable(output)}")
    if failed:
        raise typer.Exit(1)


def _read_single_photo(path: Path) -> UprightImage:
    """Read the one photo of a command; an error names it."""
    from models.data.images import read_image
    from models.data.photo_files import naming, read_photo

    with naming(path):
        return read_image(read_photo(path))


def _write_results(
    output: Path,
    image: Path,
    upright: UprightImage,
    segmentation: Segmentation,
    options: MaskOptions,
    *,
    info: BundleInfo,
) -> Path:
    """Write STEM.png, STEM_overlay.png and STEM.json; returns their path without suffix."""
    from models.data.mask_files import describe, mask_png, overlay_png, result_paths
    from models.io import write_atomically, write_json

    mask, overlay, record = result_paths(output, image)
    write_atomically(mask, mask_png(segmentation, info, options))
    write_atomically(overlay, overlay_png(upright.pixels, segmentation.label_map))
    described = describe(segmentation, info, options, image=image.name)
    as_read = {"exif_orientation": upright.exif_orientation, "value_range": upright.value_range}
    write_json(record, {**described, **as_read})
    return output / image.stem


def _report_outcome(outcome: Outcome, output: Path) -> None:
    """Print the numbers of a folder; exit with code 1 if a photo failed."""
    if found := describe_rules(outcome.matched):
        print(found)
    print(f"{outcome.made} masks made, {outcome.kept} kept, {len(outcome.failed)} failed: {printable(output)}")
    for name, reason in outcome.failed:
        print_error(f"{printable(name)}: {reason}")
    if outcome.failed:
        raise typer.Exit(1)


def _estimate_thresholds(folder: Path, samples: Sequence[Sample]) -> dict[str, float]:
    from models.data.mask_files import read_soft_maps
    from models.data.mask_folder import scores_path
    from models.inference.masks import MIN_PHOTOS, estimate_thresholds

    files = (scores_path(folder, sample.stem) for sample in samples)
    estimated = estimate_thresholds(map(read_soft_maps, files))
    if not estimated:
        raise ValueError(f"expected a class with at least {MIN_PHOTOS} photos for --per-class, got none")
    present = {channel for sample in samples for channel in sample.channels}
    print(f"thresholds estimated for {len(estimated)} of {len(present)} classes")
    return dict(estimated)


def _require_open_vocabulary(info: BundleInfo) -> None:
    from models.data.classes import why_closed

    if not info.open_vocabulary:
        raise ValueError(f"expected a bundle with an open vocabulary, got {info.name!r}: {why_closed(info.kind)}")


@contextmanager
def _hint_at_open_vocabulary(info: BundleInfo, vocabulary: Vocabulary) -> Iterator[None]:
    """Say of an unknown label how it would be accepted, if the bundle can."""
    from models.data.classes import UnknownLabelError

    try:
        yield
    except ValueError as error:
        unknown = any(isinstance(each, UnknownLabelError) for each in (error, error.__cause__))
        if not unknown or vocabulary == "open" or not info.open_vocabulary:
            raise
        raise ValueError(f"{error}; --vocabulary open accepts other labels") from error


def _load_predictor(bundle: str, device: str, threads: int) -> Predictor:
    from models import Predictor, find_bundle, load_bundle

    return Predictor(load_bundle(find_bundle(bundle), device=pick_device(device, threads)))
