"""The stage before (a): photos with labels in, a CAM network out, from which stages (a) and (c) start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from models.build import build_evidence, build_generator, build_transform
from models.config import PretrainConfig
from models.data.batches import Crops, shuffled_batches
from models.data.sample import Sample
from models.run import OnStep, Run, seed_everything
from models.stages import labeled, supervision
from models.training.classifier import classification_losses
from models.training.loop import Group, Optimization, fit

STAGE = "pretrain-generator"


def settings_of(run: Run) -> PretrainConfig:
    """Return how the run pre-trains.

    Raises:
        ValueError: if its configuration does not say.
    """
    if run.config.pretrain_generator is None:
        raise ValueError("expected a section pretrain_generator in the configuration, got none")
    return run.config.pretrain_generator


def pretrain_generator(run: Run, samples: Sequence[Sample], on_step: OnStep) -> Path:
    """Fit the mask generator to the image-level labels; returns its weights' file.

    Batch statistics learn here, and here only.

    Raises:
        ValueError: if the configuration has no such stage, or nothing is labeled.
    """
    settings = settings_of(run)
    seed_everything(run.config.seed)
    generator = build_generator(run.config, *supervision(run), device=run.device)
    generator.requires_grad_(True).train()
    batches = shuffled_batches(
        Crops(labeled(samples), classes=len(run.classes), transform=build_transform(settings)),
        batch_size=settings.batch_size,
        workers=run.workers,
        generator=torch.Generator().manual_seed(run.config.seed),
    )
    with run.logged(STAGE, on_step) as report:
        fit(
            [Group(generator.parameters())],
            batches,
            classification_losses(build_evidence(generator), device=run.device),
            Optimization(settings.epochs, settings.learning_rate, settings.weight_decay),
            on_step=report,
            checkpoint=run.checkpoint(STAGE, generator, samples),
        )
    return run.save(STAGE, "generator.safetensors", generator.state_dict())
