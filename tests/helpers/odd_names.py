"""File names that the file system takes and other formats trip over."""

# ruff: noqa: E501 (a table)

import itertools
import os
import unicodedata
from random import Random

from models.data.photos import stem_key

_WORDS = (
    *(" ", "  two  spaces  ", " lead", "trail ", "tab\there", "line\nbreak", "cr\rhere", "\x1b[31mred\x1b[0m", "\x07bell", "\x7f"),
    *("'", '"', "`id`", "$HOME", "$(id)", "${x}", "a;b", "a&b", "a|b", "a>b", "a<b", "!!", "*", "?", "[a]", "{a,b}", "~", "~root"),
    *("-rf", "--help", "--output", "-", "a=b", "a,b", "a:b", "a::b", "file:", "s3:", "memory:", "http:__x", "C:", "\\", "a\\b"),
    *("#", "a#b", "%", "%20", "%2F", "%s", "%(name)s", "{0}", "{name}", "a@b", "user:pw@host", "?q=1", "a+b", "a^b"),
    *("..a", "...", "a.", "a..b", "a.b.c", "a.png", "a.json", "a.jpg.png", "CON", "NUL", "aux", "com1", "labels", "masks"),
    *("classes", "settings", "results", "summary", "[red]a[blue]", "[bold", "<b>a<b>", "&amp;", "<![CDATA[", "]]>", "<!--"),
    *(unicodedata.normalize("NFD", "café"), "日本語", "Ω≈ç√", "👩‍👩‍👧", "🏳️‍🌈", "\u202egnp", "\u200bzero", "\ufeffbom", "\u00a0nbsp", "\u2028ls"),
    *("\u0085nel", "\u00adsoft", "ẞ", "İ", "ı", "ﬁ", "ﷺ", "e\u0301\u0301\u0301", "\U0001f9ff", "\ufffd", "\ufffe", "\uffff", "مرحبا", "עברית"),
    *("caf\udce9", "\udcff\udcfe", "a\udc80b", "日\udce9", "null", "None", "true", "0", "00", "-1", "1e5", "NaN", "=1+1", "@SUM", "'--"),
    *("x" * 251, "é" * 125, "日" * 83, "x" * 243, "x" * 246, "x" * 247),
)  # fmt: skip
_LETTERS = "ab .,;:#%@&=+$'\"`!?*[]{}()<>|\\~^-_\n\t\x1b\x7fé日\u0301\u202e👍\udce9"


def odd_stems(count: int = 230) -> list[str]:
    """Stems of files, the known ones first, then drawn; no two of one result, and none longer than a name may be."""
    random = Random(16)
    drawn = ("".join(random.choices(_LETTERS, k=random.randint(1, 12))) for _ in itertools.count())
    fitting = (stem for stem in itertools.islice(itertools.chain(_WORDS, drawn), 3 * count) if _fits(stem))
    found: dict[str, str] = {}
    for stem in fitting:
        found.setdefault(stem_key(f"{stem}.jpg"), stem)
    return [*found.values()][:count]


def _fits(stem: str) -> bool:
    # A hidden file is no photo of a folder, and two names that end alike are one result.
    return len(os.fsencode(stem)) <= 251 and not stem.startswith(".") and not stem.endswith("_overlay")


def is_utf8(name: str) -> bool:
    return not any("\ud800" <= each <= "\udfff" for each in name)
