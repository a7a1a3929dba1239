"""A disk that takes no more or cannot be read: the blob store says so, and leaves nothing half written."""

import errno
from pathlib import Path

import pytest

from tests.helpers.command import python
from tests.helpers.full_disk import FullDisk, files_below
from worker.storage import BlobError, BlobMissingError, BlobStore, BlobStoreFullError, blob_key


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
