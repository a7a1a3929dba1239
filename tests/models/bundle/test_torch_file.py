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
import torch
from PIL import Image
from safetensors.torch import save_file

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
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (b"0 background\n1 cat\n", "got text"),
        (encoded("PNG"), "got a PNG image"),
        (encoded("JPEG"), "got a JPEG image"),
        (b"\x01\x02\x00\x04" * 8, "got a file of another kind"),
        (archived("readme.txt"), "got a zip archive of other files"),
        (archived("archive/data.pkl"), "got a damaged or foreign one"),
        (archived("archive/data.pkl")[:-10], "got a damaged or truncated archive"),
        (pickle.dumps({"prompts": [1, 2]}), "got a damaged or foreign one"),
        (b"\x80\x02garbage", "got a damaged or foreign one"),
    ],
)
def test_other_files_are_called_by_what_they_are(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"expected a file that torch.save wrote, {message}"):
        read_torch_file(path)


def test_safetensors_are_told_apart(tmp_path: Path) -> None:
    save_file({"prompts": torch.rand(1, 2, 3)}, tmp_path / "prompts.safetensors")
    with pytest.raises(ValueError, match="got a safetensors file"):
        read_torch_file(tmp_path / "prompts.safetensors")


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95])
def test_truncated_files_are_refused(archive: bool, kept: float, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": torch.rand(500)}, path, _use_new_zipfile_serialization=archive)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"got a damaged or (truncated archive|foreign one)"):
        read_torch_file(path)


def test_missing_files_are_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_torch_file(tmp_path / "no.pth")
