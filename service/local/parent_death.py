"""Run a command that ends when its parent does, even if the parent is killed with SIGKILL.

A script of its own, ``python parent_death.py SIGNAL PARENT COMMAND…``: it asks the kernel for a signal at the parent's
death and then becomes the command. Asking between fork and exec in the parent (``preexec_fn``) is not safe where there
are threads. Linux only; elsewhere the command just runs.

The kernel means the parent's *thread*: start such children from a thread that lives on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def _die_with_parent(arguments: list[str]) -> None:
    """Ask for a signal at the parent's death, then become the command."""
    death_signal, parent, *command = arguments
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "cannot ask for a signal at the parent's death")
        if os.getppid() != int(parent):  # it died before we asked
            sys.exit(1)
    # The parent stops it so, even where the parent itself was started to ignore the signal.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.execv(command[0], command)


if __name__ == "__main__":
    _die_with_parent(sys.argv[1:])
