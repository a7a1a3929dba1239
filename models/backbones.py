"""Names of backbones, looked up before hours of training rather than after them."""

from __future__ import annotations

from difflib import get_close_matches

import timm

_NEAREST = 3


def require_backbone(name: str, *, place: str) -> None:
    """Check that timm has a network of a name, with or without the tag of its weights.

    Names with a colon ("hf-hub:…") lead elsewhere and are taken as they are.

    Args:
        name: as a configuration has it.
        place: where it has it.

    Raises:
        ValueError: if it has none; the message has the nearest names.
    """
    if ":" in name:
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = timm.list_models()
    elif tag and name not in timm.list_pretrained():
        known = [each for each in timm.list_pretrained() if each.startswith(f"{architecture}.")]
    else:
        return
    near = " or ".join(get_close_matches(name, known, _NEAREST))
    hint = f", perhaps {near}" if near else ""
    raise ValueError(f"{place}: expected a backbone that timm knows{hint}, got {name!r}")
