"""The folder of an export: there as a whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write in; it takes its name once everything is written, and is removed if that fails.

    Args:
        path: the name to come: nothing yet, or an empty folder.

    Raises:
        ValueError: if something is there, or the remains of an export that was killed.
        OSError: if it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"expected a new or empty folder for the export, got {path}")
    partial = path.with_name(path.name + ".partial")
    if partial.exists():
        raise ValueError(
            f"expected no export under way or cut off; if none is running, remove {partial}"
        )
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
    except BaseException:  # Ctrl-C as well
        shutil.rmtree(partial)
        raise
