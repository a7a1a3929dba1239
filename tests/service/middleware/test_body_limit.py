"""Clients that take their time: a body has to come within bounds, and then the connection ends."""

import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.helpers.service_fixtures import NOTHING, Place, WorkerProcess, http_api, png

HEAD = b"POST /pseudo-mask HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=X\r\n"
PART = b'--X\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
DECLARED = HEAD + b"Content-Length: 100000\r\n\r\n" + PART
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(PART), PART)


@pytest.fixture(scope="module")
def strict(place: Place, running_worker: WorkerProcess) -> Iterator[httpx.Client]:
    """An API with little patience."""
    with http_api(place, body_seconds=1.0, body_rate=50_000) as client:
        yield client


def talk(api: httpx.Client, head: bytes, drop: bytes, *, pause: float = 0.05) -> bytes:
    """Send a head, then a little now and again until the other side hangs up; return what it said."""
    over = threading.Event()

    def drip() -> None:
        try:
            while not over.wait(pause):
                line.sendall(drop)
        except OSError:  # it has hung up
            over.set()

    with socket.create_connection((api.base_url.host, api.base_url.port or 0), 30) as line:
        line.sendall(head)
        dripping = threading.Thread(target=drip)
        dripping.start()
        answer = b""
        try:
            while part := line.recv(65536):
                answer += part
        except ConnectionResetError:  # its farewell met another drop
            pass
        finally:
            over.set()
            dripping.join()
    return answer


@pytest.mark.parametrize(
    ("head", "drop"), [(DECLARED, b"x"), (CHUNKED, b"1\r\nx\r\n")], ids=["length declared", "chunks"]
)
def test_a_slow_body_is_refused(strict: httpx.Client, place: Place, head: bytes, drop: bytes) -> None:
    answer = talk(strict, head, drop)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"/problems/body-too-slow"' in answer
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert place.leftovers() == NOTHING


def test_silence_after_the_head(strict: httpx.Client) -> None:
    assert talk(strict, DECLARED, b"").startswith(b"HTTP/1.1 408 ")


def test_a_refused_request_does_not_keep_its_connection(strict: httpx.Client) -> None:
    # The answer waits for the rest of the body, but not for ever, and it is the last one.
    head = b"POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    answer = talk(strict, head, b"x")
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_a_large_file_on_a_slow_line_has_more_time(strict: httpx.Client, place: Place) -> None:
    def parts() -> Iterator[bytes]:
        yield b'--X\r\nContent-Disposition: form-data; name="labels"\r\n\r\ncat\r\n'
        yield b'--X\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        image = png() + b"\0" * 199_000  # what comes after a picture's end does no harm
        for start in range(0, len(image), 5_000):
            threading.Event().wait(0.05)  # 2 s in all, at twice the rate
            yield image[start : start + 5_000]
        yield b"\r\n--X--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=X"}
    assert strict.post("/pseudo-mask", content=parts(), headers=kind).status_code == 202


def test_waiting_for_a_result_does_not_count(strict: httpx.Client) -> None:
    data = {"labels": "slow"}  # two seconds, twice what a body may take
    response = strict.post("/pseudo-mask?wait=30", files={"image": png()}, data=data)
    assert response.status_code == 200
    assert response.json()["status"] == "finished"
