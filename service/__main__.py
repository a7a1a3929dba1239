"""``python -m service``: the API alone; Redis, blobs and workers run elsewhere."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
import uvicorn
from fastapi import FastAPI

from models.messages import accept_any_output, one_line
from service.app import create_app
from service.batches.slots import set_temp_directory
from service.middleware.auth import require_auth_for_public_bind
from service.settings import Settings
from worker import telemetry
from worker.queue.rq import open_redis
from worker.signals import ignore, ignored
from worker.storage import BlobError, BlobStore
from worker.webhooks.sender import parse_secret

_EXIT_CANNOT_START = 3
_REDIS_TIMEOUT = 3.0  # seconds: a client should soon get an error if Redis cannot be reached


def _server_config(app: FastAPI, *, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Config:
    """Return uvicorn's configuration."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,  # service.middleware.observability writes one, without queries
        server_header=False,
        proxy_headers=False,  # the app reads them, from the proxies in the settings alone
        timeout_graceful_shutdown=5,
    )


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hear signals as uvicorn does, but those that were ignored at the start."""
        kept = ignored()
        with super().capture_signals():
            ignore(kept)
            yield


def main(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    fd: Annotated[int | None, typer.Option(hidden=True, help="A listening socket, instead of an address.")] = None,
    log: Annotated[telemetry.LogFormat, typer.Option(envvar="SEMPLES_LOG", help="Log as text or JSON lines.")] = "text",
    root_path: Annotated[
        str, typer.Option(envvar="SEMPLES_ROOT_PATH", help="Path below which a proxy serves the API, such as /ml.")
    ] = "",
) -> None:
    """Serve the HTTP API; REDIS_URL and SEMPLES_BLOBS say where the rest is."""
    telemetry.configure_logging(log)
    telemetry.configure_tracing("semples-api", os.environ)
    listener = None if fd is None else socket.socket(fileno=fd)
    if listener is not None:
        host = listener.getsockname()[0]
    try:
        settings = Settings.load(root_path=root_path)
        require_auth_for_public_bind(settings, host)
        set_temp_directory(settings.spool)
        if settings.webhook_secret:  # the janitor signs with it; a mistake is found here
            parse_secret(settings.webhook_secret)
        redis = open_redis(settings.redis_url, timeout=_REDIS_TIMEOUT)
        app = create_app(settings, redis, BlobStore.open(settings.blobs))
    except (BlobError, ValueError, OSError) as error:
        typer.echo(one_line(f"python -m service: {error}"), err=True)
        raise typer.Exit(_EXIT_CANNOT_START) from error
    config = _server_config(app, host=host, port=port)
    _Server(config).run(sockets=None if listener is None else [listener])


if __name__ == "__main__":
    accept_any_output()
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    program.command()(main)
    program(prog_name="python -m service")
