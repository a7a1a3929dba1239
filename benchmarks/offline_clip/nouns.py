"""Print ``models/nouns.txt``: the visible things by which learned prompts are read.

    python -m benchmarks.offline_clip.nouns > models/nouns.txt

Source: the nouns of WordNet 3.0 (Copyright 2006 by Princeton University; its licence allows use,
copying, modification and distribution for any purpose), chosen by lexicographer file and by
word frequency (the package ``wordfreq``), without proper nouns, offensive words and abstractions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.offline_clip.wordnet import CATEGORIES, WordNet, read_wordnet

Frequency = Callable[[str], float]
"""A word's frequency on the Zipf scale: log10 of occurrences in a billion words."""

_OFFENSIVE_USAGES = frozenset({"disparagement", "ethnic slur", "obscenity", "slang"})
LEAST_FREQUENCY = 2.75
"""The rarest words of the list, on the Zipf scale (apricot, lavatory)."""


def read_words(name: str) -> tuple[str, ...]:
    """Read one of the word lists of the folder ``words``, in its order."""
    path = Path(__file__).with_name("words") / f"{name}.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


SCENERY = read_words("scenery")
"""Stuff, scenes and people that the lexicographer files of visible things lack."""


def english_frequency(word: str) -> float:
    """Look up an English word or phrase in wordfreq; 0 if it is unknown."""
    from wordfreq import zipf_frequency  # noqa: PLC0415 - only the extra "offline" has it

    return float(zipf_frequency(word, "en"))


def known_nouns(
    wordnet: WordNet, *, frequency: Frequency = english_frequency, least: float = 2.9
) -> list[str]:
    """Choose the nouns and noun phrases that are common enough, sorted.

    A phrase's frequency is derived from that of its words. Anything with a digit is left out.
    """
    return sorted(
        noun
        for noun in wordnet.senses
        if not any(letter.isdigit() for letter in noun) and frequency(noun) >= least
    )


def is_plural(noun: str, wordnet: WordNet) -> bool:
    """Tell whether a noun is listed beside its own singular (arms, arm)."""
    stems = (noun[:-1], noun[:-2]) if noun.endswith("es") else (noun[:-1],)
    return (
        noun.endswith("s") and not noun.endswith("ss") and any(s in wordnet.senses for s in stems)
    )


def is_offensive(noun: str, wordnet: WordNet) -> bool:
    """Tell whether WordNet marks any sense of a noun as a slur, an obscenity or slang."""
    return any(
        not _OFFENSIVE_USAGES.isdisjoint(wordnet.synsets[usage].words)
        for offset in wordnet.senses[noun]
        for usage in wordnet.synsets[offset].usages
    )


def is_visible(noun: str, wordnet: WordNet) -> bool:
    """Tell whether a noun's most frequent sense is a kind of concrete thing, not one's name."""
    first = wordnet.synsets[wordnet.senses[noun][0]]
    return first.category in CATEGORIES and noun in first.words and not first.instance_of


def visible_nouns(
    wordnet: WordNet,
    *,
    frequency: Frequency = english_frequency,
    least: float = 3.0,
    excluded: Iterable[str] = (),
) -> list[str]:
    """Choose common, concrete, inoffensive single words in the singular, sorted."""
    unwanted = set(excluded)
    return sorted(
        noun
        for noun in wordnet.senses
        if noun.isalpha()
        and len(noun) > 2
        and noun not in unwanted
        and is_visible(noun, wordnet)
        and not is_plural(noun, wordnet)
        and not is_offensive(noun, wordnet)
        and frequency(noun) >= least
    )


def main(
    wordnet: Annotated[
        Path, typer.Option(help="Folder of WordNet's index.noun and data.noun.")
    ] = Path("/usr/share/wordnet"),
) -> None:
    """Print the noun list, one noun a line."""
    nouns = visible_nouns(
        read_wordnet(wordnet), least=LEAST_FREQUENCY, excluded=read_words("excluded")
    )
    for noun in sorted({*nouns, *SCENERY, *read_words("phrases")}):
        print(noun)


if __name__ == "__main__":
    typer.run(main)
