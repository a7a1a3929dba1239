"""Write a CLIP as a folder that ``open_clip.create_model_and_transforms("local-dir:…")`` reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from open_clip import CLIP
from torch import Tensor

from benchmarks.offline_clip.image_tower import BACKBONE, IMAGE_MEAN, IMAGE_SIZE, IMAGE_STD

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"


def model_config(text: Mapping[str, Any], *, embedding_width: int) -> dict[str, Any]:
    """Write open_clip's ``model_cfg``: EfficientNet-Lite0 with a bias-free linear projection."""
    return {
        "embed_dim": embedding_width,
        "vision_cfg": {
            "timm_model_name": BACKBONE,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "timm_proj_bias": False,
            "image_size": IMAGE_SIZE,
        },
        "text_cfg": dict(text),
    }


def preprocess_config() -> dict[str, Any]:
    """Write open_clip's ``preprocess_cfg``: how photos become the image tower's input."""
    return {
        "size": IMAGE_SIZE,
        "mean": [IMAGE_MEAN] * 3,
        "std": [IMAGE_STD] * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }


def compact_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store matrices and kernels in half precision, all else as it is.

    Vectors stay: a batch norm's variances may be too small for half precision, and weigh nothing.
    """
    return {
        key: (value.half() if value.is_floating_point() and value.ndim > 1 else value).contiguous()
        for key, value in state.items()
    }


def save_clip(
    model: CLIP,
    folder: Path,
    *,
    config: Mapping[str, Any],
    preprocess: Mapping[str, Any] | None = None,
) -> None:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors``.

    The weights appear under their name only when they are complete.

    Args:
        model: to write.
        folder: made if missing.
        config: open_clip's ``model_cfg``.
        preprocess: open_clip's ``preprocess_cfg``; None is the offline CLIP's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"model_cfg": config, "preprocess_cfg": preprocess or preprocess_config()}
    text = json.dumps(content, indent=2)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    partial = folder / "weights.partial"
    # Not save_file, which lets only its own user read the file.
    partial.write_bytes(safetensors.torch.save(compact_state(model.state_dict())))
    partial.replace(folder / WEIGHTS_NAME)
