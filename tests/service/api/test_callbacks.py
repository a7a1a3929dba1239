"""``callback_url`` over HTTP: taken, refused, and told to the end of the chain."""

import json
from collections.abc import Iterator

import httpx
import pytest
from standardwebhooks import Webhook

from tests.helpers.posting import new_photo, post
from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api, janitor_process, wait_for
from tests.helpers.webhooks import PUBLIC, SECRET, Receiver, never_resolves, resolver
from worker.webhooks import store

SECRETS = {"webhook_secret": SECRET}


@pytest.fixture(autouse=True)
def clean(place: Place, worker: WorkerProcess) -> Iterator[None]:
    yield
    wait_for(lambda: place.leftovers() == NOTHING, what="an empty queue")
    for key in place.redis.keys("semples:callback*"):
        place.redis.delete(key)


def waiting(place: Place) -> int:
    return int(place.redis.zcard(store.DUE_KEY))


@pytest.mark.parametrize(
    ("path", "labels", "status"),
    [("/pseudo-mask", "cat", "finished"), ("/pseudo-mask", "raises", "failed"), ("/segment", None, "finished")],
)
def test_from_post_to_webhook(place: Place, receiver: Receiver, path: str, labels: str | None, status: str) -> None:
    private = {**SECRETS, "webhook_private": True}
    environment = {"SEMPLES_WEBHOOK_SECRET": SECRET, "SEMPLES_WEBHOOK_PRIVATE": "1"}
    with http_api(place, **private) as api, janitor_process(place, **environment):
        response = post(api, path=path, labels=labels, callback_url=receiver.url())
        assert response.status_code == 202
        wait_for(lambda: receiver.deliveries, what="the webhook")
        document = api.get(response.headers["Location"]).json()
    [delivery] = receiver.deliveries
    news = Webhook(SECRET).verify(delivery.body, delivery.headers)
    assert news["type"] == f"job.{status}"
    assert document["status"] == status
    links = news["data"].pop("links")
    assert links.items() <= document["links"].items()
    assert set(document["links"]) - set(links) <= {"cams"}
    for field, value in news["data"].items():
        assert document[field] == value, field


def test_a_callback_is_no_part_of_the_job(place: Place, receiver: Receiver) -> None:
    image = new_photo()
    with http_api(place, **SECRETS, resolve=resolver(PUBLIC)) as api:
        ids = {
            post(api, callback_url=url, image=image).json()["id"]
            for url in ("", "http://a.test/", "https://b.test/x", "http://a.test/", "")
        }
    assert len(ids) == 1
    assert waiting(place) == 2


def test_a_job_that_has_ended_is_told_too(place: Place) -> None:
    image = new_photo()
    with http_api(place, **SECRETS, resolve=resolver(PUBLIC)) as api:
        job = post(api, image=image).json()
        wait_for(lambda: api.get(job["links"]["self"]).json()["status"] == "finished")
        assert waiting(place) == 0
        assert post(api, callback_url="http://a.test/", image=image).json()["id"] == job["id"]
        assert waiting(place) == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:6379/", "expected a host on the internet, got '127.0.0.1'"),
        ("http://localhost/", "expected a host on the internet, got 'localhost'"),
        ("http://2130706433/", "expected a host on the internet, got '2130706433'"),
        ("http://[::ffff:127.0.0.1]/", "expected a host on the internet"),
        ("http://169.254.169.254/latest/meta-data/", "expected a host on the internet"),
        ("ftp://8.8.8.8/", "expected an http or https URL, got 'ftp'"),
        ("http://user:word@8.8.8.8/", "expected a URL without credentials"),
        ("http://no-such-host.invalid/", "expected a host on the internet"),
        ("nonsense", "expected an http or https URL, got ''"),
        ("http://8.8.8.8/" + "x" * 5000, "expected at most 2048 characters"),
    ],
)
def test_urls_that_are_refused_name_the_field(place: Place, url: str, message: str) -> None:
    with http_api(place, **SECRETS) as api:
        for path in ("/pseudo-mask", "/segment"):
            response = post(api, callback_url=url, path=path)
            problem = response.json()
            assert (response.status_code, problem["type"]) == (422, "/problems/invalid-request")
            assert problem["errors"][0]["field"] == "callback_url"
            assert message in problem["errors"][0]["message"]
    assert (waiting(place), place.leftovers()) == (0, NOTHING)


def test_a_name_that_leads_inside(place: Place) -> None:
    with http_api(place, **SECRETS, resolve=resolver(PUBLIC, "10.0.0.1")) as api:
        response = post(api, callback_url="https://hooks.test/")
    assert response.status_code == 422
    assert "10.0.0.1" not in response.text


def test_a_name_that_leads_outside_at_first(place: Place, receiver: Receiver) -> None:
    """It passes at the post, and is found out at the delivery."""
    with http_api(place, **SECRETS, resolve=resolver(PUBLIC)) as api:
        url = receiver.url(host="localhost")
        assert post(api, callback_url=url).status_code == 202
        assert waiting(place) == 1
        with janitor_process(place, SEMPLES_WEBHOOK_SECRET=SECRET):
            wait_for(lambda: waiting(place) == 0, what="the janitor's verdict")
    assert receiver.deliveries == []
    log = (place.data / "janitor.log").read_text()
    assert "webhook to localhost given up after 1 attempts: expected a host on the internet" in log


def test_without_a_secret(place: Place, api: httpx.Client) -> None:
    response = post(api, callback_url="http://a.test/")
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"field": "callback_url", "message": "this service sends no webhooks: it has no webhook secret"}
    ]
    assert post(api, callback_url="").status_code == 202  # an empty field is none


def test_a_name_server_that_is_slow_holds_nobody_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.webhooks.urls.RESOLVE_SECONDS", 0.05)

    with http_api(place, **SECRETS, resolve=never_resolves) as api:
        response = post(api, callback_url="http://hooks.test/")
    assert response.status_code == 422
    assert "expected a host on the internet" in response.json()["detail"]


def test_too_many_wait(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_SUBSCRIPTIONS", 1)
    with http_api(place, **SECRETS, resolve=resolver(PUBLIC)) as api:
        assert post(api, callback_url="http://a.test/").status_code == 202
        response = post(api, callback_url="http://b.test/")
        assert (response.status_code, response.json()["type"]) == (503, "/problems/queue-full")
        assert response.headers["Retry-After"]
        assert post(api).status_code == 202


def test_a_full_queue_notes_no_callback(place: Place) -> None:
    with http_api(place, **SECRETS, resolve=resolver(PUBLIC), max_queue=1, job_timeout=30) as api:
        slow = post(api, labels="slow")
        wait_for(lambda: api.get(slow.headers["Location"]).json()["status"] == "running")
        assert post(api).status_code == 202
        assert post(api, callback_url="http://a.test/").json()["type"] == "/problems/queue-full"
    assert waiting(place) == 0


def test_links_begin_where_the_api_does(place: Place) -> None:
    job = "0" * 32
    to = store.Recipient(url="http://a.test/", root="/api")
    store.register(place.redis, job, to, now=0)
    [callback] = store.due(place.redis, now=1)
    assert json.loads(callback.model_dump_json())["to"] == {"url": "http://a.test/", "root": "/api"}
