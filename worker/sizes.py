"""How many jobs a worker has where at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Bounds of batches and threads.

    Attributes:
        batch: most photos that go through the networks together.
        pixels: most pixels that do, at the networks' own size; one photo always may.
        held: pixels of decoded photos in hand, beyond which no more jobs are taken.
        threads: that decode photos, refine and store.
    """

    batch: int = 8
    pixels: int = 4_000_000
    held: int = 200_000_000
    threads: int = 2

    def most(self, size: tuple[int, int]) -> int:
        """Return how many photos of a size, (H, W), go through the networks together."""
        height, width = size
        return max(1, min(self.batch, self.pixels // (height * width)))
