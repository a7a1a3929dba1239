"""Samples as batches of tensors for training, the same whichever process makes them and whenever."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

# Training augmentation: a decoded photo in, a crop in [0, 1] out.

Transform = Callable[[NDArray[np.uint8]], Tensor]

# At 10, which one photo in some hundreds draws, timm posterizes to 0 bits a color, and Pillow refuses.
_STRONGEST = 9.99


def light_augmentation(size: int, *, min_area: float) -> Transform:
    """Random resized crop (bicubic) and flip, what stage (b) uses.

    Args:
        size: side of the crop in pixels.
        min_area: smallest share of the photo that a crop shows.
    """
    return _pipeline(size, min_area=min_area, policy=None)


def strong_augmentation(size: int, *, min_area: float) -> Transform:
    """Add RandAugment (m9, mstd 0.5, inc1) and random erasing (0.25, pixel noise).

    Stages (a) and (c) of the released experiments. Their settings name a color jitter of 0.4 too, but timm, which
    they use as we do, leaves it out beside RandAugment, whose policy has color operations of its own.

    Args:
        size: side of the crop in pixels.
        min_area: smallest share of the photo that a crop shows.
    """
    crop = _pipeline(size, min_area=min_area, policy="rand-m9-mstd0.5-inc1")
    erase = RandomErasing(probability=0.25, mode="pixel", device="cpu")

    def transform(pixels: NDArray[np.uint8]) -> Tensor:
        # Erasing draws unit normal noise, which is meant for normalized pixels: center and scale around it.
        noisy: Tensor = erase((crop(pixels) - 0.5) / 0.25)
        return (noisy * 0.25 + 0.5).clamp(0, 1)

    return transform


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
                operation.magnitude_max = _STRONGEST
    return lambda pixels: torch.as_tensor(compose(Image.fromarray(pixels))).float() / 255


# Randomness that hangs on what is done and not on what was done before, so that a run can go on anywhere.


def derive_seed(*numbers: int) -> int:
    """Return a seed, in [0, 2^63), that depends on all numbers and their order."""
    state = np.random.SeedSequence([number % 2**64 for number in numbers])
    return int(state.generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed, for a while, the sources that augmentation libraries draw from: random, NumPy and torch on the CPU."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


# images (B, 3, H, W) in [0, 1] and labels (B, K) multi-hot
Batch: TypeAlias = tuple[Tensor, Tensor]
BatchT = TypeVar("BatchT")


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops of labeled photos, decoded anew each time so that memory does not grow with the data set.

    Args:
        samples: labeled photos.
        classes: K.
        transform: photo → crop.
        seed: a crop depends on it and on its number alone.
    """

    def __init__(
        self, samples: Sequence[Sample], *, classes: int, transform: Transform, seed: int
    ) -> None:
        self.samples = samples
        self.classes = classes
        self.transform = transform
        self.seed = seed

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
        with seeded(derive_seed(self.seed, index)):
            return self.transform(pixels), labels


class RandomBatches(Generic[BatchT]):
    """Items in random batches, new ones each epoch; the last incomplete batch is dropped unless it is the only one.

    Where several processes train together, each gets its share of every batch.

    Args:
        items: makes an epoch's items, given its seed.
        count: how many items there are.
        batch_size: of all processes together.
        seed: source of the order and of the items' seeds, the same in all processes.
        workers: processes that make items; 0 makes them in this one.
        share: (rank, processes).

    Raises:
        ValueError: if a batch cannot be shared equally.
    """

    def __init__(
        self,
        items: Callable[[int], Dataset[BatchT]],
        count: int,
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.items = items
        self.count = count
        self.batch_size = min(batch_size, count)
        self.seed = seed
        self.workers = workers
        self.share = share
        if self.batch_size % share[1]:
            raise ValueError(
                f"expected a batch that {share[1]} processes can share, got {self.batch_size} photos"
            )

    def __len__(self) -> int:
        return self.count // self.batch_size if self.batch_size else 0

    def epoch(self, number: int, *, skip: int = 0) -> Iterator[BatchT]:
        """Iterate over an epoch's batches, this process's share of each, without the first few."""
        order = random_order(self.count, derive_seed(self.seed, number, 0))
        rank, processes = self.share
        starts = range(skip * self.batch_size, len(self) * self.batch_size, self.batch_size)
        batches = [order[at : at + self.batch_size][rank::processes] for at in starts]
        items = self.items(derive_seed(self.seed, number, 1))
        # A generator of its own: the loader would draw from the global source to seed its processes.
        loader = DataLoader(
            items, batch_sampler=batches, num_workers=self.workers, generator=torch.Generator()
        )
        with _own_words():
            yield from loader


def random_order(count: int, seed: int) -> list[int]:
    """Return the numbers below a count in an order that the seed gives."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def ordered_batches(crops: Crops, *, batch_size: int, workers: int) -> Iterator[Batch]:
    """Iterate once over all crops in order, the last batch incomplete."""
    with _own_words():
        yield from DataLoader(crops, batch_size=batch_size, num_workers=workers)


@contextmanager
def _own_words() -> Iterator[None]:
    """Say what went wrong with a photo as this process would: a loader's own puts its traceback into the message."""
    try:
        yield
    except ValueError as error:
        _, _, last = str(error).rstrip().rpartition("\nValueError: ")
        raise ValueError(last) from error


# Random crops of photos and their pseudo masks, the same whichever process makes them.

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
