"""The segmenter's training stage, from pseudo masks to a file of the work directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from models.build import build_mask_transform, build_segmenter, segmenter_spec
from models.config import SegmenterSpec, SegmenterStageConfig
from models.data.classes import IGNORE_INDEX
from models.data.loaders import MaskBatch, MaskCrops
from models.data.mask_folder import MaskSample
from models.io import write_atomically
from models.segmenters import Segmenter
from models.tensors import read_tensors
from models.training.distributed import in_parallel
from models.training.loop import Group, Optimization, fit, weighted_parts
from models.training.run import SEGMENTER_STAGE, OnStep, Run

# The last stage: a segmenter learns from photos and their pseudo masks.


def segmenter_losses(
    segmenter: Segmenter, *, noise_aware: bool, device: torch.device
) -> Callable[[MaskBatch], Mapping[str, Tensor]]:
    """Return the losses of a batch that comes from the CPU; see Segmenter.loss."""

    def losses_of(batch: MaskBatch) -> Mapping[str, Tensor]:
        images, label_maps = (tensor.to(device, non_blocking=True) for tensor in batch)
        return segmenter.loss(images, label_maps, noise_aware=noise_aware)

    return losses_of


def labeled_pixels(label_maps: Tensor) -> Tensor:
    """Return which pixels are not ignored: what the losses are means over."""
    return label_maps != IGNORE_INDEX


def segmenter_groups(segmenter: Segmenter, *, backbone_rate: float) -> list[Group]:
    """Return what learns: the pre-trained backbone at a share of the rate, the rest at all of it."""
    backbone = list(segmenter.backbone.parameters())
    slow = {id(parameter) for parameter in backbone}
    rest = [each for each in segmenter.parameters() if id(each) not in slow]
    return [Group(rest), Group(backbone, backbone_rate)]


STAGE = SEGMENTER_STAGE
WEIGHTS, _SPEC = "segmenter.safetensors", "segmenter.json"
_SPECS: TypeAdapter[SegmenterSpec] = TypeAdapter(SegmenterSpec)


def check_segmenter(run: Run, *, photos: int) -> None:
    """Build the segmenter once, so that weights that cannot be had are missed before hours of other stages.

    Args:
        run: with the configuration.
        photos: how many it is going to learn from.

    Raises:
        ValueError: if there are too few photos.
        ValueError, OSError: as ``build_segmenter``.
    """
    _check_share(run, photos=photos)
    build_segmenter(run.config, classes=len(run.classes), device=torch.device("cpu"))


def train_segmenter(run: Run, samples: Sequence[MaskSample], on_step: OnStep) -> Path:
    """Fit the segmenter to pseudo masks; returns its weights' file, beside which is how to build it.

    A run that was killed goes on after its last whole epoch, and ends as if it had not been.
    """
    settings = run.config.train_segmenter
    _check_share(run, photos=len(samples))
    segmenter = build_segmenter(run.config, classes=len(run.classes), device=run.device).train()
    transform = build_mask_transform(settings)
    losses_of = segmenter_losses(segmenter, noise_aware=settings.noise_aware, device=run.device)
    with run.logged(STAGE, on_step) as report:
        fit(
            segmenter_groups(segmenter, backbone_rate=settings.backbone_rate),
            run.batches(
                lambda seed: MaskCrops(samples, transform=transform, seed=seed),
                len(samples),
                batch_size=settings.batch_size,
            ),
            in_parallel(losses_of, segmenter, run.processes, device=run.device),
            replace(_optimization(settings, photos=len(samples)), seed=run.own_seed),
            on_step=report,
            checkpoint=run.checkpoint(STAGE, segmenter, [each.digest() for each in samples]),
            parts_of=weighted_parts(
                labeled_pixels,
                size=settings.micro_batch_size,
                processes=run.processes,
                device=run.device,
            ),
        )
    if run.processes.leads:
        spec = segmenter_spec(run.config, segmenter)
        write_atomically(run.work / STAGE / _SPEC, spec.model_dump_json(indent=2).encode())
    return run.save(STAGE, WEIGHTS, segmenter.state_dict())


def _check_share(run: Run, *, photos: int) -> None:
    """Check that each process has what batch statistics need."""
    share = min(run.config.train_segmenter.batch_size, photos) // run.processes.count
    if share < 2:
        raise ValueError(f"expected at least 2 photos a batch and process, got {share}")


def epochs_of(settings: SegmenterStageConfig, *, photos: int) -> int:
    """Return how many epochs the stage takes with so many photos; iterations are rounded up to whole ones."""
    if settings.iterations is None:
        return settings.epochs
    return math.ceil(settings.iterations / max(photos // settings.batch_size, 1))


def trained_segmenter(run: Run) -> tuple[SegmenterSpec, dict[str, Tensor]] | None:
    """Return how to build the segmenter of a run, and its weights; None if it was not trained.

    Raises:
        ValueError: if a file is damaged.
        OSError: if one cannot be read.
    """
    if not (run.work / STAGE / WEIGHTS).is_file():
        return None
    path = run.existing(STAGE, _SPEC)
    try:
        spec = _SPECS.validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"expected a description of a segmenter in {path}, got {error}") from error
    return spec, read_tensors(run.work / STAGE / WEIGHTS)


def _optimization(settings: SegmenterStageConfig, *, photos: int) -> Optimization:
    return Optimization(
        epochs_of(settings, photos=photos),
        settings.learning_rate,
        settings.weight_decay,
        schedule=settings.schedule,
        max_gradient_norm=settings.max_gradient_norm,
        precision=settings.precision,
    )
