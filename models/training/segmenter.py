"""The last stage: a segmenter is trained on photos and their pseudo masks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from models.build import build_generator, build_mask_transform, build_segmenter, segmenter_spec
from models.config import SegmenterSpec, SegmenterStageConfig
from models.data.classes import IGNORE_INDEX, ClassList
from models.data.loaders import MaskBatch, MaskCrops
from models.data.mask_folder import MaskSample
from models.generators import MaskGenerator
from models.io import write_atomically
from models.segmenters import Segmenter
from models.tensors import read_tensors
from models.training.distributed import data_parallel
from models.training.generator import final_generator
from models.training.loop import LossesOf, ParameterGroup, fit, micro_batches
from models.training.run import SEGMENTER_STAGE, OnStep, Run, read_clip, supervision

SEGMENTER_WEIGHTS = "segmenter.safetensors"
_SPEC = "segmenter.json"
_SPECS: TypeAdapter[SegmenterSpec] = TypeAdapter(SegmenterSpec)


def train_segmenter(run: Run, samples: Sequence[MaskSample], on_step: OnStep) -> Path:
    """Fit the segmenter to pseudo masks; returns its weights' file, beside which its specification is written."""
    settings = run.config.train_segmenter
    _check_batch_share(run, photos=len(samples))
    shown = _count_classes(samples, run.classes)
    masks = dict(zip(run.classes.names, shown.masks[1:].tolist(), strict=True))
    untaught = _rare_classes(masks, min_masks=settings.min_masks)
    indices = frozenset(run.classes.classes[run.classes.channel(name)].index for name in untaught)
    samples = [replace(each, distrusted=each.distrusted | indices) for each in samples]
    segmenter = _new_segmenter(run, device=run.device, read_generator=lambda: final_generator(run)).train()
    transform = build_mask_transform(settings)
    class_weights = _class_weights(shown.pixels, balance=settings.class_balance)
    losses_of = _losses(segmenter, class_weights, noise_aware=settings.noise_aware, device=run.device)
    batches = run.batches(
        lambda seed: MaskCrops(samples, transform=transform, seed=seed),
        len(samples),
        batch_size=settings.batch_size,
    )
    optimization = replace(
        run.optimization(settings),
        epochs=segmenter_epochs(settings, photos=len(samples)),
        schedule=settings.schedule,
        max_gradient_norm=settings.max_gradient_norm,
    )
    # The losses are means over the labeled pixels.
    split = micro_batches(
        lambda label_maps: label_maps != IGNORE_INDEX,
        size=settings.micro_batch_size,
        processes=run.processes,
        device=run.device,
    )
    with run.logged(SEGMENTER_STAGE, on_step) as report:
        fit(
            _parameter_groups(segmenter, backbone_rate=settings.backbone_rate),
            batches,
            data_parallel(losses_of, segmenter, run.processes, device=run.device),
            optimization,
            on_step=report,
            checkpoint=run.checkpoint(SEGMENTER_STAGE, segmenter, [each.digest() for each in samples]),
            split=split,
        )
    if run.processes.is_main_process:
        spec = segmenter_spec(run.config, segmenter, untaught=untaught, masks=masks).model_dump_json(indent=2)
        write_atomically(run.work / SEGMENTER_STAGE / _SPEC, spec.encode())
    return run.save(SEGMENTER_STAGE, SEGMENTER_WEIGHTS, segmenter.state_dict())


def check_segmenter(run: Run, *, photos: int) -> None:
    """Build the segmenter once, so that missing weights are found before hours of earlier stages."""
    _check_batch_share(run, photos=photos)
    device = torch.device("cpu")
    # Not pre-trained: what a stage before this one makes is not there yet.
    _new_segmenter(
        run, device=device, read_generator=lambda: build_generator(run.config, *supervision(run), device=device)
    )


@dataclass(frozen=True)
class _ClassCounts:
    """What masks show of the background and each class, two tensors (K + 1,)."""

    masks: Tensor  # the number of masks that show it
    pixels: Tensor


def _count_classes(samples: Sequence[MaskSample], classes: ClassList) -> _ClassCounts:
    masks, pixels = torch.zeros(2, len(classes) + 1, dtype=torch.int64)
    for each in samples:
        found = torch.from_numpy(np.bincount(each.read_mask().ravel(), minlength=256)[: len(masks)])
        masks += found > 0
        pixels += found
    return _ClassCounts(masks, pixels)


def _class_weights(pixels: Tensor, *, balance: float) -> Tensor | None:
    """Return weights, (K + 1,), in proportion to pixels^-balance, whose mean over all pixels is 1; None for equal ones.

    A class with less than a quarter of an equal share counts as if it had that: a handful of pixels must not rule.
    """
    if not balance:
        return None
    weights = pixels.double().clamp(min=max(1, pixels.sum().item() / len(pixels) / 4)) ** -balance
    return (weights * (pixels.sum() / (weights * pixels).sum())).float()


def _rare_classes(masks: Mapping[str, int], *, min_masks: int) -> tuple[str, ...]:
    """Return the names of the classes that fewer masks show."""
    rare = tuple(name for name, count in masks.items() if count < min_masks)
    if len(rare) == len(masks):
        raise ValueError(f"expected a class in at least {min_masks} masks (train_segmenter.min_masks), got none")
    return rare


def _new_segmenter(run: Run, *, device: torch.device, read_generator: Callable[[], MaskGenerator]) -> Segmenter:
    return build_segmenter(
        run.config,
        classes=len(run.classes),
        device=device,
        read_clip=lambda: read_clip(run.config.clip),
        read_generator=read_generator,
    )


def _parameter_groups(segmenter: Segmenter, *, backbone_rate: float) -> list[ParameterGroup]:
    """Return the new layers' parameters, and the pre-trained backbone's with its factor of the learning rate."""
    backbone = list(segmenter.backbone.parameters())
    slow = {id(parameter) for parameter in backbone}
    rest = [each for each in segmenter.parameters() if id(each) not in slow]
    return [ParameterGroup(rest), ParameterGroup(backbone, backbone_rate)]


def segmenter_epochs(settings: SegmenterStageConfig, *, photos: int) -> int:
    """Return the stage's number of epochs; ``iterations`` are rounded up to whole epochs."""
    if settings.iterations is None:
        return settings.epochs
    return math.ceil(settings.iterations / max(photos // settings.batch_size, 1))


def trained_segmenter(run: Run) -> tuple[SegmenterSpec, dict[str, Tensor]] | None:
    """Return the specification and the weights of a run's segmenter; None if it was not trained."""
    weights = run.work / SEGMENTER_STAGE / SEGMENTER_WEIGHTS
    if not weights.is_file():
        return None
    path = run.existing(SEGMENTER_STAGE, _SPEC)
    try:
        spec = _SPECS.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"expected a description of a segmenter in {path}, got {error}") from error
    return spec, read_tensors(weights)


def _losses(
    segmenter: Segmenter, class_weights: Tensor | None, *, noise_aware: bool, device: torch.device
) -> LossesOf[MaskBatch]:
    class_weights = None if class_weights is None else class_weights.to(device)

    def losses_of(batch: MaskBatch) -> Mapping[str, Tensor]:
        images, label_maps = (tensor.to(device, non_blocking=True) for tensor in batch)
        return segmenter.loss(images, label_maps, noise_aware=noise_aware, class_weights=class_weights)

    return losses_of


def _check_batch_share(run: Run, *, photos: int) -> None:
    """Check that each process has the two photos that batch statistics need."""
    share = min(run.config.train_segmenter.batch_size, photos) // run.processes.count
    if share < 2:
        raise ValueError(f"expected at least 2 photos a batch and process, got {share}")
