"""``semples serve`` with the misbehaving predictor: ``python -m tests.helpers.service_stack DATA PORT``."""

import os
import sys
from pathlib import Path

import typer

from service.local.serve import _Stack, serve


def main(data: Path, port: int, bundle: str = "double") -> None:
    worker = [sys.executable, "-m", "tests.helpers.service_doubles", "--lease", "3", "--bundle", bundle]
    redis_url = os.environ.get("REDIS_URL") or None
    serve(_Stack(host="127.0.0.1", port=port, data=data, redis_url=redis_url, worker=worker))


if __name__ == "__main__":
    typer.run(main)
