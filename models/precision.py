"""In which numbers networks compute; their weights and all that is not a network stay in single precision."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

import torch

PRECISIONS: Final = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)


def computing_in(precision: str, *, device: torch.device) -> torch.autocast:
    """Return a context in which networks compute in a precision, where it does them no harm.

    Args:
        precision: a name in PRECISIONS.
        device: of the networks.

    Raises:
        ValueError: if the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"expected a precision of {', '.join(PRECISIONS)}, got {precision!r}")
    lower = precision != "float32"
    return torch.autocast(
        device.type, dtype=PRECISIONS[precision] if lower else torch.bfloat16, enabled=lower
    )
