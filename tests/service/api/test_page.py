"""The page's files over HTTP, and what all answers tell browsers; no browser is needed here."""

from __future__ import annotations

import re

import httpx
import pytest

from service.api.system import FOLDER, assets
from service.middleware.headers import HEADERS
from tests.helpers.html_page import Page
from tests.helpers.service_fixtures import Place, http_api

PAGES = ("index.html", "docs.html")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/docs", "text/html; charset=utf-8"),
        ("/web/app.js", "text/javascript; charset=utf-8"),
        ("/web/style.css", "text/css; charset=utf-8"),
        ("/web/icon.svg", "image/svg+xml"),
    ],
)
def test_files_come_with_type_and_tag(api: httpx.Client, path: str, kind: str) -> None:
    answer = api.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    assert answer.headers["cache-control"] == "no-cache"
    tag = answer.headers["etag"]
    for known in (tag, f'"other", W/{tag}'):
        again = api.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert api.get(path, headers={"If-None-Match": '"other"'}).content == answer.content
    head = api.head(path)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", tag)


@pytest.mark.parametrize("name", ["none.js", "..%2Fapp.py", "%2e%2e/app.py", "__init__.py"])
def test_nothing_else_is_served(api: httpx.Client, name: str) -> None:
    answer = api.get(f"/web/{name}")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


@pytest.mark.parametrize("path", ["/", "/models", "/web/none", "/jobs/none", "/openapi.json"])
def test_every_answer_has_the_headers(api: httpx.Client, path: str) -> None:
    answer = api.get(path)
    assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    assert answer.headers.get_list("content-security-policy") == [
        HEADERS["Content-Security-Policy"]
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_ours_has_them_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.system.assets", lambda: 1 / 0)
    with http_api(place) as broken:
        answer = broken.get("/")
    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal-error")
    assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)


@pytest.mark.parametrize("name", PAGES)
def test_pages_name_only_files_that_there_are_and_run_nothing_inline(name: str) -> None:
    page = Page(assets()[name].content.decode())
    named = [each.attributes.get("src") or each.attributes.get("href") for each in page.elements]
    files = [each.removeprefix("web/") for each in named if each and each.startswith("web/")]
    assert files
    assert set(files) <= set(assets())
    for each in page.elements:
        assert each.tag != "style"
        assert not [key for key in each.attributes if key == "style" or key.startswith("on")]
        assert each.tag != "script" or not each.text


def test_scripts_import_only_each_other() -> None:
    text = {path.name: path.read_text() for path in FOLDER.glob("*.js")}
    for name, source in text.items():
        found = re.findall(r'from "\./([^"]+)"', source)
        assert set(found) <= set(text), name
        assert len(found) == len(re.findall(r"^import ", source, re.M)), name
        assert "innerHTML" not in source
        assert len(source.splitlines()) <= 250


def luminance(color: str) -> float:
    digits = color if len(color) == 6 else "".join(2 * digit for digit in color)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_colors_can_be_told_apart(scheme: int) -> None:
    """WCAG's AA, in light (0) and dark (1)."""
    blocks = re.findall(r":root \{(.*?)\}", (FOLDER / "style.css").read_text(), re.S)
    colors = dict(re.findall(r"--([\w-]+): #(\w+);", blocks[scheme]))

    def contrast(pair: tuple[str, str]) -> float:
        low, high = sorted(luminance(colors[name]) for name in pair)
        return (high + 0.05) / (low + 0.05)

    grounds = ("ground", "card")
    texts = [(name, ground) for name in ("ink", "soft", "accent") for ground in grounds]
    texts += [("accent", "tint"), ("on-accent", "accent")]
    texts += [("danger", "danger-tint"), ("ink", "danger-tint")]
    assert {pair for pair in texts if contrast(pair) < 4.5} == set()
    assert {ground for ground in grounds if contrast(("edge", ground)) < 3} == set()
