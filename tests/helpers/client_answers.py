"""A service's answers about one job, for scripts of tests of the client."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np

from models.data.mask_files import label_map_png

JOB: dict[str, Any] = {
    "id": "0" * 32,
    "task": "pseudo_mask",
    "status": "finished",
    "model": {"name": "double", "version": "1"},
    "labels": ["cat"],
    "options": {"refine": "none", "min_confidence": 0.0},
    "classes": [],
    "links": {},
}

MASK = label_map_png(np.zeros((2, 3), np.uint8))


def job(status: str = "finished", **more: Any) -> httpx.Response:
    return httpx.Response(200, json={**JOB, "status": status, **more})


def mask() -> httpx.Response:
    return httpx.Response(200, content=MASK)


def events(*words: str) -> httpx.Response:
    return httpx.Response(200, content="".join(words).encode())
