"""Options, devices, processes and progress bars that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
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

from models.data.classes import Vocabulary
from models.data.labels import FORMS_HELP
from models.messages import one_line
from models.refine import REFINERS

if TYPE_CHECKING:
    import torch

    from models.training.distributed import Processes
    from models.training.loop import Step
    from models.training.run import Run


BundleOption = Annotated[str, typer.Option("--bundle", help="Name of a shipped bundle, or a bundle's folder.")]
RefineOption = Annotated[
    str | None,
    typer.Option(
        "--refine",
        help=f"none, or {', '.join(REFINERS)}; several joined by +. Default: the bundle's.",
    ),
]
BackgroundOption = Annotated[
    float | None,
    typer.Option(help="Score that a class must exceed, in (0, 1). Default: the bundle's."),
]
PowerOption = Annotated[
    float | None,
    typer.Option(help="Background (1 - best score)^p instead of a constant, in (0, 10]."),
]
ConfidenceOption = Annotated[
    float | None,
    typer.Option(help="Pixels less sure become 255 (ignore), in [0, 1). Default: the bundle's."),
]
VocabularyOption = Annotated[
    Vocabulary,
    typer.Option(
        "--vocabulary",
        help="open: labels may be others than the bundle's classes, if it has CLIP's text tower.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one.")]
ThreadsOption = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")]
ImagesOption = Annotated[Path, typer.Option("--images", help="Folder of photos.")]
LabelsFileOption = Annotated[
    Path,
    typer.Option(
        "--labels",
        help=f"Image-level labels. {FORMS_HELP}.",
    ),
]
WorkersOption = Annotated[int, typer.Option(min=0, help="Processes that load photos; 0 loads in this one.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace files in the output that semples did not make.")
]
WorkArgument = Annotated[Path, typer.Argument(help="Work directory of the run.")]


def pick_device(name: str, threads: int) -> torch.device:
    """Return a device by name, and set torch's number of CPU threads."""
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


def require_export_packages() -> None:
    """Raise ValueError unless the packages for COCO's and SBD's masks are installed."""
    if find_spec("pycocotools") is None or find_spec("scipy") is None:
        raise ValueError("expected the packages of semples[export], got an installation without them")


@contextmanager
def progress(title: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """Show a progress bar on standard error; standard output is for results."""
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


@contextmanager
def percent_progress(title: str) -> Iterator[Callable[[float], None]]:
    """Show a progress bar in percent; gives a function that takes the completed fraction, in [0, 1]."""
    with progress(f"{title} (percent)", 100) as (bar, task):
        yield lambda fraction: bar.update(task, completed=round(100 * fraction))
        bar.update(task, completed=100)


def run_stage(
    stage: Callable[..., Path],
    run: Run,
    samples: Sequence[object],
    name: str,
    *,
    epochs: int | None = None,
    images_first: int = 0,
) -> None:
    """Run a training stage with a progress bar, in the main process only.

    A second bar shows the ``images_first`` images that the stage embeds before its first step.
    """
    if not run.processes.is_main_process:
        stage(run, samples, lambda _: None)
        return
    settings = getattr(run.config, name.replace("-", "_"))
    batch, last_epoch = min(settings.batch_size, len(samples)), epochs or settings.epochs
    with progress(name, None) as (bar, task):

        def on_step(step: Step) -> None:
            done = step.epoch * step.steps + step.step + 1
            terms = "  ".join(f"{key} {value:.4f}" for key, value in step.losses.items())
            speed = f"{(bar.tasks[task].speed or 0) * batch:.0f}/s"
            note = f"epoch {step.epoch + 1}/{last_epoch}  {speed}  {terms}"
            bar.update(task, total=last_epoch * step.steps, completed=done, note=note)

        if images_first:
            first = bar.add_task("embed regions", total=images_first, note="")
            stage = partial(stage, on_images=lambda count: bar.advance(first, count))
        path = stage(run, samples, on_step)
    print(f"written to {path}")


@contextmanager
def training_processes(device: str, threads: int) -> Iterator[tuple[torch.device, Processes]]:
    """Join torchrun's processes, if there are any; gives this process's device."""
    import torch

    from models.training.distributed import join_processes

    if device == "auto" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    chosen = pick_device(device, threads)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # NCCL uses the current device
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    with join_processes(os.environ, backend=backend) as processes:
        yield chosen, processes


def require_single_process(command: str) -> None:
    """Raise ValueError if torchrun started several processes of a command that supports only one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise ValueError(f"expected one process of {command}, got {count} under torchrun")


def print_error(message: str) -> None:
    """Print one line to standard error."""
    console = Console(stderr=True, soft_wrap=True)
    console.print(one_line(f"semples: {message}"), markup=False, highlight=False)
