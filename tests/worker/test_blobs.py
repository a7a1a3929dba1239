"""The blob store: whole blobs or none, wherever they are kept."""

from __future__ import annotations

import errno
import io
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.helpers.s3_server import BUCKET, aws_environment, moto_server
from worker.storage import BlobError, BlobMissingError, BlobStore, blob_key, file_key


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with moto_server() as url:
        yield url


@pytest.fixture(params=["directory", "file url", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "s3":
        endpoint = request.getfixturevalue("endpoint")
        for name, value in aws_environment(endpoint, tmp_path).items():
            monkeypatch.setenv(name, value)
    urls = {
        "directory": str(tmp_path / "with space"),
        "file url": f"file://{tmp_path}/blobs",
        "memory": f"memory://{uuid.uuid4().hex}",
        "s3": f"s3://{BUCKET}/{uuid.uuid4().hex}/pre fix",
    }
    return urls[request.param]


@pytest.fixture
def store(url: str) -> BlobStore:
    return BlobStore.open(url)


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


def test_files_are_stored_and_read_in_parts(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("worker.storage.PART_BYTES", 5 * 2**20)  # S3 takes no smaller parts
    content = bytes(range(256)) * (12 * 2**12)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        key = file_key("archives", file)
        store.put_file(key, file)
    assert key == blob_key("archives", content)
    assert store.keys("archives") == [key]
    with store.open_file(key) as opened:
        assert opened.seek(-10, io.SEEK_END) == len(content) - 10
        assert opened.read(100) == content[-10:]
        opened.seek(2**20 + 5)
        assert opened.read(7) == content[5:12]
    assert store.get(key) == content
    store.delete(key)
    with pytest.raises(BlobMissingError), store.open_file(key) as opened:
        opened.read(1)


class Torn(io.BytesIO):
    """A file that cannot be read to its end."""

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        if not found:
            raise OSError(errno.EIO, "torn")
        return found


def test_a_file_that_tears_is_no_blob(url: str) -> None:
    if url.startswith("memory:"):
        pytest.skip("which is for tests, and not atomic")
    store = BlobStore.open(url)
    key = blob_key("archives", b"whole")
    with pytest.raises(BlobError, match="cannot store a file: torn"):
        store.put_file(key, Torn(b"whole" * 2**21))
    assert not store.exists(key)
    assert store.keys("archives") == []


def test_missing(store: BlobStore) -> None:
    key = blob_key("results", b"never put")
    assert not store.exists(key)
    with pytest.raises(BlobMissingError):
        store.get(key)


@pytest.mark.parametrize("key", ["../../etc/passwd", "uploads/../../x", "", "uploads/00/abc", "/x"])
def test_only_keys_of_blobs_are_looked_up(store: BlobStore, key: str) -> None:
    with pytest.raises(BlobMissingError, match="expected a blob key"):
        store.get(key)


def test_what_another_host_does_is_seen_at_once(url: str) -> None:
    here, there = BlobStore.open(url), BlobStore.open(url)
    # Everything that could be remembered has been asked for.
    key = blob_key("uploads", b"data")
    assert not here.exists(key)
    assert here.keys("uploads") == []
    there.put("uploads", b"data")
    assert here.exists(key)
    assert here.keys("uploads") == [key]
    assert here.get(key) == b"data"
    later = datetime.now(UTC) + timedelta(hours=2)
    assert there.delete_older(now=later, lifetime=timedelta(hours=1)) == 1
    assert not here.exists(key)
    assert here.keys("uploads") == []
    with pytest.raises(BlobMissingError):
        here.get(key)


def test_many_threads_share_a_store(store: BlobStore) -> None:
    def put_and_get(number: int) -> bytes:
        return store.get(store.put("results", b"%d" % (number % 40)))

    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(put_and_get, range(80)))
    assert got == [b"%d" % (number % 40) for number in range(80)]
    assert len(store.keys("results")) == 40


def test_a_new_store_is_ready(store: BlobStore) -> None:
    store.check()
    assert store.keys("uploads") == store.keys("results") == []


def test_putting_again_renews_the_lifetime(store: BlobStore) -> None:
    kept = store.put("uploads", b"again")
    store.put("uploads", b"once")
    time.sleep(1.1)  # S3 tells whole seconds
    between = datetime.now(UTC)
    time.sleep(1.1)
    store.put("uploads", b"again")
    hour = timedelta(hours=1)
    assert store.delete_older(now=between + hour, lifetime=hour) == 1
    assert store.keys("uploads") == [kept]


def test_sweep_takes_the_old_and_leaves_the_new(store: BlobStore) -> None:
    key = store.put("uploads", b"data")
    now = datetime.now(UTC)
    assert store.delete_older(now=now, lifetime=timedelta(hours=1)) == 0
    assert store.exists(key)
    assert store.delete_older(now=now + timedelta(hours=2), lifetime=timedelta(hours=1)) == 1
    assert not store.exists(key)


def test_sweep_spares_what_is_asked_for(store: BlobStore) -> None:
    keys = [store.put("results", b"%d" % number) for number in range(4)]
    later = datetime.now(UTC) + timedelta(hours=2)
    asked: list[str] = []

    def spare(some: Sequence[str]) -> frozenset[str]:
        asked.extend(some)
        return frozenset(keys[:2])

    assert store.delete_older(now=later, lifetime=timedelta(hours=1), pinned=spare) == 2
    assert sorted(asked) == sorted(keys)
    assert store.keys("results") == sorted(keys[:2])


def test_sweep_takes_what_a_dead_writer_left(tmp_path: Path) -> None:
    store = BlobStore.open(str(tmp_path))
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "half").write_bytes(b"x")
    later = datetime.now(UTC) + timedelta(hours=2)
    assert store.delete_older(now=later, lifetime=timedelta(hours=1)) == 1


def test_unknown_protocol() -> None:
    with pytest.raises(BlobError, match="cannot open the blob store 'nosuch://x'"):
        BlobStore.open("nosuch://x")
