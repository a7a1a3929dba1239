"""Runs the processes of one stack: started in order, restarted when they end, stopped together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from filelock import FileLock, Timeout

from worker.signals import STOP_SIGNALS, handle

SECOND_SIGNAL_SECONDS: Final = 1.0
"""A later second signal kills; tools such as make send a pair of signals for one Ctrl-C."""

_DIE_WITH_PARENT: Final = Path(__file__).with_name("parent_death.py")
_LOG_BYTES: Final = 10 * 2**20
_TICK_SECONDS: Final = 0.05
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_STABLE_SECONDS: Final = 60.0


class SupervisorError(Exception):
    """The stack cannot run; the message is one line for the operator."""


class StopRequestedError(Exception):
    """A signal asked for the end."""


@dataclass(frozen=True)
class Command:
    """How to run a child process."""

    name: str
    arguments: Sequence[str]  # the program's absolute path first
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)  # on top of this process's own
    pass_fds: tuple[int, ...] = ()
    death_signal: signal.Signals = signal.SIGKILL  # sent to it if this process dies
    grace: float = 10.0  # seconds from SIGTERM to SIGKILL


class Child:
    """A running command. Start it from the main thread: see service.local.parent_death."""

    def __init__(self, command: Command) -> None:
        self.command = command
        _rotate(command.log)
        starter = [sys.executable, "-I", "-S", str(_DIE_WITH_PARENT)]
        with command.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*starter, str(int(command.death_signal)), str(os.getpid()), *command.arguments],
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
        """Kill it and wait for its end."""
        self._process.kill()
        self._process.wait()

    def last_log_line(self) -> str:
        """Return the last line that it logged; empty if there is none."""
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


class _Service:
    """A child that is restarted when it ends, with longer and longer pauses."""

    def __init__(self, make_command: Callable[[], Command]) -> None:
        self._make_command = make_command
        self._pause = _FIRST_PAUSE
        self._restart_at = 0.0
        self.child = self._start()

    def _start(self) -> Child:
        self._started_at = time.monotonic()
        return Child(self._make_command())

    def restart(self, log: Callable[[str], None]) -> None:
        """Restart the child if it has ended and its pause is over."""
        now = time.monotonic()
        code = self.child.exit_code
        if code is None:
            return
        if not self._restart_at:
            stable = now - self._started_at > _STABLE_SECONDS
            self._pause = _FIRST_PAUSE if stable else min(2 * self._pause, _LONGEST_PAUSE)
            self._restart_at = now + self._pause
            line = self.child.last_log_line()
            log(f"{self.child.command.name} ended ({code}): {line}; restarting in {self._pause:.1f} s")
        elif now >= self._restart_at:
            self._restart_at = 0.0
            self.child = self._start()


class Supervisor:
    """Starts, watches and stops a stack; a context manager for the main thread.

    Inside the context SIGINT, SIGTERM and SIGHUP raise StopRequestedError at the next wait, unless they were ignored
    before, as SIGHUP is under nohup; at its end every child is stopped, the first one started last.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._services: list[_Service] = []
        self._first_signal: float | None = None
        self._handlers: Mapping[signal.Signals, object] = {}

    def __enter__(self) -> Supervisor:
        """Install the signal handlers."""
        self._handlers = handle(STOP_SIGNALS, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all children and restore the signal handlers."""
        try:
            self._stop()
        finally:
            for kind, handler in self._handlers.items():
                signal.signal(kind, handler)  # type: ignore[arg-type]

    def start(self, make_command: Callable[[], Command]) -> None:
        """Start a child by a command that is made for each start; SupervisorError if that fails."""
        try:
            self._services.append(_Service(make_command))
        except OSError as error:
            raise SupervisorError(f"cannot start a process: {error}") from error

    def wait_until(self, condition: Callable[[], bool], *, what: str, seconds: float) -> None:
        """Wait for a condition, named ``what``; SupervisorError if a child ends first or the time is over."""
        deadline = time.monotonic() + seconds
        while not condition():
            self._tick()
            for child in self._children():
                if (code := child.exit_code) is not None:
                    line = child.last_log_line() or f"exit code {code}, see {child.command.log}"
                    raise SupervisorError(f"{child.command.name} ended at the start: {line}")
            if time.monotonic() > deadline:
                raise SupervisorError(f"{what} took longer than {seconds:.0f} s")

    def watch(self) -> None:
        """Restart children until a signal raises StopRequestedError."""
        while True:
            self._tick()
            for service in self._services:
                service.restart(self._log)

    def _children(self) -> list[Child]:
        return [service.child for service in self._services]

    def _tick(self) -> None:
        if self._first_signal is not None:
            raise StopRequestedError
        time.sleep(_TICK_SECONDS)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
        elif now - self._first_signal > SECOND_SIGNAL_SECONDS:
            for child in self._children():
                child.kill()

    def _stop(self) -> None:
        # The first one started is Redis, which the others need until they have ended.
        children = self._children()
        for group in (children[1:], children[:1]):
            for child in group:
                child.ask_to_stop()
            for child in group:
                child.wait()


@contextmanager
def exclusive_lock(data: Path) -> Iterator[None]:
    """Hold a data directory, made if missing, until this process ends; SupervisorError if another stack holds it."""
    path = data / "serve.lock"
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(path).acquire(blocking=False)
        path.write_text(str(os.getpid()))
    except Timeout as error:
        owner = path.read_text().strip() or "unknown"
        message = f"{data} is in use by another semples serve (process {owner})"
        raise SupervisorError(message) from error
    except OSError as error:
        raise SupervisorError(f"cannot use the data directory {data}: {error.strerror} (--data DIR)") from error
    with lock:
        yield
