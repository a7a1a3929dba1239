"""What torch.save wrote elsewhere is read; nothing that a file names is executed."""

import argparse
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from models.bundle.import_checkpoint import read_torch_file


@pytest.mark.parametrize("archive", [True, False])
def test_what_training_scripts_leave_is_no_obstacle(archive: bool, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    content = {
        "model": {"weight": torch.rand(2, 3), "bias": torch.nn.Parameter(torch.rand(3))},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(lr=np.float64(0.1), output=Path("out"), bins=np.arange(3)),
        "epoch": 60,
        "best": np.float32(0.5),
    }
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    found = read_torch_file(path)
    assert torch.equal(found["model"]["weight"], content["model"]["weight"])
    assert torch.equal(found["model"]["bias"], content["model"]["bias"])
    assert found["epoch"] == 60
    assert found["args"].__dict__ == {}  # a stand-in, not the object


class Call:
    """Pickles as a call of a function: what an attack consists of."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call


class Poisoned(argparse.Namespace):
    """Pickles as a Namespace that is to call a function of its own when its state is set."""

    def __reduce__(self) -> Any:
        return argparse.Namespace, (), {"__setstate__": print}


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (lambda mark: Call(os.system, f"touch {mark}"), "posix.system"),
        (lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"), "eval"),
        (lambda mark: Call(Path.touch, mark), "getattr"),
        (lambda mark: Call(open, str(mark), "w"), "io.open"),
        (lambda mark: argparse.Namespace(inner=Call(os.mkdir, str(mark))), "posix.mkdir"),
        (lambda mark: Poisoned(), "print"),
    ],
)
@pytest.mark.parametrize("wrapped", ["archive", "old", "pickle"])
def test_nothing_is_executed(
    attack: Callable[[Path], object], named: str, wrapped: str, tmp_path: Path
) -> None:
    mark, path = tmp_path / "executed", tmp_path / "evil.pth"
    content = {"model": {"weight": torch.zeros(1)}, "args": attack(mark)}
    if wrapped == "pickle":
        path.write_bytes(pickle.dumps({"args": content["args"]}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=wrapped == "archive")
    with pytest.raises(ValueError, match=f"got {named}, which was not executed: .*evil.pth"):
        read_torch_file(path)
    assert not mark.exists()


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, form)
    return buffer.getvalue()


def archived(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "hello")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"0 background\n1 cat\n",
        encoded("PNG"),
        encoded("JPEG"),
        b"\x01\x02\x00\x04" * 8,
        archived("readme.txt"),
        archived("archive/data.pkl"),
        archived("archive/data.pkl")[:-10],
        pickle.dumps({"prompts": [1, 2]}),
        b"\x80\x02garbage",
        safetensors.torch.save({"prompts": torch.rand(1, 2, 3)}),
    ],
)
def test_other_files_are_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    message = "expected a file that torch.save wrote, got a damaged or foreign one: "
    with pytest.raises(ValueError, match=f"^{message}[^\n]*file.pth$"):
        read_torch_file(path)


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_truncated_files_are_refused(archive: bool, kept: float, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": torch.rand(500)}, path, _use_new_zipfile_serialization=archive)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match="got a damaged or foreign one"):
        read_torch_file(path)


def test_missing_files_are_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "no.pth")
