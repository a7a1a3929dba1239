"""The command line, run in the test's process."""

import sys

import pytest

from models.cli import main


def semples(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run ``semples`` with these arguments and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["semples", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)
