"""Commands of the three training stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.cli.options import (
    DeviceOption,
    ImagesOption,
    LabelsFileOption,
    ThreadsOption,
    WorkArgument,
    pick_device,
    progress,
)

if TYPE_CHECKING:
    from models.data.sample import Sample
    from models.run import Run
    from models.training.loop import Step

    Stage = Callable[..., Path]  # of models.stages

WorkersOption = Annotated[
    int, typer.Option(min=0, help="Processes that load photos; 0 loads in this one.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("train-generator")(train_generator)
    app.command("learn-prompts")(learn_prompts)
    app.command("refine-generator")(refine_generator)


def train_generator(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    config: Annotated[
        str, typer.Option(help="A YAML file, or the name of one of the project's own.")
    ],
    classes: Annotated[
        Path | None,
        typer.Option(help="File of 'index name' lines. Default: the labels' names, from 1."),
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Stage (a): fit the mask generator to the class texts, and start a work directory."""
    from models import stages
    from models.config import load_config
    from models.data.classes import read_class_list
    from models.data.folder import classes_of, read_folder
    from models.run import start_run

    settings = load_config(config)
    class_list = read_class_list(classes) if classes else classes_of(labels)
    samples = read_folder(images, labels, class_list)
    run = start_run(
        settings, class_list, work, device=pick_device(device, threads), workers=workers
    )
    _report(stages.train_generator, run, samples, "train-generator")


def learn_prompts(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Stage (b): learn each class's background prompt with the generator of stage (a)."""
    from models import stages

    run, samples = _open(work, images, labels, device, threads, workers)
    labeled = sum(bool(each.channels) for each in samples)
    views = run.config.learn_prompts.views * labeled
    _report(stages.learn_prompts, run, samples, "learn-prompts", images_first=views)


def refine_generator(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Stage (c): fit the mask generator anew, now kept off what the prompts learned."""
    from models import stages

    run, samples = _open(work, images, labels, device, threads, workers)
    _report(stages.refine_generator, run, samples, "refine-generator")


def _open(
    work: Path, images: Path, labels: Path, device: str, threads: int, workers: int
) -> tuple[Run, list[Sample]]:
    from models.data.folder import read_folder
    from models.run import open_run

    run = open_run(work, device=pick_device(device, threads), workers=workers)
    return run, read_folder(images, labels, run.classes)


def _report(
    stage: Stage, run: Run, samples: Sequence[Sample], name: str, *, images_first: int = 0
) -> None:
    """Run a stage under a progress bar, and under one more if it first looks at images."""
    epochs = getattr(run.config, name.replace("-", "_")).epochs
    with progress(name, epochs) as (bar, task):

        def on_step(step: Step) -> None:
            terms = "  ".join(f"{key} {value:.4f}" for key, value in step.losses.items())
            bar.update(task, completed=step.epoch, note=terms)

        if images_first:
            first = bar.add_task("embed regions", total=images_first, note="")
            stage = partial(stage, on_images=lambda count: bar.advance(first, count))
        path = stage(run, samples, on_step)
        bar.update(task, completed=epochs)
    print(f"written to {path}")
