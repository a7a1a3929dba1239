"""Before stage (a): the mask generator learns to tell image-level labels, which makes it a CAM network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from models.data.batches import Batch

# images in [0, 1], (B, 3, H, W) → class evidence by name, (B, K) each; a network may have several readings
EvidenceOf = Callable[[Tensor], Mapping[str, Tensor]]


def classification_losses(
    evidence_of: EvidenceOf, *, device: torch.device
) -> Callable[[Batch], Mapping[str, Tensor]]:
    """Return the losses of a batch: the multi-label soft margin of each reading of the evidence.

    Args:
        evidence_of: with gradient to the mask generator.
        device: where the work is done.
    """

    def losses_of(batch: Batch) -> Mapping[str, Tensor]:
        images, labels = (tensor.to(device) for tensor in batch)
        return {
            name: F.multilabel_soft_margin_loss(evidence, labels)
            for name, evidence in evidence_of(images).items()
        }

    return losses_of
