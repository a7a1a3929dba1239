"""Stages (a) and (c): the mask generator learns from a frozen CLIP, in (c) with learned background prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.cam import resize_images
from models.clip import FrozenClip
from models.data.batches import Batch
from models.losses import segment_label_matching, semantic_refinement
from models.regions import MasksOf, present_pairs, split_regions


@dataclass(frozen=True)
class Refinement:
    """What stage (c) adds to stage (a).

    Attributes:
        prompts: embeddings of the learned background prompts, (K, D), L2-normalized.
        weight: w_r.
    """

    prompts: Tensor
    weight: float


def generator_losses(
    masks_of: MasksOf,
    clip: FrozenClip,
    class_text: Tensor,
    *,
    background_weight: float,
    refinement: Refinement | None = None,
) -> Callable[[Batch], Mapping[str, Tensor]]:
    """Return the losses of a batch: L_match, and L_refine too if there is a refinement.

    Args:
        masks_of: soft masks of the present classes, with gradient to the mask generator.
        clip: the frozen judge.
        class_text: class text embeddings, (K, D); embedded once, since nothing upstream of them learns.
        background_weight: w_b.
        refinement: the learned prompts; None is stage (a).
    """

    def losses_of(batch: Batch) -> Mapping[str, Tensor]:
        images, labels = (tensor.to(class_text.device) for tensor in batch)
        present = present_pairs(labels)
        seen = clip.normalize(resize_images(images, clip.input_size))
        regions = split_regions(seen, masks_of(images, present), present)
        # In single precision whatever the networks computed in: logarithms of cosines near 0 and 1 follow.
        # Both at once, since larger products are quicker.
        both = clip.embed_images(torch.cat([regions.foreground, regions.background])).float()
        foreground, background = both.tensor_split(2)
        channels = present[:, 1]
        losses = {
            "match": segment_label_matching(
                foreground, background, class_text[channels], background_weight=background_weight
            )
        }
        if refinement is not None:
            losses["refine"] = semantic_refinement(
                foreground, refinement.prompts[channels], refinement_weight=refinement.weight
            )
        return losses

    return losses_of


def present_classes(labels: Tensor) -> Tensor:
    """Return which (image, class) pairs are present, (B, K): what the losses are means over."""
    return labels > 0
