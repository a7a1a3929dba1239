"""Files written whole or not at all, their hashes, JSON in them, and the first difference of two mappings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_MAX_NAME_BYTES: Final = 255


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; its folder is made if missing.

    Raises:
        OSError: if that fails, with the file's name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    if len(os.fsencode(partial.name)) > _MAX_NAME_BYTES:  # the name itself may be as long as the file system takes
        partial = path.with_name(f"{hashlib.sha256(os.fsencode(path.name)).hexdigest()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)  # a partial file would keep a full disk full
        raise OSError(error.errno, error.strerror, str(path)) from error


def hash_file(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON for people and programs, whole or not at all."""
    # What is no Unicode, of a file name that is no UTF-8, becomes its escape in JSON.
    write_atomically(path, to_json(value).encode(errors="backslashreplace"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ValueError: if the file holds anything else than a JSON object.
        OSError: if it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected JSON in {path}, got {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {path}, got {type(content).__name__}")
    return content


def to_json(value: Mapping[str, Any]) -> str:
    """Return JSON for people and programs."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first key, dotted, at which two nested mappings differ, with both values; None if they are equal.

    Items of lists have their numbers as keys. A missing value is shown as "nothing".
    """
    for key in [*before, *(key for key in now if key not in before)]:
        if key in before and key in now:
            inside, other = _nested(before[key]), _nested(now[key])
            if inside is not None and other is not None:
                place = first_difference(inside, other)
                if place:
                    return f"{key}.{place}"
                continue
            if before[key] == now[key]:
                continue
        return f"{key}: {_show(before, key)} before, {_show(now, key)} now"
    return None


def _nested(value: object) -> Mapping[str, Any] | None:
    if isinstance(value, list | tuple):
        return {str(number): item for number, item in enumerate(value)}
    return value if isinstance(value, Mapping) else None


def _show(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "nothing"
