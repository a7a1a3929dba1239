"""Which files are known as ours, and which are never overwritten."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from models.bundle.manifest import find_bundle
from models.data.mask_files import label_map_png, overlay_png
from models.data.provenance import refuse_foreign
from models.tensors import write_tensors
from tests.helpers.service_fixtures import png

_MAP = np.zeros((2, 3), dtype=np.uint8)
_RECORD = {"image": "cat.jpg", "size": {}, "model": {}, "options": {}, "classes": []}
_OURS = {
    "cat.png": label_map_png(_MAP, text={"Software": "semples 0.1"}),
    "cat_overlay.png": overlay_png(np.zeros((2, 3, 3), dtype=np.uint8), _MAP),
    "cat.json": json.dumps(_RECORD).encode(),
    "report.html": b'<!doctype html><meta name="generator" content="semples 0.1">',
    "curve.csv": b"threshold,mean_iou\n0.05,\n",
    "config.yaml": b"# Written by semples\nname: a\n",
    "bundle.yaml": (find_bundle("coco-demo") / "bundle.yaml").read_bytes(),
    "weights.safetensors": save({"a": torch.zeros(2)}, {"software": "semples"}),
}
_FOREIGN = {
    "cat.png": png(),
    "cat_overlay.png": label_map_png(_MAP, text={"Software": "GIMP"}),
    "cat.json": b'{"shapes": [], "imagePath": "cat.jpg"}',
    "report.html": b"<!doctype html><title>mine</title>",
    "cat.txt": b"0 0.5 0.5 1 1",
    "damaged.png": b"\x89PNG\r\n\x1a\n",
    "weights.safetensors": save({"a": torch.zeros(2)}),
    "of others.safetensors": save({"a": torch.zeros(2)}, {"software": "diffusers"}),
    "cut.safetensors": b"\xff\x00\x00",
    "huge.safetensors": b"\xff" * 16,
    "a list.safetensors": b"\x02\x00\x00\x00\x00\x00\x00\x00[]",
    "bundle.yaml": b"en:\n  format: long\n",
    "odd.yaml": b"a: [",
    "tagged.yaml": b"a: !!python/object:os.system {}",
    "config.yaml": b"# Written by hand\nname: a\n",
    "curve.csv": b"epoch,loss\n1,2\n",
    "labels.csv": b"image,labels\na.jpg,cat\n",
    "odd.json": b"[1, 2]",
    "not utf-8.json": b"\xff",
}


def test_our_own_files_may_be_written_again(tmp_path: Path) -> None:
    for name, content in _OURS.items():
        (tmp_path / name).write_bytes(content)
    refuse_foreign([*tmp_path.iterdir(), tmp_path / "new.png"], overwrite=False)


@pytest.mark.parametrize("name", _FOREIGN)
def test_files_of_others_are_named_and_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(_FOREIGN[name])
    with pytest.raises(ValueError, match=rf"--overwrite.*{name}"):
        refuse_foreign([tmp_path / name], overwrite=False)
    refuse_foreign([tmp_path / name], overwrite=True)


def test_links_and_folders_of_others(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("nowhere")
    (tmp_path / "b.png").mkdir()
    for name in ("a.png", "b.png"):
        with pytest.raises(ValueError, match=name):
            refuse_foreign([tmp_path / name], overwrite=False)


@pytest.mark.parametrize("name", ["labels.csv", "config.yaml", "cat.png"])
def test_files_whose_hash_is_known(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(_FOREIGN[name])
    hashes = [hashlib.sha256(_FOREIGN[name]).hexdigest()]
    refuse_foreign([path], overwrite=False, hashes=hashes)
    path.write_bytes(_FOREIGN[name] + b" ")
    with pytest.raises(ValueError, match=name):
        refuse_foreign([path], overwrite=False, hashes=hashes)


def test_tensors_say_who_wrote_them(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    refuse_foreign([tmp_path / "a.safetensors"], overwrite=False)
