"""Features of augmented crops, computed once: of a mask generator whose head alone learns, they are constants."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from models.data.loaders import Crops, KeyedBatch
from models.generators import MaskGenerator


@dataclass(frozen=True)
class KeyedCrops(Dataset[KeyedBatch]):
    """Crops with what tells one from all others: its seed and its number, (2,)."""

    crops: Crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> KeyedBatch:
        """Return a crop, its labels and its key."""
        image, labels = self.crops[index]
        return image, labels, torch.tensor([self.crops.seed, index])


@dataclass
class FeatureCache:
    """Features of at most ``capacity`` crops in a temporary file, in half precision; memory holds those of a batch.

    A crop's features are computed when it is first asked for. The file has no name, so it is gone when the process is;
    a stage that continues after a break computes them again. Of several processes each has its own.

    Args:
        generator: whose features have no gradient.
        folder: for the file, on a disk with the space.
        capacity: how many crops there are.
    """

    generator: MaskGenerator
    folder: Path
    capacity: int
    _rows: dict[tuple[int, int], int] = field(default_factory=dict, init=False)
    _file: NDArray[np.float16] = field(default_factory=lambda: np.empty(0, np.float16), init=False)

    def cams_of(self, images: Tensor, present: Tensor, keys: Tensor) -> Tensor:
        """Map images to the CAMs of some classes, as ``MaskGenerator.cams_of``; ``keys`` are of the crops, (B, 2).

        Raises:
            ValueError: if the features have a gradient, or the disk has too little space for those of all crops.
        """
        features = self.generator.unpack_features(self._features(images, keys).to(images.device).float())
        return self.generator.chosen_cams(features, present)

    def _features(self, images: Tensor, keys: Tensor) -> Tensor:
        known = [(int(seed), int(index)) for seed, index in keys.tolist()]
        new = [at for at, key in enumerate(known) if key not in self._rows]
        if new:
            found = self.generator.pack_features(self.generator.features(images[new]))
            if found.requires_grad:
                raise ValueError("expected a mask generator of which the head alone learns for views, got another")
            self._keep([known[at] for at in new], found.cpu().half().numpy())
        return torch.stack([torch.from_numpy(self._file[self._rows[key]]) for key in known])

    def _keep(self, keys: Sequence[tuple[int, int]], values: NDArray[np.float16]) -> None:
        if not self._rows:
            self._file = _open(self.folder, (self.capacity, *values.shape[1:]))
        for key, value in zip(keys, values, strict=True):
            self._file[self._rows.setdefault(key, len(self._rows))] = value


def _open(folder: Path, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Map a temporary file of zeros, of which the disk holds what has been written."""
    size, free = 2 * math.prod(shape), shutil.disk_usage(folder).free
    if free < size:
        raise ValueError(
            f"expected {size / 1e9:.1f} GB free in {folder} for the features of {shape[0]} crops, got {free / 1e9:.1f} "
            "GB; set fewer views, or views: null to compute them in each step"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.float16, mode="w+", shape=shape)
