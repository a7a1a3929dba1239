"""What was measured, and how it is shown. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Load:
    """Requests, or images, of one kind.

    Attributes:
        seconds: of each that went well.
        wall: seconds from the first to the end of the last.
        client_cpu: seconds of CPU that the load program itself took meanwhile; 0 where there was none.
        errors: what went wrong, a line each.
    """

    seconds: tuple[float, ...]
    wall: float
    client_cpu: float = 0.0
    errors: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """How many went well in a second."""
        return len(self.seconds) / self.wall if self.wall > 0 else 0.0

    @property
    def client_share(self) -> float:
        """The load program's share of one core."""
        return self.client_cpu / self.wall if self.wall > 0 else 0.0


def quantile(seconds: Sequence[float], q: float) -> float:
    """Return a quantile in ms, linear between neighbors; NaN of nothing."""
    return 1000 * float(np.quantile(seconds, q)) if seconds else float("nan")


def pool(turns: Iterable[Mapping[str, Load]]) -> dict[str, Load]:
    """Put the turns' loads of one name together, in the order in which names first come."""
    pooled: dict[str, Load] = {}
    for turn in turns:
        for name, load in turn.items():
            pooled[name] = _both(pooled[name], load) if name in pooled else load
    return pooled


def _both(one: Load, other: Load) -> Load:
    return Load(
        one.seconds + other.seconds,
        one.wall + other.wall,
        one.client_cpu + other.client_cpu,
        one.errors + other.errors,
    )


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def load_table(loads: Mapping[str, Load], *, bare: str | None) -> str:
    """Return the table of loads.

    Args:
        loads: by name.
        bare: the one that ratios and differences are to; None for a table without them.
    """
    header = ("", "requests", "a second", "p50 ms", "p95 ms", "errors", "client's share of a core")
    beside = ("÷ bare", "p50 − bare, ms") if bare is not None else ()
    rows = [(*_row(name, load), *_beside(load, loads[bare] if bare else None)) for name, load in loads.items()]
    return markdown((*header, *beside), rows)


def _row(name: str, load: Load) -> tuple[str, ...]:
    median, slow = (quantile(load.seconds, q) for q in (0.5, 0.95))
    return (
        *(name, str(len(load.seconds)), f"{load.rate:.2f}", f"{median:.1f}", f"{slow:.1f}"),
        *(str(len(load.errors)), f"{load.client_share:.0%}" if load.client_cpu else "–"),
    )


def _beside(load: Load, bare: Load | None) -> tuple[str, ...]:
    if bare is None:
        return ()
    ratio = load.rate / bare.rate if bare.rate else float("nan")
    return f"{ratio:.2f}", f"{quantile(load.seconds, 0.5) - quantile(bare.seconds, 0.5):.1f}"


def jobs_table(seconds: Mapping[str, Sequence[float]], *, jobs: int, against: Mapping[str, str]) -> str:
    """Return the table of jobs that do nothing.

    Args:
        seconds: that each turn took, by worker.
        jobs: of a turn.
        against: the workers that others are compared with, by those others.
    """
    rates = {name: jobs / float(np.median(turns)) for name, turns in seconds.items()}
    ratios = {name: f"{rates[name] / rates[other]:.2f}" for name, other in against.items()}
    rows = [(name, f"{rate:.0f}", ratios.get(name, "–")) for name, rate in rates.items()]
    return markdown(("worker", "jobs/s", "÷ SimpleWorker with the same"), rows)
