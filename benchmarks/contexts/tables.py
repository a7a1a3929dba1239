"""Rows of several seeds as Markdown: mean ± spread, in percent."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev

from benchmarks.contexts.ablation import Row
from benchmarks.contexts.experiment import HELD_OUT
from benchmarks.contexts.world import THINGS

RULES = ("fixed", "oracle")


def ablation_table(seeds: Sequence[Sequence[Row]]) -> str:
    """Return a table of every variant; rows of each seed in the same order."""
    titles = [f"{split}, {rule}" for split in HELD_OUT for rule in RULES]
    lines = _head("variant", *titles, f"nearest noun is its context (of {len(THINGS)})")
    for same in zip(*seeds, strict=True):
        found = [row.found for row in same if row.found is not None]
        lines.append(_line(same[0].name, *_cells(same), ", ".join(map(str, found)) or "–"))
    return "\n".join(lines)


def generator_table(seeds: Sequence[Sequence[tuple[str, Sequence[Row]]]]) -> str:
    """Return a table of every generator, at the fixed threshold."""
    stages = [row.name for row in seeds[0][0][1]]
    titles = [f"{split}: {stage}" for split in HELD_OUT for stage in stages]
    lines = _head("mask generator", *titles)
    for same in zip(*seeds, strict=True):
        columns = [
            [rows[at].scores[split].fixed for _, rows in same]
            for split in HELD_OUT
            for at in range(len(stages))
        ]
        lines.append(_line(same[0][0], *map(spread, columns)))
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation of a sample in percent; one value stands alone."""
    middle = f"{100 * mean(values):.1f}"
    return middle if len(values) < 2 else f"{middle} ± {100 * stdev(values):.1f}"


def _cells(same: Sequence[Row]) -> list[str]:
    return [
        spread([getattr(row.scores[split], rule) for row in same])
        for split in HELD_OUT
        for rule in RULES
    ]


def _head(*titles: str) -> list[str]:
    return [_line(*titles), "|" + "---|" * len(titles)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
