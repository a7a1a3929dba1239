"""What the client makes of a service that misbehaves; time is what the test says it is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anyio
import httpx
import pytest

from service.client import (
    AsyncClient,
    Client,
    InvalidRequest,
    NotFound,
    SemplesError,
    Unauthorized,
    Unavailable,
)
from service.client.client import Pause, Retries
from service.client.errors import error_of
from tests.helpers.client_answers import MASK, job, mask
from tests.helpers.client_fixtures import Answer, Script, problem

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def post(script: Script, *, retries: int = 6) -> list[float]:
    """Post an image to a script; return the pauses."""
    pauses: list[float] = []
    with Client("http://host", transport=script, retries=retries, sleep=pauses.append) as client:
        assert client.pseudo_mask(b"photo", "cat").png == MASK
    return pauses


def test_retry_after_is_honored() -> None:
    script = Script(
        problem(429, "rate-limited", **{"Retry-After": 7}),
        problem(503, "queue-full", **{"Retry-After": 120}),
        job(),
        problem(503, "storage-unavailable", **{"Retry-After": 5}),
        mask(),
    )
    pauses = post(script)
    for pause, told in zip(pauses, (7, 120, 5), strict=True):
        assert told <= pause <= 1.25 * told
    assert [request.method for request in script.requests] == ["POST"] * 3 + ["GET"] * 2
    assert len({request.content for request in script.requests[:3]}) <= 3
    assert all(b"photo" in request.content for request in script.requests[:3])
    assert all(b"cat" in request.content for request in script.requests[:3])


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout(""),
        httpx.RemoteProtocolError("gone"),
        httpx.WriteError("broken pipe"),
        problem(502, ""),
        httpx.Response(504, text="<html>gateway</html>"),
        problem(503, "queue-unreachable"),
    ],
)
def test_what_passes_is_tried_again_and_not_for_ever(trouble: Answer) -> None:
    assert len(post(Script(trouble, trouble, job(), trouble, mask()), retries=2)) == 3
    pauses: list[float] = []
    script = Script(then=lambda _: trouble)
    with (
        Client("http://host", transport=script, retries=3, sleep=pauses.append) as client,
        pytest.raises(Unavailable),
    ):
        client.models()
    assert len(script.requests) == 4
    assert len(pauses) == 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(422, "invalid-request"), InvalidRequest),
        (problem(401, "unauthorized"), Unauthorized),
        (httpx.Response(403, text="proxy"), Unauthorized),
        (problem(404, "unknown-model"), NotFound),
        (problem(500, "internal-error"), SemplesError),
        (problem(409, "cannot-segment"), InvalidRequest),
        (httpx.Response(308, headers={"Location": "https://host/models"}), SemplesError),
        (httpx.Response(418), InvalidRequest),
    ],
)
def test_what_stays_is_not_tried_again(answer: httpx.Response, kind: type[SemplesError]) -> None:
    script = Script(answer)
    with Client("http://host", transport=script) as client, pytest.raises(kind) as error:
        client.models()
    assert type(error.value) is kind
    assert error.value.status == answer.status_code
    if answer.is_redirect:
        assert "got 308 Permanent Redirect, which leads to https://host/models" in str(error.value)


@pytest.mark.parametrize(
    "content", [b"<html>", b"[]", b"{}", b'{"models": 3, "default": null}', b"\xff"]
)
def test_another_page_is_not_the_service(content: bytes) -> None:
    script = Script(httpx.Response(200, content=content, headers={"Content-Type": "text/html"}))
    told = r"expected an answer of the service to /models, got text/html"
    with Client("http://host", transport=script) as client, pytest.raises(SemplesError, match=told):
        client.models()


def test_pauses_grow_and_end_growing() -> None:
    low, high = Retries(9, lambda: 0.0), Retries(9, lambda: 1.0)
    assert [high.pause(tried, None).seconds for tried in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert low.pause(3, None) == Pause(2.0)
    assert high.pause(10**6, None) == Pause(30.0)
    far = Unavailable("later")
    far.retry_after = 10**6
    assert low.pause(0, far) == Pause(600.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("12", 12.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0.0),
        ("Fri, 02 Jan 2026 00:00:10 -0000", 10.0),
        ("soon", None),
        ("-3", None),
        ("", None),
    ],
)
def test_when_to_come_back(value: str, seconds: float | None) -> None:
    error = error_of(problem(503, "not-ready", **{"Retry-After": value}), now=NOW)
    assert isinstance(error, Unavailable)
    assert error.retry_after == seconds


def test_a_job_that_is_gone_is_posted_again() -> None:
    """Of equal posts one may remove what the other has seen; not for ever, though."""
    gone = problem(404, "unknown-job", "no such job")
    script = Script(job("queued"), gone, job(), gone, job(), mask())
    assert post(script) == []
    script = Script(then=lambda request: job("queued") if request.method == "POST" else gone)
    with Client("http://host", transport=script) as client, pytest.raises(NotFound):
        client.pseudo_mask(b"photo", "cat")
    assert [request.method for request in script.requests] == ["POST", "GET"] * 3


def test_another_file_is_no_mask() -> None:
    script = Script(job(), httpx.Response(200, text="<html>log in</html>"))
    told = r"expected a file at /jobs/0+/mask\.png, got something else"
    with Client("http://host", transport=script) as client, pytest.raises(SemplesError, match=told):
        client.pseudo_mask(b"photo", "cat")


def test_an_error_without_words_has_its_name() -> None:
    script = Script(httpx.ReadTimeout(""))
    told = "cannot reach the service: ReadTimeout"
    with (
        Client("http://host", transport=script, retries=0) as client,
        pytest.raises(Unavailable, match=told),
    ):
        client.models()


def test_no_fewer_retries_than_none() -> None:
    with pytest.raises(ValueError, match="expected 0 retries or more, got -1"):
        Client("http://host", retries=-1)


def test_the_async_client_does_the_same() -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def run() -> None:
        script = Script(
            problem(429, "rate-limited", **{"Retry-After": 7}),
            httpx.ReadError("cut"),
            *(job("queued"), job("running"), httpx.ReadError("cut"), job(), mask()),
        )
        async with AsyncClient("http://host", transport=script, sleep=sleep) as client:
            assert (await client.pseudo_mask(b"photo", "cat")).png == MASK
        assert len(script.requests) == 7

    anyio.run(run)
    assert len(pauses) == 3
    assert pauses[0] >= 7
