"""Samples as batches of tensors for training, the same whichever process makes them and whenever."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.data.sample import Sample
from models.data.transforms import Transform
from models.images import read_image
from models.seeds import derive_seed, seeded

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
