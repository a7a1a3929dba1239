"""The page in a real browser: photo and labels in, mask out, from a real API and a real worker process."""

from __future__ import annotations

import json
from contextlib import suppress

import httpx
import numpy as np
import pytest
from playwright.sync_api import FileChooser, expect

from models.refine import REFINERS, parse_chain
from tests.helpers.browser import Open, photo, read_mask
from tests.helpers.service_fixtures import WorkerProcess, png, wait_for

PHONE = {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True}


@pytest.fixture(autouse=True)
def alive(worker: WorkerProcess) -> None:
    del worker


def test_a_photo_and_labels_become_a_mask(visit: Open, api: httpx.Client) -> None:
    content, page = photo(), visit(api)
    page.make(content, "Kitty", "dining_table")
    mask = api.get(f"/jobs/{page.job_id()}/mask.png").content
    assert set(np.unique(read_mask(mask))) == {0, 1, 3}
    page.wait_for_mask(mask, share=1)
    assert page.download("Mask PNG") == mask
    rows = page.page.locator("#legend tr")
    expect(rows).to_have_text(["cat33 %0.68–", "dining table33 %0.68–"])
    document = json.loads(page.download("Job JSON"))
    assert document["labels"] == ["cat", "dining table"]
    assert page.download("Scores NPZ") == api.get(document["links"]["scores"]).content
    named = json.loads(page.download("COCO"))
    assert named["images"][0]["file_name"] == "photo.png"


def test_views_opacity_and_classes_change_the_picture(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    page.make(photo(), "cat", "bowl")
    overlay = page.picture()
    page.slide("Opacity", 0)
    clear = page.picture()
    page.view("Photo")
    assert (clear == page.picture()).all()
    page.view("Overlay")
    page.slide("Opacity", 50)
    assert (page.picture() == overlay).all()
    page.page.get_by_role("checkbox", name="bowl").uncheck()
    changed = (page.picture() != overlay).any(axis=2)
    assert not changed[:, :18].any()
    assert changed[:, 22:38].all()
    page.view("CAMs")
    cams = page.picture()
    assert cams[10, 10].std() > 0  # the cat's color
    assert cams[10, 30].std() == 0  # a bowl that is hidden, so gray
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name="Overlay PNG").click()
    assert read_mask(download.value.path().read_bytes()).shape == (40, 60, 4)


def test_without_labels_the_model_looks_by_itself(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    page.choose(photo(finds=2))
    expect(page.page.locator("#go")).to_have_text("Find whatever it shows")
    page.go()
    page.is_in("result")
    expect(page.page.locator("#legend tr")).to_have_count(1)
    expect(page.page.locator("#legend")).to_contain_text("bowl")
    expect(page.page.get_by_role("radio", name="Scores")).to_be_visible()
    expect(page.page.locator("#threshold-row")).to_be_hidden()


def test_by_keyboard_alone(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    keys, focused = page.page.keyboard, page.page.locator(":focus")

    def tab_to(selector: str) -> None:
        for _ in range(40):
            if page.page.locator(f"{selector}:focus").count():
                return
            keys.press("Tab")
        raise LookupError(f"expected {selector} within 40 tabs")

    # From the start: what opens before anybody listens is a dialog of Chromium's own, and no other opens beside it.
    choosers: list[FileChooser] = []

    def hear(chooser: FileChooser) -> None:
        choosers.append(chooser)

    page.page.on("filechooser", hear)

    def chosen() -> bool:
        page.page.wait_for_timeout(50)  # Playwright tells of events while it is waited for
        return bool(choosers)

    tab_to("#file")
    for _ in range(4):  # a busy machine's Chromium loses keys
        keys.press("Enter")
        with suppress(TimeoutError):
            wait_for(chosen, seconds=5)
            break
    choosers[0].set_files({"name": "a.png", "mimeType": "image/png", "buffer": photo()})
    expect(focused).to_have_id("label")
    keys.type("kit")
    expect(page.page.locator("#options [aria-selected=true]")).to_have_text("cat kitty")
    assert focused.get_attribute("aria-activedescendant") == "option-0"
    keys.press("Escape")
    expect(focused).to_have_attribute("aria-expanded", "false")
    keys.press("ArrowDown")
    keys.press("ArrowDown")
    keys.press("Enter")
    expect(page.page.locator("#chips")).to_contain_text("cat")
    keys.press("Enter")
    page.is_in("result")
    expect(focused).to_have_id("result-title")
    tab_to("#confidence")
    keys.press("ArrowRight")
    expect(page.page.locator("#confidence-value")).to_have_text("0.01")
    tab_to("#label")
    keys.press("Backspace")
    expect(page.page.locator("#chips li")).to_have_count(0)


@pytest.mark.parametrize("options", [PHONE, {}, {"color_scheme": "dark"}])
def test_every_control_has_a_name_and_fits(
    visit: Open, api: httpx.Client, options: dict[str, object]
) -> None:
    page = visit(api, **options)
    page.page.locator("summary").click()
    met = [page.controls()]
    widths = [page.width()]
    page.choose(photo())
    page.page.get_by_role("combobox", name="What does the photo show?").click()
    met.append(page.controls())
    page.label("cat", "dining table")
    page.go()
    page.is_in("result")
    page.slide("Minimum confidence", 0.9)
    expect(page.page.get_by_role("checkbox", name="Unsure")).to_be_visible()
    met.append(page.controls())
    widths.append(page.width())
    size = page.page.viewport_size
    assert size is not None
    assert max(widths) <= size["width"]
    assert [role for state in met for role, name in state if not name.strip()] == []
    assert {"combobox", "option", "slider", "radio", "checkbox", "button"} <= {
        role for state in met for role, _ in state
    }


def test_progress_is_shown_and_a_job_can_be_canceled(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    page.choose(photo())
    page.label("slow")
    page.go()
    expect(page.page.get_by_role("status")).to_have_text("Looking for the classes")
    expect(page.page.locator("#progress[value]")).to_be_attached()
    job = page.job_id()
    page.page.get_by_role("button", name="Cancel").click()
    page.is_in("ready")
    wait_for(
        lambda: api.get(f"/jobs/{job}").json()["status"] == "canceled", what="the cancellation"
    )


def test_the_history_is_kept_and_can_be_deleted(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    page.make(photo(), "cat")
    overlay = page.picture()
    page.page.reload()
    entry = page.page.locator(".entry")
    expect(entry).to_contain_text("cat")
    entry.click()
    page.is_in("result")
    assert (page.picture() == overlay).all()  # the photo comes from the browser's own store
    page.page.get_by_role("button", name="Delete cat").click()
    expect(page.page.locator("#history")).to_be_hidden()
    page.page.reload()
    expect(page.page.locator(".entry")).to_have_count(0)


@pytest.mark.parametrize(
    "event",
    [
        "new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: data})",
        "new ClipboardEvent('paste', {bubbles: true, clipboardData: data})",
    ],
)
def test_a_photo_is_dropped_or_pasted(visit: Open, api: httpx.Client, event: str) -> None:
    page = visit(api)
    script = f"""(body, bytes) => {{
        const data = new DataTransfer();
        data.items.add(new File([Uint8Array.from(bytes)], "photo.png", {{type: "image/png"}}));
        body.dispatchEvent({event});
    }}"""
    page.page.locator("body").evaluate(script, list(png(width=60, height=40, color=(9, 9, 9))))
    page.is_in("ready")
    assert page.picture()[20, 30].tolist() == [9, 9, 9]


def test_refinements_are_those_that_there_are(visit: Open, api: httpx.Client) -> None:
    values = visit(api).page.locator("#refine option").evaluate_all("all => all.map(o => o.value)")
    assert {name for value in values if value for name in parse_chain(value)} == set(REFINERS)
