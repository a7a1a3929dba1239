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
from torch import Tensor

from models.bundle.import_checkpoint import (
    _choose_channels,
    prompts_context,
    read_channels,
    read_torch_file,
    weaktr_weights,
)
from models.data.classes import ClassInfo, ClassList
from models.generators.weaktr import WeakTrGenerator
from models.weaktr_sizes import WeakTrSizes
from tests.conftest import CLASSES

SIZES = WeakTrSizes(native_size=64, width=48, depth=3, heads=3, mlp_ratio=2, reduction=4, feature_reduction=4)
Spoil = Callable[[dict[str, Any]], Any]


def public_weaktr(classes: int) -> dict[str, Any]:
    network = WeakTrGenerator(SIZES, classes=classes)
    with torch.no_grad():
        network.head.bias.add_(torch.arange(classes))  # no two classes alike
    args = argparse.Namespace(lr=np.float64(6e-4), output_dir=Path("out"))
    return {"model": network.state_dict(), "optimizer": {}, "epoch": 59, "args": args}


def test_all_classes_come_as_they_are() -> None:
    content = public_weaktr(4)
    imported = weaktr_weights(content, CLASSES, channels=None, source="f.pth")
    assert imported.sizes == SIZES
    assert set(imported.tensors) == set(content["model"])
    assert all(torch.equal(content["model"][name], each) for name, each in imported.tensors.items())


def test_the_public_sizes_are_read_off_the_shapes() -> None:
    sizes = WeakTrSizes().model_copy(update={"reduction": 4})
    with torch.device("meta"):
        names = WeakTrGenerator(sizes, classes=1).state_dict()
    content = {"model": {name: torch.zeros(each.shape) for name, each in names.items()}}
    one = ClassList((ClassInfo(1, "cat"),))
    assert weaktr_weights(content, one, channels=None, source="f.pth").sizes == sizes


def test_chosen_classes_keep_their_cams() -> None:
    """A head of nine channels, of which CLASSES (indices 3, 4, 7, 9) are to be had."""
    content = public_weaktr(9)
    channels = {info.index: info.index - 1 for info in CLASSES.classes}
    imported = weaktr_weights(content, CLASSES, channels=channels, source="f.pth")
    assert imported.sizes == SIZES.model_copy(update={"spare_tokens": 5})
    whole = WeakTrGenerator(SIZES, classes=9)
    part = WeakTrGenerator(imported.sizes, classes=4)
    whole.load_state_dict(content["model"])
    part.load_state_dict(imported.tensors)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(part(images), whole(images)[:, [2, 3, 6, 8]])
        token_logits = [each.classifier_logits(images).class_token for each in (part, whole)]
        affinities = [each.affinity(each.features(images)) for each in (part, whole)]
    torch.testing.assert_close(token_logits[0], token_logits[1][:, [2, 3, 6, 8]])
    torch.testing.assert_close(affinities[0], affinities[1])


def drop(name: str) -> Spoil:
    return lambda content: content["model"].pop(name)


def put(name: str, value: object) -> Spoil:
    return lambda content: content["model"].update({name: value})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("cls_token"), "expected a WeakTr in f.pth, got no cls_token"),
        (drop("blocks.1.mlp.fc2.bias"), r"expected blocks.1.mlp.fc2.bias \(48,\) in f.pth, got no such tensor"),
        (
            put("blocks.2.attn.qkv.weight", torch.rand(96, 48)),
            r"expected blocks.2.attn.qkv.weight \(144, 48\) in f.pth, got \(96, 48\)",
        ),
        (put("head_dist.weight", torch.rand(3)), r"expected head_dist.weight no such tensor in f.pth, got \(3,\)"),
        (put("pos_embed", torch.rand(20, 48)), r"expected a WeakTr in f.pth, got pos_embed \(20, 48\)"),
        (put("pos_embed", torch.rand(1, 3, 48)), "expected pos_embed"),
        (put("pos_embed", torch.rand(1, 23, 48)), r"expected pos_embed \(1, 20, 48\)"),
        (put("head.bias", torch.arange(4)), "floating-point numbers in head.bias .* torch.int64"),
        (put("head.bias", torch.zeros(4).to_sparse()), "floating-point numbers .* torch.sparse"),
        (put("head.bias", [0.0] * 4), "expected a tensor head.bias in f.pth, got a list"),
        (put("head.bias", torch.full((4,), torch.nan)), "expected finite numbers in head.bias"),
    ],
)
def test_other_networks_are_refused(spoil: Spoil, message: str) -> None:
    content = public_weaktr(4)
    spoil(content)
    with pytest.raises(ValueError, match=message):
        weaktr_weights(content, CLASSES, channels=None, source="f.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "epoch": 3}, "with 'model' in f.pth, got the keys state_dict, epoch"),
        ({}, r"with 'model' in f.pth, got the keys \(none\)"),
        ([1], "expected a dictionary with 'model' in f.pth, got a list"),
        ({"model": torch.rand(3)}, "expected a state dict in f.pth, got a Tensor"),
        ({"model": {}}, "expected a state dict in f.pth, got a dict"),
    ],
)
def test_other_contents_are_refused(content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weaktr_weights(content, CLASSES, channels=None, source="f.pth")


def test_channels_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "channels.txt"
    path.write_text("3 5\n4 0\n9 1\n7 2\n")
    channels = read_channels(path)
    assert _choose_channels(CLASSES, 6, channels) == [5, 0, 2, 1]
    assert _choose_channels(CLASSES, 4, None) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"expected 80 classes, as the file has, .* got 4 classes"):
        _choose_channels(CLASSES, 80, None)
    with pytest.raises(ValueError, match=r"distinct channels from 0 to 4, got \[5, 0, 2, 1\]"):
        _choose_channels(CLASSES, 5, channels)
    with pytest.raises(ValueError, match="distinct channels"):
        _choose_channels(CLASSES, 6, {**channels, 9: 0})
    with pytest.raises(ValueError, match="a channel for each class, got none for 'dining table'"):
        _choose_channels(CLASSES, 6, {3: 0, 4: 1, 7: 2})
    path.write_text("3 5\n4: 0\n")
    with pytest.raises(ValueError, match=r"channels.txt:2: expected 'class-index channel', got"):
        read_channels(path)


@pytest.mark.parametrize("wrap", [lambda t: {"prompts": t}, lambda t: t, torch.nn.Parameter])
def test_prompts_come_in_several_wrappings(wrap: Callable[[Tensor], object]) -> None:
    prompts = torch.rand(4, 3, 16).half()
    context = prompts_context(wrap(prompts.float()), CLASSES, channels=None, source="f.pth")
    assert torch.equal(context, prompts.float())
    assert not context.requires_grad


def test_prompts_of_chosen_classes() -> None:
    prompts = torch.rand(9, 3, 16)
    channels = {info.index: info.index - 1 for info in CLASSES.classes}
    context = prompts_context({"prompts": prompts}, CLASSES, channels=channels, source="f.pth")
    assert torch.equal(context, prompts[[2, 3, 6, 8]])


def test_other_prompts_are_refused() -> None:
    for content, message in (
        (torch.rand(4, 16), r"expected prompts \(classes, tokens, width\) .* \(4, 16\)"),
        ({"model": {}}, "a dictionary with 'prompts' in f.pth, got the keys model"),
    ):
        with pytest.raises(ValueError, match=message):
            prompts_context(content, CLASSES, channels=None, source="f.pth")


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
def test_nothing_is_executed(attack: Callable[[Path], object], named: str, wrapped: str, tmp_path: Path) -> None:
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
