"""What our pages name is there: files, headings, guides, modules."""

import re
from pathlib import Path

import pytest

from tests.helpers.markdown import DOCS
from tests.helpers.paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have, as GitHub makes them."""
    text = _FENCED.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: no {path}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: no #{anchor} in {target.name}"


def test_the_index_lists_every_guide() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    guides = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert {path for path, _ in _LINK.findall(index) if "/" not in path} >= guides


def test_the_map_of_the_code_is_of_this_code() -> None:
    """Modules and folders that CONTRIBUTING names exist, beside the one named before them or by their whole path."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Where does my change go?")[2].partition("\n## ")[0]
    for row in table.splitlines():
        rooms: list[Path] = []
        for name in re.findall(r"`([\w./]+(?:\.py|\.md|\.json|/))`", row):
            places = [ROOT / name, *(room / name for room in reversed(rooms))]
            found = next((each for each in places if each.exists()), None)
            assert found is not None, f"no {name}: {row}"
            rooms.append(found.parent)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_of_the_code_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:models|worker|service|tests|benchmarks|deploy)/[\w./-]+\.\w+)`", page.read_text(encoding="utf-8")
    ):
        assert (ROOT / name).exists() or "yours" in name, f"{page.name}: no {name}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
