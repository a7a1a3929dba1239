"""A CAM network that needs no training: CLIP's own image trunk, its head written by class texts."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from models.clip import FrozenClip, FrozenImageTower
from models.generators.cnn import CnnGenerator

# Evidence is a few units high, so that the released epsilon of 0.1 in the masks' min-max stays small beside it.
EVIDENCE_SCALE = 10.0


def classifier_backbone(name: str, *, output_stride: int) -> nn.Module:
    """Build a timm network up to the map that its classifier pools, (B, 3, H, W) → (B, C, h, w), random weights."""
    backbone: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=0, global_pool="", output_stride=output_stride
    )
    return backbone


def trunk_name(clip: FrozenClip) -> str:
    """Return timm's name of a CLIP's image trunk.

    Raises:
        ValueError: if the image tower is not a timm trunk with pooling and one linear projection.
    """
    visual: Any = clip.model.visual
    projection = getattr(getattr(visual, "head", None), "proj", None)
    if not (hasattr(visual, "trunk") and isinstance(projection, nn.Linear)):
        raise ValueError(
            "expected a CLIP whose image tower is a timm trunk, pooling and a linear projection, "
            f"got {type(visual).__name__}"
        )
    return str(visual.trunk.pretrained_cfg["architecture"])


def text_initialized_head(tower: FrozenImageTower, class_text: Tensor) -> Tensor:
    """Write a 1×1 head whose evidence, averaged over space, is proportional to CLIP's own score of the class.

    The tower pools features f and projects them, so t · P mean(f) = mean((Pᵀt) · f): the row of a class is Pᵀt.
    All rows share one scale, by which the evidence of a feature as large as P's typical input is EVIDENCE_SCALE.

    Args:
        tower: the image tower of a CLIP that ``trunk_name`` accepts.
        class_text: class text embeddings, (K, D), L2-normalized.

    Returns:
        Head weights, (K, C).
    """
    projection = tower.visual.head.proj.weight
    with torch.no_grad():
        rows: Tensor = class_text @ projection
        scale: Tensor = EVIDENCE_SCALE / rows.norm(dim=1).mean()
        return rows * scale


def zero_shot_generator(
    clip: FrozenClip, class_text: Tensor, *, output_stride: int
) -> CnnGenerator:
    """Build a mask generator from a CLIP and class texts alone; the baseline that training must beat.

    The backbone is a copy of CLIP's trunk with dilated strides, so training it leaves CLIP as it was.

    Args:
        clip: a CLIP that ``trunk_name`` accepts.
        class_text: class text embeddings, (K, D), L2-normalized.
        output_stride: 8, 16 or 32.

    Raises:
        ValueError: if the image tower has another form.
    """
    backbone = classifier_backbone(trunk_name(clip), output_stride=output_stride)
    backbone.load_state_dict(clip.model.visual.trunk.state_dict())
    mean, std = (buffer.flatten().tolist() for buffer in (clip.mean, clip.std))
    head = text_initialized_head(clip, class_text)
    return CnnGenerator(backbone, head, mean=mean, std=std).eval()
