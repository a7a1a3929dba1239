"""The client against scripted answers: retries, events, batches. No time passes."""

import zipfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from models.data.mask_files import label_map_png
from service.client import (
    AsyncClient,
    Client,
    InvalidRequest,
    JobFailed,
    NotFound,
    SemplesError,
    Unauthorized,
    Unavailable,
)
from service.client.client import _pause_seconds
from service.client.errors import error_of
from tests.helpers.client_fixtures import Answer, Script, problem

JOB: dict[str, Any] = {
    "id": "0" * 32,
    "task": "pseudo_mask",
    "status": "finished",
    "model": {"name": "double", "version": "1"},
    "labels": ["cat"],
    "options": {"refine": "none", "min_confidence": 0.0},
    "classes": [],
    "links": {},
}

MASK = label_map_png(np.zeros((2, 3), np.uint8))


def job(status: str = "finished", **more: Any) -> httpx.Response:
    return httpx.Response(200, json={**JOB, "status": status, **more})


def mask() -> httpx.Response:
    return httpx.Response(200, content=MASK)


def events(*words: str) -> httpx.Response:
    headers = {"Content-Type": "text/event-stream"}
    return httpx.Response(200, content="".join(words).encode(), headers=headers)


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
    for pause, asked in zip(pauses, (7, 120, 5), strict=True):
        assert asked <= pause <= 1.25 * asked
    assert [request.method for request in script.requests] == ["POST"] * 3 + ["GET"] * 2
    for request in script.requests[:3]:
        assert b"photo" in request.content
        assert b"cat" in request.content


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
    client = Client("http://host", transport=script, retries=3, sleep=pauses.append)
    with client, pytest.raises(Unavailable):
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


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"{}", b'{"models": 3, "default": null}', b"\xff"])
def test_another_page_is_not_the_service(content: bytes) -> None:
    script = Script(httpx.Response(200, content=content, headers={"Content-Type": "text/html"}))
    message = r"expected an answer of the service to /models, got text/html"
    with Client("http://host", transport=script) as client, pytest.raises(SemplesError, match=message):
        client.models()


def test_pauses_grow_and_end_growing() -> None:
    longest = [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [_pause_seconds(tried, None, 1.0) for tried in range(8)] == longest
    assert _pause_seconds(3, None, 0.0) == 2.0
    assert _pause_seconds(10**6, None, 1.0) == 30.0
    far = Unavailable("later")
    far.retry_after = 10**6
    assert _pause_seconds(0, far, 0.0) == 600.0


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
    message = r"expected a file at /jobs/0+/mask\.png, got something else"
    with Client("http://host", transport=script) as client, pytest.raises(SemplesError, match=message):
        client.pseudo_mask(b"photo", "cat")


def test_an_error_without_words_has_its_name() -> None:
    script = Script(httpx.ReadTimeout(""))
    client = Client("http://host", transport=script, retries=0)
    with client, pytest.raises(Unavailable, match="cannot reach the service: ReadTimeout"):
        client.models()


def test_no_fewer_retries_than_none() -> None:
    with pytest.raises(ValueError, match="expected 0 retries or more, got -1"):
        Client("http://host", retries=-1)


def test_events_that_break_off() -> None:
    """What was heard whole counts; from there it goes on. Silence makes the pauses longer, news short again."""
    heard: list[Any] = []
    pauses: list[float] = []
    queued = 'id: 1-0\r\nevent: status\r\ndata: {"status": "queued"}\r\n\r\n'
    cam = 'id: 2-0\r\nevent: progress\r\ndata: {"stage": "cam", "fraction": 0.5}\r\n\r\n'
    end = 'id: end\r\nevent: end\r\ndata: {"status": "finished"}\r\n\r\n'
    script = Script(
        *(job("queued"), job("queued"), events(": ping\r\n\r\n", queued, cam[:30])),
        *(job("running"), problem(503, "too-many-listeners", **{"Retry-After": 5})),
        *(job("running"), httpx.ReadError("cut")),
        *(job("running"), events(cam, end)),
        *(job(), mask()),
    )
    with Client("http://host", transport=script, sleep=pauses.append) as client:
        client.pseudo_mask(b"photo", "cat", on_progress=lambda *news: heard.append(news))
    assert heard == [("queued", 0.0), ("cam", 0.5), ("finished", 1.0)]
    asked = [each for each in script.requests if each.url.path.endswith("/events")]
    assert [each.headers.get("Last-Event-ID") for each in asked] == [None, "1-0", "1-0", "1-0"]
    assert "wait" not in str(script.requests[0].url)
    first, second, third = pauses
    assert first < 1 <= third
    assert second >= 5


def test_events_in_pieces() -> None:
    heard: list[Any] = []
    text = (
        ': hello\nretry: 3\n\nid: 1-0\nevent: progress\ndata: {"stage": "cäm", "fraction": 0.25}\n\n'
        'event: status\r\ndata:{"status": "running"}\r\n\r\n'
        'id: end\r\nevent: end\r\ndata: {"status": "failed"}\r\n\r\n'
    ).encode()
    headers = {"Content-Type": "text/event-stream"}
    stream = httpx.Response(200, content=pieces(text), headers=headers)
    script = Script(job("queued"), job("running"), stream, job("failed"))
    with Client("http://host", transport=script) as client, pytest.raises(JobFailed):
        client.pseudo_mask(b"photo", "cat", on_progress=lambda *news: heard.append(news))
    assert heard == [("cäm", 0.25), ("running", 0.0), ("failed", 1.0)]


async def pieces(text: bytes) -> AsyncIterator[bytes]:
    for number in range(len(text)):
        yield text[number : number + 1]


def test_timeouts_allow_for_what_was_asked() -> None:
    script = Script(job("queued"), job("running"), events(), job(), mask())
    with Client("http://host", transport=script, timeout=9, sleep=lambda _: None) as client:
        client.pseudo_mask(b"photo", "cat")
    posted, asked, listened = (each.extensions["timeout"] for each in script.requests[:3])
    assert posted["read"] == 9 + 20
    assert posted["connect"] == posted["write"] == asked["read"] == 9
    assert listened["read"] > 9 + 15  # the service's pings


ID = "b" * 32
ITEMS = [
    {"number": number, "image": f"{number}.png", "labels": ["cat"], "status": status, "job": None, "problem": None}
    for number, status in enumerate(["finished", "failed", "finished", "finished", "failed"])
]  # fmt: skip


class Batches:
    """The calls of the contract, with a batch that gets ahead whenever it is looked at."""

    def __init__(self) -> None:
        self.uploads: list[bytes] = []
        self.done = 0
        self.there = False

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix(f"/batches/{ID}")
        if request.method == "POST" and path == "/batches":
            self.uploads.append(request.read())
            self.there = True
            return httpx.Response(202, json=self._batch(), headers={"Location": f"/batches/{ID}"})
        if request.method == "DELETE":
            self.there = False
            return httpx.Response(204)
        if not self.there:
            return problem(404, "unknown-batch", "no such batch")
        parts = {"": self._look, "/items": self._items, "/archive.zip": self._archive}
        parts["/report"] = lambda _: httpx.Response(200, json={"photos": 5})
        return parts[path](request.url.params)

    def _look(self, _: httpx.QueryParams) -> httpx.Response:
        self.done = min(5, self.done + 2)
        return httpx.Response(200, json=self._batch())

    def _batch(self) -> dict[str, Any]:
        status = "finished" if self.done == 5 else "running" if self.done else "queued"
        counts = {"total": 5, "waiting": 5 - self.done, "finished": self.done}
        return {"id": ID, "status": status, "counts": counts, "model": "double", "links": {}}

    def _items(self, params: httpx.QueryParams) -> httpx.Response:
        after = int(params.get("after", -1))
        status = params.get("status")
        rest = [each for each in ITEMS if each["number"] > after and status in (None, each["status"])]
        more = rest[1]["number"] if len(rest) > 2 else None
        return httpx.Response(200, json={"items": rest[:2], "next": more})

    def _archive(self, params: httpx.QueryParams) -> httpx.Response:
        if self.done < 5:
            return problem(409, "batch-not-ready", "the batch is running")
        return httpx.Response(200, content=b"PK" + params["format"].encode())


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("labels.csv", "image,labels\na.png,cat\n")
    return path


@pytest.fixture
def service() -> Script:
    """An outage first, so that what is sent must be sent again."""
    return Script(httpx.WriteError("cut"), then=Batches())


@pytest.fixture
def client(service: Script) -> Iterator[Client]:
    with Client("http://host", transport=service, sleep=lambda _: None) as client:
        yield client


def test_from_zip_to_zip(client: Client, service: Script, archive: Path, tmp_path: Path) -> None:
    batch = client.submit_batch(archive, refine="none", background_threshold=0.5, model=None)
    assert (batch.id, batch.status, batch.ended) == (ID, "queued", False)
    assert batch.counts == {"total": 5, "waiting": 5, "finished": 0}
    assert isinstance(service.then, Batches)
    [body] = service.then.uploads
    assert archive.read_bytes() in body
    assert b'name="archive"' in body
    assert b'name="background_threshold"\r\n\r\n0.5' in body
    assert b'name="model"' not in body
    early = tmp_path / "early.zip"
    with pytest.raises(InvalidRequest, match="the batch is running"):
        client.save_archive(batch.id, early)
    assert client.batch_status(batch.id).status == "running"
    ended = client.wait_for_batch(batch.id)
    assert (ended.status, ended.counts["finished"]) == ("finished", 5)
    assert [each["number"] for each in client.batch_items(ID)] == [0, 1, 2, 3, 4]
    assert [each["number"] for each in client.batch_items(ID, status="failed")] == [1, 4]
    assert client.batch_report(ID) == {"photos": 5}
    target = client.save_archive(ID, tmp_path / "new" / "masks.zip", format="coco")
    assert target.read_bytes() == b"PKcoco"
    assert {path.name for path in tmp_path.iterdir()} == {"photos.zip", "new"}
    client.cancel_batch(ID)
    with pytest.raises(Exception, match="no such batch"):
        client.batch_status(ID)


def test_items_are_iterated_asynchronously() -> None:
    found: list[int] = []

    async def run() -> None:
        service = Batches()
        service.there = True
        async with AsyncClient("http://host", transport=Script(then=service)) as client:
            found.extend([each["number"] async for each in client.batch_items(ID)])

    anyio.run(run)
    assert found == [0, 1, 2, 3, 4]


def test_half_a_download_is_none(tmp_path: Path) -> None:
    """Cut off it begins anew; where it never comes whole, what was there stays."""

    async def half() -> AsyncIterator[bytes]:
        yield b"PK, and then"
        raise httpx.ReadError("cut")

    target = tmp_path / "masks.zip"
    target.write_bytes(b"from before")
    answers = [httpx.Response(200, content=half()) for _ in range(4)]
    broken = Script(*answers[:2], httpx.Response(200, content=b"PK"), *answers[2:])
    with Client("http://host", transport=broken, retries=2, sleep=lambda _: None) as client:
        client.save_archive(ID, target)
        assert target.read_bytes() == b"PK"
    broken = Script(*answers[2:])
    with (
        Client("http://host", transport=broken, retries=1, sleep=lambda _: None) as client,
        pytest.raises(Unavailable, match="cut"),
    ):
        client.save_archive(ID, target)
    assert target.read_bytes() == b"PK"
    assert list(tmp_path.iterdir()) == [target]


def test_no_zip(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.submit_batch(tmp_path / "none.zip")
    with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
        client.submit_batch(tmp_path / "none.zip", labels="cat")  # type: ignore[call-arg]
