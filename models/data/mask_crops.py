"""Random crops of photos and their pseudo masks, the same whichever process makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from models.data.classes import IGNORE_INDEX
from models.data.mask_folder import MaskSample
from models.images import read_image
from models.seeds import derive_seed, seeded

# images (B, 3, S, S) in [0, 1] and label maps (B, S, S) int64 of channel numbers, 255 ignored
MaskBatch: TypeAlias = tuple[Tensor, Tensor]
MaskTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_GRAY = 124


def mask_augmentation(
    size: int, *, scale: tuple[float, float], color_jitter: float
) -> MaskTransform:
    """Random scale, crop, flip and color; what a crop shows beyond the photo is gray and ignored.

    Masks are resized to the nearest value, never mixed.

    Args:
        size: side of the crop in pixels.
        scale: range of the photo's size relative to the size at which it just fits the crop.
        color_jitter: strength of the changes of brightness, contrast and saturation; of the hue a quarter of it.
    """
    fill = {tv_tensors.Image: _GRAY, tv_tensors.Mask: IGNORE_INDEX}
    jointly = v2.Compose(
        [
            v2.ScaleJitter((size, size), scale_range=scale, antialias=True),
            v2.RandomCrop(size, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(color_jitter, color_jitter, color_jitter, min(color_jitter / 4, 0.5)),
        ]
    )

    def transform(image: Tensor, label_map: Tensor) -> tuple[Tensor, Tensor]:
        crop, cropped = jointly(tv_tensors.Image(image), tv_tensors.Mask(label_map))
        return crop.as_subclass(Tensor).float() / 255, cropped.as_subclass(Tensor).long()

    return transform


class MaskCrops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops, decoded anew each time so that memory does not grow with the data set.

    Args:
        samples: photos with their masks.
        transform: image (3, H, W) uint8 and label map (H, W) → a crop of both.
        seed: a crop depends on it and on its number alone.
    """

    def __init__(
        self, samples: Sequence[MaskSample], *, transform: MaskTransform, seed: int
    ) -> None:
        self.samples = samples
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a crop (3, S, S) in [0, 1] and its label map (S, S).

        Raises:
            ValueError: if a file is not what it should be, with its path.
        """
        sample = self.samples[index]
        try:
            pixels = read_image(sample.image.read_bytes()).pixels
        except ValueError as error:
            raise ValueError(f"{sample.image}: {error}") from error
        mask = sample.read_mask()
        if mask.shape != pixels.shape[:2]:
            raise ValueError(
                f"expected a mask of {sample.image.name}'s size {pixels.shape[:2]}, got {mask.shape}"
            )
        try:
            with seeded(derive_seed(self.seed, index)):
                return self.transform(
                    torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(mask)
                )
        except RuntimeError as error:  # a strip so thin that its short side rounds to nothing
            raise ValueError(
                f"expected a photo that a crop can show, got {sample.image} ({error})"
            ) from error
