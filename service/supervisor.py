"""One stack in one process tree: started in order, kept alive, stopped together."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType

from service.processes import Child, Command

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
