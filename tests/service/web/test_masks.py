"""The browser decides masks by the same rule as the service, pixel by pixel."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from service.local.supervisor import Child, Command
from tests.helpers.browser import Open, photo, read_mask
from tests.helpers.paths import ROOT
from tests.helpers.service_fixtures import Place, WorkerProcess, png, wait_for


@pytest.fixture(autouse=True)
def alive(worker: WorkerProcess) -> None:
    del worker


def post(api: httpx.Client, content: bytes, **fields: object) -> Any:
    answer = api.post("/pseudo-mask?wait=60", files={"image": content}, data=fields)
    return answer.json()


def test_sliders_decide_as_a_new_job_would(visit: Open, api: httpx.Client) -> None:
    content, page = photo(), visit(api)
    page.make(content, "cat", "bowl")
    for options in (
        {"background_threshold": 0.85},
        {"background_threshold": 0.85, "min_confidence": 0.52},
    ):
        page.slide("Background threshold", options["background_threshold"])
        page.slide("Minimum confidence", options.get("min_confidence", 0))
        job = post(api, content, labels=["cat", "bowl"], **options)
        mask = api.get(job["links"]["mask"]).content
        page.wait_for_mask(mask, share=1)
        assert (read_mask(page.download("Mask PNG")) == read_mask(mask)).all()
    assert set(np.unique(page.label_map())) == {0, 1, 2, 255}
    page.page.get_by_role("button", name="Back to the first mask").click()
    page.wait_for_mask(api.get(f"/jobs/{page.job_id()}/mask.png").content, share=1)


@pytest.fixture
def demo_worker(place: Place) -> Iterator[None]:
    arguments = [
        *(sys.executable, "-m", "worker", "run", "--bundle", "coco-demo", "--device", "cpu"),
        *("--redis-url", place.url, "--blobs", str(place.data / "blobs")),
    ]
    child = Child(Command("demo", arguments, log=place.data / "demo.log", grace=20))
    yield
    child.ask_to_stop()
    child.wait()


@pytest.mark.usefixtures("demo_worker")
def test_the_real_model_on_a_real_photo(visit: Open, api: httpx.Client) -> None:
    wait_for(lambda: "coco-demo" in api.get("/models").text, seconds=90, what="the model")
    content = (ROOT / "benchmarks" / "photos" / "cat.jpg").read_bytes()
    page = visit(api)
    page.page.locator("summary").click()
    page.page.get_by_label("Model", exact=True).select_option("coco-demo")
    page.make(content, "cat", "couch")
    page.wait_for_mask(api.get(f"/jobs/{page.job_id()}/mask.png").content)
    options = {"background_threshold": 0.62, "min_confidence": 0.4}
    job = post(api, content, labels=["cat", "couch"], model="coco-demo", **options)
    page.slide("Background threshold", 0.62)
    page.slide("Minimum confidence", 0.4)
    page.wait_for_mask(api.get(job["links"]["mask"]).content)
    assert len(np.unique(page.label_map())) >= 3
    # A segmenter's own background, and the background as a power of what the best class leaves.
    for button in ("Take couch away", "Take cat away"):
        page.page.get_by_role("button", name=button).click()
    page.go()
    page.is_in("running")
    page.is_in("result")
    page.wait_for_mask(api.get(f"/jobs/{page.job_id()}/mask.png").content)
    job = post(api, content, labels=["cat", "couch"], model="coco-demo", background_power=1.7)
    page.rename_newest(job["id"])
    page.page.reload()
    page.page.locator(".entry").first.click()
    page.is_in("result")
    expect(page.page.locator("#threshold-value")).to_have_text("by rule")
    page.wait_for_mask(api.get(job["links"]["mask"]).content)


def test_a_photo_larger_than_the_screen_is_decided_in_its_own_size(
    visit: Open, api: httpx.Client
) -> None:
    page = visit(api)
    content = png(width=2000, height=1000, color=(3, 200, 90))
    page.make(content, "cat")
    assert page.picture().shape == (800, 1600, 3)
    page.slide("Background threshold", 0.85)
    expect(page.page.locator("#legend td").first).to_have_text("25 %")
    page.view("Mask")
    wait_for(
        lambda: page.picture()[:, :790].any(axis=(1, 2)).mean() == pytest.approx(0.5, abs=0.01)
    )
    page.view("Overlay")
    overlay = read_mask(page.download("Overlay PNG"))
    assert overlay.shape == (1000, 2000, 4)
