"""Read the nouns of WordNet 3.0's database files (Miller 1995), for example Debian's wordnet-base.

The format is documented in WordNet's own manual page wndb(5WN). WordNet's licence allows use,
copying and modification for any purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CATEGORIES = {
    5: "animal",
    6: "artifact",
    13: "food",
    15: "location",
    17: "object",
    20: "plant",
    27: "substance",
}
"""The lexicographer files (lexnames(5WN)) of concrete, visible things, by number."""


@dataclass(frozen=True)
class Synset:
    """One meaning: its words as written, and where it stands in WordNet.

    ``category`` is the number of its lexicographer file; ``parents`` and ``instance_of`` are the
    offsets of its hypernyms, ``usages`` those of its usage domains (slang, ethnic slur, …).
    """

    words: tuple[str, ...]
    category: int
    parents: tuple[str, ...]
    instance_of: tuple[str, ...]
    usages: tuple[str, ...]


def _entries(lines: Iterable[str]) -> Iterator[list[str]]:
    """Split entries into fields; the licence text before them is indented by two spaces."""
    return (line.partition("|")[0].split() for line in lines if not line.startswith("  "))


def parse_synsets(lines: Iterable[str]) -> dict[str, Synset]:
    """Parse ``data.noun``: offset to synset."""
    synsets = {}
    for fields in _entries(lines):
        count = int(fields[3], 16)
        words = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
        start = 4 + 2 * count
        pointers = fields[start + 1 : start + 1 + 4 * int(fields[start])]
        targets: dict[str, list[str]] = {"@": [], "@i": [], ";u": []}
        for symbol, offset in zip(pointers[::4], pointers[1::4], strict=True):
            if symbol in targets:
                targets[symbol].append(offset)
        synsets[fields[0]] = Synset(
            words=words,
            category=int(fields[1]),
            parents=tuple(targets["@"]),
            instance_of=tuple(targets["@i"]),
            usages=tuple(targets[";u"]),
        )
    return synsets


def parse_index(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Parse ``index.noun``: lower-case lemma to the offsets of its senses, most frequent first."""
    return {
        fields[0].replace("_", " "): tuple(fields[-int(fields[2]) :]) for fields in _entries(lines)
    }


@dataclass(frozen=True)
class WordNet:
    """The nouns: ``senses`` of each lemma, most frequent first, and the ``synsets`` by offset."""

    senses: dict[str, tuple[str, ...]]
    synsets: dict[str, Synset]


def read_wordnet(folder: Path) -> WordNet:
    """Read ``index.noun`` and ``data.noun`` of a WordNet folder.

    Raises:
        ValueError: if the folder does not hold them.
    """
    if not (folder / "data.noun").is_file() or not (folder / "index.noun").is_file():
        raise ValueError(f"expected WordNet's index.noun and data.noun in {folder}, got neither")
    with (folder / "index.noun").open(encoding="utf-8") as index:
        senses = parse_index(index)
    with (folder / "data.noun").open(encoding="utf-8") as data:
        return WordNet(senses=senses, synsets=parse_synsets(data))
