"""All commands under one name, and one way to fail."""

from __future__ import annotations

import os
import sys

import typer
from rich.console import Console

from models.cli import bundles, masks, serving, training

app = typer.Typer(
    name="semples",
    help="Pixel masks from image-level labels: train, make pseudo masks, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (masks, training, bundles, serving):
    module.register(app)


def main() -> None:
    """Run a command. Wrong input ends in one line on standard error and exit code 2, never in a traceback."""
    # Before torch is imported: idle OpenMP threads that spin stall the other processes of a small machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except (ValueError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(
            f"semples: {' '.join(str(error).split())}", markup=False, highlight=False
        )
        sys.exit(2)
    except FloatingPointError as error:
        Console(stderr=True, soft_wrap=True).print(
            f"semples: {error}", markup=False, highlight=False
        )
        sys.exit(1)
