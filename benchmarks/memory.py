"""Whether memory stays flat: many photos of mixed sizes through the whole service, and what each process holds.

Starts the stack as ``semples serve`` does, posts one new photo after another, from 64 to ``--largest`` pixels a side,
every third with the bundle's own refiners, and prints the resident memory of each process in between.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated
from urllib.request import urlopen

import numpy as np
import typer

from benchmarks.overhead import post, synthetic_photo
from benchmarks.service_load.programs import Model, service
from models.bundle.manifest import find_bundle, read_info

SMALLEST = 64
_PROGRAMS = {b"-m\0service\0": "API", b"\0worker\0janitor\0": "janitor", b"valkey": "queue"}
COLUMNS = ("worker", "API", "janitor", "queue")


def resident_mebibytes(pid: int) -> float:
    """Return a process's resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def processes_beside(worker: int) -> dict[str, int]:
    """Return the processes of a worker's stack by name: those with the same parent."""
    parent = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]
    found = {}
    for child in map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
        command = Path(f"/proc/{child}/cmdline").read_bytes()
        known = (name for part, name in _PROGRAMS.items() if part in command)
        found["worker" if child == worker else next(known, "other")] = child
    return found


def main(
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle.")] = "coco-demo",
    count: Annotated[int, typer.Option(min=10, help="Photos.")] = 1000,
    every: Annotated[int, typer.Option(min=1, help="Photos between two rows.")] = 100,
    largest: Annotated[int, typer.Option(min=SMALLEST + 1, help="Longest side.")] = 640,
) -> None:
    """Print the resident memory of the service's processes after so many photos of mixed sizes."""
    folder = find_bundle(bundle)
    labels = read_info(folder).classes.names
    random = np.random.default_rng(0)
    print("| photos |", *(f"{name} MiB |" for name in COLUMNS))
    print("|---|" + len(COLUMNS) * "---|")
    with (
        tempfile.TemporaryDirectory(prefix="semples-memory-") as data,
        service(Path(data), Model(str(folder), "none", threads=0)) as port,
    ):
        with urlopen(f"http://127.0.0.1:{port}/ready") as answer:
            worker = int(json.load(answer)["workers"][0]["pid"])
        processes = processes_beside(worker)
        for number in range(count + 1):
            if number % every == 0:
                held = [resident_mebibytes(processes[name]) for name in COLUMNS]
                print(f"| {number} |", *(f"{each:.0f} |" for each in held), flush=True)
            width, height = map(int, random.integers(SMALLEST, largest + 1, 2))
            photo = synthetic_photo(number, width=width, height=height)
            refine = "" if number % 3 == 0 else "none"
            post(port, photo, labels[number % len(labels)], refine)


if __name__ == "__main__":
    typer.run(main)
