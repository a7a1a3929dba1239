"""Compare a GPU with the CPU, then measure it: one program, no network, one Markdown table.

    python -m benchmarks.gpu --minutes 8 --output gpu.md

Every mask generator kind, refiner, segmenter kind and training stage, and the predictor, compute the same on both, with
the same inputs and weights, within a tolerance for each precision. Then: photos/s of the predictor, seconds of training
steps, peak memory, photos/s of the service on 127.0.0.1. Items for which the minutes do not suffice are skipped, and
the table says so. The exit code is 1 if anything differs too much or fails, which is then named, after all else.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.gpu import cases, speed
from benchmarks.gpu.compare import comparisons
from benchmarks.gpu.table import Item, Row, failures, run_items, table
from models.cli.options import pick_device

PARTS = ("compare", "predictor", "stages", "service")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; return the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    try:
        device = pick_device(arguments.device, threads=0)
    except ValueError as error:
        parser.error(str(error))
    rows = run_items(
        plan(device, arguments.parts, small=arguments.small),
        deadline=started + 60 * arguments.minutes,
        on_row=_say,
    )
    text = f"{_facts(device, minutes=(time.monotonic() - started) / 60)}\n\n{table(rows)}"
    print(text)
    if arguments.output:
        arguments.output.write_text(f"{text}\n", encoding="utf-8")
    failed = failures(rows)
    if failed:
        print(f"expected the CPU's results and no failure, got another of: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def plan(device: torch.device, parts: Sequence[str], *, small: bool) -> Iterator[Item]:
    """Return what is done, in the order of its importance."""
    sizes = speed.SMALL if small else speed.Sizes() if device.type == "cuda" else speed.CPU_SIZES
    items: dict[str, Callable[[], Iterator[Item]]] = {
        "compare": lambda: comparisons(cases.all_cases(image_size=sizes.image_size), device),
        "predictor": lambda: speed.predictor_items(sizes, device),
        "stages": lambda: speed.stage_items(sizes, device),
        "service": lambda: iter([speed.service_item(sizes, device)]),
    }
    for part in PARTS:
        if part in parts:
            yield from items[part]()


def _facts(device: torch.device, *, minutes: float) -> str:
    """Describe the machine and the run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    cuda = f", CUDA {torch.version.cuda}" if device.type == "cuda" else ""
    return (
        f"{platform.node()}: {device} ({name}), {os.cpu_count()} CPU cores, torch {torch.__version__}{cuda}, "
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {minutes:.1f} minutes. Comparisons are with the CPU in "
        "float32: the largest difference as a share of the highest number, and its tolerance; of label maps, the share "
        "of other pixels. float32 is compared without TF32, tf32 with it; what is measured has torch's own settings."
    )


def _say(row: Row) -> None:
    """Print progress, apart from the table."""
    print(f"{row.name}: {row.outcome.result}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …; cpu compares it with itself")
    parser.add_argument("--output", type=Path, help="file for the table, too")
    parser.add_argument("--small", action="store_true", help="tiny photos and networks, moments: to try the program")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
