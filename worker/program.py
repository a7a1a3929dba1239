"""Programs that ``semples`` hands over to: in their help they have the name by which people call them. Wire layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer


def run_program(main: Callable[..., Any], name: str) -> None:
    """Run a function as ``typer.run`` does, under a name such as "semples serve"."""
    app = typer.Typer(add_completion=False)
    app.command()(main)
    app(prog_name=name)
