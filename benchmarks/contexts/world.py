"""What there is in the world: eight objects, the context that each usually comes with, and backdrops."""

from __future__ import annotations

from dataclasses import dataclass

from models.data.classes import ClassInfo, ClassList


@dataclass(frozen=True)
class Pair:
    """An object and its own context, with the word that joins them in a caption."""

    thing: str
    joint: str
    context: str


PAIRS = (
    Pair("boat", "on", "water"),
    Pair("bottle", "on", "table"),
    Pair("car", "on", "road"),
    Pair("cow", "on", "grass"),
    Pair("kite", "over", "beach"),
    Pair("plane", "in", "clouds"),
    Pair("sheep", "by", "fence"),
    Pair("train", "on", "rails"),
)
THINGS = tuple(pair.thing for pair in PAIRS)
CONTEXTS = tuple(pair.context for pair in PAIRS)
BACKDROPS = ("fog", "paper", "wall")
# What a background prompt may turn out to mean: every noun that captions have.
NOUNS = (*THINGS, *CONTEXTS, *BACKDROPS)
CLASSES = ClassList(tuple(ClassInfo(index, name) for index, name in enumerate(THINGS, start=1)))
SIDE = 96  # pixels of a scene


def own_context(thing: str) -> str:
    """Return the context that an object usually comes with."""
    return CONTEXTS[THINGS.index(thing)]


def joint(context: str) -> str:
    """Return how captions join a context to an object."""
    return PAIRS[CONTEXTS.index(context)].joint
