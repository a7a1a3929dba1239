"""Run a command that ends when its parent does, even if the parent is killed with -9.

A script of its own, ``python tether.py SIGNAL PARENT COMMAND…``, that asks the kernel for a signal
at the parent's death and then becomes the command. Asking between fork and exec in the parent
(``preexec_fn``) is not safe where there are threads. Linux only; elsewhere the command just runs.

The kernel means the parent's *thread*: start tethered children from a thread that stays.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Tie this process to its parent, then become the command."""
    death_signal, parent, *command = arguments
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "cannot ask for a signal at the parent's death")
        if os.getppid() != int(parent):  # it died before we asked
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
