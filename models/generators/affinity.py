"""Class evidence that travels between places which look alike to the backbone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

# Cosines of ReLU features are high everywhere; this power leaves only near neighbors in feature space.
SHARPNESS = 4


def propagate(cams: Tensor, features: Tensor, *, steps: int) -> Tensor:
    """Spread CAMs by the cosine affinity of features: each step replaces a place by the mean of its likes.

    The counterpart for convolutional networks of a transformer's patch affinity (as in WeakTr's fine CAM). Rows of the
    transition matrix are positive cosines to the power of 4, divided by their sum.

    Args:
        cams: (B, K, h, w).
        features: the backbone's map that the CAMs were read from, (B, C, h, w).
        steps: how often; 0 returns the CAMs as they are.

    Returns:
        (B, K, h, w); a constant map stays constant. Memory grows with (h w)² an image.

    Raises:
        ValueError: if the grids differ.
    """
    if cams.shape[-2:] != features.shape[-2:] or cams.shape[0] != features.shape[0]:
        raise ValueError(
            f"expected CAMs on the features' grid {tuple(features.shape)}, got {tuple(cams.shape)}"
        )
    if not steps:
        return cams
    unit = F.normalize(features.flatten(2), dim=1)
    affinity = (unit.transpose(1, 2) @ unit).relu() ** SHARPNESS
    # A place without any feature has no likes; it keeps nothing rather than turning into NaN.
    transition = affinity / affinity.sum(dim=2, keepdim=True).clamp(min=1e-12)
    spread = cams.flatten(2)
    for _ in range(steps):
        spread = spread @ transition.transpose(1, 2)
    return spread.view_as(cams)
