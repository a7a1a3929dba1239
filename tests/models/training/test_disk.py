"""A disk that fills up in the middle of training: told in one line that names the file, and half a file never stays."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from models.config import Config, dump_config
from models.training.run import _check_space
from tests.models.training.test_loop import Network

LIMIT = 40_000  # bytes a file may have: room for the configuration and the log, none for weights


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def test_a_full_disk_is_one_line(tiny_config: Config, tiny_data: Path, tmp_path: Path) -> None:
    config, work = tmp_path / "tiny.yaml", tmp_path / "work"
    config.write_text(dump_config(tiny_config))
    done = subprocess.run(
        [
            sys.executable, "-c", "from models.cli import main; main()", "train-generator", str(work),
            "--images", str(tiny_data / "images"), "--labels", str(tiny_data / "labels.csv"),
            "--config", str(config), "--device", "cpu", "--threads", "1",
        ],
        capture_output=True, text=True, check=False, preexec_fn=limit_files, timeout=100,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("semples: File too large: ")
    assert "Traceback" not in done.stderr
    left = {path.name for path in (work / "train-generator").iterdir()}
    assert {name for name in left if "tfevents" not in name} == {"log.jsonl"}


def test_too_little_room_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check_space(tmp_path, Network())
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(ValueError, match=r"MB free in .* for checkpoints, got 0 MB"):
        _check_space(tmp_path, Network())
