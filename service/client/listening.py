"""Server-sent events out of the bytes of an answer."""

from __future__ import annotations

import json
from collections.abc import Callable

OnProgress = Callable[[str, float], None]
"""Told a stage's name and the fraction of all work done: "queued" and "running" with 0 and, last, the status with 1."""

END = "end"


class EventReader:
    """Reads a job's events, over several connections if need be.

    Args:
        on_progress: told of each event; what it raises ends the listening.

    Attributes:
        last_id: of the last event that was read whole, to go on from; None before the first.
        ended: whether the last event of all was read.
        count: how many were read.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self.last_id: str | None = None
        self.ended = False
        self.count = 0
        self._on_progress = on_progress
        self._rest = b""
        self._fields: dict[str, str] = {}

    def begin(self) -> None:
        """Forget what a broken connection left half said."""
        self._rest = b""
        self._fields = {}
        self.ended = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(line.rstrip(b"\r").decode(errors="replace"))

    def _take(self, line: str) -> None:
        if line:
            name, _, value = line.partition(":")
            if name:  # else a comment, which keeps the connection open
                self._fields[name] = value.removeprefix(" ")
            return
        fields, self._fields = self._fields, {}
        if "event" in fields and "data" in fields:
            self.count += 1
            self._tell(fields["event"], fields["data"])
            if fields["event"] == END:
                self.ended = True
            elif "id" in fields:
                self.last_id = fields["id"]

    def _tell(self, event: str, data: str) -> None:
        if self._on_progress is None:
            return
        said = json.loads(data)
        if event == "progress":
            self._on_progress(str(said["stage"]), float(said["fraction"]))
        else:
            self._on_progress(str(said["status"]), float(event == END))
