"""Where a job and its files are, by HTTP. Wire layer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

FILES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "mask": "mask.png",
        "overlay": "overlay.png",
        "confidence": "confidence.png",
        "scores": "scores.npz",
        "coco": "coco.json",
        "polygons": "polygons.json",
        "label_studio": "label-studio.json",
        "cvat": "cvat.xml",
    }
)
"""Of a finished job, beside one CAM for each class."""


def job_links(path: str, *, finished: bool) -> dict[str, str]:
    """Return the paths of a job, of its events and, once it is finished, of its files.

    Args:
        path: the job's own.
        finished: whether it is.
    """
    files = {name: f"{path}/{file}" for name, file in FILES.items()} if finished else {}
    return {"self": path, "events": f"{path}/events", **files}
