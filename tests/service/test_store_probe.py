"""Whether ``GET /ready`` notices a blob store that cannot be written, and what asking costs."""

import errno
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from service.store_probe import StoreProbe
from tests.helpers.full_disk import FullDisk, files_below
from tests.helpers.service_fixtures import Place, http_api, wait_for
from worker.storage import BlobError, BlobStore, BlobStoreFullError


class CountingStore(MemoryFileSystem):  # type: ignore[misc]
    """Counts what is written, and takes it when it may."""

    cachable = False
    store: dict[str, Any] = {}  # noqa: RUF012 - as its parent has it

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []
        self.error: OSError | None = None
        self.open_for_business = threading.Event()
        self.open_for_business.set()

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        self.written.append(path)
        self.open_for_business.wait()
        if self.error is not None:
            raise self.error
        super().pipe_file(path, value, **options)


@pytest.fixture
def attended(place: Place) -> Iterator[Place]:
    """A place where a worker is ready."""
    place.announce()
    yield place
    place.redis.flushdb()


def answer(api: httpx.Client) -> tuple[int, str]:
    response = api.get("/ready")
    document = response.json()
    assert (response.status_code == 200) == ("Retry-After" not in response.headers)
    return response.status_code, document.get("type", document.get("status"))


def test_ready_with_a_store_that_takes_a_file_and_keeps_one(attended: Place, tmp_path: Path) -> None:
    with http_api(replace(attended, blobs=BlobStore.open(str(tmp_path / "new")))) as api:
        assert answer(api) == (200, "ready")
    assert [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path)] == ["new/incoming/trial"]


@pytest.mark.parametrize(
    ("code", "problem"),
    [(errno.ENOSPC, "storage-full"), (errno.EROFS, "storage-unavailable"), (errno.EACCES, "storage-unavailable")],
)
def test_a_store_that_cannot_be_written(attended: Place, tmp_path: Path, code: int, problem: str) -> None:
    with http_api(replace(attended, blobs=BlobStore(FullDisk(code), str(tmp_path)))) as api:
        assert answer(api) == (503, f"/problems/{problem}")
        assert api.get("/health").status_code == 200
    assert files_below(tmp_path) == []


def test_a_store_that_hangs_costs_one_thread_and_recovers(attended: Place) -> None:
    files = CountingStore()
    files.open_for_business.clear()
    store = BlobStore(files, "/hangs")
    probe = StoreProbe(store, patience=0.05, fresh=0.0)
    for _ in range(3):
        with pytest.raises(BlobError, match="the blob store has not answered for 0 s"):
            probe.require_writable()
    assert files.written == ["/hangs/incoming/trial"]
    with http_api(replace(attended, blobs=store)) as api:
        assert answer(api) == (503, "/problems/storage-unavailable")
        files.open_for_business.set()
        wait_for(lambda: answer(api) == (200, "ready"), what="the store")
    wait_for(lambda: _passes(probe), what="the probe")


def _passes(probe: StoreProbe) -> bool:
    try:
        probe.require_writable()
    except BlobError:
        return False
    return True


def test_an_answer_holds_for_a_while_a_bad_one_too() -> None:
    now = [0.0]
    files = CountingStore()
    probe = StoreProbe(BlobStore(files, "/counts"), fresh=5.0, clock=lambda: now[0])
    for _ in range(3):
        probe.require_writable()
    assert len(files.written) == 1
    now[0] = 5.1
    probe.require_writable()
    assert len(files.written) == 2
    files.error = OSError(errno.ENOSPC, "no")
    now[0] = 10.2
    for _ in range(2):
        with pytest.raises(BlobStoreFullError, match="cannot write a probe file"):
            probe.require_writable()
    assert len(files.written) == 3
