"""What the API's image must not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT


@pytest.mark.parametrize(
    "module",
    [
        *("service.app", "service.__main__", "service.local.serve"),
        *("worker.queue.rq", "worker.inference.worker", "worker.janitor", "worker.dead"),
    ],
)
def test_no_torch(module: str) -> None:
    heavy = (
        "torch",
        "torchvision",
        "timm",
        "open_clip",
        "worker.inference.pipeline",
        "models.inference.predictor",
    )
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
