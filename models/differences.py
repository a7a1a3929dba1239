"""Where two descriptions of a run part ways, for messages that refuse to mix them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first place, by key, at which two nested mappings differ, with both values; None if they are equal.

    Items of lists have their numbers as keys. What only one of them has is "nothing" in the other.
    """
    for key in [*before, *(key for key in now if key not in before)]:
        if key in before and key in now:
            inside, other = _nested(before[key]), _nested(now[key])
            if inside is not None and other is not None:
                place = first_difference(inside, other)
                if place:
                    return f"{key}.{place}"
                continue
            if before[key] == now[key]:
                continue
        return f"{key}: {_show(before, key)} before, {_show(now, key)} now"
    return None


def _nested(value: object) -> Mapping[str, Any] | None:
    if isinstance(value, list | tuple):
        return {str(number): item for number, item in enumerate(value)}
    return value if isinstance(value, Mapping) else None


def _show(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "nothing"
