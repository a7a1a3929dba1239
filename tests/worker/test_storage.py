"""The blob store: whole blobs or none, wherever they are kept."""

import errno
import io
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.helpers.command import python
from tests.helpers.full_disk import FullDisk, files_below
from tests.helpers.s3_server import (
    BUCKET,
    answering,
    aws_environment,
    cut_off,
    drip,
    moto_server,
    nobody,
    nonsense,
    refusal,
    silent,
)
from worker.storage import BlobError, BlobMissingError, BlobStore, BlobStoreFullError, Patience, blob_key, file_key


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


def test_the_same_bytes_are_one_blob_also_none(store: BlobStore) -> None:
    for data in (b"twice", b""):
        key = store.put("results", data)
        assert store.put("results", data) == key
        assert store.get(key) == data
    assert len(store.keys("results")) == 2


def test_files_are_stored_and_read_in_parts(store: BlobStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("worker.storage._PART_BYTES", 5 * 2**20)  # S3 takes no smaller parts
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
    with pytest.raises(BlobError, match="cannot open the blob store nosuch://x"):
        BlobStore.open("nosuch://x")


ONCE = Patience(attempts=1)
HASTY = Patience(connect=0.5, read=0.4, call=2.0, attempts=1)
KEY = blob_key("uploads", b"data")

Open = Callable[..., BlobStore]
CALLS: dict[str, Callable[[BlobStore], object]] = {
    "put": lambda store: store.put("uploads", b"data"),
    "get": lambda store: store.get(KEY),
    "exists": lambda store: store.exists(KEY),
    "keys": lambda store: store.keys("uploads"),
    "sweep": lambda store: store.delete_older(now=datetime.now(UTC), lifetime=timedelta(hours=1)),
    "check": lambda store: store.check(),
}
OUTAGES: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "nobody listens": nobody,
    "access denied": lambda: answering(refusal(403, "AccessDenied")),
    "wrong key": lambda: answering(refusal(403, "InvalidAccessKeyId")),
    "clocks differ": lambda: answering(refusal(403, "RequestTimeTooSkewed")),
    "a proxy's refusal": lambda: answering(refusal(403, "")),
    "slow down": lambda: answering(refusal(503, "SlowDown")),
    "its own error": lambda: answering(refusal(500, "InternalError")),
    "an unknown error": lambda: answering(refusal(418, "Teapot")),
    "a bad gateway": lambda: answering(refusal(502, "")),
}
ENDLESS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "it never answers": silent,
    "it sends us elsewhere, and again": lambda: answering(refusal(301, "PermanentRedirect")),
}


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens the store of an endpoint, with patience or less of it."""

    def open_store(endpoint: str, patience: Patience = ONCE) -> BlobStore:
        for name, value in aws_environment(endpoint, tmp_path).items():
            monkeypatch.setenv(name, value)
        return BlobStore.open("s3://blobs/here", patience=patience)

    return open_store


def error_of(call: Callable[[BlobStore], object], store: BlobStore) -> type[BlobError]:
    with pytest.raises(BlobError) as caught:
        call(store)
    return type(caught.value)


def assert_all_fail(store: BlobStore) -> None:
    errors = {name: error_of(call, store) for name, call in CALLS.items()}
    assert errors == dict.fromkeys(CALLS, BlobError)


@pytest.mark.parametrize("outage", OUTAGES)
def test_every_call_says_that_the_store_is_down(outage: str, aws: Open) -> None:
    with OUTAGES[outage]() as endpoint:
        assert_all_fail(aws(endpoint))


@pytest.mark.parametrize("outage", ENDLESS)
def test_every_call_ends(outage: str, aws: Open) -> None:
    with ENDLESS[outage]() as endpoint:
        assert_all_fail(aws(endpoint, HASTY))


@pytest.mark.parametrize("name", CALLS)
def test_silence_is_no_wait_for_the_last_moment(name: str, aws: Open) -> None:
    with silent() as endpoint, pytest.raises(BlobError, match="Read timeout"):
        CALLS[name](aws(endpoint, Patience(read=0.4, call=100.0, attempts=1)))


@pytest.mark.parametrize("name", ["get", "keys", "sweep", "check"])
@pytest.mark.parametrize("answer", [cut_off, drip])
def test_an_answer_that_never_ends(name: str, answer: Callable[..., None], aws: Open) -> None:
    with answering(answer) as endpoint:
        assert error_of(CALLS[name], aws(endpoint, HASTY)) is BlobError


@pytest.mark.parametrize("name", ["keys", "sweep", "check"])
def test_an_answer_that_makes_no_sense(name: str, aws: Open) -> None:
    with answering(nonsense) as endpoint:
        assert error_of(CALLS[name], aws(endpoint)) is BlobError


@pytest.mark.parametrize(
    ("status", "code"),
    [(507, "XMinioStorageFull"), (400, "XMinioAdminBucketQuotaExceeded"), (403, "QuotaExceeded"), (507, "")],
)
def test_a_full_store(status: int, code: str, aws: Open) -> None:
    with answering(refusal(status, code)) as endpoint:
        assert error_of(CALLS["put"], aws(endpoint)) is BlobStoreFullError


def test_a_missing_blob_is_not_a_missing_bucket(aws: Open) -> None:
    with answering(refusal(404, "NoSuchKey")) as endpoint:
        store = aws(endpoint)
        assert error_of(CALLS["get"], store) is BlobMissingError
        assert not store.exists(KEY)
    with answering(refusal(404, "NoSuchBucket")) as endpoint:
        assert_all_fail(aws(endpoint))


def test_no_credentials(aws: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with moto_server() as endpoint:
        store = aws(endpoint)
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(BlobError, match="Unable to locate credentials"):
            store.put("uploads", b"data")


def test_an_endpoint_that_is_no_url(aws: Open) -> None:
    with pytest.raises(BlobError, match="Invalid endpoint: minio:9000"):
        aws("minio:9000").check()


def test_a_store_comes_back(aws: Open) -> None:
    """The same store, after its S3 was away; nothing has to be started anew."""
    state = {"answer": refusal(503, "ServiceUnavailable")}

    def answer(handler: object) -> None:
        state["answer"](handler)  # type: ignore[arg-type]

    with answering(answer) as endpoint:
        store = aws(endpoint)
        assert error_of(CALLS["put"], store) is BlobError
        state["answer"] = refusal(200, "")
        assert store.put("uploads", b"data") == KEY


@pytest.mark.parametrize("url", ["s3://", "s3:///", "s3:///prefix"])
def test_a_url_without_a_bucket(url: str) -> None:
    with pytest.raises(BlobError, match="expected s3://bucket"):
        BlobStore.open(url)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(BlobError, match=r"expected the extra semples\[s3\] to be installed"):
        BlobStore.open("s3://bucket")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, code: int) -> None:
    with pytest.raises(BlobStoreFullError, match="cannot store a blob of 11 bytes"):
        BlobStore(FullDisk(code), str(tmp_path)).put("uploads", b"eleven byte")
    assert files_below(tmp_path) == []


def test_a_failing_write_never_harms_the_blob_that_is_there(tmp_path: Path) -> None:
    key = BlobStore.open(str(tmp_path)).put("uploads", b"eleven byte")
    with pytest.raises(BlobError) as caught:
        BlobStore(FullDisk(errno.EIO), str(tmp_path)).put("uploads", b"eleven byte")
    assert not isinstance(caught.value, BlobStoreFullError)
    assert BlobStore.open(str(tmp_path)).get(key) == b"eleven byte"


def test_a_real_limit_leaves_no_half_file(tmp_path: Path) -> None:
    code = f"""
import resource
from worker.storage import BlobStore, BlobStoreFullError
store = BlobStore.open({str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
store.put("uploads", b"ten bytes.")
try:
    store.put("uploads", b"eleven byte")
except BlobStoreFullError as error:
    print(error)
"""
    done = python("-c", code)
    assert done.stdout == "cannot store a blob of 11 bytes: File too large\n"
    assert [path.read_bytes() for path in files_below(tmp_path)] == [b"ten bytes."]


def test_a_store_that_cannot_be_read_does_not_say_no(tmp_path: Path) -> None:
    store = BlobStore.open(str(tmp_path))
    (tmp_path / "uploads").write_bytes(b"a file where a folder should be")
    with pytest.raises(BlobError) as caught:
        store.exists(blob_key("uploads", b""))
    assert not isinstance(caught.value, BlobMissingError)
