import shutil
from pathlib import Path

import pytest

from models.exports import new_folder


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with pytest.raises(KeyboardInterrupt), new_folder(target) as place:  # noqa: PT012
        (place / "half").write_text("")
        raise KeyboardInterrupt
    assert list((tmp_path / "deep").iterdir()) == []
    with new_folder(target) as place:
        (place / "whole").write_text("")
        assert not target.exists()
    assert [each.name for each in target.iterdir()] == ["whole"]


def test_nothing_is_overwritten_but_an_empty_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with new_folder(target) as place:
        (place / "new").write_text("")
    with pytest.raises(ValueError, match="expected a new or empty folder"), new_folder(target):
        pass
    with pytest.raises(ValueError, match="new or empty"), new_folder(target / "new"):
        pass
    assert [each.name for each in target.iterdir()] == ["new"]
    shutil.rmtree(target)
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(ValueError, match=r"remove .*out\.partial"), new_folder(target):
        pass
