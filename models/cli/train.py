"""Commands of the three training stages, and of all stages at once."""

from __future__ import annotations

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
    WorkersOption,
    pick_device,
    progress,
    refuse_company,
    report_stage,
    training_processes,
)

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress, TaskID

    from models.config import Config
    from models.data.classes import ClassList, Sample
    from models.training.distributed import Processes
    from models.training.run import Run


ConfigOption = Annotated[
    str, typer.Option(help="A YAML file, or the name of one of the project's own.")
]
ClassesOption = Annotated[
    Path | None,
    typer.Option(help="File of 'index name' lines. Default: the labels' names, from 1."),
]


def pretrain_generator(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    config: ConfigOption,
    classes: ClassesOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Before stage (a): make the mask generator a CAM network of the labels, and start a work directory."""
    from models.training.generator import STAGE, settings_of
    from models.training.generator import pretrain_generator as stage
    from models.training.run import start_run

    settings, class_list, samples = _read(images, labels, config, classes)
    with training_processes(device, threads) as (chosen, processes):
        run = start_run(
            settings, class_list, work, device=chosen, workers=workers, processes=processes
        )
        report_stage(stage, run, samples, STAGE, epochs=settings_of(run).epochs)


def train_generator(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    config: ConfigOption,
    classes: ClassesOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Stage (a): fit the mask generator to the class texts, and start a work directory. Runs under torchrun too."""
    from models.training import generator
    from models.training.run import start_run

    settings, class_list, samples = _read(images, labels, config, classes)
    with training_processes(device, threads) as (chosen, processes):
        run = start_run(
            settings, class_list, work, device=chosen, workers=workers, processes=processes
        )
        epochs = run.config.train_generator.epochs
        report_stage(generator.train_generator, run, samples, "train-generator", epochs=epochs)


def learn_prompts(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Stage (b): learn each class's background prompt with the generator of stage (a)."""
    from models.training import generator

    refuse_company("learn-prompts")
    run, samples = _open(work, images, labels, pick_device(device, threads), workers)
    labeled = sum(bool(each.channels) for each in samples)
    views = run.config.learn_prompts.views * labeled
    epochs = run.config.learn_prompts.epochs
    report_stage(
        generator.learn_prompts, run, samples, "learn-prompts", epochs=epochs, images_first=views
    )


def refine_generator(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Stage (c): fit the mask generator anew, now kept off what the prompts learned. Runs under torchrun too."""
    from models.training import generator

    with training_processes(device, threads) as (chosen, processes):
        run, samples = _open(work, images, labels, chosen, workers, processes)
        epochs = run.config.refine_generator.epochs
        report_stage(generator.refine_generator, run, samples, "refine-generator", epochs=epochs)


def run_all(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    config: ConfigOption,
    classes: ClassesOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="The bundle's folder. Default: WORK/bundle.")
    ] = None,
    licence: Annotated[
        str, typer.Option(help="Under which others may use the weights.")
    ] = "unspecified",
    trained_on: Annotated[
        str, typer.Option(help="What it was trained on, in words.")
    ] = "unspecified",
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """From photos with labels to a bundle that segments: all stages, leaving out what is done already."""
    from models.evaluation.report import masks_part, outcome_in_words
    from models.training.pipeline import MASKS, REPORT, claim, plan
    from models.training.run import start_run
    from models.training.segmenter import check_segmenter

    refuse_company("run-all")
    settings, class_list, samples = _read(images, labels, config, classes)
    run = start_run(
        settings, class_list, work, device=pick_device(device, threads), workers=workers
    )
    target = output or work / "bundle"
    planned = plan(run, samples, images, target, licence=licence, trained_on=trained_on)
    if not all(stage.done or stage.quick for stage in planned):
        check_segmenter(run, photos=sum(bool(each.channels) for each in samples))
    claim(run, samples)
    redone = False
    for stage in planned:
        if stage.done and not redone:
            print(f"{stage.name}: done before, see {stage.result}")
            continue
        redone = True  # what comes later was made of something else
        with progress(f"{stage.name} (percent)", 100) as (bar, task):
            stage.start(partial(_show_share, bar, task))
            bar.update(task, completed=100)
        print(f"{stage.name}: written to {stage.result}")
    part = masks_part(work / MASKS)
    if part is not None:
        print(f"pseudo masks: {outcome_in_words(part)}; see {work / REPORT}")


def _show_share(bar: Progress, task: TaskID, share: float) -> None:
    bar.update(task, completed=round(100 * share))


def _read(
    images: Path, labels: Path, config: str, classes: Path | None
) -> tuple[Config, ClassList, list[Sample]]:
    from models.config import load_config
    from models.data.classes import read_class_list
    from models.data.labels import classes_of, read_folder

    settings = load_config(config)
    class_list = read_class_list(classes) if classes else classes_of(labels)
    return settings, class_list, read_folder(images, labels, class_list)


def _open(
    work: Path,
    images: Path,
    labels: Path,
    device: torch.device,
    workers: int,
    processes: Processes | None = None,
) -> tuple[Run, list[Sample]]:
    from models.data.labels import read_folder
    from models.training.run import open_run

    run = open_run(work, device=device, workers=workers, processes=processes)
    return run, read_folder(images, labels, run.classes)
