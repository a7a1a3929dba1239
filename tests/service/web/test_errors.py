"""What goes wrong is said to the person, with what can be done about it."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import expect

from service.middleware.auth import make_key
from tests.helpers.browser import Open, photo
from tests.helpers.service_fixtures import Place, WorkerProcess, http_api


@pytest.fixture(autouse=True)
def alive(worker: WorkerProcess) -> None:
    del worker


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
    page.choose(photo())
    page.label("bowl", "catt")
    page.go()
    expect(page.problem).to_contain_text("The model does not know “catt”")
    page.problem.get_by_role("button", name="cat", exact=True).click()
    page.is_in("result")
    expect(page.page.locator("#legend tr")).to_have_count(2)
    expect(page.problem).to_be_hidden()


def test_a_photo_that_the_service_does_not_take(
    visit: Open, place: Place, worker: WorkerProcess
) -> None:
    del worker
    with http_api(place, max_pixels=1000) as small:
        page = visit(small)
        page.choose(photo())
        page.label("cat")
        page.go()
        expect(page.problem).to_contain_text("Image too large")
        page.is_in("ready")


def test_a_job_that_fails(visit: Open, api: httpx.Client) -> None:
    page = visit(api)
    page.choose(photo())
    page.label("raises")
    page.go()
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


def test_a_service_that_is_away(visit: Open, place: Place) -> None:
    with http_api(place) as soon_gone:
        page = visit(soon_gone)
        expect(page.page.locator("#model option")).not_to_have_count(0)
    page.choose(photo())
    page.label("cat")
    page.go()
    expect(page.problem).to_contain_text("The service does not answer")
    expect(page.problem.get_by_role("button", name="Try again")).to_be_visible()


def test_a_key_is_asked_for_and_kept(visit: Open, place: Place) -> None:
    key, known = make_key("alice")
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
        answer = guarded.get(
            f"/jobs/{page.job_id()}/mask.png", headers={"Authorization": f"Bearer {key}"}
        )
        page.wait_for_mask(answer.content)
        assert page.download("Mask PNG") == answer.content
        page.page.reload()
        page.page.locator(".entry").click()
        page.is_in("result")
