"""The page in a real browser: photo and labels in, mask out, from a real API and a real worker process."""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import FileChooser, expect

from models.refine import REFINERS, parse_chain
from service.local.supervisor import Child, Command
from service.middleware.auth import _make_key
from tests.helpers.browser import Open, photo, read_mask
from tests.helpers.paths import PHOTO
from tests.helpers.posting import post, wait_for_status
from tests.helpers.service_fixtures import Place, WorkerProcess, http_api, png, stop, wait_for

PHONE = {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True}


pytestmark = pytest.mark.usefixtures("worker")


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


def gray(top: int, dtype: str = "uint16") -> bytes:
    """Return a gray photo whose values go from a tenth of the largest to the largest."""
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(top // 10, top, 40 * 60).reshape(40, 60).astype(dtype)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (gray(4095), "16-bit gray: its values, 409 to 4,095, were read as black to white"),
        (gray(900), "16-bit gray: its values, 90 to 900, were read as black to white"),
        (gray(65535), None),
        (gray(255, "uint8"), None),
    ],
)
def test_dark_gray_of_many_bits_is_said_to_be_scaled(
    visit: Open, api: httpx.Client, content: bytes, note: str | None
) -> None:
    page = visit(api)
    page.make(content, "cat")
    origin = page.page.locator("#origin")
    expect(origin).to_contain_text("refinement")
    if note:
        expect(origin).to_contain_text(note)
    else:
        expect(origin).not_to_contain_text("16-bit")


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
    assert read_mask(page.download("Overlay PNG")).shape == (40, 60, 4)


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


EXAMPLES = "#examples button"


def test_an_example_is_tried_with_one_click(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    shown = page.page.locator(EXAMPLES).filter(visible=True)
    expect(shown).to_have_count(1)  # the double knows neither cups nor clocks
    page.page.get_by_role("button", name="Photo of a cat").click()
    page.is_in("result")
    expect(page.page.locator("#legend tr")).to_contain_text(["cat"])
    expect(page.page.locator("#chips li")).to_contain_text(["cat"])
    document = json.loads(page.download("Job JSON"))
    assert document["labels"] == ["cat"]
    page.wait_for_mask(api.get(document["links"]["mask"]).content, share=1)
    assert json.loads(page.download("COCO"))["images"][0]["file_name"] == "cat.jpg"
    # As any photo: it is in the history, and other labels can be chosen for it.
    expect(page.page.locator(".entry")).to_contain_text(["cat"])
    page.label("bowl")
    page.go()
    expect(page.page.locator("#legend tr")).to_have_count(2)


def test_an_example_by_keyboard(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    expect(page.page.locator("#examples")).to_be_visible()
    page.label("bowl")  # an example's label takes the place of others
    page.page.locator("#file").focus()
    page.page.keyboard.press("Tab")
    expect(page.page.locator(":focus")).to_have_attribute("data-file", "cat.jpg")
    page.page.keyboard.press("Enter")
    page.is_in("result")
    expect(page.page.locator(":focus")).to_have_id("result-title")
    expect(page.page.locator("#legend tr")).to_have_count(1)


def test_examples_follow_the_model(visit: Open, api: httpx.Client) -> None:
    page = visit(api, **PHONE)
    answer = api.get("/models").json()
    known = next(each for each in answer["models"] if each["model"]["name"] == "double")
    names = {"all": ("cat", "clock"), "none": ("dog",)}
    models = [_with_classes(known, name, *classes) for name, classes in names.items()]
    models[0]["model"]["classes"].append({"index": 9, "name": "mug", "synonyms": ["cup"]})
    content = {**answer, "default": "all", "models": models}
    page.page.route("**/models", lambda route: route.fulfill(json=content))
    page.page.reload()
    shown = page.page.locator(EXAMPLES).filter(visible=True)
    expect(shown).to_have_count(3)
    assert page.width() <= 400
    page.page.locator("summary").click()
    page.page.get_by_label("Model", exact=True).select_option("none")
    expect(page.page.locator("#examples")).to_be_hidden()
    page.page.get_by_label("Model", exact=True).select_option("all")
    page.page.get_by_role("button", name="Photo of a cup").click()
    expect(page.page.locator("#chips li")).to_contain_text(["mug"])  # the model's own name
    expect(page.problem).to_contain_text("expected one of double")  # the API has no such model
    page.is_in("ready")


def _with_classes(known: dict[str, Any], name: str, *classes: str) -> dict[str, Any]:
    listed = [{"index": i, "name": each, "synonyms": []} for i, each in enumerate(classes, 1)]
    return {**known, "model": {**known["model"], "name": name, "classes": listed}}


def test_an_example_that_does_not_come(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    expect(page.page.locator("#examples")).to_be_visible()
    page.page.route("**/examples/*", lambda route: route.abort())
    page.page.get_by_role("button", name="Photo of a cat").click()
    expect(page.problem).to_contain_text("The service does not answer")
    page.is_in("empty")
    page.page.unroute("**/examples/*")
    page.problem.get_by_role("button", name="Try again").click()
    page.is_in("result")


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
def test_every_control_has_a_name_and_fits(visit: Open, api: httpx.Client, options: dict[str, object]) -> None:
    page = visit(api, **options)
    expect(page.page.locator("#examples")).to_be_visible()
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
    assert ("button", "Photo of a cat") in met[0]
    assert {"combobox", "option", "slider", "radio", "checkbox", "button"} <= {
        role for state in met for role, _ in state
    }


def test_progress_is_shown_and_a_job_can_be_canceled(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    page.send(photo(), "slow")
    expect(page.page.get_by_role("status")).to_have_text("Looking for the classes")
    expect(page.page.locator("#progress[value]")).to_be_attached()
    job = page.job_id()
    page.page.get_by_role("button", name="Cancel").click()
    page.is_in("ready")
    wait_for_status(api, f"/jobs/{job}", "canceled")


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


def test_nothing_is_sent_without_a_photo(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    page.go()
    expect(page.problem).to_contain_text("There is no photo yet")
    assert not [url for url in page.requests if url.endswith(("/segment", "/pseudo-mask"))]


def test_a_file_that_is_no_photo(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    page.choose(b"no photo")
    expect(page.problem).to_contain_text("This photo cannot be read")


def test_an_unknown_label_offers_its_nearest(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    page.send(photo(), "bowl", "catt")
    expect(page.problem).to_contain_text("The model does not know “catt”")
    page.problem.get_by_role("button", name="cat", exact=True).click()
    page.is_in("result")
    expect(page.page.locator("#legend tr")).to_have_count(2)
    expect(page.problem).to_be_hidden()


def test_a_photo_that_the_service_does_not_take(visit: Open, place: Place) -> None:
    with http_api(place, max_pixels=1000) as small:
        page = visit(small)
        page.send(photo(), "cat")
        expect(page.problem).to_contain_text("Image too large")
        page.is_in("ready")


def test_a_job_that_fails(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    page.send(photo(), "raises")
    expect(page.problem).to_contain_text("The model could not work on the photo")
    expect(page.problem).not_to_contain_text("secret")
    page.is_in("ready")


def test_a_job_that_has_expired_is_sent_again(visit: Open, api: httpx.Client, place: Place) -> None:
    page = visit(api)
    page.make(photo(), "cat")
    place.redis.delete(f"rq:job:{page.job_id()}")
    page.page.reload()
    page.page.locator(".entry").click()
    expect(page.problem).to_contain_text("This job has expired")
    page.problem.get_by_role("button", name="Send it again").click()
    page.is_in("result")


def test_a_service_that_has_stopped(visit: Open, place: Place) -> None:
    with http_api(place) as soon_gone:
        page = visit(soon_gone)
        expect(page.page.locator("#model option")).not_to_have_count(0)
    page.send(photo(), "cat")
    expect(page.problem).to_contain_text("The service does not answer")
    expect(page.problem.get_by_role("button", name="Try again")).to_be_visible()


def test_a_key_is_asked_for_and_kept(visit: Open, place: Place) -> None:
    key, known = _make_key("alice")
    with http_api(place, keys=known.line) as guarded:
        page = visit(guarded)
        field = page.page.get_by_label("API key")
        field.fill("wrong")
        field.press("Enter")
        expect(page.problem).to_contain_text("This key is not valid")
        field.fill(key)
        field.press("Enter")
        expect(field).to_be_hidden()
        page.make(photo(), "cat")
        answer = guarded.get(f"/jobs/{page.job_id()}/mask.png", headers={"Authorization": f"Bearer {key}"})
        page.wait_for_mask(answer.content)
        assert page.download("Mask PNG") == answer.content
        page.page.reload()
        page.page.locator(".entry").click()
        page.is_in("result")


def test_labels_that_the_model_was_not_trained_on(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    box = page.page.get_by_role("checkbox", name="Also labels that the model was not trained on")
    expect(box).to_be_visible()
    page.send(photo(), "cat", "Fire-Truck")
    expect(page.problem).to_contain_text("The model does not know “Fire-Truck”")
    page.page.get_by_role("button", name="Try “Fire-Truck” all the same").click()
    page.is_in("result")
    expect(box).to_be_checked()
    rows = page.page.locator("#legend tr")
    expect(rows).to_have_text(["cat33 %0.68–", "fire truck not trained on33 %0.68–"])
    mask = api.get(f"/jobs/{page.job_id()}/mask.png").content
    assert set(np.unique(read_mask(mask))) == {0, 1, 12}
    page.wait_for_mask(mask, share=1)
    assert json.loads(page.download("Job JSON"))["vocabulary"] == "open"


def test_a_page_of_a_closed_model_has_no_such_choice(visit: Open, place: Place) -> None:
    closed = WorkerProcess(place, bundle="plain")
    closed.start()
    try:
        with http_api(place, model="plain") as api:
            page = visit(api)
            expect(page.page.locator("#model option:checked")).to_have_text("plain")
            expect(page.page.locator("#model-note")).to_contain_text("Knows 11 classes")
            expect(page.page.locator("#open-row")).to_be_hidden()
    finally:
        closed.stop()


def mask_of_job(api: httpx.Client, content: bytes, *labels: str, **options: object) -> tuple[str, bytes]:
    """Id and mask of a job that is posted beside the page."""
    job = post(api, content, labels, query="?wait=60", **options).json()
    return job["id"], api.get(job["links"]["mask"]).content


def test_sliders_decide_as_a_new_job_would(visit: Open, api: httpx.Client) -> None:
    content, page = photo(), visit(api)
    page.make(content, "cat", "bowl")
    for options in ({"background_threshold": 0.85}, {"background_threshold": 0.85, "min_confidence": 0.52}):
        page.slide("Background threshold", options["background_threshold"])
        page.slide("Minimum confidence", options.get("min_confidence", 0))
        _, mask = mask_of_job(api, content, "cat", "bowl", **options)
        page.wait_for_mask(mask, share=1)
        assert (read_mask(page.download("Mask PNG")) == read_mask(mask)).all()
    assert set(np.unique(page.label_map())) == {0, 1, 2, 255}
    page.page.get_by_role("button", name="Back to the first mask").click()
    page.wait_for_mask(api.get(f"/jobs/{page.job_id()}/mask.png").content, share=1)


@pytest.fixture
def demo_worker(place: Place) -> Iterator[None]:
    program = (sys.executable, "-m", "worker", "run", "--bundle", "coco-demo", "--device", "cpu")
    child = Child(Command("demo", [*program, *place.options], log=place.data / "demo.log", grace=20))
    yield
    stop(child)


@pytest.mark.usefixtures("demo_worker")
def test_the_real_model_on_a_real_photo(visit: Open, api: httpx.Client) -> None:
    wait_for(lambda: "coco-demo" in api.get("/models").text, seconds=90, what="the model")
    content = PHOTO.read_bytes()
    page = visit(api)
    page.page.locator("summary").click()
    page.page.get_by_label("Model", exact=True).select_option("coco-demo")
    page.make(content, "cat", "couch")
    page.wait_for_mask(api.get(f"/jobs/{page.job_id()}/mask.png").content)
    options = {"background_threshold": 0.62, "min_confidence": 0.4}
    _, mask = mask_of_job(api, content, "cat", "couch", model="coco-demo", **options)
    page.slide("Background threshold", 0.62)
    page.slide("Minimum confidence", 0.4)
    page.wait_for_mask(mask)
    assert len(np.unique(page.label_map())) >= 3
    # A segmenter's own background, and the background as a power of what the best class leaves.
    for button in ("Take couch away", "Take cat away"):
        page.page.get_by_role("button", name=button).click()
    page.go()
    page.is_in("running")
    page.is_in("result")
    page.wait_for_mask(api.get(f"/jobs/{page.job_id()}/mask.png").content)
    job_id, mask = mask_of_job(api, content, "cat", "couch", model="coco-demo", background_power=1.7)
    page.rename_newest(job_id)
    page.page.reload()
    page.page.locator(".entry").first.click()
    page.is_in("result")
    expect(page.page.locator("#threshold-value")).to_have_text("by rule")
    page.wait_for_mask(mask)


def test_a_photo_larger_than_the_screen_is_decided_in_its_own_size(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    content = png(width=2000, height=1000, color=(3, 200, 90))
    page.make(content, "cat")
    assert page.picture().shape == (800, 1600, 3)
    page.slide("Background threshold", 0.85)
    expect(page.page.locator("#legend td").first).to_have_text("25 %")
    page.view("Mask")
    wait_for(lambda: page.picture()[:, :790].any(axis=(1, 2)).mean() == pytest.approx(0.5, abs=0.01))
    page.view("Overlay")
    overlay = read_mask(page.download("Overlay PNG"))
    assert overlay.shape == (1000, 2000, 4)
