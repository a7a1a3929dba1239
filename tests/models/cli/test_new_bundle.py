"""``semples new-bundle``: from the file of a CLIP's weights to masks of labels that nobody has heard of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.bundle.bundle import load_bundle
from models.bundle.manifest import TOWER_FILE
from models.clip import load_clip
from models.data.classes import with_open_labels
from models.inference.predictor import LabeledImage, Predictor
from models.tensors import read_tensors
from tests.conftest import CPU
from tests.helpers.command import semples_ok, semples_process, semples_refuses
from tests.helpers.paths import PHOTO

LABELS = ("zeppelin", "quokka", "astrolabe")


@pytest.fixture(scope="module", params=["gradcam", "dense"])
def new_bundle(
    request: pytest.FixtureRequest, tiny_vit_weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("new") / "bundle"
    classes = folder.parent / "classes.txt"
    classes.write_text("1 cat\n2 water\n")
    printed = semples_ok(
        "new-bundle", folder, "--clip", "tiny-vit", "--pretrained", tiny_vit_weights, "--classes", classes,
        "--method", request.param, "--device", "cpu",
    )  # fmt: skip
    assert printed.startswith("tiny-vit ")
    return folder


def test_it_holds_the_clip_once(new_bundle: Path, tiny_vit_weights: Path) -> None:
    bundle, clip = load_bundle(new_bundle, device=CPU), load_clip("tiny-vit", str(tiny_vit_weights))
    assert read_tensors(new_bundle / TOWER_FILE) == {}
    assert bundle.info.open_vocabulary
    assert bundle.info.kind == "clip_vit"
    assert bundle.info.generator.output_stride == 16
    assert bundle.image_tower is not None
    images = torch.rand(2, 3, 64, 64)
    cosine = (bundle.image_tower.embed_images(images) * clip.embed_images(images)).sum(dim=1)
    torch.testing.assert_close(cosine, torch.ones(2), atol=1e-3, rtol=0)
    expected = clip.embed_texts(["a clean origami cat.", "a clean origami water."])
    torch.testing.assert_close(bundle.generator.head.weight, expected, atol=2e-3, rtol=0)
    assert bundle.generator.get_buffer("logit_scale").item() == pytest.approx(clip.logit_scale)
    stuff = bundle.info.generator.background_texts
    assert bundle.generator.get_buffer("excluded").nonzero().tolist() == [[1, stuff.index("water")]]


def test_it_masks_unheard_of_labels(new_bundle: Path, tmp_path: Path) -> None:
    semples_ok(
        "predict", PHOTO, "--labels", ",".join(LABELS), "--vocabulary", "open", "--bundle", new_bundle,
        "--output", tmp_path, "--device", "cpu",
    )  # fmt: skip
    record = json.loads((tmp_path / f"{PHOTO.stem}.json").read_text())
    assert sorted(each["name"] for each in record["classes"]) == sorted(LABELS)
    assert all(each["zero_shot"] for each in record["classes"])
    with Image.open(tmp_path / f"{PHOTO.stem}.png") as mask:
        assert len(np.unique(np.array(mask))) > 1


def test_a_known_class_is_the_label_that_says_the_same(new_bundle: Path) -> None:
    """Whether a name is the bundle's or new makes no difference, and photos of a batch none to each other."""
    predictor = Predictor(load_bundle(new_bundle, device=CPU))
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    known = predictor.info.classes
    classes = with_open_labels(known, ["zeppelin", "cats"])
    options = predictor.options(refine="random_walk")
    one = LabeledImage(pixels, ["water", "zeppelin"], options, classes)
    two = LabeledImage(pixels[::-1].copy(), ["cats"], options, classes)
    both = predictor.forward_cam([one, two])
    for each, together in zip((one, two), both, strict=True):
        (alone,) = predictor.forward_cam([each])
        torch.testing.assert_close(together.maps, alone.maps, atol=1e-4, rtol=0)
        assert predictor.postprocess(together).label_map.shape == (60, 90)
    assert both[0].maps.shape[0] == 2


def test_without_a_network_it_says_which_file_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = semples_process("new-bundle", tmp_path / "out", "--clip", "ViT-B-32", "--pretrained", "openai")
    assert done.returncode == 2
    message = done.stderr
    assert message.count("\n") == 1
    assert "https://huggingface.co/timm/vit_base_patch32_clip_224.openai/resolve/main/open_clip_model.saf" in message
    assert "with the model ViT-B-32-quickgelu" in message
    assert not (tmp_path / "out").exists()


def test_what_it_refuses(tmp_path: Path, tiny_clip_folder: Path) -> None:
    out = tmp_path / "out"
    wrong = semples_refuses("new-bundle", out, "--clip", "ViT-B-16", "--pretrained", tmp_path / "weights.bin")
    assert f"got '{tmp_path / 'weights.bin'}', which is neither" in wrong
    assert "expected --pretrained with" in semples_refuses("new-bundle", out, "--clip", "ViT-B-16")
    local = f"local-dir:{tiny_clip_folder}"
    assert "open_clip's VisionTransformer" in semples_refuses("new-bundle", out, "--clip", local, "--name", "x")
    wrong = semples_refuses("new-bundle", out, "--clip", local, "--method", "magic", "--name", "x")
    assert "generator.clip_vit.method" in wrong
    assert not out.exists()
