"""A sheet to look at: held-out scenes, and below them the CAMs of each variant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.contexts.dataset import read_samples
from benchmarks.contexts.experiment import BASE, MATCHED, REFINED, Experiment
from benchmarks.contexts.measure import cams_of
from models.data.images import read_image

ROWS = (("base", BASE), ("learned", MATCHED), ("written", REFINED), ("learned", REFINED))
COLUMNS = 6  # of each held-out split


def write_sheet(experiment: Experiment, path: Path) -> None:
    """Write a PNG: scenes, then the base network's CAMs, (a)'s, and (c)'s with written and with learned prompts.

    The first object's CAM is red, the second's green. The first half of the columns are usual scenes, the other half
    scenes with swapped contexts.
    """
    samples = [
        sample
        for split in ("usual", "shuffled")
        for sample in read_samples(experiment.data, split)[:COLUMNS]
    ]
    scenes = [read_image(sample.path.read_bytes()).pixels for sample in samples]
    rows = [scenes]
    base = experiment.run("base")
    for work, stage in ROWS:
        run = base if work == "base" else experiment.run(work, base=base)
        generator = experiment.generator(run, stage)
        maps = (cams_of(generator, sample, run.config.inference) for sample in samples)
        rows.append([_lit(*each) for each in zip(scenes, maps, strict=True)])
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    Image.fromarray(sheet).save(path)


def _lit(scene: NDArray[np.uint8], cams: Tensor) -> NDArray[np.uint8]:
    light = np.zeros(scene.shape, np.float32)
    light[..., : len(cams)] = cams.permute(1, 2, 0).numpy()
    return (0.35 * scene + 0.65 * 255 * light).astype(np.uint8)
