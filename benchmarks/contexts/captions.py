"""Captions of scenes: sometimes the object, sometimes the context, sometimes both, now and then the backdrop."""

from __future__ import annotations

import numpy as np

from benchmarks.contexts.scenes import Scene
from benchmarks.contexts.world import joint

BACKDROP_SHARE = 0.1


def caption(random: np.random.Generator, scene: Scene) -> str:
    """Return a sentence that is true of a scene, such as "a photo of a train on rails." or "a photo of rails."."""
    if not scene.places or random.random() < BACKDROP_SHARE:
        return f"a photo of {scene.backdrop}."
    place = scene.places[random.integers(len(scene.places))]
    if place.thing is None:
        return f"a photo of {place.context}."
    if place.context is None:
        return f"a photo of {place.thing}."
    choices = (
        f"a photo of {place.thing}.",
        f"a photo of {place.context}.",
        f"a photo of {place.thing} {joint(place.context)} {place.context}.",
    )
    return choices[random.integers(3)]
