"""One webhook: what it says, that its signature holds, and where it is not sent."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rq.job import JobStatus
from standardwebhooks import Webhook, WebhookVerificationError

from service.schemas import JobDocument
from tests.service_fixtures import Place
from tests.test_callback_url import PUBLIC, names
from tests.webhook_receiver import SECRET, Receiver, receiving
from worker.callbacks import Callback, Recipient
from worker.failures import describe
from worker.signing import parse_secret, signed_headers
from worker.webhooks import Attempt, Sender, news_of, verdict_on

NOW = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as there:
        yield there


def callback(url: str, *, job: str = "0" * 32, root: str = "") -> Callback:
    return Callback(message="msg_1", job=job, to=Recipient(url=url, root=root), since=0)


def send(url: str, *, now: datetime | None = None, **options: Any) -> Attempt:
    sender = Sender(parse_secret(SECRET), **{"allow_private": True, **options})
    body = '{"type": "job.finished", "name": "bücher"}'
    return asyncio.run(sender.send(callback(url), body, now=now or datetime.now(UTC)))


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
    monkeypatch.setattr("worker.webhooks.SEND_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        attempt = send(f"http://127.0.0.1:{silent.getsockname()[1]}/")
    assert attempt.verdict == "again"


def test_the_connection_goes_to_the_address_that_was_judged(receiver: Receiver) -> None:
    """A name that only the injected resolver knows: nobody else is asked."""
    url = receiver.url(host="hooks.test")
    assert send(url, resolve=names("127.0.0.1")).verdict == "delivered"
    assert receiver.deliveries[0].headers["host"] == f"hooks.test:{receiver.port}"


def test_the_next_address_is_tried(receiver: Receiver) -> None:
    url = receiver.url(host="hooks.test")
    assert send(url, resolve=names("127.0.0.9", "127.0.0.1")).verdict == "delivered"
    assert len(receiver.deliveries) == 1


def test_a_name_that_leads_elsewhere_now(receiver: Receiver) -> None:
    url = receiver.url(host="hooks.test")
    attempt = send(url, resolve=names("127.0.0.1"), allow_private=False)
    assert attempt == Attempt("never", "expected a host on the internet, got 'hooks.test'")
    attempt = send(url, resolve=names(PUBLIC, "127.0.0.1"), allow_private=False)
    assert attempt.verdict == "never"
    assert receiver.deliveries == []


def test_a_name_that_is_asked_once(receiver: Receiver) -> None:
    """Were it asked twice, the second answer could be another one."""
    answers = [["127.0.0.1"], ["127.0.0.9"]]

    async def resolve(host: str, port: int) -> Sequence[str]:
        del host, port
        return answers.pop(0)

    assert send(receiver.url(host="hooks.test"), resolve=resolve).verdict == "delivered"
    assert len(answers) == 1


def test_a_name_that_is_not_known_now() -> None:
    async def nobody(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    assert send("http://hooks.test/", resolve=nobody).verdict == "again"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate and its key for hooks.test, signed by itself."""
    file = tmp_path_factory.mktemp("tls") / "hooks.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=hooks.test", "-addext", "subjectAltName=DNS:hooks.test"),
            *("-keyout", str(file), "-out", f"{file}.crt"),
        ],
        check=True,
        capture_output=True,
    )
    with file.open("a") as whole:
        whole.write(Path(f"{file}.crt").read_text())
    return file


def test_the_certificate_must_be_the_names(certificate: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    trust = ssl.create_default_context(cafile=certificate)
    resolve = names("127.0.0.1")
    with receiving(server) as receiver:
        right = receiver.url(host="hooks.test", scheme="https")
        assert send(right, resolve=resolve, trust=trust).verdict == "delivered"
        for url, trusted in (
            (receiver.url(host="other.test", scheme="https"), trust),
            (receiver.url(host="127.0.0.1", scheme="https"), trust),
            (right, ssl.create_default_context()),
        ):
            attempt = send(url, resolve=resolve, trust=trusted)
            assert attempt.verdict == "again"
            assert "certificate verify failed" in attempt.reason.lower()
        assert len(receiver.deliveries) == 1


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
        job.meta = {"failure": describe(MemoryError()).model_dump()} if word == "failed" else {}
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
