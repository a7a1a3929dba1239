"""The files in which a folder of pseudo masks says what was made of each photo."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.differences import first_difference
from models.json_files import read_json, to_json, write_json

RESULTS, SETTINGS, SUMMARY = "results.jsonl", "settings.json", "summary.json"
_FIELDS = {"stem", "image", "model", "classes"}


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Read what was made of each photo, by stem, in the order of making; of a photo made twice, the later record.

    As ``iter_results``, with all records in memory.
    """
    return dict(iter_results(path))


def iter_results(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read stems and what was made of their photos, line by line; a photo made twice comes twice, the later one counts.

    Lines that a kill or a power loss left unreadable are passed over: those photos are as good as not made. A file that
    is not there has no record.

    Raises:
        OSError: if it cannot be read.
    """
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.keys() >= _FIELDS:
                yield record.pop("stem"), record


def claim_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note in a folder what its masks are made with, or check that it is the same as before.

    Args:
        folder: for masks.
        settings: ``model`` (name and version), ``options`` and ``scores``.

    Raises:
        ValueError: if the folder holds masks of another model or other options.
        OSError: if it cannot be read or written.
    """
    path = folder / SETTINGS
    if not path.exists():
        write_json(path, settings)
        return
    # Compared as JSON has them: a tuple comes back as a list.
    difference = first_difference(read_settings(folder), json.loads(to_json(settings)))
    if difference:
        raise ValueError(
            f"expected {folder} to be new or made with the same model and options, got {difference}"
        )


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
