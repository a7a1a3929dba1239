"""What the offline CLIP's text tower is taught: nouns, templates, and long texts of many nouns."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from timm.data import ImageNetInfo

from benchmarks.offline_clip.nouns import (
    SCENERY,
    Frequency,
    english_frequency,
    known_nouns,
    read_words,
    visible_nouns,
)
from benchmarks.offline_clip.wordnet import WordNet

SENTENCE = "a photo of a {}"
"""The sentence whose embedding stands for a noun, in whatever template the tower reads it."""

TEMPLATES = (
    "a photo of a {}.",
    "a photo of a {}.",
    "a photo of a {}",
    "a photo of the {}.",
    "a photo of {}.",
    "a close-up photo of a {}.",
    "a bad photo of the {}.",
    "a picture of a {}.",
    "there is a {} in the scene.",
    "{}",
)
"""Templates in the manner of CLIP's; the first, which the method uses, counts twice."""

CLASS_NAMES = read_words("class_names")
"""The 80 class names of COCO; then PASCAL VOC's where they differ, and usual other words."""

_ADJECTIVES = read_words("adjectives")
_LONG_FORMS = ("bag", "list", "scene", "adjectives")


@dataclass(frozen=True)
class Vocabulary:
    """The nouns: ``training`` and its commonly seen part ``core``, and ``held_out`` ones."""

    training: tuple[str, ...]
    core: tuple[str, ...]
    held_out: tuple[str, ...]


def imagenet_names() -> list[str]:
    """List the first name of each of the 1,000 ImageNet classes, in the classifier's order."""
    return [name.partition(",")[0] for name in ImageNetInfo().label_descriptions()]


def make_vocabulary(
    wordnet: WordNet, *, held_out: int, seed: int, frequency: Frequency = english_frequency
) -> Vocabulary:
    """Gather all nouns; hold some of WordNet's out, but no class name and no scenery."""
    fixed = {*CLASS_NAMES, *SCENERY, *imagenet_names()}
    nouns = [noun for noun in known_nouns(wordnet, frequency=frequency) if noun not in fixed]
    hidden = set(random.Random(seed).sample(nouns, held_out))
    return Vocabulary(
        training=tuple(sorted(fixed.union(nouns) - hidden)),
        core=tuple(sorted(fixed.union(visible_nouns(wordnet, frequency=frequency)) - hidden)),
        held_out=tuple(sorted(hidden)),
    )


def long_text(nouns: Sequence[str], source: random.Random) -> str:
    """Compose a text of 10 to 30 words, so that late positions are taught as well.

    Learned prompts put 30 free tokens between "a photo of" and the full stop. The form "bag" has
    just this layout; the others are lists, scenes and strings of adjectives.
    """
    form = source.choice(_LONG_FORMS)
    if form == "bag":
        return f"a photo of {' '.join(source.choices(nouns, k=source.randint(4, 22)))}."
    if form == "list":
        chosen = source.choices(nouns, k=source.randint(3, 8))
        return f"a photo of a {', a '.join(chosen[:-1])} and a {chosen[-1]}."
    if form == "scene":
        first, second, third, fourth = source.choices(nouns, k=4)
        return (
            f"a photo of a {source.choice(_ADJECTIVES)} {first} and a {second}, "
            f"next to the {source.choice(_ADJECTIVES)} {third}, with a {fourth} behind them."
        )
    adjectives = source.choices([*_ADJECTIVES, "very"], k=source.randint(6, 26))
    return f"a photo of a {' '.join(adjectives)} {source.choice(nouns)}."


def long_texts(nouns: Sequence[str], count: int, *, seed: int) -> list[str]:
    """Compose ``count`` long texts; see ``long_text``."""
    source = random.Random(seed)
    return [long_text(nouns, source) for _ in range(count)]
