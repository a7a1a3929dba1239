"""A folder of photos that is stopped on its way: by a full queue, a service that goes away, or who asked."""

from __future__ import annotations

from pathlib import Path

import anyio
import httpx
import pytest

from models.data.mask_folder import read_results
from service.client import AsyncClient, Client, Unavailable
from tests.helpers.client_fixtures import make_photos
from tests.helpers.service_fixtures import Place, http_api, wait_for

pytestmark = pytest.mark.usefixtures("worker")  # each test finds a live worker


def test_it_waits_for_room(place: Place, tmp_path: Path) -> None:
    """With places for one job and for a few posts a second, a service is well, and no retry is used up."""
    labels = make_photos(tmp_path, {f"{number}.png": "cat" for number in range(9)}, shade=106)
    with http_api(place, max_queue=1, rate="4/second") as api:
        outcomes = []

        async def run() -> None:
            async with AsyncClient(str(api.base_url), retries=0, sleep=doze) as client:
                outcomes.append(
                    await client.batch(tmp_path / "images", labels, tmp_path / "out", concurrency=8)
                )

        pauses: list[float] = []

        async def doze(seconds: float) -> None:
            pauses.append(seconds)
            await anyio.sleep(0.05)

        anyio.run(run)
    assert outcomes[0].made == 9
    assert min(pauses) >= 1


def test_a_service_that_goes_away_ends_it_and_it_goes_on(place: Place, tmp_path: Path) -> None:
    labels = make_photos(tmp_path, {f"{number}.png": "cat" for number in range(6)}, shade=107)
    where = (tmp_path / "images", labels, tmp_path / "out")
    with http_api(place) as api, Client(str(api.base_url), retries=0) as client:

        class Leaves(httpx.AsyncHTTPTransport):
            left = 3

            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                if request.method == "POST":
                    self.left -= 1
                if self.left < 0:
                    raise httpx.ConnectError("gone")
                return await super().handle_async_request(request)

        async def run() -> None:
            async with AsyncClient(str(api.base_url), retries=0, transport=Leaves()) as leaving:
                await leaving.batch(*where, concurrency=1)

        with pytest.raises(Unavailable, match="cannot reach the service: gone"):
            anyio.run(run)
        assert len(read_results(tmp_path / "out" / "results.jsonl")) == 3
        assert not (tmp_path / "out" / "summary.json").exists()
        outcome = client.batch(*where)
        assert (outcome.made, outcome.kept) == (3, 3)


def test_cancellation_leaves_what_can_be_continued(api: httpx.Client, tmp_path: Path) -> None:
    labels = make_photos(tmp_path, {"a.png": "cat", "b.png": "slow", "c.png": "bowl"}, shade=108)
    where = (tmp_path / "images", labels, tmp_path / "out")

    async def run() -> None:
        async with AsyncClient(str(api.base_url)) as client:
            with anyio.CancelScope() as scope:
                await client.batch(
                    *where,
                    concurrency=1,
                    on_photo=lambda done, *_: scope.cancel() if done else None,
                )
            assert scope.cancelled_caught
            assert not (tmp_path / "out" / "summary.json").exists()
            outcome = await client.batch(*where)
            assert (outcome.made, outcome.kept) == (2, 1)

    anyio.run(run)


def test_nothing_is_left_in_the_queue(place: Place) -> None:
    wait_for(lambda: not any(place.leftovers().values()), what="an empty queue")
