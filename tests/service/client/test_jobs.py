"""Jobs as the client follows them: progress, connections that break, cancellation, several at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from service.client import AsyncClient, Client, JobCanceled, NotFound
from tests.helpers.client_fixtures import COLORS, cutter, make_photos
from tests.helpers.service_fixtures import Place, WorkerProcess, http_api, png, wait_for

pytestmark = pytest.mark.usefixtures("worker")  # each test finds a live worker


def test_progress(client: Client, photo: bytes) -> None:
    heard: list[tuple[str, float]] = []
    result = client.pseudo_mask(photo, "slow", on_progress=lambda *news: heard.append(news))
    assert heard[0] == ("queued", 0.0)
    assert heard[1] == ("running", 0.0)
    assert heard[-1] == ("finished", 1.0)
    assert [stage for stage, _ in heard[2:-1]] == ["cam"] * len(heard[2:-1])
    fractions = [fraction for _, fraction in heard]
    assert fractions == sorted(fractions)
    assert len(fractions) > 5
    assert result.classes[0].name == "slow"
    # What is done already is told as an end alone.
    again = client.result(result.job_id)
    assert (again.png, again.job.status) == (result.png, "finished")


def test_what_takes_longer_than_one_wait_is_followed(
    client: Client, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WAIT_SECONDS", 0)
    result = client.pseudo_mask(photo, "slow")
    assert result.job.status == "finished"


def test_connections_that_break(api: httpx.Client, photo: bytes) -> None:
    """Cut at each of some events, it goes on where it was: no event is told twice, the job runs once."""
    heard: list[tuple[str, float]] = []
    with cutter(api.base_url) as proxy, Client(proxy.url) as client:

        def on_progress(stage: str, fraction: float) -> None:
            heard.append((stage, fraction))
            if len(heard) in (3, 5):
                proxy.cut()

        result = client.pseudo_mask(photo, "slow", on_progress=on_progress)
        assert proxy.connections >= 3
    assert result.png == api.get(f"/jobs/{result.job_id}/mask.png").content
    assert heard[-1] == ("finished", 1.0)
    assert len(set(heard)) == len(heard)
    assert [stage for stage, _ in heard].count("running") == 1


def test_more_listeners_than_places(place: Place, photo: bytes) -> None:
    """Nobody may listen: the job is asked for instead."""
    heard: list[str] = []
    with (
        http_api(place, max_listening=0) as api,
        Client(str(api.base_url), sleep=lambda _: None) as client,
    ):
        result = client.pseudo_mask(photo, "cat", on_progress=lambda stage, _: heard.append(stage))
    assert result.job.status == "finished"
    assert heard == []


def test_what_a_listener_raises_ends_it(client: Client, photo: bytes) -> None:
    def stop(stage: str, fraction: float) -> None:
        if stage == "cam":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.pseudo_mask(photo, "slow", on_progress=stop)
    assert (
        client.pseudo_mask(photo, "slow").job.status == "finished"
    )  # it ran on, and is not run again


def test_jobs(client: Client, api: httpx.Client, worker: WorkerProcess, photo: bytes) -> None:
    worker.stop()
    posted = api.post("/pseudo-mask", files={"image": photo}, data={"labels": "cat"}).json()
    job = client.job(posted["id"])
    assert (job.status, job.labels, job.classes, job.ended) == ("queued", ("cat",), (), False)
    canceled = client.cancel(job.id)
    assert canceled is not None
    assert canceled.status == "canceled"
    with pytest.raises(JobCanceled):
        client.result(job.id)
    assert client.cancel(job.id) is None
    assert client.cancel(job.id) is None  # again is no error
    with pytest.raises(NotFound, match="no such job"):
        client.job(job.id)
    worker.start()


def test_it_waits_in_a_full_queue(place: Place, worker: WorkerProcess) -> None:
    """503 with Retry-After until there is room; sleeping lets the worker in."""
    worker.stop()
    with http_api(place, max_queue=1) as api:
        first = api.post(
            "/pseudo-mask", files={"image": png(color=next(COLORS))}, data={"labels": "cat"}
        )
        pauses: list[float] = []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            worker.ensure()
            wait_for(lambda: api.get(first.headers["Location"]).json()["status"] == "finished")

        with Client(str(api.base_url), sleep=sleep) as client:
            assert client.pseudo_mask(png(color=next(COLORS)), "cat").job.status == "finished"
    assert len(pauses) == 1
    assert pauses[0] >= 1  # as Retry-After said, whatever that was


def test_several_results_at_once(api: httpx.Client, tmp_path: Path) -> None:
    """The async client over a real socket, and what it fetches later."""
    make_photos(tmp_path, {f"{number}.png": "cat" for number in range(8)}, shade=109)
    photos = sorted((tmp_path / "images").iterdir())
    found: dict[Path, Any] = {}

    async def run() -> None:
        async with AsyncClient(str(api.base_url)) as client:

            async def one(photo: Path) -> None:
                found[photo] = await client.pseudo_mask(photo, "cat")

            async with anyio.create_task_group() as group:
                for photo in photos:
                    group.start_soon(one, photo)
            result = found[photos[0]]
            assert (await result.scores()).size == (20, 30)
            cams = await result.cams()
            assert cams is not None
            assert cams.dtype == np.float16
            assert (await result.overlay()).size == (30, 20)
            other = await client.rethreshold(result, background_threshold=0.9)
            assert other.png != result.png
            assert (await client.result(result.job_id)).png == result.png
            assert (await client.job(result.job_id)).status == "finished"
            assert [each.name for each in await client.models()] == ["double"]
            assert (await client.model("double")).name == "double"
            assert (await client.segment(photos[0])).job.task == "segment"
            assert await client.cancel(result.job_id) is None

    anyio.run(run)
    assert len({each.job_id for each in found.values()}) == 8
    for each in found.values():
        assert set(np.unique(each.label_map)) == {0, 1}
