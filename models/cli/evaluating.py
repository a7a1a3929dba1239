"""The command that measures masks against ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.cli.options import progress

if TYPE_CHECKING:
    from models.data.classes import ClassList
    from models.metrics import IouReport
    from models.rules import Files, Measured


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command("evaluate")(evaluate)


def evaluate(
    ground_truth: Annotated[
        Path, typer.Option("--ground-truth", help="Folder of STEM.png label maps.")
    ],
    classes: Annotated[Path, typer.Option("--classes", help="File of 'index name' lines.")],
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions", help="Folder of STEM.png label maps, taken as they are (fixed)."
        ),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            "--scores", help="Folder of STEM.npz: sweep the background threshold (oracle)."
        ),
    ] = None,
    curve: Annotated[
        Path | None, typer.Option("--curve", help="CSV file for the mean IoU at each threshold.")
    ] = None,
    min_pixels: Annotated[
        int, typer.Option(min=0, help="Classes with fewer true pixels stay out of the mean.")
    ] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out photos without a ground truth.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure label maps (fixed), their stored scores at every threshold (oracle), or both."""
    from models.data.classes import read_class_list
    from models.json_files import write_atomically
    from models.rules import curve_csv, find_files, measure, measured_to_json

    if predictions is None and scores is None:
        raise ValueError("expected --predictions and --scores, or one of them, got neither")
    if curve is not None and scores is None:
        raise ValueError("expected --scores beside --curve, got none")
    class_list = read_class_list(classes)
    files = find_files(ground_truth, masks=predictions, scores=scores, allow_missing=allow_missing)
    with progress("evaluate", len(files.masks) + len(files.scores)) as (bar, task):
        measured = measure(
            files, class_list, min_pixels=min_pixels, on_image=lambda: bar.advance(task)
        )
    _warn(files)
    if curve is not None and measured.oracle:
        write_atomically(curve, curve_csv(measured.oracle).encode())
    if as_json:
        print(json.dumps(measured_to_json(measured, class_list, files), indent=2))
    else:
        _print(measured, class_list)


def _warn(files: Files) -> None:
    console = Console(stderr=True, soft_wrap=True)
    if files.missing:
        console.print(f"semples: {files.missing} ground truths have no prediction")
    if files.left_out:
        console.print(f"semples: {files.left_out} predictions have no ground truth")
    if files.unpaired:
        console.print(
            f"semples: {files.unpaired} photos left out: only one of mask and scores is there"
        )


def _print(measured: Measured, classes: ClassList) -> None:
    threshold, best = measured.oracle.best if measured.oracle else (None, None)
    rules = {
        "fixed": (
            measured.fixed,
            "masks as they are: thresholds and last epoch, chosen without ground truth",
        ),
        "oracle": (best, f"last epoch, at {threshold}: the best threshold for this ground truth"),
    }
    reports = {rule: report for rule, (report, _) in rules.items() if report is not None}
    Console().print(_table(reports, classes, measured.images))
    for rule, report in reports.items():
        print(f"mean IoU, {rule}: {100 * report.mean_iou:.2f} % ({rules[rule][1]})")


def _table(reports: dict[str, IouReport], classes: ClassList, images: int) -> Table:
    rules = [f"IoU %, {rule}" for rule in reports]
    table = Table("class", *rules, "pixels", title=f"{images} images")
    pixels = next(iter(reports.values())).pixels
    for index, name in [(0, "background"), *((each.index, each.name) for each in classes.classes)]:
        if pixels[index]:
            found = [f"{100 * float(report.iou[index]):.1f}" for report in reports.values()]
            table.add_row(escape(name), *found, f"{int(pixels[index]):,}")
    return table
