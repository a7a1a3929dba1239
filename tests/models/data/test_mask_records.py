"""Records and settings of a folder of masks: what is unreadable, or of another kind."""

from pathlib import Path

import pytest

from models.data.mask_folder import RESULTS, SETTINGS, drop_cut_line, read_results, read_settings


@pytest.mark.parametrize("content", ["{}", '{"model": {}, "options": {}}', "[]", "no"])
def test_settings_of_another_kind_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(ValueError, match=r"expected .* in .*settings.json, got"):
        read_settings(tmp_path)


def test_records_of_another_kind_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / RESULTS
    whole = '{"stem": "a", "image": "a.jpg", "model": {}, "classes": []}\n'
    path.write_text("[]\n3\nno\n" + '{"stem": "b"}\n' + whole + whole[:20])
    assert list(read_results(path)) == ["a"]
    drop_cut_line(path)
    assert path.read_text().endswith(whole)
