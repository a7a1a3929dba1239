"""The command that decides masks anew from stored scores."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from models.cli.masks import DEFAULT_BUNDLE, report_outcome
from models.cli.options import (
    BackgroundOption,
    BundleOption,
    ConfidenceOption,
    PowerOption,
    progress,
)


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("rethreshold")(rethreshold)


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
    from models.bundle_info import find_bundle, read_info
    from models.data.mask_records import read_settings
    from models.files import read_soft_maps
    from models.json_files import write_json
    from models.make_masks import make_pseudo_masks
    from models.mask_job import MaskJob
    from models.mask_options import pseudo_mask_options
    from models.rethreshold import redecide, stored_classes, stored_samples
    from models.thresholds import MIN_PHOTOS, estimate_thresholds

    if output.resolve() == folder.resolve():
        raise ValueError(f"expected an output folder other than {folder}, got the same")
    info = read_info(find_bundle(bundle))
    samples = stored_samples(folder, info)
    before = read_settings(folder)["options"]
    options = pseudo_mask_options(
        info.inference,
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
