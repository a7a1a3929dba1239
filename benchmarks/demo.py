"""``make demo``: start the whole stack, post real photos over HTTP, keep the masks, stop everything.

``python -m benchmarks.demo --output build/demo`` posts each photo of ``benchmarks/photos`` with its label to
``/pseudo-mask``, without and with refinement, and without labels to ``/segment``. It writes ``<stem>.png`` and
``<stem>_overlay.png`` and prints one table. ``--sheet docs/demo.png`` also makes README's picture.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
from PIL import Image
from rich.console import Console
from rich.table import Table

PHOTOS = Path(__file__).parent / "photos"
LABELS = {"cat": "cat", "coffee": "cup", "clock": "clock"}
READY_SECONDS = 120.0
WAIT_SECONDS = 60


def main() -> None:
    """Run the demo; exit code 0 once every mask is written and every process has ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--bundle", default="coco-demo")
    parser.add_argument("--sheet", type=Path)
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    console = Console()
    table = Table("photo", "call", "asked for", "found", "area", "confidence", "queue ms", "model ms")
    with serving(arguments.bundle) as url, httpx.Client(base_url=url, timeout=90) as client:
        for stem, label in LABELS.items():
            for suffix, options in (("_cam", {"refine": "none"}), ("", {})):
                job = post(client, "/pseudo-mask", stem, {"labels": label, **options})
                save(client, job, f"{stem}{suffix}", output)
            add_rows(table, stem, "/pseudo-mask", label, job)
            job = post(client, "/segment", stem, {})
            save(client, job, f"{stem}_segment", output)
            add_rows(table, stem, "/segment", f"({label})", job)
        if arguments.sheet:
            make_sheet(output).save(arguments.sheet, optimize=True)
        console.print(table)
        console.print(f"masks and overlays are in {output}", highlight=False)
        console.print(
            f"the API's pages were at {url}/docs; after `.venv/bin/semples serve` at http://127.0.0.1:8000/docs",
            highlight=False,
        )


def post(client: httpx.Client, call: str, stem: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Post one photo and wait for its job."""
    photo = PHOTOS / f"{stem}.jpg"
    answer = client.post(
        call,
        params={"wait": WAIT_SECONDS},
        files={"image": (photo.name, photo.read_bytes(), "image/jpeg")},
        data=fields,
    )
    if answer.status_code != 200 or answer.json()["status"] != "finished":
        sys.exit(f"expected a finished job for {photo.name}, got {answer.status_code}: {answer.text}")
    job: dict[str, Any] = answer.json()
    return job


def add_rows(table: Table, stem: str, call: str, asked: str, job: dict[str, Any]) -> None:
    """Add what a job found to the table: a row for each class that has pixels, or one that says there is none.

    What only the reader knows to be in the photo, because the call has no labels, is in brackets.
    """
    times = [f"{1000 * job['timings'][name]:.0f}" for name in ("queue", "model")]
    found = [each for each in job["classes"] if each["area"]]
    for each in found:
        table.add_row(stem, call, asked, each["name"], f"{each['area']:.1%}", f"{each['confidence']:.2f}", *times)
    if not found:
        table.add_row(stem, call, asked, "nothing", "–", "–", *times)


def save(client: httpx.Client, job: dict[str, Any], stem: str, output: Path) -> None:
    """Fetch a finished job's mask and overlay."""
    for link, suffix in (("mask", ""), ("overlay", "_overlay")):
        answer = client.get(job["links"][link]).raise_for_status()
        (output / f"{stem}{suffix}.png").write_bytes(answer.content)


def make_sheet(output: Path, *, height: int = 220) -> Image.Image:
    """Return all photos in a row, below them their masks before refinement and after it, then the segmenter's."""
    rows = [
        [PHOTOS / f"{stem}.jpg" for stem in LABELS],
        *([output / f"{stem}{suffix}_overlay.png" for stem in LABELS] for suffix in ("_cam", "", "_segment")),
    ]
    pictures = [[_at_height(path, height) for path in row] for row in rows]
    sheet = Image.new("RGB", (sum(each.width for each in pictures[0]), height * len(rows)))
    for number, row in enumerate(pictures):
        left = 0
        for each in row:
            sheet.paste(each, (left, number * height))
            left += each.width
    return sheet


def _at_height(path: Path, height: int) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB").resize((picture.width * height // picture.height, height))


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def serving(bundle: str, **settings: str) -> Iterator[str]:
    """Run ``semples serve`` in a temporary data directory on a free port; yield its URL once it is ready.

    ``settings`` are variables of its environment.
    """
    with tempfile.TemporaryDirectory(prefix="semples-demo-") as data:
        port = free_port()
        command = [sys.executable, "-m", "service.local.serve", "--port", str(port), "--data", data]
        command += ["--bundle", bundle]
        server = subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(f"{url}/ready", server, "semples serve", seconds=READY_SECONDS)
            yield url
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def wait_until_ready(
    url: str, server: subprocess.Popen[bytes], name: str, *, seconds: float, log: Path | None = None
) -> None:
    """Poll a server's URL until it answers with success; SystemExit, with the end of its log, if it never does."""
    deadline = time.monotonic() + seconds

    def give_up(instead: str) -> NoReturn:
        sys.exit(f"expected {name} to be ready, got {instead}" + (f":\n{log.read_text()[-2000:]}" if log else ""))

    while time.monotonic() < deadline:
        if server.poll() is not None:
            give_up(f"exit code {server.returncode}")
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    give_up(f"no success from {url} in {seconds:.0f} s")


if __name__ == "__main__":
    main()
