"""How good CAMs are on held-out scenes, and which nouns prompts have learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.contexts.dataset import read_samples, read_truth
from benchmarks.contexts.world import CLASSES, CONTEXTS, NOUNS
from models.clip import FrozenClip
from models.config import InferenceConfig
from models.data.classes import Sample
from models.data.images import read_image
from models.evaluation.metrics import sweep_soft_maps
from models.generators import MaskGenerator
from models.inference.masks import SoftMaps
from models.inference.multi_scale import multi_scale_cams
from models.prompts import nearest_nouns

THRESHOLDS = [percent / 100 for percent in range(5, 96)]


@dataclass(frozen=True)
class Score:
    """Mean IoU over the objects and the background, in [0, 1].

    Attributes:
        fixed: at the configuration's threshold.
        oracle: at the threshold that the ground truth likes best.
        threshold: that one.
    """

    fixed: float
    oracle: float
    threshold: float


@torch.inference_mode()
def measure(generator: MaskGenerator, data: Path, split: str, inference: InferenceConfig) -> Score:
    """Compare the bare CAMs of the labeled objects with the truth."""
    threshold = inference.background_threshold
    sweep = sweep_soft_maps(
        _soft_maps(generator, data, split, inference),
        CLASSES,
        thresholds=sorted({threshold, *THRESHOLDS}),
        min_pixels=0,
    )
    best, oracle = sweep.best
    fixed = sweep.reports[sweep.thresholds.index(threshold)]
    return Score(fixed.mean_iou, oracle.mean_iou, best)


@torch.inference_mode()
def cams_of(generator: MaskGenerator, sample: Sample, inference: InferenceConfig) -> Tensor:
    """Return the CAMs of a scene's labeled objects, in [0, 1], (n, S, S)."""
    pixels = torch.from_numpy(read_image(sample.path.read_bytes()).pixels)
    return multi_scale_cams(
        generator,
        pixels.permute(2, 0, 1)[None].float() / 255,
        torch.tensor([(0, channel) for channel in sample.channels]),
        scales=inference.scales,
        flip=inference.flip,
    )


def _soft_maps(
    generator: MaskGenerator, data: Path, split: str, inference: InferenceConfig
) -> Iterator[tuple[Tensor, SoftMaps]]:
    for sample in read_samples(data, split):
        truth = read_truth(data, sample.stem)
        cams = cams_of(generator, sample, inference)
        shown = [CLASSES.classes[channel] for channel in sample.channels]
        yield (
            torch.from_numpy(truth),
            SoftMaps(
                cams.half().numpy(),
                np.array([each.index for each in shown]),
                tuple(each.name for each in shown),
                (truth.shape[0], truth.shape[1]),
            ),
        )


def nearest(clip: FrozenClip, prompts: Tensor) -> list[str]:
    """Return the world's noun that is nearest to each class's background prompt."""
    found = nearest_nouns(prompts, NOUNS, clip.embed_classes(NOUNS), count=1)
    return [nouns[0].noun for nouns in found]


def contexts_found(clip: FrozenClip, prompts: Tensor) -> int:
    """Count the classes whose nearest noun is their own context."""
    return sum(
        noun == context for noun, context in zip(nearest(clip, prompts), CONTEXTS, strict=True)
    )
