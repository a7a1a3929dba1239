"""What the whole service costs and how much it takes, beside the bare predictor, LitServe and a plain RQ worker.

    python -m benchmarks.serve --data ../shared/data/coco100 --threads 2

Everything runs on this machine, listens on 127.0.0.1 alone, is bounded in requests and seconds, and is ended again. All
parts of a run have the same bundle, photos, refiner and threads, and are measured one after the other, in turns of
alternating order:

* the bare predictor, always: in a process of its own, decoded photos in memory, as a plain loop; then in batches of one
  size, sorted beforehand;
* service: ``semples serve``, that is queue, worker and API as processes; ``POST /pseudo-mask?wait=60`` answered with
  the mask as a PNG. Every photo carries another number in a JPEG comment, so each is a new upload and a new job;
* litserve: the same upload, predictor and answer behind LitServe, which keeps no jobs, without and with its batches;
* durable: the service with a predictor that answers at once, one request at a time: what the durable way costs;
* jobs: jobs that do next to nothing, see ``benchmarks.service_load.jobs``.

Prints Markdown. Figures of one run compare with each other, not with those of another run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.service_load import measure as job_load
from benchmarks.service_load.figures import Load, jobs_table, load_table, pool
from benchmarks.service_load.load import Bounds, read_photos
from benchmarks.service_load.measure import BARE, LITSERVE, Run, durable, steps
from benchmarks.service_load.programs import Model

IMAGES = ("service", "litserve")
PARTS = (*IMAGES, "durable", "jobs")
CORES = os.cpu_count() or 1


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is asked for and print it."""
    arguments = _parser().parse_args(argv)
    bounds = Bounds(arguments.requests, arguments.seconds)
    say(_facts(arguments))
    if set(IMAGES) & set(arguments.parts):
        _images(arguments, bounds)
    if "durable" in arguments.parts:
        load = durable(bounds)
        say(load_table({"POST ?wait=60, a predictor that answers at once": load}, bare=None))
        _say_errors({"durable": load})
    if "jobs" in arguments.parts:
        with tempfile.TemporaryDirectory(prefix="semples-load-") as folder:
            seconds = job_load.measure(Path(folder), jobs=arguments.jobs, turns=arguments.turns)
        say(jobs_table(seconds, jobs=arguments.jobs, against=job_load.AGAINST))


def _images(arguments: argparse.Namespace, bounds: Bounds) -> None:
    """Measure what segments photos and print its table."""
    run = Run(
        Model(arguments.bundle, arguments.refine, arguments.threads),
        arguments.data,
        read_photos(arguments.data),
        bounds,
        arguments.concurrency,
        arguments.batch,
    )
    chosen = steps(run, arguments.parts)
    turns: list[dict[str, Load]] = []
    for turn in range(arguments.turns):
        for step in chosen[:: -1 if turn % 2 else 1]:
            turns.append(step())
    loads = pool(turns)
    say(load_table(loads, bare=BARE))
    _say_errors(loads)


def say(text: str) -> None:
    """Print a paragraph."""
    print(text, end="\n\n", flush=True)


def _say_errors(loads: dict[str, Load]) -> None:
    for name, load in loads.items():
        for error in sorted(set(load.errors))[:3]:
            say(f"{name}: {error}")


def _facts(arguments: argparse.Namespace) -> str:
    """Describe the machine and the run."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "rq")]
    lit = f"litserve {importlib.metadata.version('litserve')}" if LITSERVE else None
    absent = "LitServe not installed: not measured (`pip install 'semples[bench]'`)"
    busy = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"{CORES} cores, load before the run {busy}; threads of the model "
        f"{arguments.threads}; bundle {arguments.bundle}, refine {arguments.refine}, photos "
        f"{arguments.data or 'of the demo'}; {arguments.turns} turns of {arguments.requests} requests or "
        f"{arguments.seconds:g} s; {', '.join([*versions, lit or absent])}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="coco-demo", help="name or folder")
    parser.add_argument("--data", type=Path, help="folder of images/ and labels.csv [the demo's]")
    parser.add_argument("--refine", default="none", help="refiner chain")
    parser.add_argument("--threads", type=int, default=CORES, help="of the model [all cores]")
    parser.add_argument("--requests", type=int, default=100, help="of each measurement, at most")
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement, at most")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="of the bare predictor and LitServe")
    parser.add_argument("--jobs", type=int, default=500, help="of a turn of jobs that do nothing")
    parser.add_argument("--concurrency", type=int, nargs="+", default=(1, 8, 32))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    return parser


if __name__ == "__main__":
    main()
