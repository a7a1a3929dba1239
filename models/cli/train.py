"""Commands of the training stages, one by one and all at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.cli.options import (
    DeviceOption,
    ImagesOption,
    LabelsFileOption,
    OverwriteOption,
    ThreadsOption,
    WorkArgument,
    WorkersOption,
    percent_progress,
    pick_device,
    require_single_process,
    run_stage,
    training_processes,
)

if TYPE_CHECKING:
    import torch

    from models.config import Config
    from models.data.classes import ClassList, Sample
    from models.training.distributed import Processes
    from models.training.run import Run

_ConfigOption = Annotated[str, typer.Option("--config", help="A YAML file, or the name of one of the project's own.")]
_ClassesOption = Annotated[
    Path | None,
    typer.Option("--classes", help="File of 'index name' lines. Default: the labels' names, from 1."),
]


def pretrain_generator(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    config: _ConfigOption,
    classes: _ClassesOption = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Before stage (a): make the mask generator a CAM network of the labels, and start a work directory."""
    from models.training import generator
    from models.training.run import PRETRAIN_STAGE, start_run

    settings, class_list, samples = _read(images, labels, config, classes)
    with training_processes(device, threads) as (chosen, processes):
        run = start_run(
            settings, class_list, work, device=chosen, workers=workers, processes=processes, overwrite=overwrite
        )
        generator.pretrain_settings(run)
        run_stage(generator.pretrain_generator, run, samples, PRETRAIN_STAGE)


def train_generator(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    config: _ConfigOption,
    classes: _ClassesOption = None,
    overwrite: OverwriteOption = False,
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
            settings, class_list, work, device=chosen, workers=workers, processes=processes, overwrite=overwrite
        )
        run_stage(generator.train_generator, run, samples, "train-generator")


def learn_prompts(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Stage (b): learn each class's background prompt with the generator of stage (a)."""
    from models.data.classes import labeled_samples
    from models.training import prompts

    require_single_process("learn-prompts")
    run, samples = _open(work, images, labels, pick_device(device, threads), workers)
    count = run.config.learn_prompts.views * len(labeled_samples(samples))
    run_stage(prompts.learn_prompts, run, samples, "learn-prompts", images_first=count)


def refine_generator(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Stage (c): fit the mask generator again, pushed away from the learned prompts. Runs under torchrun too."""
    from models.training import generator

    with training_processes(device, threads) as (chosen, processes):
        run, samples = _open(work, images, labels, chosen, workers, processes)
        run_stage(generator.refine_generator, run, samples, "refine-generator")


def train_segmenter(
    work: WorkArgument,
    images: ImagesOption,
    masks: Annotated[Path, typer.Option("--masks", help="Output folder of make-pseudo-masks.")],
    min_alignment: Annotated[
        float | None,
        typer.Option(help="Ignore masks less aligned: cosine to the class minus cosine to its background."),
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """Train the segmentation network on pseudo masks. Continues after a kill; runs under torchrun too."""
    from models.data.mask_folder import read_mask_folder
    from models.training import segmenter
    from models.training.run import SEGMENTER_STAGE, open_run

    with training_processes(device, threads) as (chosen, processes):
        run = open_run(work, device=chosen, workers=workers, processes=processes)
        samples = read_mask_folder(images, masks, run.classes, min_alignment=min_alignment)
        epochs = segmenter.segmenter_epochs(run.config.train_segmenter, photos=len(samples))
        run_stage(segmenter.train_segmenter, run, samples, SEGMENTER_STAGE, epochs=epochs)


def run_all(
    work: WorkArgument,
    images: ImagesOption,
    labels: LabelsFileOption,
    config: _ConfigOption,
    classes: _ClassesOption = None,
    output: Annotated[Path | None, typer.Option("--output", help="The bundle's folder. Default: WORK/bundle.")] = None,
    licence: Annotated[str, typer.Option(help="Under which others may use the weights.")] = "unspecified",
    trained_on: Annotated[str, typer.Option(help="What it was trained on, in words.")] = "unspecified",
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = 0,
    workers: WorkersOption = 0,
) -> None:
    """From photos with labels to a bundle that segments: all stages, without those that are done already."""
    from models.bundle.manifest import bundle_paths
    from models.data.classes import labeled_samples
    from models.data.provenance import refuse_foreign
    from models.evaluation.report import describe_masks, masks_part
    from models.training.pipeline import MASKS, REPORT, build_stages, check_samples
    from models.training.run import start_run
    from models.training.segmenter import check_segmenter

    require_single_process("run-all")
    settings, class_list, samples = _read(images, labels, config, classes)
    bundle = output or work / "bundle"
    refuse_foreign([*bundle_paths(bundle), work / REPORT], overwrite=overwrite)
    chosen = pick_device(device, threads)
    run = start_run(settings, class_list, work, device=chosen, workers=workers, overwrite=overwrite)
    stages = build_stages(run, samples, images, bundle, licence=licence, trained_on=trained_on)
    if not all(stage.done or stage.always for stage in stages):
        check_segmenter(run, photos=len(labeled_samples(samples)))
    check_samples(run, samples)
    changed = False
    for stage in stages:
        if stage.done and not changed:
            print(f"{stage.name}: done before, see {stage.result}")
            continue
        changed = True  # the results of all later stages depend on this one
        with percent_progress(stage.name) as on_fraction:
            stage.start(on_fraction)
        print(f"{stage.name}: written to {stage.result}")
    part = masks_part(work / MASKS)
    if part is not None:
        print(f"pseudo masks: {describe_masks(part)}; see {work / REPORT}")


def _read(images: Path, labels: Path, config: str, classes: Path | None) -> tuple[Config, ClassList, list[Sample]]:
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
