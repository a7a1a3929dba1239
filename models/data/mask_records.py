"""The files in which a folder of pseudo masks says what was made of each photo."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from models.json_files import read_json

RESULTS, SETTINGS, SUMMARY = "results.jsonl", "settings.json", "summary.json"
_FIELDS = {"stem", "image", "model", "classes"}


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
        except ValueError:
            continue
        if isinstance(record, dict) and record.keys() >= _FIELDS:
            records[record.pop("stem")] = record
    return records


def read_settings(folder: Path) -> dict[str, Any]:
    """Read with which model and options a folder's masks were made.

    Raises:
        ValueError: if that is not what its file says.
        OSError: if it cannot be read.
    """
    settings = read_json(folder / SETTINGS)
    if not settings.keys() >= {"model", "options"} or "version" not in settings["model"]:
        raise ValueError(
            f"expected the settings of make-pseudo-masks in {folder / SETTINGS}, got others"
        )
    return settings


def drop_cut_line(path: Path) -> None:
    """Take away a last line that a kill cut off, so that what is appended starts a line of its own."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
