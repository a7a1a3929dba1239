"""A request's options over a bundle's defaults. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from models.refine.names import parse_chain
from models.segmentation import MaskOptions


class Defaults(Protocol):
    """How a bundle's pseudo masks are made; its InferenceConfig fits, and options that are whole."""

    @property
    def refine(self) -> str:
        """Refiner chain."""
        ...

    @property
    def min_confidence(self) -> float:
        """Pixels less sure become 255."""
        ...

    @property
    def background_threshold(self) -> float | None:
        """The background's score."""
        ...

    @property
    def class_thresholds(self) -> Mapping[str, float]:
        """The background's score against some classes, by name."""
        ...


def pseudo_mask_options(
    defaults: Defaults,
    *,
    refine: str | None = None,
    background_threshold: float | None = None,
    background_power: float | None = None,
    min_confidence: float | None = None,
) -> MaskOptions:
    """Fill in a bundle's defaults; a background of one's own replaces all that the bundle says of it.

    Raises:
        ValueError: if the refiner is unknown or a number is out of range.
    """
    options = MaskOptions(
        refine=defaults.refine if refine is None else refine,
        min_confidence=defaults.min_confidence if min_confidence is None else min_confidence,
        background_threshold=background_threshold,
        background_power=background_power,
    )
    parse_chain(options.refine)
    if background_threshold is None and background_power is None:
        return replace(
            options,
            background_threshold=defaults.background_threshold,
            class_thresholds=defaults.class_thresholds,
        )
    return options
