"""Options that several commands share, and the progress bars."""

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
from models.data.labels import FORMS
from models.refine import REFINERS

if TYPE_CHECKING:
    import torch

    from models.training.distributed import Processes
    from models.training.loop import Step
    from models.training.run import Run

    Stage = Callable[..., Path]  # of models.training.generator and models.training.segmenter

BundleOption = Annotated[
    str, typer.Option("--bundle", help="Name of a shipped bundle, or a bundle's folder.")
]
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
DeviceOption = Annotated[
    str, typer.Option("--device", help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one.")
]
ThreadsOption = Annotated[int, typer.Option(min=0, help="CPU threads; 0 leaves torch's choice.")]
ImagesOption = Annotated[Path, typer.Option("--images", help="Folder of photos.")]
LabelsFileOption = Annotated[
    Path,
    typer.Option(
        "--labels",
        help=f"Image-level labels. {'; '.join(form.words for form in FORMS.values())}.",
    ),
]
WorkersOption = Annotated[
    int, typer.Option(min=0, help="Processes that load photos; 0 loads in this one.")
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


def require_export_packages() -> None:
    """Raise ValueError if the packages that read and write COCO's masks and SBD's are not installed."""
    if find_spec("pycocotools") is None or find_spec("scipy") is None:
        raise ValueError(
            "expected the packages of semples[export], got an installation without them"
        )


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


def report_stage(
    stage: Stage,
    run: Run,
    samples: Sequence[object],
    name: str,
    *,
    epochs: int,
    images_first: int = 0,
) -> None:
    """Run a stage under a progress bar, and under one more if it first looks at images.

    Where several processes train together, all but the first are silent.

    Args:
        stage: run, samples and a callback → the file it wrote.
        run: it belongs to.
        samples: that it learns from.
        name: of the stage.
        epochs: that it takes.
        images_first: how many images it looks at before its first step.
    """
    if not run.processes.leads:
        stage(run, samples, lambda _: None)
        return
    batch = min(getattr(run.config, name.replace("-", "_")).batch_size, len(samples))
    with progress(name, None) as (bar, task):

        def on_step(step: Step) -> None:
            done = step.epoch * step.steps + step.step + 1
            terms = "  ".join(f"{key} {value:.4f}" for key, value in step.losses.items())
            speed = f"{(bar.tasks[task].speed or 0) * batch:.0f}/s"
            note = f"epoch {step.epoch + 1}/{epochs}  {speed}  {terms}"
            bar.update(task, total=epochs * step.steps, completed=done, note=note)

        if images_first:
            first = bar.add_task("embed regions", total=images_first, note="")
            stage = partial(stage, on_images=lambda count: bar.advance(first, count))
        path = stage(run, samples, on_step)
    print(f"written to {path}")


@contextmanager
def training_processes(device: str, threads: int) -> Iterator[tuple[torch.device, Processes]]:
    """Join the processes that torchrun started, if it did, each with the device of its own.

    Raises:
        ValueError: if there is no such device.
    """
    from models.training.distributed import join_processes

    if device == "auto" and "LOCAL_RANK" in os.environ:
        device = local_device(os.environ["LOCAL_RANK"])
    chosen = pick_device(device, threads)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    if chosen.type == "cuda":
        import torch

        torch.cuda.set_device(chosen)  # what nccl's sums of single numbers go by
    with join_processes(os.environ, backend=backend) as processes:
        yield chosen, processes


def refuse_company(command: str) -> None:
    """Raise ValueError if torchrun started several processes of a command that is one process's work."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        raise ValueError(f"expected one process of {command}, got {count} under torchrun")


def local_device(local_rank: str) -> str:
    """Return the name of the device that torchrun's process of a local rank works on."""
    import torch

    return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
