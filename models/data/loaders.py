"""Augmented training batches that depend on the seed alone, not on processes or restarts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from models.data.classes import IGNORE_INDEX, Sample
from models.data.images import read_image
from models.data.mask_folder import MaskSample

# images (B, 3, H, W) in [0, 1] and labels (B, K) multi-hot
Batch: TypeAlias = tuple[Tensor, Tensor]
# the same with the key of each crop, (B, 2)
KeyedBatch: TypeAlias = tuple[Tensor, Tensor, Tensor]
# images (B, 3, S, S) in [0, 1] and label maps (B, S, S) int64 of class channels, 255 ignored
MaskBatch: TypeAlias = tuple[Tensor, Tensor]
Transform = Callable[[NDArray[np.uint8]], Tensor]  # image (H, W, 3) → crop (3, S, S) in [0, 1]
# image (3, H, W) uint8 and label map (H, W) → crops of both
MaskTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
BatchT = TypeVar("BatchT")

# At magnitude 10, which is drawn for one photo in some hundreds, timm posterizes to 0 bits, which Pillow refuses.
_MAX_MAGNITUDE = 9.99
_GRAY = 124  # of crops beyond the photo


def light_augmentation(size: int, *, min_area: float) -> Transform:
    """Return random resized crop (bicubic) to size × size and flip, for stage (b).

    A crop shows at least the fraction ``min_area`` of the photo.
    """
    return _pipeline(size, min_area=min_area, policy=None)


def strong_augmentation(size: int, *, min_area: float) -> Transform:
    """Return ``light_augmentation`` with RandAugment (m9, mstd 0.5, inc1) and random erasing (0.25, pixel noise).

    As in stages (a) and (c) of the released experiments. Their color jitter of 0.4 has no effect: timm ignores it
    beside RandAugment.
    """
    crop = _pipeline(size, min_area=min_area, policy="rand-m9-mstd0.5-inc1")
    erase = RandomErasing(probability=0.25, mode="pixel", device="cpu")

    def transform(pixels: NDArray[np.uint8]) -> Tensor:
        # Erasing draws standard normal noise, meant for normalized pixels.
        noisy: Tensor = erase((crop(pixels) - 0.5) / 0.25)
        return (noisy * 0.25 + 0.5).clamp(0, 1)

    return transform


def mask_augmentation(size: int, *, scale: tuple[float, float], color_jitter: float) -> MaskTransform:
    """Return random scale, crop to size × size, flip and color jitter; beyond the photo a crop is gray and ignored.

    A scale of 1 is the size at which the photo just fits into the crop. The hue varies by a quarter of
    ``color_jitter``.
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


@dataclass(frozen=True)
class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops of labeled photos, decoded each time; a crop depends on the seed and its index alone."""

    samples: Sequence[Sample]
    _: KW_ONLY
    classes: int
    transform: Transform
    seed: int

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a crop (3, H, W) in [0, 1] and its labels (K,)."""
        sample = self.samples[index]
        pixels = _read_pixels(sample.path)
        labels = torch.zeros(self.classes)
        labels[list(sample.channels)] = 1
        with _seeded(derive_seed(self.seed, index)):
            return self.transform(pixels), labels


@dataclass(frozen=True)
class MaskCrops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops of photos and masks, decoded each time; a crop depends on the seed and its index alone."""

    samples: Sequence[MaskSample]
    _: KW_ONLY
    transform: MaskTransform
    seed: int

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a crop (3, S, S) in [0, 1] and its label map (S, S)."""
        sample = self.samples[index]
        pixels = _read_pixels(sample.image)
        mask = sample.read_mask()
        if mask.shape != pixels.shape[:2]:
            raise ValueError(f"expected a mask of {sample.image.name}'s size {pixels.shape[:2]}, got {mask.shape}")
        try:
            with _seeded(derive_seed(self.seed, index)):
                return self.transform(torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(mask))
        except RuntimeError as error:  # the short side of a thin strip rounds to 0
            raise ValueError(f"expected a photo that a crop can show, got {sample.image} ({error})") from error


@dataclass
class RandomBatches(Generic[BatchT]):
    """Random batches, in another order each epoch; an incomplete last batch is dropped unless it is the only one.

    ``items`` maps an epoch's seed to its items; with ``views`` the epochs go round that many seeds. The batch size is
    of all processes together; ``share`` is (rank, number of processes), and each process gets its share of every batch.
    """

    items: Callable[[int], Dataset[BatchT]]
    count: int
    _: KW_ONLY
    batch_size: int
    seed: int
    workers: int = 0
    share: tuple[int, int] = (0, 1)
    views: int | None = None

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, self.count)
        if self.batch_size % self.share[1]:
            raise ValueError(f"expected a batch that {self.share[1]} processes can share, got {self.batch_size} photos")

    def __len__(self) -> int:
        return self.count // self.batch_size if self.batch_size else 0

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[BatchT]:
        """Iterate over this process's share of an epoch's batches, without the first ``skip``."""
        order = random_order(self.count, derive_seed(self.seed, number, 0))
        rank, processes = self.share
        starts = range(skip * self.batch_size, len(self) * self.batch_size, self.batch_size)
        batches = [order[at : at + self.batch_size][rank::processes] for at in starts]
        items = self.items(derive_seed(self.seed, number % self.views if self.views else number, 1))
        # With its own generator, as the loader would draw its workers' seeds from the global one.
        loader = DataLoader(items, batch_sampler=batches, num_workers=self.workers, generator=torch.Generator())
        with _plain_errors():
            yield from loader


def random_order(count: int, seed: int) -> list[int]:
    """Return the numbers below ``count`` in random order."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def ordered_batches(crops: Crops, *, batch_size: int, workers: int) -> Iterator[Batch]:
    """Iterate once over all crops in order; the last batch may be incomplete."""
    with _plain_errors():
        yield from DataLoader(crops, batch_size=batch_size, num_workers=workers)


def derive_seed(*numbers: int) -> int:
    """Return a seed in [0, 2^63) that depends on all numbers and their order."""
    state = np.random.SeedSequence([number % 2**64 for number in numbers])
    return int(state.generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed random, NumPy and torch on the CPU, which augmentation draws from, for the duration of the block."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all GPUs too
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _read_pixels(path: Path) -> NDArray[np.uint8]:
    try:
        return read_image(path.read_bytes()).pixels
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _pipeline(size: int, *, min_area: float, policy: str | None) -> Transform:
    compose = create_transform(
        size,
        is_training=True,
        scale=(min_area, 1.0),
        color_jitter=0.0,
        auto_augment=policy,
        interpolation="bicubic",
        normalize=False,
    )
    for step in compose.transforms:
        if isinstance(step, RandAugment):
            for operation in step.ops:
                operation.magnitude_max = _MAX_MAGNITUDE
    return lambda pixels: torch.as_tensor(compose(Image.fromarray(pixels))).float() / 255


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Remove the loader process's traceback from messages about unreadable images."""
    try:
        yield
    except ValueError as error:
        _, _, last = str(error).rstrip().rpartition("\nValueError: ")
        raise ValueError(last) from error
