"""Where a webhook goes: to the address that was judged, of the name that its certificate has, or nowhere."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.webhook_receiver import Receiver, receiving
from tests.helpers.webhook_sending import send
from tests.worker.webhooks.test_callback_url import PUBLIC, names
from worker.webhooks.sender import Attempt


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
