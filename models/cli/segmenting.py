"""Commands around the segmenter: train it, and segment photos without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from models.cli.options import (
    BundleOption,
    ConfidenceOption,
    DeviceOption,
    ImagesOption,
    RefineOption,
    ThreadsOption,
    WorkArgument,
    WorkersOption,
    pick_device,
    progress,
    report_stage,
    training_processes,
)
from models.cli.results import check_keeps, write_results

MinAlignmentOption = Annotated[
    float | None,
    typer.Option(
        help="Ignore masks less aligned: cosine to the class minus cosine to its background."
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("segment")(segment)
    app.command("train-segmenter")(train_segmenter)


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
    from models.bundle import load_bundle
    from models.bundle_info import find_bundle
    from models.images import ImageError, read_image
    from models.predictor import Predictor

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
    from models.images import PHOTO_SUFFIXES

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
    from models.run import open_run
    from models.segmenter_stage import STAGE, epochs_of, train_segmenter

    with training_processes(device, threads) as (chosen, processes):
        run = open_run(work, device=chosen, workers=workers, processes=processes)
        samples = read_mask_folder(images, masks, run.classes, min_alignment=min_alignment)
        epochs = epochs_of(run.config.train_segmenter, photos=len(samples))
        report_stage(train_segmenter, run, samples, STAGE, epochs=epochs)
