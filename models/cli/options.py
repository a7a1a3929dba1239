"""Options that several commands share, and the progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    import torch

BundleOption = Annotated[
    str, typer.Option("--bundle", help="Name of a shipped bundle, or a bundle's folder.")
]
RefineOption = Annotated[
    str | None,
    typer.Option("--refine", help="none, pamr, or a chain joined by +. Default: the bundle's."),
]
BackgroundOption = Annotated[
    float | None,
    typer.Option(help="Score that a class must exceed, in (0, 1). Default: the bundle's."),
]
ConfidenceOption = Annotated[
    float | None,
    typer.Option(help="Pixels less sure become 255 (ignore), in [0, 1). Default: the bundle's."),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one.")
]
ThreadsOption = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")]
ImagesOption = Annotated[Path, typer.Option("--images", help="Folder of photos.")]
LabelsFileOption = Annotated[
    Path, typer.Option("--labels", help="CSV: a header 'image,labels', then 'photo.jpg,cat;bowl'.")
]
WorkArgument = Annotated[Path, typer.Argument(help="Work directory of the run.")]


def pick_device(name: str, threads: int) -> torch.device:
    """Return the device that a name means, and set torch's CPU threads.

    Raises:
        ValueError: if there is no such device.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta" or (device.type == "cpu" and device.index):
            raise RuntimeError("not a device that computes")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"expected a usable device such as cpu or cuda, got {name!r}") from error
    return device


@contextmanager
def progress(title: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """Show a bar on standard error, so that standard output stays clean for results."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )
    with bar:
        yield bar, bar.add_task(title, total=total, note="")
