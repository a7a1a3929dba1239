"""Signals of long-running programs: one that was ignored at the start, as ``nohup`` does, stays ignored."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Final

Handler = Callable[[int, FrameType | None], object]

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handle(kinds: Iterable[signal.Signals], handler: Handler) -> dict[signal.Signals, object]:
    """Install a handler for the signals that are not ignored; return what handled those before."""
    heard = [kind for kind in kinds if kind not in ignored()]
    return {kind: signal.signal(kind, handler) for kind in heard}


def ignored() -> frozenset[signal.Signals]:
    """Return those stop signals that this process ignores."""
    return frozenset(kind for kind in STOP_SIGNALS if signal.getsignal(kind) is signal.SIG_IGN)


def ignore(kinds: Iterable[signal.Signals]) -> None:
    """Ignore signals, whatever a library has installed for them."""
    for kind in kinds:
        signal.signal(kind, signal.SIG_IGN)
