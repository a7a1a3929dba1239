"""Scenes: one or two objects on a plain backdrop, each beside a patch of context, each pixel known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.contexts.shapes import draw
from benchmarks.contexts.textures import TEXTURES, smooth_noise
from benchmarks.contexts.world import BACKDROPS, CLASSES, CONTEXTS, SIDE, THINGS, own_context

OWN_SHARE = 0.9
"""How often an object comes with its own context in scenes to train on."""
LONE_SHARE = 0.4
"""How often the second place of a usual scene is a context alone."""


@dataclass(frozen=True)
class Place:
    """What stands somewhere: an object, a context, or an object beside a context."""

    thing: str | None
    context: str | None


@dataclass(frozen=True)
class Scene:
    """A picture and what it shows.

    Attributes:
        pixels: (S, S, 3) uint8.
        truth: label map of the objects, (S, S) uint8.
        contexts: 1 + number of the context that a pixel shows, 0 elsewhere, (S, S) uint8.
        places: what stands where, left to right.
        backdrop: the plain texture behind everything.
    """

    pixels: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    contexts: NDArray[np.uint8]
    places: tuple[Place, ...]
    backdrop: str

    @property
    def things(self) -> tuple[str, ...]:
        """The objects, sorted, each once."""
        return tuple(sorted({place.thing for place in self.places if place.thing}))


def usual_places(
    random: np.random.Generator, count: int, *, own_share: float = OWN_SHARE
) -> tuple[Place, ...]:
    """Return distinct objects, each with its own context in a share of all cases, else with another or none.

    The second place may be a context alone.
    """
    things = random.permutation(THINGS)[:count].tolist()
    places = [
        Place(thing, own_context(thing))
        if random.random() < own_share
        else Place(thing, _foreign(random, thing))
        for thing in things
    ]
    if count == 2 and random.random() < LONE_SHARE:
        alone = random.integers(2)
        places[alone] = Place(None, own_context(things[alone]))
    return tuple(places)


def shuffled_places(random: np.random.Generator) -> tuple[Place, ...]:
    """Return two objects that have swapped their contexts: who follows the context finds the wrong one."""
    left, right = random.permutation(THINGS)[:2].tolist()
    return Place(left, own_context(right)), Place(right, own_context(left))


def lone_contexts(random: np.random.Generator, count: int) -> tuple[Place, ...]:
    """Return distinct contexts without objects."""
    return tuple(Place(None, each) for each in random.permutation(CONTEXTS)[:count].tolist())


def _foreign(random: np.random.Generator, thing: str) -> str | None:
    others: list[str | None] = [each for each in CONTEXTS if each != own_context(thing)]
    return others[random.integers(len(others))] if random.random() < 0.5 else None


def compose(random: np.random.Generator, places: Sequence[Place]) -> Scene:
    """Paint a scene.

    Args:
        random: source of all variation.
        places: at most two; two stand side by side.
    """
    backdrop = str(random.choice(BACKDROPS))
    canvas = TEXTURES[backdrop](random, SIDE).copy()
    truth, contexts = np.zeros((2, SIDE, SIDE), np.uint8)
    objects = []
    for number, place in enumerate(places):
        width = SIDE / len(places)
        size = SIDE * random.uniform(0.38, 0.5)
        margin = max(width - size, 0) / 2
        x = width * (number + 0.5) + random.uniform(-0.7, 0.7) * margin
        y = SIDE * random.uniform(0.32, 0.68)
        if place.context:
            patch = context_patch(random, center=(x, y), size=size, reach=width / 2)
            canvas[patch] = TEXTURES[place.context](random, SIDE)[patch]
            contexts[patch] = 1 + CONTEXTS.index(place.context)
        if place.thing:
            drawn = draw(random, place.thing, side=SIDE, center=(x, y), size=size)
            objects.append((place.thing, drawn))
    for thing, drawn in objects:  # in front of all contexts
        opacity = drawn[..., 3:]
        canvas = canvas * (1 - opacity) + drawn[..., :3] * opacity
        truth[opacity[..., 0] > 0.5] = CLASSES.classes[THINGS.index(thing)].index
    contexts[truth > 0] = 0
    light = random.uniform(0.9, 1.1)
    pixels = (canvas * light * 255).clip(0, 255).astype(np.uint8)
    return Scene(pixels, truth, contexts, tuple(places), backdrop)


def context_patch(
    random: np.random.Generator, *, center: tuple[float, float], size: float, reach: float
) -> NDArray[np.bool_]:
    """Return where a context is: a wavy band at one side of an object, partly behind it, (S, S).

    Args:
        random: source of all variation.
        center: of the object (x, y) in pixels.
        size: of the object in pixels.
        reach: half the room that it has, in pixels; only who has all of it may be left or right of the object.
    """
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    along, depth = reach * random.uniform(0.8, 1.05), size * random.uniform(0.4, 0.6)
    sign = random.choice((-1, 1))
    offset = sign * (0.3 * size + depth)
    if reach == SIDE / 2 and random.random() < 0.5:
        across = (columns - center[0] - offset) / depth, (rows - center[1]) / along
    else:
        across = (rows - center[1] - offset) / depth, (columns - center[0]) / along
    wave = 0.3 * smooth_noise(random, SIDE, 7)
    inside: NDArray[np.bool_] = np.maximum(*np.abs(across)) + wave < 1.1
    return inside
