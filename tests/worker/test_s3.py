"""The blob store on an S3 that refuses, breaks off, talks nonsense or hangs: a BlobError, always."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.helpers.s3_server import (
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
from worker.storage import (
    BlobError,
    BlobMissingError,
    BlobStore,
    BlobStoreFullError,
    Patience,
    blob_key,
)

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


@pytest.mark.parametrize("outage", OUTAGES)
def test_every_call_says_that_the_store_is_away(outage: str, aws: Open) -> None:
    with OUTAGES[outage]() as endpoint:
        store = aws(endpoint)
        errors = {name: error_of(call, store) for name, call in CALLS.items()}
    assert errors == dict.fromkeys(CALLS, BlobError)


@pytest.mark.parametrize("outage", ENDLESS)
def test_every_call_ends(outage: str, aws: Open) -> None:
    with ENDLESS[outage]() as endpoint:
        store = aws(endpoint, HASTY)
        errors = {name: error_of(call, store) for name, call in CALLS.items()}
    assert errors == dict.fromkeys(CALLS, BlobError)


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
    [
        (507, "XMinioStorageFull"),
        (400, "XMinioAdminBucketQuotaExceeded"),
        (403, "QuotaExceeded"),
        (507, ""),
    ],
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
        store = aws(endpoint)
        errors = {name: error_of(call, store) for name, call in CALLS.items()}
    assert errors == dict.fromkeys(CALLS, BlobError)


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
