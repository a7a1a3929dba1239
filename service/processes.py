"""Child processes: tied to their parent, logged to a file, stopped with patience."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_TETHER = Path(__file__).with_name("tether.py")
_LOG_BYTES = 10 * 2**20


@dataclass(frozen=True)
class Command:
    """How to run a child.

    Attributes:
        name: for messages and the log file.
        arguments: program (an absolute path) and arguments.
        environment: variables on top of this process's own.
        log: file for its output.
        pass_fds: file descriptors that it inherits.
        death_signal: what it gets if this process dies.
        grace: seconds from being asked to stop to being killed.
    """

    name: str
    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    death_signal: signal.Signals = signal.SIGKILL
    grace: float = 10.0


class Child:
    """A running command. Start it from the main thread: see service.tether.

    Raises:
        OSError: if it cannot be started or its log not written.
    """

    def __init__(self, command: Command) -> None:
        self.command = command
        _rotate(command.log)
        tether = [sys.executable, "-I", "-S", str(_TETHER)]
        with command.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*tether, str(int(command.death_signal)), str(os.getpid()), *command.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **command.environment},
                pass_fds=command.pass_fds,
                # Out of the terminal's group: Ctrl-C is for the parent, which stops all in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Send SIGTERM, if it still runs."""
        if self.exit_code is None:
            self._process.terminate()

    def wait(self) -> None:
        """Wait until it has ended; kill it when its grace is over."""
        try:
            self._process.wait(timeout=self.command.grace)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def last_words(self) -> str:
        """Return the last line that it logged."""
        try:
            lines = self.command.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _rotate(log: Path) -> None:
    """Keep one earlier log when the current one has become long."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
