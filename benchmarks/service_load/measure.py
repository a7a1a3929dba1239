"""The measurements: the bare predictor, the service, LitServe, and a job that costs nothing but its way."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.service_load import programs
from benchmarks.service_load.client import Bounds, Target, press
from benchmarks.service_load.figures import Load
from benchmarks.service_load.photos import LabeledPhoto, tiny_photo

BARE = "bare predictor"
PATH = "/pseudo-mask?wait=60"
WARM_UP = 8
LONG_WARM_UP = 1000
"""Requests after which the blob store has its folders: until then many a request makes one, and a few ms longer."""
LITSERVE = importlib.util.find_spec("litserve") is not None

Start = Callable[[Path], AbstractContextManager[int]]
Step = Callable[[], dict[str, Load]]


@dataclass(frozen=True)
class Run:
    """What all measurements of a run have in common.

    Attributes:
        model: what is served.
        data: folder of photos, None for the demo's.
        photos: from there.
        bounds: of each measurement.
        levels: concurrencies.
        batch: largest batch of the bare predictor and of LitServe.
    """

    model: programs.Model
    data: Path | None
    photos: Sequence[LabeledPhoto]
    bounds: Bounds
    levels: Sequence[int]
    batch: int


def steps(run: Run, parts: Sequence[str]) -> list[Step]:
    """Return a turn's measurements; the bare predictor is always among them, and LitServe only if it is installed."""
    chosen: list[Step] = [partial(bare, run)]
    if "service" in parts:
        fields = {"refine": run.model.refine}
        serve = partial(programs.service, model=run.model)
        chosen.append(partial(_levels, run, "service", serve, PATH, fields))
    if "litserve" in parts and LITSERVE:
        for batch in (1, run.batch):
            name = f"LitServe, batches of up to {batch}" if batch > 1 else "LitServe"
            serve = partial(programs.litserve, model=run.model, batch=batch)
            chosen.append(partial(_levels, run, name, serve, "/predict", {}))
    return chosen


def bare(run: Run) -> dict[str, Load]:
    """Measure the predictor in a process of its own, one by one and in batches.

    Raises:
        SystemExit: with its last words, if it fails.
    """
    options = [
        *run.model.arguments(),
        *([f"--data={run.data}"] if run.data else []),
        *(f"--requests={run.bounds.requests}", f"--seconds={run.bounds.seconds}"),
        *(f"--warm-up={WARM_UP}", f"--batch={run.batch}"),
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.service_load.bare", *options],
            env={**os.environ, **programs.environment(run.model.threads)},
            capture_output=True,
            text=True,
            timeout=programs.START_SECONDS + 4 * run.bounds.seconds,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"the bare predictor failed: {error.stderr}") from error
    except subprocess.TimeoutExpired as error:
        raise SystemExit(f"the bare predictor took more than {error.timeout} s") from error
    measured = json.loads(done.stdout)
    return {
        BARE: _load(measured["alone"]),
        f"{BARE}, batches of up to {run.batch}": _load(measured["batches"]),
    }


def durable(bounds: Bounds) -> Load:
    """Measure requests, one at a time, whose predictor answers at once: what is left is the durable way."""
    numbers, photos = itertools.count(), [tiny_photo("cat")]
    press_one = partial(press, photos=photos, concurrency=1, numbers=numbers)
    with (
        tempfile.TemporaryDirectory(prefix="semples-load-") as folder,
        programs.instant_service(Path(folder)) as port,
    ):
        target = Target(port, PATH, {"refine": "none"})
        press_one(target, bounds=Bounds(LONG_WARM_UP, bounds.seconds))
        return press_one(target, bounds=bounds)


def _levels(
    run: Run, name: str, start: Start, path: str, fields: Mapping[str, str]
) -> dict[str, Load]:
    """Start a server and measure it at each concurrency."""
    numbers = itertools.count()
    with (
        tempfile.TemporaryDirectory(prefix="semples-load-") as folder,
        start(Path(folder)) as port,
    ):
        press_it = partial(press, Target(port, path, fields), run.photos, numbers=numbers)
        press_it(concurrency=1, bounds=Bounds(WARM_UP, run.bounds.seconds))
        return {
            f"{name}, {level} at once": press_it(concurrency=level, bounds=run.bounds)
            for level in run.levels
        }


def _load(measured: Mapping[str, Any]) -> Load:
    return Load(tuple(measured["seconds"]), measured["wall"])
