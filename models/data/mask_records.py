"""The files in which a folder of pseudo masks says what was made of each photo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS, SETTINGS, SUMMARY = "results.jsonl", "settings.json", "summary.json"


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Read what was made of each photo, by stem, in the order of making; of a photo made twice, the later record.

    Lines that a kill or a power loss left unreadable are passed over: those photos are as good as not made. A file that
    is not there has no record.

    Raises:
        OSError: if it cannot be read.
    """
    if not path.exists():
        return {}
    records: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            records[record.pop("stem")] = record
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
    return records


def drop_cut_line(path: Path) -> None:
    """Take away a last line that a kill cut off, so that what is appended starts a line of its own."""
    if path.exists():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            path.write_bytes(whole)
