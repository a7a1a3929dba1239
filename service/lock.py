"""A data directory is used by one stack at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.supervisor import SupervisorError


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Hold a data directory for ourselves; the lock ends with this process, however it ends."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (data / "serve.lock").open("a+")
    except OSError as error:
        raise SupervisorError(f"cannot use the data directory {data}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            message = f"{data} is in use by another semples serve (process {owner})"
            raise SupervisorError(message) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
