"""A mask generator that learns from labeled photos, whatever the losses: a stage of a run, kept and logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from models.build import build_transform
from models.config import GeneratorStageConfig, PretrainConfig, PromptStageConfig
from models.data.batches import Batch, Crops, RandomBatches
from models.data.sample import Sample
from models.generators import MaskGenerator
from models.run import OnStep, Run
from models.training.loop import Group, Optimization, Part, fit, whole
from models.training.processes import in_parallel


def fit_generator(
    run: Run,
    samples: Sequence[Sample],
    on_step: OnStep,
    generator: MaskGenerator,
    losses_of: Callable[[Batch], Mapping[str, Tensor]],
    *,
    stage: str,
    parts_of: Callable[[Batch], Sequence[Part[Batch]]] = whole,
) -> Path:
    """Let what is not frozen of the mask generator learn from the labeled photos; returns its weights' file.

    Args:
        run: whose section for the stage says how.
        samples: those without a label are left out.
        on_step: called after each step.
        generator: that learns.
        losses_of: batch → loss terms by name.
        stage: under which log, checkpoint and weights are kept.
        parts_of: cuts a batch into what memory can hold at a time.
    """
    settings: GeneratorStageConfig | PretrainConfig = getattr(run.config, stage.replace("-", "_"))
    with run.logged(stage, on_step) as report:
        fit(
            [Group(generator.parameters())],
            _photo_batches(run, samples, settings),
            in_parallel(losses_of, generator, run.processes, device=run.device),
            optimization_of(run, settings),
            on_step=report,
            checkpoint=run.checkpoint(stage, generator, samples),
            parts_of=parts_of,
        )
    return run.save(stage, "generator.safetensors", generator.state_dict())


def optimization_of(
    run: Run, settings: GeneratorStageConfig | PretrainConfig | PromptStageConfig
) -> Optimization:
    """Return how a stage's parameters learn."""
    return Optimization(
        settings.epochs,
        settings.learning_rate,
        settings.weight_decay,
        precision=settings.precision,
        seed=run.own_seed,
    )


def labeled(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples that have a label; the others have no region, so they teach nothing."""
    return [sample for sample in samples if sample.channels]


def _photo_batches(
    run: Run, samples: Sequence[Sample], settings: GeneratorStageConfig | PretrainConfig
) -> RandomBatches[Batch]:
    """Return random batches of the labeled photos, augmented as a stage has it."""
    photos, transform = labeled(samples), build_transform(settings)
    return run.batches(
        lambda seed: Crops(photos, classes=len(run.classes), transform=transform, seed=seed),
        len(photos),
        batch_size=settings.batch_size,
    )
