"""Samples as batches of tensors for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.data.sample import Sample
from models.data.transforms import Transform
from models.images import read_image

# images (B, 3, H, W) in [0, 1] and labels (B, K) multi-hot
Batch: TypeAlias = tuple[Tensor, Tensor]


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops of labeled photos, decoded anew each time so that memory does not grow with the data set.

    Args:
        samples: labeled photos.
        classes: K.
        transform: photo → crop.
    """

    def __init__(self, samples: Sequence[Sample], *, classes: int, transform: Transform) -> None:
        self.samples = samples
        self.classes = classes
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a crop (3, H, W) in [0, 1] and its labels (K,).

        Raises:
            ValueError: if the file is not an image that we take, with its path.
        """
        sample = self.samples[index]
        try:
            pixels = read_image(sample.path.read_bytes()).pixels
        except ValueError as error:
            raise ValueError(f"{sample.path}: {error}") from error
        labels = torch.zeros(self.classes)
        labels[list(sample.channels)] = 1
        return self.transform(pixels), labels


def shuffled_batches(
    crops: Crops, *, batch_size: int, workers: int, generator: torch.Generator
) -> DataLoader[Batch]:
    """Return a loader over all crops in random order, without the last incomplete batch.

    A data set smaller than the batch gives one batch of all of it, rather than none.
    """
    return DataLoader(
        crops,
        batch_size=min(batch_size, len(crops)),
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        generator=generator,
    )


def ordered_batches(crops: Crops, *, batch_size: int, workers: int) -> Iterator[Batch]:
    """Iterate once over all crops in order, the last batch incomplete."""
    return iter(DataLoader(crops, batch_size=batch_size, num_workers=workers))
