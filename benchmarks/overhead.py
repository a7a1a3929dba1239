"""What the service costs on top of the model: POST ?wait=… against the bare Predictor, one at a time.

    python -m benchmarks.overhead --bundle coco-demo --count 40

Starts ``semples serve`` in a temporary directory on this machine, then takes turns: one image through
the Predictor in this process, the same image over HTTP. Every image is new to the service, so nothing
is answered from memory. Prints p50 and p95 of both and of their difference, and where a request's time
goes. Figures of one run compare with each other, not with those of another run.
"""

from __future__ import annotations

import http.client
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.service_load.load import FORM, form
from benchmarks.service_load.programs import Model, service
from models import find_bundle, load_bundle
from models.data.images import read_image
from models.inference.predictor import Predictor

WARM_UP = 3


def synthetic_photo(number: int, *, width: int, height: int) -> bytes:
    """Return a JPEG of smooth shapes and some noise, another one for each number."""
    random = np.random.default_rng(number)
    small = random.integers(0, 256, (height // 40 + 1, width // 40 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth.astype(np.int16) + random.integers(-8, 9, smooth.shape, dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def post(port: int, photo: bytes, label: str, refine: str) -> dict[str, Any]:
    """Post a photo, wait for its job, and return the job's document."""
    body = form(photo, [label], {"refine": refine})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    try:
        connection.request("POST", "/pseudo-mask?wait=60", body, {"Content-Type": FORM})
        answer = connection.getresponse()
        status, content = answer.status, answer.read()
    finally:
        connection.close()
    document: dict[str, Any] = json.loads(content)
    if status != http.HTTPStatus.OK or document["status"] != "finished":
        raise SystemExit(f"the service answered {status}: {content[:300]!r}")
    return document


def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long an action took, and what it returned."""
    started = time.perf_counter()
    value = action()
    return time.perf_counter() - started, value


def measure(predictor: Predictor, port: int, photos: list[bytes], label: str, refine: str) -> dict[str, list[float]]:
    """Take turns between the bare predictor and the service; return seconds by name."""
    options = predictor.options(refine=refine)
    rows: dict[str, list[float]] = {}
    for number, photo in enumerate(photos):
        pixels = read_image(photo).pixels
        bare, _ = seconds(partial(predictor.pseudo_mask, pixels, [label], options))
        total, document = seconds(partial(post, port, photo, label, refine))
        if number < WARM_UP:
            continue
        parts = document["timings"]
        row = {
            "bare predictor": bare,
            "POST ?wait": total,
            "overhead (POST - bare)": total - bare,
            "of it: decode": parts["decode"],
            "of it: encode and store": parts["encode"],
            "of it: in the queue": parts["queue"],
            "of it: HTTP, checks, queue's bookkeeping": total - sum(parts.values()),
            "of it: model slower in the worker": parts["model"] - bare,
        }
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
    return rows


def main(
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle.")] = "coco-demo",
    count: Annotated[int, typer.Option(min=5, max=500, help="Images to measure.")] = 40,
    width: Annotated[int, typer.Option(min=16)] = 500,
    height: Annotated[int, typer.Option(min=16)] = 375,
    refine: Annotated[str, typer.Option(help="Refiner chain.")] = "none",
) -> None:
    """Print the service's p50 and p95 overhead over the bare Predictor, concurrency 1."""
    folder = find_bundle(bundle)
    predictor = Predictor(load_bundle(folder, device=torch.device("cpu")))
    label = predictor.info.classes.names[0]
    photos = [synthetic_photo(i, width=width, height=height) for i in range(count + WARM_UP)]
    with (
        tempfile.TemporaryDirectory(prefix="semples-overhead-") as data,
        service(Path(data), Model(str(folder), refine, threads=0)) as port,
    ):
        rows = measure(predictor, port, photos, label, refine)
    table = Table("", "p50 ms", "p95 ms", title=f"{count} images of {width} x {height}, {refine}")
    for name, values in rows.items():
        p50, p95 = statistics.median(values), float(np.quantile(values, 0.95))
        table.add_row(name, f"{1000 * p50:.1f}", f"{1000 * p95:.1f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
