"""How many jobs a worker has where at once."""

from __future__ import annotations

from dataclasses import dataclass


def usual_batch(device: str) -> int:
    """Return how many photos are best sent through the networks together.

    A GPU is filled by several; on a CPU one fills the caches, and eight took longer than one after the other
    (``docs/results.md``).
    """
    return 1 if device == "cpu" else Sizes.batch


@dataclass(frozen=True)
class Sizes:
    """Bounds of batches and threads.

    Attributes:
        batch: most photos that go through the networks together.
        ahead: most that wait for the networks decoded, and about as many that wait to be concluded.
        pixels: most pixels that do, at the networks' own size; one photo always may.
        held: pixels of decoded photos in hand, beyond which no more jobs are taken.
        threads: that decode photos, refine and store.
    """

    batch: int = 8
    ahead: int = 16
    pixels: int = 4_000_000
    held: int = 200_000_000
    threads: int = 2

    def most(self, size: tuple[int, int]) -> int:
        """Return how many photos of a size, (H, W), go through the networks together."""
        height, width = size
        return max(1, min(self.batch, self.pixels // (height * width)))
