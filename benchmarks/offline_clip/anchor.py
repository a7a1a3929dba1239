"""Give a built offline CLIP the baseline that every trained CLIP has: all cosines well above 0.

    python -m benchmarks.offline_clip.anchor --clip build/offline-clip --output build/anchored

The offline CLIP's embeddings are centered, so half of all cosines are negative, where the method's
losses, made for CLIP's cosines of 0.1 to 0.4, clamp them and have no gradient: most prompts would
never start to learn. Here both towers get a constant part along one direction that neither uses, in
closed form: a bias of the image projection, and a shift of the text tower's last layer norm. With
text strength r and image strength q the cosine a becomes, for an image of typical norm,
(a + r q) / sqrt((1 + r²)(1 + q²)). An image with no evidence at all gets the neutral cosine
r / sqrt(1 + r²) instead of a random one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import open_clip
import torch
import typer
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from benchmarks.offline_clip.build import CONFIG_NAME, save_clip
from benchmarks.offline_clip.text_tower import CLASS_NAMES, TEMPLATES, full_length_encoder

TYPICAL_IMAGE_NORM = 12.9
"""Median norm of the image tower's output before normalization, over the photos of coco100."""


@dataclass(frozen=True)
class WeakDirection:
    """The direction that a text projection uses least.

    ``shift`` (width,) times the projection is ``direction`` (D,), of unit length.
    """

    direction: Tensor
    shift: Tensor


def weakest_direction(projection: Tensor) -> WeakDirection:
    """Find the direction of least gain of a text projection, (width, D), of full rank."""
    left, gains, right = torch.linalg.svd(projection, full_matrices=False)
    return WeakDirection(direction=right[-1], shift=left[:, -1] / gains[-1])


def anchor(model: CLIP, *, text_shift: float, image_shift: float) -> None:
    """Add a constant part to all embeddings, in place.

    Args:
        model: a CLIP whose image projection has a bias; what it held is lost.
        text_shift: length of the constant part of text embeddings before normalization.
        image_shift: the same of image embeddings.
    """
    weak = weakest_direction(model.text_projection.detach())
    head = model.visual.head.proj
    with torch.no_grad():
        model.ln_final.bias += text_shift * weak.shift
        # The direction belongs to the anchor alone, so that it tells nothing about an image.
        head.weight -= torch.outer(weak.direction, weak.direction @ head.weight)
        head.bias.copy_(image_shift * weak.direction)


def with_projection_bias(config: dict[str, Any], model: CLIP) -> tuple[dict[str, Any], CLIP]:
    """Copy an offline CLIP into one whose image projection has a bias, still 0.

    Returns:
        The new ``model_cfg`` and model.

    Raises:
        ValueError: if the projection has a bias already.
    """
    if model.visual.head.proj.bias is not None:
        raise ValueError("expected a CLIP without an anchor, got one whose projection has a bias")
    config = {**config, "vision_cfg": {**config["vision_cfg"], "timm_proj_bias": True}}
    wider = CLIP(**config).eval()
    state = dict(model.state_dict())
    state["visual.head.proj.bias"] = torch.zeros_like(wider.visual.head.proj.bias)
    wider.load_state_dict(state)
    return config, wider


def main(
    clip: Annotated[Path, typer.Option(help="Folder of the offline CLIP as built.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    text: Annotated[float, typer.Option(help="Constant part of texts, in norms.")] = 0.4,
    image: Annotated[float, typer.Option(help="Constant part of images, in norms.")] = 1.5,
) -> None:
    """Write a copy of an offline CLIP with anchored embeddings."""
    config = json.loads((clip / CONFIG_NAME).read_text(encoding="utf-8"))["model_cfg"]
    config, model = with_projection_bias(config, open_clip.create_model(f"local-dir:{clip}").eval())
    encode = full_length_encoder(model, SimpleTokenizer())
    norm = encode([TEMPLATES[0].format(name) for name in CLASS_NAMES]).norm(dim=-1).mean()
    anchor(model, text_shift=text * float(norm), image_shift=image * TYPICAL_IMAGE_NORM)
    save_clip(model, output, config=config)


if __name__ == "__main__":
    typer.run(main)
