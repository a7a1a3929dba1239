"""Server-sent events of a job: from the start, from the middle, to the end."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.helpers.posting import new_photo, posted
from tests.helpers.service_fixtures import Place, WorkerProcess, http_api, wait_for
from worker.queue.schema import events_key

Event = tuple[str, str, Any]  # id, name, data


def listen(api: httpx.Client, path: str, *, after: str | None = None) -> list[Event]:
    """All events until the server closes."""
    headers = {} if after is None else {"Last-Event-ID": after}
    with api.stream("GET", f"{path}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return events_of(answer)


def events_of(answer: httpx.Response) -> list[Event]:
    text = "".join(answer.iter_text())
    return [parse(block) for block in text.split("\r\n\r\n") if block and not block.startswith(":")]


def parse(block: str) -> Event:
    fields = dict(line.split(": ", 1) for line in block.split("\r\n"))
    return fields.get("id", ""), fields["event"], json.loads(fields["data"])


def is_refused(api: httpx.Client, path: str) -> bool:
    with api.stream("GET", f"{path}/events") as answer:  # and let go at once
        return answer.status_code == 503


def statuses(events: list[Event]) -> list[str]:
    return [data["status"] for _, name, data in events if name in ("status", "end")]


def test_from_the_first_to_the_last(worker: WorkerProcess, api: httpx.Client) -> None:
    path = posted(api, labels="slow")
    events = listen(api, path)  # while it runs
    assert statuses(events) == ["queued", "running", "finished"]
    assert events[-1] == ("end", "end", {"status": "finished"})
    progress = [data for _, name, data in events if name == "progress"]
    assert progress[0]["stage"] == "cam"
    fractions = [each["fraction"] for each in progress]
    assert fractions == sorted(fractions)
    assert len(fractions) > 3
    assert api.get(path).json()["links"]["events"] == f"{path}/events"
    # Later all is sent again, or what follows the last event that was received.
    assert listen(api, path) == events
    middle = events[3][0]
    assert listen(api, path, after=middle) == events[4:]
    for unknown in ("", "x", "end-0", "9" * 40):
        assert listen(api, path, after=unknown) == events
    again = api.get(f"{path}/events", headers={"Last-Event-ID": "end"})
    assert (again.status_code, again.content) == (204, b"")


def test_a_failed_job_ends_as_well(worker: WorkerProcess, api: httpx.Client) -> None:
    assert statuses(listen(api, posted(api, labels="raises")))[-1] == "failed"


def test_a_cancellation_is_an_event(worker: WorkerProcess, api: httpx.Client) -> None:
    worker.stop()
    path = posted(api, labels="cat")
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(listen, api, path)
        api.delete(path)
        assert statuses(heard.result()) == ["queued", "canceled"]
    worker.start()


def test_events_of_a_second_attempt(worker: WorkerProcess, api: httpx.Client) -> None:
    worker.stop()
    image = new_photo()
    path = posted(api, image)
    api.delete(path)
    assert statuses(listen(api, path)) == ["queued", "canceled"]
    posted(api, image)
    # A listener that had the end of the first gets the second from the start.
    with api.stream("GET", f"{path}/events", headers={"Last-Event-ID": "end"}) as answer:
        worker.start()
        assert statuses(events_of(answer))[-1] == "finished"


def test_a_job_without_events(place: Place, worker: WorkerProcess, api: httpx.Client) -> None:
    worker.stop()
    job = place.post("cat")
    assert not place.redis.exists(events_key(job.id))
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(listen, api, f"/jobs/{job.id}")
        worker.start()
        events = heard.result()
    assert statuses(events)[-1] == "finished"


def test_events_are_deleted_with_the_job(place: Place, worker: WorkerProcess, api: httpx.Client) -> None:
    path = posted(api, labels="cat")
    listen(api, path)
    key = events_key(path.rpartition("/")[2])
    assert 0 < place.redis.ttl(key) <= 24 * 3600
    api.delete(path)
    assert not place.redis.exists(key)
    assert api.get(f"{path}/events").status_code == 404


def test_listeners_are_limited(place: Place, worker: WorkerProcess) -> None:
    worker.stop()
    with http_api(place, max_listening=2) as api:
        path = posted(api, labels="cat")
        with ExitStack() as stack:
            heard = [stack.enter_context(api.stream("GET", f"{path}/events")) for _ in range(2)]
            assert [each.status_code for each in heard] == [200, 200]
            refused = api.get(f"{path}/events")
            assert refused.json()["type"] == "/problems/too-many-listeners"
            assert refused.headers["Retry-After"] == "5"
            api.delete(path)
            assert [statuses(events_of(each))[-1] for each in heard] == ["canceled"] * 2
        wait_for(lambda: not is_refused(api, path))  # the places are free again
        assert statuses(listen(api, path))[-1] == "canceled"
    worker.start()


@pytest.mark.parametrize("job_id", ["0" * 32, "x", "%2e%2e"])
def test_events_of_an_unknown_job(api: httpx.Client, job_id: str) -> None:
    answer = api.get(f"/jobs/{job_id}/events")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
