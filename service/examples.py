"""Examples for the schema in /docs."""

from __future__ import annotations

from typing import Any, Final

_PATH: Final = "/jobs/2f5c0c8f4c1e4d0a9b7a6c5d4e3f2a1b"

JOB: Final[dict[str, Any]] = {
    "id": "2f5c0c8f4c1e4d0a9b7a6c5d4e3f2a1b",
    "task": "pseudo_mask",
    "status": "finished",
    "created_at": "2026-11-25T08:30:00.120000Z",
    "started_at": "2026-11-25T08:30:00.125000Z",
    "ended_at": "2026-11-25T08:30:00.480000Z",
    "model": {"name": "coco-demo", "version": "0123456789ab"},
    "labels": ["cat"],
    "vocabulary": "closed",
    "options": {
        "refine": "pamr",
        "min_confidence": 0.0,
        "background_threshold": 0.4,
        "class_thresholds": {},
    },
    "image": {"width": 640, "height": 480, "exif_orientation": 1},
    "classes": [
        {
            "index": 1,
            "name": "cat",
            "area": 0.21,
            "confidence": 0.83,
            "alignment_class": 0.27,
            "alignment_background": 0.16,
            "box": [120, 80, 400, 420],
            "zero_shot": False,
        }
    ],
    "ignored": 0.0,
    "timings": {"queue": 0.002, "decode": 0.011, "model": 0.3, "encode": 0.02},
    "links": {
        "self": _PATH,
        "events": f"{_PATH}/events",
        "mask": f"{_PATH}/mask.png",
        "overlay": f"{_PATH}/overlay.png",
        "confidence": f"{_PATH}/confidence.png",
        "cams": {"cat": f"{_PATH}/cam/1.png"},
        "scores": f"{_PATH}/scores.npz",
        "coco": f"{_PATH}/coco.json",
        "polygons": f"{_PATH}/polygons.json",
        "label_studio": f"{_PATH}/label-studio.json",
        "cvat": f"{_PATH}/cvat.xml",
    },
}
