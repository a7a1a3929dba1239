"""What the API's image must not need."""

from tests.helpers.command import python

LIGHT = (
    *("service.app", "service.__main__", "service.local.serve"),
    *("worker.queue.rq", "worker.janitor", "worker.__main__", "worker.inference.worker"),
)
HEAVY = ("torch", "torchvision", "timm", "open_clip", "models.inference.predictor")


def test_no_torch() -> None:
    code = f"import sys, {', '.join(LIGHT)}; print([name for name in {HEAVY} if name in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"
