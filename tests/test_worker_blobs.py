"""The blob store: whole blobs or none, wherever they are kept."""

from __future__ import annotations

import errno
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem

from worker.blobs import BlobError, BlobMissingError, BlobStore, BlobStoreFullError, blob_key


@pytest.fixture(params=["directory", "file url", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    urls = {
        "directory": str(tmp_path / "with space"),
        "file url": f"file://{tmp_path}/blobs",
        "memory": f"memory://{uuid.uuid4().hex}",
    }
    return BlobStore.open(urls[request.param])


def test_what_is_put_can_be_got(store: BlobStore) -> None:
    key = store.put("uploads", b"hello")
    assert key == blob_key("uploads", b"hello")
    assert store.get(key) == b"hello"
    assert store.exists(key)
    assert store.keys("uploads") == [key]
    assert store.keys("results") == []


def test_the_same_bytes_are_one_blob(store: BlobStore) -> None:
    assert store.put("results", b"twice") == store.put("results", b"twice")
    assert len(store.keys("results")) == 1


def test_the_empty_blob(store: BlobStore) -> None:
    assert store.get(store.put("results", b"")) == b""


def test_missing(store: BlobStore) -> None:
    key = blob_key("results", b"never put")
    assert not store.exists(key)
    with pytest.raises(BlobMissingError):
        store.get(key)


@pytest.mark.parametrize("key", ["../../etc/passwd", "uploads/../../x", "", "uploads/00/abc", "/x"])
def test_only_keys_of_blobs_are_looked_up(store: BlobStore, key: str) -> None:
    with pytest.raises(BlobMissingError, match="expected a blob key"):
        store.get(key)


def test_sweep_takes_the_old_and_leaves_the_new(store: BlobStore) -> None:
    key = store.put("uploads", b"data")
    now = datetime.now(UTC)
    assert store.sweep(now=now, lifetime=timedelta(hours=1)) == 0
    assert store.exists(key)
    assert store.sweep(now=now + timedelta(hours=2), lifetime=timedelta(hours=1)) == 1
    assert not store.exists(key)


def test_sweep_takes_what_a_dead_writer_left(tmp_path: Path) -> None:
    store = BlobStore.open(str(tmp_path))
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "half").write_bytes(b"x")
    later = datetime.now(UTC) + timedelta(hours=2)
    assert store.sweep(now=later, lifetime=timedelta(hours=1)) == 1


class FullDisk(LocalFileSystem):  # type: ignore[misc]
    """A disk with room for ten more bytes."""

    cachable = False
    error = errno.ENOSPC

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return FullFile(path, mode, fs=self)


class FullFile(LocalFileOpener):  # type: ignore[misc]
    def write(self, data: bytes) -> int:
        self.f.write(data[:10])
        raise OSError(self.fs.error, "no")


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, code: int) -> None:
    disk = FullDisk()
    disk.error = code
    with pytest.raises(BlobStoreFullError, match="cannot store a blob of 11 bytes"):
        BlobStore(disk, str(tmp_path)).put("uploads", b"eleven byte")
    assert files_below(tmp_path) == []


def test_a_failing_write_never_harms_the_blob_that_is_there(tmp_path: Path) -> None:
    key = BlobStore.open(str(tmp_path)).put("uploads", b"eleven byte")
    disk = FullDisk()
    disk.error = errno.EIO
    with pytest.raises(BlobError) as caught:
        BlobStore(disk, str(tmp_path)).put("uploads", b"eleven byte")
    assert not isinstance(caught.value, BlobStoreFullError)
    assert BlobStore.open(str(tmp_path)).get(key) == b"eleven byte"


def test_unknown_protocol() -> None:
    with pytest.raises(BlobError, match="cannot open the blob store 'nosuch://x'"):
        BlobStore.open("nosuch://x")
