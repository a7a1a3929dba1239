"""What the client hears of a job's events, whole, in pieces and broken off, and for how long it listens."""

from __future__ import annotations

from typing import Any

import httpx

from service.client import Client
from service.client.client import EventReader
from tests.helpers.client_answers import events, job, mask
from tests.helpers.client_fixtures import Script, problem


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
    assert first < 1
    assert second >= 5
    assert third >= 1


def test_events_in_pieces() -> None:
    heard: list[Any] = []
    text = (
        ': hello\nretry: 3\n\nid: 1-0\nevent: progress\ndata: {"stage": "cäm", "fraction": 0.25}\n\n'
        'event: status\r\ndata:{"status": "running"}\r\n\r\n'
        'id: end\r\nevent: end\r\ndata: {"status": "failed"}\r\n\r\n'
    ).encode()
    reader = EventReader(lambda *news: heard.append(news))
    for number in range(len(text)):
        reader.feed(text[number : number + 1])
    assert heard == [("cäm", 0.25), ("running", 0.0), ("failed", 1.0)]
    assert (reader.last_id, reader.ended, reader.count) == ("1-0", True, 3)


def test_timeouts_allow_for_what_was_asked() -> None:
    script = Script(job("queued"), job("running"), events(), job(), mask())
    with Client("http://host", transport=script, timeout=9, sleep=lambda _: None) as client:
        client.pseudo_mask(b"photo", "cat")
    posted, asked, listened = (each.extensions["timeout"] for each in script.requests[:3])
    assert posted["read"] == 9 + 20
    assert posted["connect"] == posted["write"] == asked["read"] == 9
    assert listened["read"] > 9 + 15  # the service's pings
