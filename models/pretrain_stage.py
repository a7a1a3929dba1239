"""The stage before (a): photos with labels in, a CAM network out, from which stages (a) and (c) start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.build import build_generator
from models.config import PretrainConfig
from models.data.sample import Sample
from models.generator_fit import fit_generator
from models.run import OnStep, Run
from models.stages import supervision
from models.training.classifier import classification_losses

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
    settings_of(run)
    generator = build_generator(run.config, *supervision(run), device=run.device)
    generator.let_all_learn()
    losses_of = classification_losses(generator.evidence, device=run.device)
    return fit_generator(run, samples, on_step, generator, losses_of, stage=STAGE)
