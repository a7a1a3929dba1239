"""Where two descriptions of a run part ways, for messages that refuse to mix them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first place, by key, at which two nested mappings differ, with both values; None if they are equal.

    Lists are compared whole. What only one of them has is "nothing" in the other.
    """
    for key in [*before, *(key for key in now if key not in before)]:
        one, other = before.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            inside = first_difference(one, other)
            if inside:
                return f"{key}.{inside}"
        elif one != other or (key in before) != (key in now):
            return f"{key}: {_show(before, key)} before, {_show(now, key)} now"
    return None


def _show(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "nothing"
