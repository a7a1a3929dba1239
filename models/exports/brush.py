"""Label Studio's brush strokes: a mask as run lengths of varying width, packed bit by bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CHANNELS = 4  # RGBA; the tool shows the last one, writers fill all alike
_WIDTHS = (3, 4, 8, 16)
_LONGEST = 1 << _WIDTHS[-1]


def brush_rle(mask: NDArray[np.bool_]) -> list[int]:
    """Encode a mask, (H, W), as the bytes of a ``brushlabels`` region's ``rle``.

    The format is rle-pack's: 32 bits of how many values there are, 5 of their width - 1, four times 4 of the lengths'
    widths - 1; then runs: a 1, which width (2 bits), length - 1, the value (8 bits).
    """
    values = mask.ravel()
    starts = np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1))
    lengths = np.diff(starts, append=values.size) * _CHANNELS
    bits = [f"{values.size * _CHANNELS:032b}", f"{8 - 1:05b}"]
    bits += [f"{width - 1:04b}" for width in _WIDTHS]
    for length, value in zip(lengths.tolist(), values[starts].tolist(), strict=True):
        whole, rest = divmod(length, _LONGEST)
        bits += [_run(_LONGEST, value)] * whole
        if rest:
            bits.append(_run(rest, value))
    packed = "".join(bits)
    packed += "0" * (-len(packed) % 8)
    return list(int(packed, 2).to_bytes(len(packed) // 8, "big"))


def _run(length: int, value: bool) -> str:
    kind = next(each for each, width in enumerate(_WIDTHS) if length <= 1 << width)
    return f"1{kind:02b}{length - 1:0{_WIDTHS[kind]}b}{255 * value:08b}"
