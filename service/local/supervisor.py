"""One stack in one process tree: started in order, kept alive, stopped together."""

from __future__ import annotations

import fcntl
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

# Child processes: tied to their parent, logged to a file, stopped with patience.

_TETHER = Path(__file__).with_name("parent_death.py")
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
    """A running command. Start it from the main thread: see service.local.parent_death.

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


_TICK_SECONDS = 0.05
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_STABLE_SECONDS = 60.0
# A second signal kills, but tools such as make send a pair of them for one Ctrl-C.
_IMPATIENCE_SECONDS = 1.0

MakeCommand = Callable[[], Command]
Say = Callable[[str], None]


class SupervisorError(Exception):
    """The stack cannot run; the message is one line for the operator."""


class StopRequestedError(Exception):
    """A signal asked for the end."""


class Service:
    """One child that is started again when it dies, ever more slowly.

    Args:
        make_command: called for each start, so that each has, for instance, a name of its own.
    """

    def __init__(self, make_command: MakeCommand) -> None:
        self._make_command = make_command
        self._pause = _FIRST_PAUSE
        self._start_at = 0.0
        self.child = self._start()

    def _start(self) -> Child:
        self._started_at = time.monotonic()
        return Child(self._make_command())

    def revive(self, say: Say) -> None:
        """Start the child again if it is dead and its pause is over."""
        now = time.monotonic()
        code = self.child.exit_code
        if code is None:
            return
        if not self._start_at:
            stable = now - self._started_at > _STABLE_SECONDS
            self._pause = _FIRST_PAUSE if stable else min(2 * self._pause, _LONGEST_PAUSE)
            self._start_at = now + self._pause
            words = self.child.last_words()
            say(f"{self.child.command.name} ended ({code}): {words}; again in {self._pause:.0f} s")
        elif now >= self._start_at:
            self._start_at = 0.0
            self.child = self._start()


class Supervisor:
    """Starts, watches and stops a stack; use it as a context, from the main thread.

    Inside the context SIGINT, SIGTERM and SIGHUP raise StopRequestedError at the next wait; at its
    end every child is stopped, the last one started last.

    Args:
        say: told in one line what happens.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._services: dict[str, Service] = {}
        self._first_signal: float | None = None
        self._handlers: Mapping[int, object] = {}

    def __enter__(self) -> Supervisor:
        """Take over the signals."""
        kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._handlers = {kind: signal.signal(kind, self._on_signal) for kind in kinds}
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all children and give the signals back."""
        try:
            self._stop()
        finally:
            for kind, handler in self._handlers.items():
                signal.signal(kind, handler)  # type: ignore[arg-type]

    def start(self, make_command: MakeCommand) -> None:
        """Start a child and have it watched.

        Raises:
            SupervisorError: if it cannot be started.
        """
        try:
            service = Service(make_command)
        except OSError as error:
            raise SupervisorError(f"cannot start a process: {error}") from error
        self._services[service.child.command.name] = service

    def wait_until(self, condition: Callable[[], bool], *, what: str, seconds: float) -> None:
        """Wait for the stack to come up; here a child's death is the end of it.

        Raises:
            SupervisorError: if a child ends, or the time is over.
            StopRequestedError: on a signal.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            self._tick()
            for service in self._services.values():
                if (code := service.child.exit_code) is not None:
                    child = service.child
                    words = child.last_words() or f"exit code {code}, see {child.command.log}"
                    raise SupervisorError(f"{child.command.name} ended at the start: {words}")
            if time.monotonic() > deadline:
                raise SupervisorError(f"{what} took longer than {seconds:.0f} s")

    def watch(self) -> None:
        """Keep all children alive until a signal comes.

        Raises:
            StopRequestedError: on a signal.
        """
        while True:
            self._tick()
            for service in self._services.values():
                service.revive(self._say)

    def _tick(self) -> None:
        if self._first_signal is not None:
            raise StopRequestedError
        time.sleep(_TICK_SECONDS)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
        elif now - self._first_signal > _IMPATIENCE_SECONDS:
            for service in self._services.values():
                service.child.kill()

    def _stop(self) -> None:
        # The first one started is what the others work with: it goes when they are gone.
        children = [service.child for service in self._services.values()]
        for group in (children[1:], children[:1]):
            for child in group:
                child.ask_to_stop()
            for child in group:
                child.wait()


# A data directory is used by one stack at a time.


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
