"""Text for people, in messages and logs: no secrets of URLs, odd names escaped, one line. Free of torch."""

from __future__ import annotations

import re
import sys
from io import TextIOWrapper
from typing import Final

_USER: Final = re.compile(r"(\b[a-z][a-z0-9+.-]*://)\S*@", re.IGNORECASE)
"""To the last @: a password may hold any of @ / ? # %."""
_QUERY: Final = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s?#'\"]*)([?#])[^\s'\"]*", re.IGNORECASE)
_LINE_BREAK: Final = re.compile(r"\s*[\r\n]\s*")


def without_secrets(text: str) -> str:
    """Remove user, password, query and fragment from every URL in a text."""
    return _QUERY.sub(r"\1\2…", _USER.sub(r"\1…@", text))


def printable(text: object) -> str:
    r"""Return a name or path as a terminal, a log and any encoding of ours can show it.

    What would move the cursor, break the line or hide is escaped as Python does, and so are bytes of a file name that
    are not UTF-8: ``caf\xe9.jpg``.
    """
    return "".join(each if each.isprintable() else _escape(each) for each in str(text))


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that os.fsdecode could not decode
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def one_line(message: object) -> str:
    """Return a message as one line: without the secrets of URLs, odd characters escaped."""
    return printable(_LINE_BREAK.sub(" ", without_secrets(str(message)).strip()))


def accept_any_output() -> None:
    """Let this process print every character, whatever its terminal's encoding; others are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not what a test or a notebook has put there
            stream.reconfigure(errors="backslashreplace")
