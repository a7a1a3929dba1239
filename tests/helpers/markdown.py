"""Fenced blocks of a page of documentation, to be run as they stand."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.paths import ROOT

DOCS = ROOT / "docs"
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the other words of its info string, its text, and its fence's line from 1."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def head(self) -> str:
        return self.text.partition("\n")[0]

    @property
    def body(self) -> str:
        return self.text.partition("\n")[2]


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page in docs, in their order."""
    text = Path(DOCS / page).read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(language, tuple(words), match["text"], line))
    return found
