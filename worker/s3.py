"""S3, and whatever speaks like it, through s3fs: nothing waits for ever, nothing is remembered.

Credentials, region and endpoint come from where botocore always takes them: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL and so on, or AWS's files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from fsspec import AbstractFileSystem

SCHEME: Final = "s3://"

# MinIO's full disk and full bucket, Ceph's quota; 507 is what a code-less answer is called.
_FULL_CODES: Final = frozenset(
    {
        "XMinioStorageFull",
        "XMinioAdminBucketQuotaExceeded",
        "QuotaExceeded",
        "InsufficientStorage",
        "507",
    }
)
_INSUFFICIENT_STORAGE = 507


@dataclass(frozen=True)
class Patience:
    """How long S3 is waited for, in seconds.

    Attributes:
        connect: for a connection.
        read: for the next bytes of an answer.
        call: for one call with all its attempts, however slowly its bytes come.
        attempts: requests that one call may take.
    """

    connect: float = 5.0
    read: float = 15.0
    call: float = 60.0
    attempts: int = 3


PATIENCE: Final = Patience()


def open_s3(url: str, patience: Patience) -> tuple[AbstractFileSystem, str]:
    """Return a file system and the path in it; S3 is not asked yet.

    Safe in threads: all requests run in one event loop, in a thread of fsspec's.

    Args:
        url: s3://bucket or s3://bucket/prefix.
        patience: every call of the file system still needs ``timeout=patience.call``.

    Raises:
        ValueError: if the URL names no bucket.
        ImportError: if the extra is not installed.
    """
    root = url.removeprefix(SCHEME).rstrip("/")
    if not root or root.startswith("/"):
        raise ValueError(f"expected s3://bucket or s3://bucket/prefix, got {url!r}")
    try:
        # An extra, and slow to import.
        from aiobotocore.session import AioSession  # noqa: PLC0415
        from s3fs import S3FileSystem  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"expected the extra semples[s3] to be installed: {error}") from error
    session = AioSession()
    session.register("before-send.s3", _send_at_once)
    files = S3FileSystem(
        session=session,
        # Other hosts write too: whatever a listing said a moment ago may be wrong now.
        use_listings_cache=False,
        # Its settings are for this store alone.
        skip_instance_cache=True,
        # Reading a blob is one request, not one for its size and more for its parts.
        max_concurrency=1,
        config_kwargs={
            "connect_timeout": patience.connect,
            "read_timeout": patience.read,
            "retries": {"total_max_attempts": patience.attempts, "mode": "standard"},
            "max_pool_connections": 50,
        },
    )
    # s3fs would repeat botocore's attempts five times, and that five times when reading.
    files.retries = 1
    return files, root


def _send_at_once(request: Any, **_: object) -> None:
    """Send a body with its head: for S3's leave to go on, aiohttp would wait without a limit."""
    request.headers.pop("Expect", None)


def s3_errors() -> tuple[type[Exception], ...]:
    """Return what S3's calls can raise, from no connection to an answer that makes no sense."""
    from aiohttp import ClientError as ConnectionBrokenError  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from botocore.parsers import ResponseParserError  # noqa: PLC0415

    refused = (OSError, ClientError, BotoCoreError, ConnectionBrokenError)
    # RuntimeError: aiobotocore follows a redirection that names no region until Python stops it.
    return (*refused, ResponseParserError, ValueError, LookupError, RuntimeError)


def is_full(error: BaseException) -> bool:
    """Return whether S3 answered that there is no room left."""
    code, status = _answer(error)
    return code in _FULL_CODES or status == _INSUFFICIENT_STORAGE


def is_missing_bucket(error: BaseException) -> bool:
    """Return whether S3 answered that there is no such bucket, which is no missing file."""
    return _answer(error)[0] == "NoSuchBucket"


def _answer(error: BaseException) -> tuple[str, int]:
    """S3's code and HTTP status; s3fs raises Python's own errors, whose causes have them."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code", "")
            return str(code), int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return "", 0
