"""The text tower of a bundle: CLIP's own, there only if wanted, refused where it does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from models import clip
from models.bundle.bundle import load_bundle
from models.bundle.manifest import MANIFEST, TEXT_TOWER_FILE, BundleError
from models.clip import FrozenClip, text_config
from models.config import CnnConfig, Config
from models.training.export import export_bundle
from models.training.run import Run, start_run
from tests.conftest import CLASSES, CPU

WORDS = {"licence": "CC0", "trained_on": "nothing"}


def test_the_text_tower_is_clips(tiny_open_bundle: Path, tiny_clip: FrozenClip) -> None:
    bundle = load_bundle(tiny_open_bundle, device=CPU)
    assert bundle.info.open_vocabulary
    assert bundle.info.to_json()["open_vocabulary"] is True
    assert bundle.text_tower is not None
    texts = ["fire truck", "a longer label of six words"]
    found, expected = bundle.text_tower.embed_classes(texts), tiny_clip.embed_classes(texts)
    torch.testing.assert_close((found * expected).sum(dim=1), torch.ones(2), atol=1e-3, rtol=0)
    assert not any(each.requires_grad for each in bundle.text_tower.parameters())
    assert not any(module.training for module in bundle.text_tower.modules())


def test_it_is_left_out_unless_wanted(tiny_bundle: Path, tiny_run: Run, tmp_path: Path) -> None:
    assert load_bundle(tiny_bundle, device=CPU).text_tower is None
    export_bundle(tiny_run, tmp_path, stage="zero-shot", parts=("text_tower",), **WORDS)
    assert (tmp_path / TEXT_TOWER_FILE).is_file()
    info = export_bundle(tiny_run, tmp_path, stage="zero-shot", **WORDS)
    assert not (tmp_path / TEXT_TOWER_FILE).exists()
    assert not info.open_vocabulary
    assert TEXT_TOWER_FILE not in info.files


def test_a_changed_text_tower_is_refused(tiny_open_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_open_bundle, tmp_path / "copy"))
    content = bytearray((copy / TEXT_TOWER_FILE).read_bytes())
    content[-1] ^= 1
    (copy / TEXT_TOWER_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=r"expected .*clip_text.safetensors with SHA-256"):
        load_bundle(copy, device=CPU)


def test_a_text_tower_without_its_image_tower_is_refused(
    tiny_open_bundle: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_open_bundle, tmp_path / "copy"))
    text = (copy / MANIFEST).read_text().replace("kind: zero_shot", "kind: cnn")
    (copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="a zero_shot generator on it, got a cnn generator"):
        load_bundle(copy, device=CPU)


def test_a_generator_that_is_not_clips_gets_no_text_tower(
    tiny_config: Config, tiny_run: Run, tmp_path: Path
) -> None:
    plain = CnnConfig(backbone="test_resnet", pretrained=False)
    config = tiny_config.model_copy(update={"generator": plain})
    run = start_run(config, CLASSES, tmp_path / "cnn", device=CPU)
    with pytest.raises(ValueError, match=r"expected a zero_shot .* open vocabulary, got cnn"):
        export_bundle(run, tmp_path / "out", stage="zero-shot", parts=("text_tower",), **WORDS)
    stage = "refine-generator"  # in which the whole backbone learned
    with pytest.raises(ValueError, match="expected a mask generator on the frozen trunk of CLIP"):
        export_bundle(tiny_run, tmp_path / "out", stage=stage, parts=("text_tower",), **WORDS)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_others_is_refused(tmp_path: Path, tiny_clip_folder: Path) -> None:
    copy = Path(shutil.copytree(tiny_clip_folder, tmp_path / "clip"))
    config = copy / "open_clip_config.json"
    config.write_text(
        config.read_text().replace('"context_length"', '"hf_tokenizer_name": "x", "context_length"')
    )
    with pytest.raises(ValueError, match="expected a CLIP with open_clip's own tokenizer"):
        text_config(f"local-dir:{copy}", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hf_model_name": "x/y"}, "expected a text tower of open_clip's own"),
        ({"no_causal_mask": True}, "expected a causal text transformer"),
    ],
)
def test_other_text_towers_are_refused(
    tiny_clip_folder: Path, change: dict[str, object], message: str
) -> None:
    config = text_config(f"local-dir:{tiny_clip_folder}", None)
    changed = {**config, "text_cfg": {**config["text_cfg"], **change}}
    with pytest.raises(ValueError, match=message):
        clip.build_text_tower(changed)


def test_words_from_outside_do_not_fill_the_memory(
    tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip, "_CACHED_WORDS", 20)
    made: list[Any] = []
    plain = open_clip.SimpleTokenizer
    monkeypatch.setattr(
        open_clip, "SimpleTokenizer", lambda **options: made.append(plain(**options)) or made[-1]
    )
    tower = clip.build_text_tower(text_config(f"local-dir:{tiny_clip_folder}", None))
    for number in range(30):
        words = f"{chr(97 + number % 26)}qx word{chr(97 + number // 26)}{chr(97 + number % 26)}z"
        assert torch.equal(tower.tokenizer([words]), plain()([words]))
    assert len(made[0].cache) <= 20 + len(words.split())
