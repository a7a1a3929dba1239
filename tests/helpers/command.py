"""The command line, run in the test's process or in one of its own."""

import io
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from unittest.mock import patch

import pytest

from models.cli import main
from tests.helpers.paths import ROOT

Done = subprocess.CompletedProcess[str]
_TERMINAL = {"COLUMNS": "200", "NO_COLOR": "1"}


def semples(*arguments: object) -> Done:
    """Run ``semples`` in this process; what it prints is returned, and printed for capsys as well."""
    argv = ["semples", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", argv),
        patch.dict(os.environ, _TERMINAL),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    sys.stdout.write(out.getvalue())
    sys.stderr.write(err.getvalue())
    return Done(argv, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def semples_ok(*arguments: object) -> str:
    """Run ``semples`` in this process, check that it succeeds, and return what it prints."""
    done = semples(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def semples_refuses(*arguments: object) -> str:
    """Run ``semples`` in this process, check for exit code 2, and return its message."""
    done = semples(*arguments)
    assert done.returncode == 2, done.stdout
    return done.stderr


def semples_process(*arguments: object) -> Done:
    """Run ``semples`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from models.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **_TERMINAL},
    )


def python(*arguments: str, check: bool = True, **environment: str) -> Done:
    """Run the interpreter in the repository."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=check,
        timeout=60,
    )


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Make writes beyond so many bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
