"""The page's files over HTTP, and what all answers tell browsers; no browser is needed here."""

import re

import httpx
import pytest
from PIL import Image

from service.api.pages import FOLDER
from service.middleware.observability import SECURITY_HEADERS as HEADERS
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
        ("/web/examples/cat.jpg", "image/jpeg"),
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


@pytest.mark.parametrize(
    "name",
    [
        *("none.js", "..%2Fapp.py", "%2e%2e/app.py", "__init__.py", "examples"),
        *("examples/none.jpg", "examples/..%2F..%2Fapp.py", "%00", "n" * 300),
    ],
)
def test_nothing_else_is_served(api: httpx.Client, name: str) -> None:
    answer = api.get(f"/web/{name}")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


@pytest.mark.parametrize("path", ["/", "/models", "/web/none", "/jobs/none", "/openapi.json"])
def test_every_answer_has_the_headers(api: httpx.Client, path: str) -> None:
    answer = api.get(path)
    assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)
    assert answer.headers.get_list("content-security-policy") == [HEADERS["Content-Security-Policy"]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_ours_has_them_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.pages._files.get_response", lambda *_: 1 / 0)
    with http_api(place) as broken:
        answer = broken.get("/")
    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal-error")
    assert {name: answer.headers[name] for name in HEADERS} == dict(HEADERS)


@pytest.mark.parametrize("name", PAGES)
def test_pages_name_only_files_that_there_are_and_run_nothing_inline(name: str) -> None:
    page = Page((FOLDER / name).read_text())
    named = [each.attributes.get("src") or each.attributes.get("href") for each in page.elements]
    files = [each.removeprefix("web/") for each in named if each and each.startswith("web/")]
    assert files
    assert [each for each in files if not (FOLDER / each).is_file()] == []
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


def test_examples_are_small_and_have_a_text_and_a_label() -> None:
    page = Page((FOLDER / "index.html").read_text())
    buttons = [each for each in page.all("button") if "data-file" in each.attributes]
    shown = {}
    for button in buttons:
        file = button.attributes["data-file"]
        picture, caption = button.children
        with Image.open(FOLDER / "examples" / str(file)) as photo:
            size = (str(photo.width), str(photo.height))
        given = {name: picture.attributes[name] for name in ("src", "alt", "width", "height")}
        label = str(button.attributes["data-label"])
        assert given == {
            "src": f"web/examples/{file}",
            "alt": f"Photo of a {label}",
            "width": size[0],
            "height": size[1],
        }
        assert caption.text == label
        shown[file] = label
    assert shown == {"cat.jpg": "cat", "coffee.jpg": "cup", "clock.jpg": "clock"}
    files = list((FOLDER / "examples").iterdir())
    assert {path.name for path in files} == set(shown)
    assert sum(path.stat().st_size for path in files) < 150_000


def luminance(color: str) -> float:
    digits = color if len(color) == 6 else "".join(2 * digit for digit in color)
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
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
