"""All commands under one name, and one way to fail."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console
from typer.exceptions import TyperException

from models.cli import (
    bundles,
    evaluating,
    exporting,
    importing,
    masks,
    preparing,
    reporting,
    rethreshold,
    segmenting,
    serving,
    training,
)

app = typer.Typer(
    name="semples",
    help="Pixel masks from image-level labels: train, make pseudo masks, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (
    preparing, masks, rethreshold, evaluating, exporting, importing, segmenting, training, bundles, reporting,
    serving,
):  # fmt: skip
    module.register(app)


def main() -> None:
    """Run a command. Wrong input ends in one line on standard error and exit code 2, never in a traceback."""
    # Before torch is imported: idle OpenMP threads that spin stall the other processes of a small machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        code = app(standalone_mode=False)
    except TyperException as error:  # a wrong option or argument
        message = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
        _fail(message, 2)
    except OSError as error:
        _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error), 2)
    except ValueError as error:
        _fail(str(error), 2)
    except FloatingPointError as error:
        _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    else:
        sys.exit(code)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    if line:  # without any command typer has shown the help already
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"semples: {line}", markup=False, highlight=False)
    sys.exit(code)
