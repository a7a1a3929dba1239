"""Webhooks: payload and signature, the address that an attempt goes to, retries, and none lost or sent too early."""

import asyncio
import json
import logging
import socket
import ssl
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rq.job import JobStatus
from standardwebhooks import Webhook, WebhookVerificationError

from service.api.schemas import JobDocument
from tests.helpers.service_fixtures import Place
from tests.helpers.serving import free_port
from tests.helpers.webhooks import PUBLIC, SECRET, Notifications, Receiver, receiving, resolver, send, subscription
from worker.queue.failures import describe_failure
from worker.webhooks import store
from worker.webhooks.sender import (
    CLAIM_SECONDS,
    GRACE_SECONDS,
    JITTER,
    MAX_AT_ONCE,
    MAX_DELIVERIES,
    MAX_PER_HOST,
    Sender,
    _build_payload,
    _DeliveryResult,
    _retry_delay,
    _sign,
    parse_secret,
)
from worker.webhooks.store import CallbacksFullError, due

NOW = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)


def test_a_delivery_and_its_signature(receiver: Receiver) -> None:
    assert send(receiver.url("/hook?key=1")) == _DeliveryResult("delivered", "answered 204")
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
    headers = _sign(parse_secret(SECRET), "msg", "body", now=NOW)
    assert int(headers["webhook-timestamp"]) == int(NOW.timestamp())


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        *((status, "delivered") for status in (200, 202)),
        *((status, "retry") for status in (301, 302, 307, 400, 404, 429, 500, 503)),
        (410, "rejected"),
    ],
)
def test_what_answers_mean(receiver: Receiver, status: int, outcome: str) -> None:
    receiver.statuses = [status]
    receiver.location = receiver.url("/elsewhere")
    attempt = send(receiver.url())
    assert attempt == _DeliveryResult(outcome, f"answered {status}")  # type: ignore[arg-type]
    assert [delivery.path for delivery in receiver.deliveries] == ["/hook"]  # nothing is followed


def test_the_answers_body_is_not_read(receiver: Receiver) -> None:
    receiver.unread = b"x" * 100_000
    assert send(receiver.url()).outcome == "delivered"


def test_nobody_listens() -> None:
    attempt = send(f"http://127.0.0.1:{free_port()}/")
    assert attempt.outcome == "retry"
    assert attempt.reason


def test_something_else_listens() -> None:
    async def talk() -> _DeliveryResult:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
            attempt = asyncio.create_task(
                Sender(parse_secret(SECRET), allow_private=True).send(subscription(url), "{}", now=NOW)
            )
            connection, _ = await asyncio.to_thread(listener.accept)
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
                return await attempt

    attempt = asyncio.run(talk())
    assert attempt.outcome == "retry"
    assert "illegal status line" in attempt.reason


def test_a_receiver_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.webhooks.sender.SEND_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        attempt = send(f"http://127.0.0.1:{silent.getsockname()[1]}/")
    assert attempt.outcome == "retry"


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
def test_bad_secrets_are_not_repeated_in_the_message(text: str) -> None:
    with pytest.raises(ValueError, match="expected as webhook secret whsec_ and the base64") as got:
        parse_secret(text)
    assert not text.removeprefix("whsec_") or text.removeprefix("whsec_") not in str(got.value)


def test_a_secret_is_not_shown() -> None:
    assert "secret" not in repr(Sender(parse_secret(SECRET)))


def test_the_payload_of_each_end(place: Place) -> None:
    job = place.post("cat")
    subscribed = subscription("http://a.test/", job=job.id, root="/api")
    shared = {"id": job.id, "task": "pseudo_mask", "labels": ["cat"]}
    link = f"/api/jobs/{job.id}"
    for status, word in (
        (JobStatus.FINISHED, "finished"),
        (JobStatus.FAILED, "failed"),
        (JobStatus.CANCELED, "canceled"),
        (JobStatus.STOPPED, "canceled"),
    ):
        job.set_status(status)
        job.meta = {"failure": describe_failure(MemoryError()).model_dump()} if word == "failed" else {}
        payload = json.loads(_build_payload(subscribed, job, now=NOW))
        data = payload["data"]
        assert (payload["type"], payload["timestamp"]) == (f"job.{word}", "2026-01-02T03:04:05.678900Z")
        assert {key: data[key] for key in shared} == shared
        assert data["status"] == word
        assert data["links"]["self"] == link
        assert ("mask" in data["links"]) == (word == "finished")
        assert data.get("failure", {}).get("code") == ("out_of_memory" if word == "failed" else None)
        assert set(data) <= set(JobDocument.model_fields)  # the field names of the job document
    payload = json.loads(_build_payload(subscribed, None, now=NOW))
    assert payload["type"] == "job.gone"
    assert payload["data"] == {"id": job.id, "status": "gone", "links": {"self": link}}


def test_the_connection_goes_to_the_checked_address(receiver: Receiver) -> None:
    """A name that only the injected resolver knows: nobody else is asked."""
    url = receiver.url(host="hooks.test")
    assert send(url, resolve=resolver("127.0.0.1")).outcome == "delivered"
    assert receiver.deliveries[0].headers["host"] == f"hooks.test:{receiver.port}"


def test_the_next_address_is_tried(receiver: Receiver) -> None:
    url = receiver.url(host="hooks.test")
    assert send(url, resolve=resolver("127.0.0.9", "127.0.0.1")).outcome == "delivered"
    assert len(receiver.deliveries) == 1


def test_a_name_that_now_resolves_to_a_private_address(receiver: Receiver) -> None:
    url = receiver.url(host="hooks.test")
    attempt = send(url, resolve=resolver("127.0.0.1"), allow_private=False)
    assert attempt == _DeliveryResult("rejected", "expected a host on the internet, got 'hooks.test'")
    attempt = send(url, resolve=resolver(PUBLIC, "127.0.0.1"), allow_private=False)
    assert attempt.outcome == "rejected"
    assert receiver.deliveries == []


def test_a_name_is_resolved_once(receiver: Receiver) -> None:
    """Were it asked twice, the second answer could be another one."""
    answers = [["127.0.0.1"], ["127.0.0.9"]]

    async def resolve(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    assert send(receiver.url(host="hooks.test"), resolve=resolve).outcome == "delivered"
    assert len(answers) == 1


def test_a_name_that_is_unknown_now() -> None:
    async def nobody(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    assert send("http://hooks.test/", resolve=nobody).outcome == "retry"


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


def test_the_certificate_must_be_of_the_name(certificate: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    trust = ssl.create_default_context(cafile=certificate)
    resolve = resolver("127.0.0.1")
    with receiving(server) as receiver:
        right = receiver.url(host="hooks.test", scheme="https")
        assert send(right, resolve=resolve, trust=trust).outcome == "delivered"
        for url, trusted in (
            (receiver.url(host="other.test", scheme="https"), trust),
            (receiver.url(host="127.0.0.1", scheme="https"), trust),
            (right, ssl.create_default_context()),
        ):
            attempt = send(url, resolve=resolve, trust=trusted)
            assert attempt.outcome == "retry"
            assert "certificate verify failed" in attempt.reason.lower()
        assert len(receiver.deliveries) == 1


def test_sent_once_and_not_before_the_end(hooks: Notifications) -> None:
    job = hooks.post()
    assert hooks.deliver() == 0
    job.set_status(JobStatus.STARTED)
    assert hooks.deliver(after=2) == 0
    job.set_status(JobStatus.FINISHED)
    assert hooks.deliver(after=2) == 1
    assert hooks.received() == ["/hook job.finished"]
    assert hooks.left() == []
    assert hooks.deliver(after=1e6) == 0


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELED, JobStatus.STOPPED])
def test_other_ends(hooks: Notifications, status: JobStatus) -> None:
    hooks.post().set_status(status)
    assert hooks.deliver() == 1
    word = "failed" if status == JobStatus.FAILED else "canceled"
    assert hooks.received() == [f"/hook job.{word}"]


def test_sent_once_to_each_url_of_a_job(hooks: Notifications) -> None:
    job = hooks.post("/a")
    hooks.subscribe(job.id, "/b")
    hooks.subscribe(job.id, "/a")
    job.set_status(JobStatus.FINISHED)
    assert hooks.deliver() == 2
    assert sorted(hooks.received()) == ["/a job.finished", "/b job.finished"]


def test_a_job_that_is_gone_is_reported_once_it_should_have_been_queued(hooks: Notifications) -> None:
    hooks.subscribe("0" * 32)
    assert hooks.deliver() == 0
    assert hooks.deliver(after=GRACE_SECONDS) == 0
    assert hooks.deliver(after=1) == 1
    assert hooks.received() == ["/hook job.gone"]
    assert hooks.left() == []


@pytest.mark.parametrize("status", [204, 500])
def test_a_subscription_that_is_replaced_meanwhile_is_kept(hooks: Notifications, status: int) -> None:
    job = hooks.post()

    class Interrupted(Sender):
        async def send(self, *arguments: Any, **options: Any) -> Any:
            attempt = await super().send(*arguments, **options)
            hooks.subscribe(job.id)  # posted again, and run again
            job.set_status(JobStatus.QUEUED)
            return attempt

    job.set_status(JobStatus.FAILED)
    well, hooks.sender = hooks.sender, Interrupted(parse_secret(SECRET), allow_private=True)
    hooks.receiver.statuses = [status]
    assert hooks.deliver() == 1
    hooks.sender = well
    assert hooks.deliver() == 0
    job.set_status(JobStatus.FINISHED)
    assert hooks.deliver() == 1
    assert hooks.received() == ["/hook job.failed", "/hook job.finished"]
    first, second = (each.headers["webhook-id"] for each in hooks.receiver.deliveries)
    assert first != second


def test_many_are_sent_at_once_but_not_to_one_host_and_none_is_lost(hooks: Notifications) -> None:
    hooks.sender = Sender(parse_secret(SECRET), allow_private=True, resolve=resolver("127.0.0.1"))
    job = hooks.post("/0")
    for number in range(1, MAX_PER_HOST + 20):
        hooks.subscribe(job.id, f"/{number}")
    for number in range(MAX_AT_ONCE):
        hooks.subscribe(job.id, url=hooks.receiver.url(f"/other{number}", host=f"host{number}.test"))
    job.set_status(JobStatus.FINISHED)
    seen = 0
    while sent := hooks.deliver():
        round_, seen = hooks.received()[seen:], seen + sent
        assert sent == len(round_) <= MAX_AT_ONCE
        assert sum("other" not in each for each in round_) <= MAX_PER_HOST
    assert len(set(hooks.received())) == MAX_PER_HOST + 20 + MAX_AT_ONCE
    assert hooks.left() == []


def test_too_many_subscriptions_are_refused(hooks: Notifications, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_SUBSCRIPTIONS", 2)
    hooks.subscribe("0" * 32, "/a")
    hooks.subscribe("0" * 32, "/b")
    with pytest.raises(CallbacksFullError, match="2 callbacks wait already"):
        hooks.subscribe("0" * 32, "/c")


def test_a_record_that_expired_leaves_nothing_behind(hooks: Notifications) -> None:
    hooks.subscribe("0" * 32)
    [key] = hooks.place.redis.keys("semples:callback:*")
    assert hooks.place.redis.ttl(key) > 3 * 24 * 3600
    hooks.place.redis.delete(key)
    assert due(hooks.place.redis, now=hooks.now.timestamp()) == []
    assert hooks.left() == []


def test_retried_later_and_later_with_the_same_message(hooks: Notifications) -> None:
    job = hooks.post()
    job.set_status(JobStatus.FAILED)
    hooks.receiver.statuses = [500, 503, 302, 404]
    assert hooks.deliver() == 1
    job.delete()  # its record expires before the recipient answers
    for attempts in (1, 2, 3, 4):
        most = _retry_delay(attempts, Random(0)) * (1 + JITTER) / (1 - JITTER)
        assert hooks.deliver(after=_retry_delay(attempts, Random(0)) - 0.001) == 0
        assert hooks.deliver(after=most) == 1
    assert hooks.received() == ["/hook job.failed"] * 5
    assert len({(each.headers["webhook-id"], each.body) for each in hooks.receiver.deliveries}) == 1
    stamps = [int(each.headers["webhook-timestamp"]) for each in hooks.receiver.deliveries]
    assert stamps == sorted(set(stamps))  # each attempt is signed anew
    assert hooks.left() == []


def test_delays_grow_to_about_a_day_and_are_spread() -> None:
    middle = [5.0**attempts for attempts in range(1, MAX_DELIVERIES)]
    assert 24 * 3600 < sum(middle) < 30 * 3600
    for attempts, pause in enumerate(middle, 1):
        found = {_retry_delay(attempts, Random(seed)) for seed in range(20)}
        assert len(found) == 20
        assert all((1 - JITTER) * pause <= each <= (1 + JITTER) * pause for each in found)


def test_a_recipient_that_stays_down_is_given_up(hooks: Notifications, caplog: pytest.LogCaptureFixture) -> None:
    job = hooks.post(url=f"http://127.0.0.1:{free_port()}/hook?key=secret")
    job.set_status(JobStatus.FINISHED)
    assert [hooks.deliver(after=1e5) for _ in range(MAX_DELIVERIES + 1)] == [1] * MAX_DELIVERIES + [0]
    assert hooks.left() == []
    [line] = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert line.startswith(f"job {job.id}: webhook to 127.0.0.1 given up after 8 attempts: ")
    assert "secret" not in line


def test_410_ends_the_attempts(hooks: Notifications, caplog: pytest.LogCaptureFixture) -> None:
    hooks.post().set_status(JobStatus.FINISHED)
    hooks.receiver.statuses = [410]
    assert hooks.deliver() == 1
    assert hooks.left() == []
    assert "after 1 attempts: answered 410" in caplog.text


def test_a_janitor_that_dies_while_sending_sends_it_again(hooks: Notifications) -> None:
    class KilledError(BaseException):
        """Stands for a power cut."""

    class Dying(Sender):
        async def send(self, *arguments: Any, **options: Any) -> Any:
            await super().send(*arguments, **options)
            raise KilledError

    well = hooks.sender
    hooks.post().set_status(JobStatus.FINISHED)
    hooks.sender = Dying(parse_secret(SECRET), allow_private=True)
    with pytest.raises(KilledError):
        hooks.deliver()
    hooks.sender = well
    assert hooks.deliver(after=CLAIM_SECONDS / 2) == 0  # another janitor may be sending it
    assert hooks.deliver(after=CLAIM_SECONDS) == 1
    assert hooks.received() == ["/hook job.finished"] * 2
    assert len({each.headers["webhook-id"] for each in hooks.receiver.deliveries}) == 1
    assert hooks.left() == []
