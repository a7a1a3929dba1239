"""Commands that hand over to the service and the worker; the library itself knows neither."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import typer

_FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("serve", context_settings=_FORWARD)(serve)
    app.command("worker", context_settings=_FORWARD)(worker)
    app.command("api-key", context_settings=_FORWARD)(api_key)
    app.command("janitor", context_settings=_FORWARD)(janitor)
    app.command("dead", context_settings=_FORWARD)(dead)
    app.command("submit", context_settings=_FORWARD)(submit)


def serve(context: typer.Context) -> None:
    """Serve over HTTP: queue, worker, janitor and API in one process tree (see serve --help)."""
    _become("service.serve", context.args, needs="semples[all]")


def worker(context: typer.Context) -> None:
    """Work for a queue: load a bundle once, then take jobs (see worker --help)."""
    _become("worker.main", context.args, needs="semples[worker]")


def api_key(context: typer.Context) -> None:
    """Make a key for the HTTP API (see api-key --help)."""
    _become("service.keys", context.args, needs="semples[api]")


def janitor(context: typer.Context) -> None:
    """Keep a service clean and deliver its webhooks (see janitor --help)."""
    _become("worker.janitor", context.args, needs="semples[janitor]", packages=("rq", "httpx"))


def dead(context: typer.Context) -> None:
    """List the jobs that took every worker down, or queue one again (see dead --help)."""
    _become("worker.dead", context.args, needs="semples[queue]")


def submit(context: typer.Context) -> None:
    """Have a service elsewhere make the masks of a photo or a folder (see submit --help)."""
    _become("service.submit", context.args, needs="semples[client]", packages=("httpx",))


def _become(
    module: str, arguments: list[str], *, needs: str, packages: Sequence[str] = ("rq",)
) -> None:
    """Replace this process, so that signals reach the server itself.

    -P: a models.py or worker.py in the user's directory must not stand in for ours.
    """
    if any(find_spec(name) is None for name in (module, *packages)):
        raise ValueError(f"expected the packages of {needs}, got an installation without them")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *arguments])
