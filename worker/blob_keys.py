"""What blobs are called: by their content. Wire layer."""

from __future__ import annotations

import hashlib
import re
from typing import BinaryIO, Final, Literal

BlobKind = Literal["uploads", "results", "archives"]
KINDS: Final[tuple[BlobKind, ...]] = ("uploads", "results", "archives")

KEY: Final = re.compile(r"(uploads|results|archives)/[0-9a-f]{2}/[0-9a-f]{64}")


def blob_key(kind: BlobKind, data: bytes) -> str:
    """Return the key of bytes: the kind, two digits to keep folders small, the SHA-256."""
    return _digest_key(kind, hashlib.sha256(data).hexdigest())


def file_key(kind: BlobKind, file: BinaryIO) -> str:
    """Return the key of all of a file's bytes."""
    file.seek(0)
    return _digest_key(kind, hashlib.file_digest(file, "sha256").hexdigest())  # type: ignore[arg-type]


def _digest_key(kind: BlobKind, digest: str) -> str:
    return f"{kind}/{digest[:2]}/{digest}"


def key_in(path: str) -> str:
    """Return the key that a file's path in the store ends with."""
    return "/".join(path.split("/")[-3:])
