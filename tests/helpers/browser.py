"""Debian's Chromium on the page, and what a test does with it as a person would."""

import base64
import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from models.data.mask_files import voc_palette
from tests.helpers.posting import new_photo
from tests.helpers.service_fixtures import wait_for

SECONDS = 30
CONTROLS = {
    *("button", "checkbox", "combobox", "link", "listbox", "option", "progressbar", "radio"),
    *("slider", "spinbutton", "textbox", "DisclosureTriangle"),
}


def photo(*, finds: int = 0) -> bytes:
    """A new photo, as large as the tests of the canvas expect."""
    return new_photo(finds=finds, width=60, height=40)


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser; CI must have it."""
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("expected Chromium in CI, got none: apt-get install chromium")
        pytest.skip("Chromium is not here: apt-get install chromium")
    return path


@pytest.fixture(scope="module")
def chromium(chromium_path: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium_path, args=arguments)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page in a browser of its own, with what it asked for and what it complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def send(self, content: bytes, *labels: str) -> None:
        self.choose(content)
        self.label(*labels)
        self.go()

    def choose(self, content: bytes, name: str = "photo.png") -> None:
        payload = {"name": name, "mimeType": "image/png", "buffer": content}
        self.page.locator("#file").set_input_files(payload)

    def label(self, *names: str) -> None:
        for name in names:
            self.page.get_by_role("combobox", name="What does the photo show?").fill(f"{name},")

    def go(self) -> None:
        self.page.locator("#go").click()

    def make(self, content: bytes, *labels: str) -> None:
        """Send a photo with labels, and wait for its mask."""
        self.send(content, *labels)
        self.is_in("result")

    def is_in(self, state: str) -> None:
        expect(self.page.locator(f"body[data-state={state}]")).to_be_visible(timeout=SECONDS * 1000)

    @property
    def problem(self) -> Locator:
        return self.page.get_by_role("alert")

    def view(self, name: str) -> None:
        self.page.get_by_role("radio", name=name).check()

    def slide(self, name: str, value: float) -> None:
        self.page.get_by_role("slider", name=name).fill(str(value))

    def picture(self) -> NDArray[np.uint8]:
        """What the canvas shows, (H, W, 3)."""
        url = self.page.locator("#canvas").evaluate("canvas => canvas.toDataURL()")
        content = base64.b64decode(url.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    def label_map(self) -> NDArray[np.uint8]:
        """What the view "Mask" shows, as class indices."""
        self.view("Mask")
        colors = self.picture().astype(int) @ (65536, 256, 1)
        known = voc_palette().astype(int) @ (65536, 256, 1)
        order = known.argsort()
        return order[known[order].searchsorted(colors)].astype(np.uint8)

    def wait_for_mask(self, content: bytes, *, share: float = 0.999) -> None:
        """Wait until the page shows a mask file's label map, on this share of pixels at least."""
        expected = read_mask(content)
        wait_for(lambda: (self.label_map() == expected).mean() >= share, what="the mask")

    def download(self, button: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=button).click()
        return download.value.path().read_bytes()

    def controls(self) -> list[tuple[str, str]]:
        """Role and accessible name of each control that a screen reader meets."""
        session = self.page.context.new_cdp_session(self.page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        met = [node for node in nodes if not node["ignored"]]
        named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in met]
        return [each for each in named if each[0] in CONTROLS]

    def width(self) -> int:
        return int(self.page.locator("html").evaluate("html => html.scrollWidth"))

    def job_id(self) -> str:
        """The newest entry of the history."""
        script = "() => JSON.parse(localStorage['semples-history'])[0].id"
        return str(self.page.evaluate(script))

    def rename_newest(self, job_id: str) -> None:
        """Let the newest entry of the history stand for another job."""
        script = """id => {
            const [newest, ...others] = JSON.parse(localStorage['semples-history']);
            localStorage['semples-history'] = JSON.stringify([{...newest, id}, ...others]);
        }"""
        self.page.evaluate(script, job_id)


def read_mask(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)))


Open = Callable[..., Visit]


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Open]:
    """Opens the page of an API; when the test is over, nothing may have come from elsewhere."""
    visits = []

    def open_page(api: httpx.Client, path: str = "/", **options: Any) -> Visit:
        context = chromium.new_context(reduced_motion="reduce", **options)
        made = Visit(context.new_page())
        visits.append((made, str(api.base_url).rstrip("/")))
        made.page.set_default_timeout(SECONDS * 1000)
        made.page.on("request", lambda request: made.requests.append(request.url))
        made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
        made.page.on("console", lambda message: _note(made, message.type, message.text))
        made.page.goto(f"{api.base_url}".rstrip("/") + path)
        return made

    yield open_page
    for made, home in visits:
        made.page.context.close()
        assert [url for url in made.requests if not url.startswith((home, "blob:", "data:"))] == []
        assert made.complaints == []


def _note(visit: Visit, kind: str, text: str) -> None:
    # That an answer was an error is written by the browser itself; errors of ours are what counts.
    if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
        visit.complaints.append(text)
