"""Stages that train the mask generator: pre-training on labels, (a) with L_match, (c) with L_match + L_refine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from models.build import build_generator, build_masks, build_transform, load_generator
from models.clip import FrozenClip
from models.config import GeneratorStageConfig, PretrainConfig, WeakTrConfig
from models.data.classes import Sample, labeled_samples
from models.data.loaders import Batch, Crops, KeyedBatch
from models.generators import MaskGenerator
from models.inference.multi_scale import resize_images
from models.losses import (
    MasksOf,
    mask_images,
    present_pairs,
    segment_label_matching,
    semantic_refinement,
)
from models.training.distributed import data_parallel
from models.training.feature_cache import FeatureCache, KeyedCrops
from models.training.loop import LossesOf, ParameterGroup, Split, fit, micro_batches
from models.training.prompts import learned_prompts
from models.training.run import FINAL_STAGE, GENERATOR_WEIGHTS, PRETRAIN_STAGE, OnStep, Run, supervision


@dataclass(frozen=True)
class Refinement:
    """What stage (c) adds to stage (a): embeddings of the background prompts, (K, D), L2-normalized, and w_r."""

    prompts: Tensor
    weight: float


def pretrain_generator(run: Run, samples: Sequence[Sample], on_step: OnStep) -> Path:
    """Fit the mask generator to the image-level labels, which makes it a CAM network; returns its weights' file.

    Batch statistics are updated in this stage only.
    """
    pretrain_settings(run)
    generator = build_generator(run.config, *supervision(run), device=run.device, classes=run.classes)
    generator.let_all_learn()
    losses_of = classification_losses(generator.evidence, device=run.device)
    return _fit(run, samples, on_step, generator, losses_of, stage=PRETRAIN_STAGE)


def train_generator(run: Run, samples: Sequence[Sample], on_step: OnStep) -> Path:
    """Stage (a): fit the mask generator to L_match; returns its weights' file."""
    return _fit_to_clip(run, samples, on_step, stage="train-generator", learned=None)


def refine_generator(run: Run, samples: Sequence[Sample], on_step: OnStep) -> Path:
    """Stage (c): fit the mask generator, from its initial weights, to L_match + L_refine; returns its weights' file."""
    return _fit_to_clip(run, samples, on_step, stage=FINAL_STAGE, learned=learned_prompts(run))


def pretrain_settings(run: Run) -> PretrainConfig:
    """Return the settings of pre-training; ValueError if the configuration has none."""
    if run.config.pretrain_generator is None:
        raise ValueError("expected a section pretrain_generator in the configuration, got none")
    return run.config.pretrain_generator


def initial_generator(run: Run, clip: FrozenClip, class_text: Tensor) -> MaskGenerator:
    """Return the mask generator at the start of stages (a) and (c): pre-trained if the configuration says so."""
    settings = run.config.generator
    if run.config.pretrain_generator is None:
        if isinstance(settings, WeakTrConfig) and settings.weights is None:
            raise ValueError(
                "expected generator.weights from 'semples import-checkpoint', or a section pretrain_generator, for a "
                "weaktr; got neither, and from random weights its masks would mean nothing"
            )
        return build_generator(run.config, clip, class_text, device=run.device, classes=run.classes)
    weights = run.existing(PRETRAIN_STAGE, GENERATOR_WEIGHTS)
    return load_generator(run.config, clip, class_text, weights, device=run.device)


def final_generator(run: Run) -> MaskGenerator:
    """Return the mask generator of stage (c), frozen; ValueError if that stage has not been run."""
    clip, class_text = supervision(run)
    weights = run.existing(FINAL_STAGE, GENERATOR_WEIGHTS)
    return load_generator(run.config, clip, class_text, weights, device=run.device).requires_grad_(False)


def generator_losses(
    masks_of: MasksOf,
    clip: FrozenClip,
    class_text: Tensor,
    *,
    background_weight: float,
    refinement: Refinement | None = None,
) -> LossesOf[Batch | KeyedBatch]:
    """Return the losses of a batch: L_match, and with a refinement L_refine.

    ``class_text`` are the class text embeddings, (K, D), L2-normalized; ``background_weight`` is w_b. ``masks_of`` gets
    the keys of crops, if the batch has them.
    """

    def losses_of(batch: Batch | KeyedBatch) -> Mapping[str, Tensor]:
        images, labels = (tensor.to(class_text.device) for tensor in batch[:2])
        present = present_pairs(labels)
        seen = clip.normalize(resize_images(images, clip.input_size))
        regions = mask_images(seen, masks_of(images, present, *batch[2:]), present)
        # One forward pass for both, which is faster; single precision, for logarithms of cosines near 0 and 1.
        both = clip.embed_images(torch.cat([regions.foreground, regions.background])).float()
        foreground, background = both.tensor_split(2)
        channels = present[:, 1]
        losses = {
            "match": segment_label_matching(
                foreground, background, class_text[channels], background_weight=background_weight
            )
        }
        if refinement is not None:
            losses["refine"] = semantic_refinement(
                foreground, refinement.prompts[channels], refinement_weight=refinement.weight
            )
        return losses

    return losses_of


def classification_losses(
    evidence_of: Callable[[Tensor], Mapping[str, Tensor]], *, device: torch.device
) -> LossesOf[Batch]:
    """Return the losses of a batch: the multi-label soft margin of each output of the network."""

    def losses_of(batch: Batch) -> Mapping[str, Tensor]:
        images, labels = (tensor.to(device) for tensor in batch)
        return {name: F.multilabel_soft_margin_loss(evidence, labels) for name, evidence in evidence_of(images).items()}

    return losses_of


def _fit_to_clip(
    run: Run, samples: Sequence[Sample], on_step: OnStep, *, stage: str, learned: Mapping[str, Tensor] | None
) -> Path:
    """Fit the mask generator to L_match, and with the tensors that stage (b) learned to L_refine, too."""
    settings: GeneratorStageConfig = getattr(run.config, stage.replace("-", "_"))
    clip, class_text = supervision(run)
    start, refinement = class_text, None
    if learned is not None:
        start = class_text - _prompt_shares(learned, settings) * learned["embeddings"]
        refinement = Refinement(learned["embeddings"], settings.refinement_weight)
    generator = initial_generator(run, clip, start)
    generator.let_learn(settings.trainable)
    if refinement is not None:
        generator.use_prompts(refinement.prompts)
    cams_of = None
    if settings.views is not None:
        capacity = settings.views * len(labeled_samples(samples))
        cams_of = FeatureCache(generator, run.work / stage, capacity).cams_of
    losses_of = generator_losses(
        build_masks(generator, clip, mask=settings.mask, epsilon=settings.epsilon, cams_of=cams_of),
        clip,
        class_text,
        background_weight=settings.background_weight,
        refinement=refinement,
    )
    # The losses are means over the present (image, class) pairs.
    split = micro_batches(
        lambda labels: labels > 0,
        size=settings.micro_batch_size,
        processes=run.processes,
        device=run.device,
    )
    return _fit(run, samples, on_step, generator, losses_of, stage=stage, split=split)


def _prompt_shares(learned: Mapping[str, Tensor], settings: GeneratorStageConfig) -> Tensor:
    """Return the share of its background prompt that each class's text loses, (K, 1)."""
    shares = torch.full_like(learned["embeddings"][:, :1], settings.prompt_share)
    if not settings.full_share_margin:
        return shares
    if "margins" not in learned:
        raise ValueError(
            "expected the prompts' margins from 'semples learn-prompts' for refine_generator.full_share_margin, got an "
            "earlier version's prompts; learn them again"
        )
    return shares * (learned["margins"] / settings.full_share_margin).clamp(0, 1)[:, None]


def _fit(
    run: Run,
    samples: Sequence[Sample],
    on_step: OnStep,
    generator: MaskGenerator,
    losses_of: LossesOf[Any],
    *,
    stage: str,
    split: Split[Any] | None = None,
) -> Path:
    """Fit the trainable parameters to augmented crops of the labeled photos."""
    settings: GeneratorStageConfig | PretrainConfig = getattr(run.config, stage.replace("-", "_"))
    photos, transform = labeled_samples(samples), build_transform(settings)
    views = getattr(settings, "views", None)

    def crops(seed: int) -> Dataset[Any]:
        found = Crops(photos, classes=len(run.classes), transform=transform, seed=seed)
        return found if views is None else KeyedCrops(found)

    batches = run.batches(crops, len(photos), batch_size=settings.batch_size, views=views)
    with run.logged(stage, on_step) as report:
        fit(
            [ParameterGroup(generator.parameters())],
            batches,
            data_parallel(losses_of, generator, run.processes, device=run.device),
            run.optimization(settings),
            on_step=report,
            checkpoint=run.checkpoint(stage, generator, samples),
            split=split,
        )
    return run.save(stage, GENERATOR_WEIGHTS, generator.state_dict())
