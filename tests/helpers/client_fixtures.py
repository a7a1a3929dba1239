"""What tests of the client share: folders of photos, a proxy whose connections break, servers that misbehave."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from service.client import Client
from tests.helpers.service_fixtures import png

COLORS = ((11, number, 0) for number in itertools.count())


@pytest.fixture
def photo() -> bytes:
    """A photo that no job is about yet."""
    return png(color=next(COLORS))


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


class Cutter:
    """A TCP proxy whose connections can be cut, as a network does."""

    def __init__(self, target: httpx.URL) -> None:
        self._target = (str(target.host), int(target.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Break all connections that there are now."""
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.create_connection(self._target)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        self._open.add(source)
        with source, suppress(OSError):
            while chunk := source.recv(65536):
                sink.sendall(chunk)
        self._open.discard(source)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutter(target: httpx.URL) -> Iterator[Cutter]:
    proxy = Cutter(target)
    try:
        yield proxy
    finally:
        proxy.close()


Answer = httpx.Response | Exception


class Script(httpx.MockTransport):
    """A service that gives some answers in their order, then what a function gives; notes what it was asked."""

    def __init__(
        self, *answers: Answer, then: Callable[[httpx.Request], Answer] | None = None
    ) -> None:
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
