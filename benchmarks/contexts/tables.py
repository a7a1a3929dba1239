"""Rows of several seeds as Markdown: mean ± spread, in percent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.contexts.experiment import (
    BASE,
    HELD_OUT,
    MATCHED,
    REFINED,
    Experiment,
    Row,
    cams_of,
)
from benchmarks.contexts.world import THINGS, read_samples
from models.data.images import read_image

RULES = ("fixed", "oracle")


def ablation_table(seeds: Sequence[Sequence[Row]]) -> str:
    """Return a table of every variant; rows of each seed in the same order."""
    titles = [f"{split}, {rule}" for split in HELD_OUT for rule in RULES]
    lines = _head("variant", *titles, f"nearest noun is its context (of {len(THINGS)})")
    for same in zip(*seeds, strict=True):
        found = [row.found for row in same if row.found is not None]
        lines.append(_line(same[0].name, *_cells(same), ", ".join(map(str, found)) or "–"))
    return "\n".join(lines)


def background_table(seeds: Sequence[Sequence[Row]]) -> str:
    """Return a table of every background; rows of each seed in the same order."""
    lines = _head("background", *(f"{split}, {rule}" for split in HELD_OUT for rule in RULES))
    lines += [_line(same[0].name, *_cells(same)) for same in zip(*seeds, strict=True)]
    return "\n".join(lines)


def generator_table(seeds: Sequence[Sequence[tuple[str, Sequence[Row]]]]) -> str:
    """Return a table of every generator, at the fixed threshold."""
    stages = [row.name for row in seeds[0][0][1]]
    titles = [f"{split}: {stage}" for split in HELD_OUT for stage in stages]
    lines = _head("mask generator", *titles)
    for same in zip(*seeds, strict=True):
        columns = [
            [rows[at].scores[split].fixed for _, rows in same] for split in HELD_OUT for at in range(len(stages))
        ]
        lines.append(_line(same[0][0], *map(spread, columns)))
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation of a sample in percent; one value stands alone."""
    middle = f"{100 * mean(values):.1f}"
    return middle if len(values) < 2 else f"{middle} ± {100 * stdev(values):.1f}"


def _cells(same: Sequence[Row]) -> list[str]:
    return [spread([getattr(row.scores[split], rule) for row in same]) for split in HELD_OUT for rule in RULES]


def _head(*titles: str) -> list[str]:
    return [_line(*titles), "|" + "---|" * len(titles)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


# A sheet to look at: held-out scenes, and below them the CAMs of each variant.

ROWS = (("base", BASE), ("learned", MATCHED), ("written", REFINED), ("learned", REFINED))
COLUMNS = 6  # of each held-out split


def write_sheet(experiment: Experiment, path: Path) -> None:
    """Write a PNG: scenes, then the base network's CAMs, (a)'s, and (c)'s with written and with learned prompts.

    The first object's CAM is red, the second's green. The first half of the columns are usual scenes, the other half
    scenes with swapped contexts.
    """
    samples = [sample for split in ("usual", "shuffled") for sample in read_samples(experiment.data, split)[:COLUMNS]]
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
