"""The ablation of one seed, and the same stages on other generators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contexts.experiment import (
    BASE,
    MATCHED,
    REFINED,
    Changes,
    Experiment,
    random_prompts,
    written_contexts,
)
from benchmarks.contexts.measure import Score

# What differs from the configuration; another generator is one more row.
GENERATORS: dict[str, Changes] = {
    "CNN CAM, test_resnet": {},
    "CNN CAM, test_efficientnet": {
        "generator": {
            "kind": "cnn", "backbone": "test_efficientnet", "pretrained": False,
            "output_stride": 8, "level": -2,
        },
    },
    # From scratch it needs more epochs; and the trunk's maps are so faint that 0.1 in min-max would leave no masks.
    "WeakTr, width 96, depth 3": {
        "generator": {
            "kind": "weaktr", "native_size": 96, "patch": 8, "width": 96, "depth": 3, "heads": 3,
            "reduction": 1,
        },
        "pretrain_generator": {"epochs": 40, "learning_rate": 1e-3},
        "train_generator": {"epsilon": 1e-4, "learning_rate": 2e-3},
        "refine_generator": {
            "epsilon": 1e-4, "learning_rate": 2e-3, "refinement_weight": 0.7,
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A variant and what it is worth.

    Attributes:
        name: of the variant.
        scores: by held-out split.
        found: how many prompts are nearest to their own context; None where none is learned.
    """

    name: str
    scores: Mapping[str, Score]
    found: int | None = None


def ablate(experiment: Experiment) -> list[Row]:
    """Train and measure every variant of one seed."""
    base = experiment.pretrain("base")
    learned, random, written = (
        experiment.run(name, base=base) for name in ("learned", "random", "written")
    )
    experiment.match(learned)
    experiment.refine(learned)
    experiment.refine(random, random_prompts)
    experiment.refine(written, written_contexts)
    return [
        Row("base CAM network", experiment.scores(base, BASE)),
        Row("(a)", experiment.scores(learned, MATCHED)),
        Row("(c), random prompts", experiment.scores(random, REFINED)),
        Row("(c), contexts written by hand", experiment.scores(written, REFINED)),
        Row("(c), learned prompts", experiment.scores(learned, REFINED), experiment.found(learned)),
    ]


def compare(experiment: Experiment) -> list[tuple[str, Sequence[Row]]]:
    """Train and measure the three stages on every generator."""
    table = []
    for number, (name, changes) in enumerate(GENERATORS.items()):
        # The first is the ablation's own.
        base = experiment.pretrain(f"base{number or ''}", changes)
        learned = experiment.run(f"learned{number or ''}", base=base)
        experiment.match(learned)
        experiment.refine(learned)
        rows = (
            Row("base", experiment.scores(base, BASE)),
            Row("(a)", experiment.scores(learned, MATCHED)),
            Row("(c)", experiment.scores(learned, REFINED), experiment.found(learned)),
        )
        table.append((name, rows))
    return table
