"""What every refiner asks of its arguments."""

from __future__ import annotations

from torch import Tensor


def check_pair(image: Tensor, scores: Tensor) -> None:
    """Check that scores belong to an image.

    Raises:
        ValueError: unless the image is (B, 3, H, W) and the scores (B, C, H, W), both floating point.
    """
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(f"expected an image of shape (B, 3, H, W), got {tuple(image.shape)}")
    batch, _, height, width = image.shape
    if scores.dim() != 4 or (len(scores), *scores.shape[2:]) != (batch, height, width):
        raise ValueError(
            f"expected scores of shape ({batch}, C, {height}, {width}), as the image's, "
            f"got {tuple(scores.shape)}"
        )
    if not (image.is_floating_point() and scores.is_floating_point()):
        raise ValueError(f"expected floating point tensors, got {image.dtype} and {scores.dtype}")
