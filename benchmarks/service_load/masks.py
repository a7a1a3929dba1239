"""The predictor and its options, for the programs that measure it without the service."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle.bundle import find_bundle, load_bundle
from models.inference.forward import Labeled
from models.inference.masks import Segmentation
from models.inference.predictor import Predictor


class MaskMaker:
    """A bundle on the CPU with a refiner chain; all else as the bundle has it, as the service does.

    Args:
        bundle: name or folder.
        refine: refiner chain.
        threads: CPU threads; 0 leaves the choice to torch.
    """

    def __init__(self, bundle: str, *, refine: str, threads: int) -> None:
        if threads:
            torch.set_num_threads(threads)
        self._predictor = Predictor(load_bundle(find_bundle(bundle), device=torch.device("cpu")))
        self._options = self._predictor.options(refine=refine)

    def one(self, pixels: NDArray[np.uint8], labels: Sequence[str]) -> Segmentation:
        """Segment one photo, (H, W, 3)."""
        return self._predictor.pseudo_mask(pixels, labels, self._options)

    def together(
        self, batch: Sequence[tuple[NDArray[np.uint8], Sequence[str]]]
    ) -> list[Segmentation]:
        """Segment photos of one ``size``."""
        return self._predictor.pseudo_masks(
            [Labeled(pixels, labels, self._options) for pixels, labels in batch]
        )

    def size(self, pixels: NDArray[np.uint8]) -> tuple[int, int]:
        """Return the (H, W) at which a photo goes through the networks."""
        return self._predictor.working_size(*pixels.shape[:2])


def grouped(keys: Sequence[Hashable], *, most: int) -> list[list[int]]:
    """Return the positions of equal keys together, at most so many, in the order of each group's first."""
    groups: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    chunks = [
        group[start : start + most]
        for group in groups.values()
        for start in range(0, len(group), most)
    ]
    return sorted(chunks)
