import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from models.data.classes import Sample
from models.data.official import VOC_ARCHIVE
from models.prepare import check_archives, check_photos
from tests.helpers.downloads import SIZE, photo


def watch(title: str, total: int) -> AbstractContextManager[object]:
    return nullcontext(lambda: None)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Half as many photos again as are sampled."""
    photo(tmp_path / "0000.jpg")
    paths = [tmp_path / f"{number:04d}.jpg" for number in range(150)]
    for path in paths[1:]:
        path.hardlink_to(paths[0])
    return [Sample(path, (0,)) for path in paths]


def spoil(sample: Sample) -> None:
    sample.path.unlink()
    sample.path.write_bytes(b"\xff\xd8\xff")


def test_a_sample_of_photos_is_read(samples: list[Sample]) -> None:
    line = check_photos(samples, lambda stem: SIZE, thorough=False, watch=watch)
    assert line == f"{samples[0].path.parent}: 150 photos, 100 of them read whole"
    spoil(samples[-1])
    check_photos(samples, lambda stem: SIZE, thorough=False, watch=watch)
    with pytest.raises(ValueError, match=r"0149\.jpg: cannot read the image.* \(1 of 150 such\)"):
        check_photos(samples, lambda stem: SIZE, thorough=True, watch=watch)


def test_suspects_are_always_read(samples: list[Sample]) -> None:
    spoil(samples[-1])
    suspects = {samples[-1].stem: " (take another)"}
    with pytest.raises(ValueError, match=r"incomplete \(take another\) \(1 of 101 such\)"):
        check_photos(samples, lambda stem: SIZE, thorough=False, watch=watch, suspects=suspects)


def test_archives(tmp_path: Path) -> None:
    (tmp_path / VOC_ARCHIVE.name).write_bytes(b"content")
    right = replace(VOC_ARCHIVE, md5=hashlib.md5(b"content").hexdigest())
    absent = replace(VOC_ARCHIVE, name="other.tar")
    line = check_archives(tmp_path, (right, absent), watch=watch)
    assert line == f"{tmp_path}: 1 archives, with the published MD5"
    with pytest.raises(ValueError, match=f"expected the MD5 {VOC_ARCHIVE.md5} of .*download it again"):
        check_archives(tmp_path, (VOC_ARCHIVE,), watch=watch)
