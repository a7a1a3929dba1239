"""Small random vision transformers of open_clip's, and mask generators on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import open_clip
import torch

from models.clip import FrozenImageTower
from models.clip_vit_options import ClipVitOptions
from models.generators.clip_vit import BackgroundTexts, ClipVitGenerator


def random_vit(*, width: int, layers: int, heads: int, output: int, patch: int = 16, quick: bool = True) -> Any:
    """A ViT of OpenAI's layout with 4 × 4 patches, whose norms and attention are not the identity."""
    vision = open_clip.transformer
    visual = vision.VisionTransformer(
        image_size=4 * patch,
        patch_size=patch,
        width=width,
        layers=layers,
        heads=heads,
        mlp_ratio=4,
        output_dim=output,
        act_layer=vision.QuickGELU if quick else torch.nn.GELU,
    )
    with torch.no_grad():
        for parameter in visual.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for block in visual.transformer.resblocks:
            block.attn.in_proj_weight.mul_(2)
    return visual.eval().requires_grad_(False)


def vit_generator(
    *,
    classes: int = 3,
    layers: int = 3,
    patch: int = 16,
    quick: bool = True,
    names: Sequence[Sequence[str]] | None = None,
    stuff: Sequence[str] = ("sky", "grass", "wall"),
    **options: str,
) -> ClipVitGenerator:
    """A mask generator on a small random ViT; equal arguments give equal weights."""
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    visual = random_vit(width=64, layers=layers, heads=4, output=16, patch=patch, quick=quick)
    texts = torch.randn(classes + len(stuff), 16)
    torch.random.set_rng_state(state)
    return ClipVitGenerator(
        FrozenImageTower(visual, mean=[0.5] * 3, std=[0.25] * 3),
        texts[:classes],
        background=BackgroundTexts.of(stuff, texts[classes:], names or [[f"class {k}"] for k in range(classes)]),
        logit_scale=10,
        options=ClipVitOptions.model_validate({**options, "background_texts": tuple(stuff)}),
    )


TINY_VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
"""open_clip's description of a CLIP with a ViT, random ones of which have a few thousand parameters."""


def tiny_vit_clip() -> open_clip.CLIP:
    """A random CLIP with a ViT whose embeddings of texts and images do not all point one way."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY_VIT)
    with torch.no_grad():
        model.text_projection.normal_(0, 1)
        model.visual.proj.normal_(0, 1)
        for block in model.visual.transformer.resblocks:
            block.attn.in_proj_weight.mul_(2)
        model.logit_scale.fill_(3)
    return model
