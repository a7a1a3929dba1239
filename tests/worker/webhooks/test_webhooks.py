"""One webhook: what it says, that its signature holds, and what answers mean."""

from __future__ import annotations

import asyncio
import json
import socket
from datetime import UTC, datetime

import pytest
from rq.job import JobStatus
from standardwebhooks import Webhook, WebhookVerificationError

from service.api.schemas import JobDocument
from tests.helpers.service_fixtures import Place
from tests.helpers.webhook_receiver import SECRET, Receiver
from tests.helpers.webhook_sending import callback, send
from worker.queue.failures import describe_failure
from worker.webhooks.sender import (
    Attempt,
    Sender,
    news_of,
    parse_secret,
    signed_headers,
    verdict_on,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)


def test_a_delivery_and_its_signature(receiver: Receiver) -> None:
    assert send(receiver.url("/hook?key=1")) == Attempt("delivered", "answered 204")
    [delivery] = receiver.deliveries
    assert delivery.path == "/hook?key=1"
    assert delivery.headers["content-type"] == "application/json"
    assert delivery.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert delivery.headers["webhook-id"] == "msg_1"
    assert Webhook(SECRET).verify(delivery.body, delivery.headers)["name"] == "bücher"
    for changed, headers in (
        (delivery.body + " ", delivery.headers),
        (delivery.body, {**delivery.headers, "webhook-id": "msg_2"}),
    ):
        with pytest.raises(WebhookVerificationError, match="No matching signature"):
            Webhook(SECRET).verify(changed, headers)


def test_a_signature_is_of_its_time(receiver: Receiver) -> None:
    send(receiver.url(), now=NOW)
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(SECRET).verify(receiver.deliveries[0].body, receiver.deliveries[0].headers)
    headers = signed_headers(parse_secret(SECRET), "msg", "body", now=NOW)
    assert int(headers["webhook-timestamp"]) == int(NOW.timestamp())


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, "delivered"),
        (202, "delivered"),
        (301, "again"),
        (302, "again"),
        (307, "again"),
        (400, "again"),
        (404, "again"),
        (410, "never"),
        (429, "again"),
        (500, "again"),
        (503, "again"),
    ],
)
def test_what_answers_mean(receiver: Receiver, status: int, verdict: str) -> None:
    receiver.statuses = [status]
    receiver.location = receiver.url("/elsewhere")
    attempt = send(receiver.url())
    assert attempt == Attempt(verdict, f"answered {status}")  # type: ignore[arg-type]
    assert verdict_on(status) == verdict
    assert [delivery.path for delivery in receiver.deliveries] == ["/hook"]  # nothing is followed


def test_the_answers_body_is_not_read(receiver: Receiver) -> None:
    receiver.unread = b"x" * 100_000
    assert send(receiver.url()).verdict == "delivered"


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    attempt = send(f"http://127.0.0.1:{port}/")
    assert attempt.verdict == "again"
    assert attempt.reason


def test_something_else_listens() -> None:
    async def talk() -> Attempt:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            attempt = asyncio.create_task(
                Sender(parse_secret(SECRET), allow_private=True).send(callback(url), "{}", now=NOW)
            )
            connection, _ = await asyncio.to_thread(listener.accept)
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
                return await attempt

    attempt = asyncio.run(talk())
    assert attempt.verdict == "again"
    assert "illegal status line" in attempt.reason


def test_a_receiver_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.webhooks.sender.SEND_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        attempt = send(f"http://127.0.0.1:{silent.getsockname()[1]}/")
    assert attempt.verdict == "again"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "whsec_",
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",  # without the prefix
        "whsec_c2hvcnQ=",
        "whsec_a passphrase that is long enough",
        "whsec_" + "A" * 100,
    ],
)
def test_secrets_that_are_none_are_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="expected as webhook secret whsec_ and the base64") as got:
        parse_secret(text)
    assert not text.removeprefix("whsec_") or text.removeprefix("whsec_") not in str(got.value)


def test_a_secret_is_not_shown() -> None:
    assert "secret" not in repr(Sender(parse_secret(SECRET)))


def test_the_news_of_each_end(place: Place) -> None:
    job = place.post("cat")
    told = callback("http://a.test/", job=job.id, root="/api")
    shared = {"id": job.id, "task": "pseudo_mask", "labels": ["cat"]}
    link = f"/api/jobs/{job.id}"
    for status, word in (
        (JobStatus.FINISHED, "finished"),
        (JobStatus.FAILED, "failed"),
        (JobStatus.CANCELED, "canceled"),
        (JobStatus.STOPPED, "canceled"),
    ):
        job.set_status(status)
        job.meta = (
            {"failure": describe_failure(MemoryError()).model_dump()} if word == "failed" else {}
        )
        news = json.loads(news_of(told, job, now=NOW))
        data = news["data"]
        assert (news["type"], news["timestamp"]) == (f"job.{word}", "2026-01-02T03:04:05.678900Z")
        assert {key: data[key] for key in shared} == shared
        assert data["status"] == word
        assert data["links"]["self"] == link
        assert ("mask" in data["links"]) == (word == "finished")
        assert data.get("failure", {}).get("code") == (
            "out_of_memory" if word == "failed" else None
        )
        assert set(data) <= set(JobDocument.model_fields)  # the same words as in the document
    news = json.loads(news_of(told, None, now=NOW))
    assert news["type"] == "job.gone"
    assert news["data"] == {"id": job.id, "status": "gone", "links": {"self": link}}
