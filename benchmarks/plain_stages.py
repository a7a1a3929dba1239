"""The method written down plainly: everything computed anew in each step, nothing kept. What stage_speed compares with.

Same networks, same losses, same results; only the order and the amount of work differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.clip import CLASS_TEMPLATE, FrozenClip
from models.generators.weaktr import WeakTrGenerator
from models.inference.multi_scale import normalize_cams, resize_images
from models.losses import (
    contrastive_prompt_learning,
    present_pairs,
    segment_label_matching,
    semantic_refinement,
)
from models.prompts import BackgroundPrompts

EPSILON = 0.1
BACKGROUND_WEIGHT, TEXT_WEIGHT, REFINEMENT_WEIGHT = 2.4, 0.02, 0.05


def plain_cams(generator: WeakTrGenerator, images: Tensor) -> Tensor:
    """Fine CAMs, (B, K, h, w): the maps of all blocks and heads are kept, stacked and then averaged.

    The trunk's activations are kept too, though its outputs are detached.
    """
    tokens = generator.patch_embed((images - generator.mean) / generator.std)
    grid = (tokens.shape[-2], tokens.shape[-1])
    tokens = tokens.flatten(2).transpose(1, 2)
    tokens = torch.cat([generator.cls_token.expand(len(images), -1, -1), tokens], dim=1)
    tokens = tokens + generator._positions(grid)
    maps, pooled = [], []
    for block in generator.blocks:
        tokens, attended = block(tokens)
        width = attended.queries.shape[-1]
        maps.append((attended.queries @ attended.keys.transpose(-2, -1) / width**0.5).softmax(dim=-1))
        pooled.append(generator.adaptive_attention_fusion.pool(attended.output))
    weights = generator.adaptive_attention_fusion(torch.stack(pooled, dim=1).detach())
    # (B, depth, heads, N, N), as large as all of them together
    stacked = torch.stack(maps, dim=1).detach()
    attention = (stacked * weights[..., None, None]).mean(dim=(1, 2))
    classes, first = generator.classes, generator.class_tokens
    patches = tokens[:, first:].transpose(1, 2).unflatten(2, grid).detach()
    cam = attention[:, :classes, first:].unflatten(2, grid) * generator.head(patches).relu()
    fine = cam.flatten(2) @ attention[:, first:, first:].transpose(1, 2)
    return fine.view_as(cam)


def plain_texts(clip: FrozenClip, names: Sequence[str]) -> Tensor:
    """Class texts, (K, D), through all 77 places of CLIP's context."""
    tokens = clip.tokenizer([CLASS_TEMPLATE.format(name) for name in names])
    with torch.no_grad():
        return F.normalize(clip.model.encode_text(tokens), dim=-1)


def plain_prompts(clip: FrozenClip, contexts: Tensor) -> Tensor:
    """Soft prompts, (K, D), likewise."""
    model = clip.model
    fixed = model.token_embedding(clip.tokenizer([CLASS_TEMPLATE.format("")]))
    fixed = fixed.expand(len(contexts), -1, -1)
    length = model.positional_embedding.shape[0]
    sequence = torch.cat([fixed[:, :4], contexts, fixed[:, 4:]], dim=1)[:, :length]
    hidden = model.transformer(sequence + model.positional_embedding, attn_mask=model.attn_mask)
    end = model.ln_final(hidden)[:, 5 + contexts.shape[1]]
    return F.normalize(end @ model.text_projection, dim=-1)


@dataclass(frozen=True)
class PlainStages:
    """One step of each stage, written down plainly.

    Attributes:
        generator: the mask generator.
        clip: the frozen CLIP.
        names: of all classes.
    """

    generator: WeakTrGenerator
    clip: FrozenClip
    names: Sequence[str]

    def generator_step(self, images: Tensor, labels: Tensor, prompts: BackgroundPrompts | None) -> None:
        """Stage (a), or (c) where there are prompts: texts anew, all classes masked, the present ones chosen."""
        text = plain_texts(self.clip, self.names)
        present = present_pairs(labels)
        foreground, background = self._regions(images, present)
        chosen = present[:, 1]
        f, b = self.clip.embed_images(foreground), self.clip.embed_images(background)
        loss = segment_label_matching(f, b, text[chosen], background_weight=BACKGROUND_WEIGHT)
        if prompts is not None:
            learned = plain_prompts(self.clip, prompts.context).detach()
            loss = loss + semantic_refinement(f, learned[chosen], refinement_weight=REFINEMENT_WEIGHT)
        loss.backward()

    def prompt_step(self, images: Tensor, labels: Tensor, prompts: BackgroundPrompts) -> None:
        """Stage (b): CAMs, regions and their embeddings anew, though none of them changes."""
        text = plain_texts(self.clip, self.names)
        present = present_pairs(labels)
        with torch.no_grad():
            _, background = self._regions(images, present)
            b = self.clip.embed_images(background)
        embedded = plain_prompts(self.clip, prompts.context)
        chosen = present[:, 1]
        loss = contrastive_prompt_learning(b, embedded[chosen], text[chosen], text_weight=TEXT_WEIGHT)
        loss.backward()

    def cams(self, image: Tensor, channels: Tensor, *, scales: Sequence[float]) -> Tensor:
        """CAMs of one image, (1, n, H, W): one pass for each scale and flip, all classes upsampled."""
        size = (image.shape[-2], image.shape[-1])
        total = torch.zeros(1, len(self.names), *size)
        for scale in scales:
            height, width = (round(side * scale / 32) * 32 for side in size)
            scaled = resize_images(image, (height, width))
            for flipped in (False, True):
                cams = plain_cams(self.generator, scaled.flip(-1) if flipped else scaled)
                up = F.interpolate(cams, size=size, mode="bilinear", align_corners=False)
                total += up.flip(-1) if flipped else up
        return normalize_cams(total[:, channels])

    def _regions(self, images: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        cams = plain_cams(self.generator, images)
        up = F.interpolate(cams, size=self.clip.input_size, mode="bilinear", align_corners=True)
        low, high = up.amin(dim=(-2, -1), keepdim=True), up.amax(dim=(-2, -1), keepdim=True)
        masks = ((up - low) / (high - low + EPSILON))[:, :, None]
        seen = self.clip.normalize(resize_images(images, self.clip.input_size))[:, None]
        image, channel = present.unbind(1)
        return (masks * seen)[image, channel], ((1 - masks) * seen)[image, channel]
