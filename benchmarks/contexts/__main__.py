"""Print what each part of the method is worth in a world where objects come with contexts.

    python -m benchmarks.contexts --output build/contexts

Everything made is kept in the output folder: run again after a kill, it continues.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from benchmarks.contexts.experiment import Experiment, ablate, compare
from benchmarks.contexts.tables import ablation_table, background_table, generator_table, write_sheet
from benchmarks.contexts.vit import compare_backgrounds, compare_vit
from models.config import load_config


def main() -> None:
    """Make and measure every seed, then print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contexts", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", default="contexts")
    parser.add_argument("--generators", action="store_true", help="the tables of generators and backgrounds too")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config)
    rows, others, backgrounds = [], [], []
    for seed in arguments.seeds:
        experiment = Experiment(
            arguments.output / f"seed{seed}",
            config.model_copy(update={"seed": seed}),
            say=partial(print, f"seed {seed}:", file=sys.stderr, flush=True),
        )
        experiment.prepare()
        rows.append(ablate(experiment))
        write_sheet(experiment, experiment.folder / "cams.png")
        if arguments.generators:
            others.append([*compare(experiment), compare_vit(experiment)])
            backgrounds.append(compare_backgrounds(experiment))
    print(ablation_table(rows))
    if others:
        print("\n" + generator_table(others) + "\n\n" + background_table(backgrounds))


if __name__ == "__main__":
    main()
