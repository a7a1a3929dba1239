"""What is done one after the other while its minutes last, and the table of what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.service_load.figures import markdown

_HEADER = ("what", "precision", "result", "peak memory, MiB")
_MESSAGE_LENGTH = 200


@dataclass(frozen=True)
class Outcome:
    """What came of an item: a cell of the table, the peak of memory in MiB, whether it is a failure."""

    result: str
    peak: float | None = None
    failed: bool = False


@dataclass(frozen=True)
class Item:
    """A comparison or a measurement, begun only while so many seconds are left as it needs, about."""

    what: str
    precision: str
    run: Callable[[], Outcome]
    needs: float = 5.0


@dataclass(frozen=True)
class Row:
    """An item with its outcome."""

    what: str
    precision: str
    outcome: Outcome

    @property
    def name(self) -> str:
        """What is named among the failures."""
        return f"{self.what}, {self.precision}"


def run_items(
    items: Iterable[Item],
    *,
    deadline: float,
    on_row: Callable[[Row], object] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Row]:
    """Run all items, whatever happens to one, but for those that no longer fit before the deadline of the clock."""
    rows = []
    for item in items:
        outcome = Outcome("skipped: the minutes are over") if deadline - clock() < item.needs else _run(item)
        rows.append(Row(item.what, item.precision, outcome))
        on_row(rows[-1])
    return rows


def _run(item: Item) -> Outcome:
    try:
        return item.run()
    # Whatever a device does not support is a finding, and the rest is still worth knowing; programs that do not start
    # raise SystemExit.
    except (Exception, SystemExit) as error:
        message = " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")
        return Outcome(message[:_MESSAGE_LENGTH], failed=True)


def failures(rows: Sequence[Row]) -> list[str]:
    """Return the names of the items that failed."""
    return [row.name for row in rows if row.outcome.failed]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    return markdown(_HEADER, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    outcome = row.outcome
    peak = "" if outcome.peak is None else f"{outcome.peak:,.0f}"
    return row.what, row.precision, f"**{outcome.result}**" if outcome.failed else outcome.result, peak
