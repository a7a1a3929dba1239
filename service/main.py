"""``python -m service.main``: the API alone; Redis, blobs and workers are elsewhere."""

from __future__ import annotations

import logging
import socket
from typing import Annotated

import typer
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from service.app import create_app
from service.settings import Settings
from worker.blobs import BlobError, BlobStore
from worker.queues import open_redis
from worker.signing import parse_secret

EXIT_CANNOT_START = 3


def build(settings: Settings) -> FastAPI:
    """Return the API with the stores that the settings name.

    Raises:
        BlobError: if there is no such blob store.
        ValueError: if the Redis URL is none, or the webhook secret.
    """
    if settings.webhook_secret:  # the janitor signs with it; here a mistake is seen at the start
        parse_secret(settings.webhook_secret)
    # A client in front of a queue that is away should hear of it soon.
    redis = open_redis(settings.redis_url, timeout=3.0)
    return create_app(settings, redis, BlobStore.open(settings.blobs))


def main(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    fd: Annotated[
        int | None, typer.Option(hidden=True, help="A listening socket, instead of an address.")
    ] = None,
) -> None:
    """Serve the HTTP API; REDIS_URL and SEMPLES_BLOBS say where the rest is."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        app = build(Settings())
    except (ValidationError, BlobError, ValueError) as error:
        typer.echo(f"semples api: {str(error).replace(chr(10), ' ')}", err=True)
        raise typer.Exit(EXIT_CANNOT_START) from error
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=None if fd is None else [socket.socket(fileno=fd)])


if __name__ == "__main__":
    typer.run(main)
