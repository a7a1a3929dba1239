"""Commands that evaluate masks and report on runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.cli.options import (
    DeviceOption,
    ImagesOption,
    LabelsFileOption,
    OverwriteOption,
    ThreadsOption,
    WorkArgument,
    percent_progress,
    pick_device,
    print_error,
    progress,
)
from models.messages import printable

if TYPE_CHECKING:
    from models.data.classes import ClassList
    from models.evaluation.metrics import IouReport, Measured
    from models.training.run import Run


def evaluate(
    ground_truth: Annotated[Path, typer.Option("--ground-truth", help="Folder of STEM.png label maps.")],
    classes: Annotated[Path, typer.Option("--classes", help="File of 'index name' lines.")],
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", help="Folder of STEM.png label maps, taken as they are (fixed)."),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option("--scores", help="Folder of STEM.npz: sweep the background threshold (oracle)."),
    ] = None,
    curve: Annotated[Path | None, typer.Option("--curve", help="CSV file for the mean IoU at each threshold.")] = None,
    overwrite: OverwriteOption = False,
    min_pixels: Annotated[int, typer.Option(min=0, help="Classes with fewer true pixels stay out of the mean.")] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out photos without a ground truth.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure masks against ground truth: label maps (fixed), stored scores at every threshold (oracle), or both."""
    from models.data.classes import read_class_list
    from models.data.provenance import refuse_foreign
    from models.evaluation.metrics import curve_csv, find_files, measure, measured_to_json
    from models.io import write_atomically

    if predictions is None and scores is None:
        raise ValueError("expected --predictions and --scores, or one of them, got neither")
    if curve is not None and scores is None:
        raise ValueError("expected --scores beside --curve, got none")
    if curve is not None:
        refuse_foreign([curve], overwrite=overwrite)
    class_list = read_class_list(classes)
    files = find_files(ground_truth, masks=predictions, scores=scores, allow_missing=allow_missing)
    with progress("evaluate", len(files.masks) + len(files.scores)) as (bar, task):
        measured = measure(files, class_list, min_pixels=min_pixels, on_image=lambda: bar.advance(task))
    for count, what in (
        (files.missing, "ground truths have no prediction"),
        (files.left_out, "predictions have no ground truth"),
        (files.unpaired, "photos left out: only one of mask and scores is there"),
    ):
        if count:
            print_error(f"{count} {what}")
    if curve is not None and measured.oracle:
        write_atomically(curve, curve_csv(measured.oracle).encode())
    if as_json:
        print(json.dumps(measured_to_json(measured, class_list, files), indent=2))
    else:
        _print_measured(measured, class_list)


def report(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    output: Annotated[Path, typer.Option("--output", help="The HTML file.")],
    masks: Annotated[
        Path | None,
        typer.Option("--masks", help="Output of make-pseudo-masks. Default: WORK/pseudo-masks."),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option("--bundle", help="Of this run. Default: WORK/bundle, else packed anew."),
    ] = None,
    ground_truth: Annotated[Path | None, typer.Option("--ground-truth", help="Folder of STEM.png label maps.")] = None,
    overwrite: OverwriteOption = False,
    photos: Annotated[int, typer.Option(min=0, max=100, help="Of how many photos to show pictures.")] = 6,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
) -> None:
    """Write one HTML file about a run, finished or not: curves, tables, pictures, what the prompts learned."""
    from models.data.labels import read_folder
    from models.data.provenance import refuse_foreign
    from models.evaluation.report import Sources, write_report
    from models.training.run import open_run

    if masks is not None and not masks.is_dir():
        raise ValueError(f"expected the output folder of make-pseudo-masks, got {masks}")
    refuse_foreign([output], overwrite=overwrite)
    run = open_run(work, device=pick_device(device, threads))
    samples = read_folder(images, labels, run.classes)
    with _bundle_of(run, bundle) as found, percent_progress("report") as on_fraction:
        sources = Sources(samples, masks or work / "pseudo-masks", found, ground_truth)
        path = write_report(run, sources, output, photos=photos, on_fraction=on_fraction)
    print(f"written to {printable(path)}")


def _print_measured(measured: Measured, classes: ClassList) -> None:
    threshold, best = measured.oracle.best if measured.oracle else (None, None)
    rules = {
        "fixed": "masks as they are: thresholds and last epoch, chosen without ground truth",
        "oracle": f"last epoch, at {threshold}: the best threshold for this ground truth",
    }
    found = {"fixed": measured.fixed, "oracle": best}
    reports = {rule: report for rule, report in found.items() if report is not None}
    Console().print(_table(reports, classes, measured.images))
    for rule, report in reports.items():
        figure = "none, no class has so many pixels" if isnan(report.mean_iou) else f"{100 * report.mean_iou:.2f} %"
        print(f"mean IoU, {rule}: {figure} ({rules[rule]})")


def _table(reports: dict[str, IouReport], classes: ClassList, images: int) -> Table:
    protocols = [f"IoU %, {protocol}" for protocol in reports]
    table = Table("class", *protocols, "pixels", title=f"{images} images")
    pixels = next(iter(reports.values())).pixels
    for index, name in classes.names_by_index.items():
        if pixels[index]:
            found = [f"{100 * float(report.iou[index]):.1f}" for report in reports.values()]
            table.add_row(escape(name), *found, f"{int(pixels[index]):,}")
    return table


@contextmanager
def _bundle_of(run: Run, given: str | None) -> Iterator[Path | None]:
    """Give the run's bundle, or a temporary one of what it has trained; None if that fails."""
    from models.bundle.manifest import MANIFEST, find_bundle

    default = run.work / "bundle"
    if given is not None or (default / MANIFEST).is_file():
        yield find_bundle(given or str(default))
        return
    with TemporaryDirectory() as folder:
        yield Path(folder) if _pack(run, Path(folder)) else None


def _pack(run: Run, folder: Path) -> bool:
    from models.training.export import STAGES, export_bundle

    trained = [each for each in STAGES if (run.work / each / "generator.safetensors").is_file()]
    stage = [STAGES[0], *trained][-1]
    try:
        export_bundle(run, folder, stage=stage, licence="", trained_on="", parts=())
    except ValueError as error:
        print_error(f"no pictures, for the bundle cannot be packed: {error}")
        return False
    return True
