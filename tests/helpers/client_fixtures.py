"""Fixtures of the client's tests: images that no other test has, and scripted services."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from service.client import Client
from tests.helpers.posting import new_photo
from tests.helpers.service_fixtures import png


@pytest.fixture
def photo() -> bytes:
    """A photo that no job is about yet."""
    return new_photo()


@pytest.fixture(scope="module")
def client(api: httpx.Client) -> Iterator[Client]:
    with Client(str(api.base_url)) as client:
        yield client


def make_photos(folder: Path, labels: Mapping[str, str], *, shade: int) -> Path:
    """A folder of photos that no other test has, and its labels.csv; returns the latter."""
    images = folder / "images"
    for number, name in enumerate(labels):
        path = images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(color=(shade, number, 0)))
    rows = [f"{name},{label}" for name, label in labels.items()]
    table = folder / "labels.csv"
    table.write_text("\n".join(["image,labels", *rows]) + "\n")
    return table


Answer = httpx.Response | Exception


class Script(httpx.MockTransport):
    """A service that gives some answers in their order, then what a function gives; notes what it was asked."""

    def __init__(self, *answers: Answer, then: Callable[[httpx.Request], Answer] | None = None) -> None:
        self.requests: list[httpx.Request] = []
        self._answers = list(answers)
        self.then = then
        super().__init__(self._next)

    def _next(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self._answers:
            answer = self._answers.pop(0)
        elif self.then is not None:
            answer = self.then(request)
        else:
            raise LookupError(f"nobody expected {request.method} {request.url}")
        if isinstance(answer, Exception):
            raise answer
        return answer


def problem(status: int, kind: str, detail: str = "no", **members: object) -> httpx.Response:
    headers = {name: str(members.pop(name)) for name in ("Retry-After",) if name in members}
    content = {"type": f"/problems/{kind}", "status": status, "detail": detail, **members}
    return httpx.Response(status, json=content, headers=headers)
