import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.build import build_generator
from models.bundle.bundle import load_bundle
from models.bundle.manifest import BundleError, find_bundle, read_info
from models.config import CnnConfig, Config
from models.training.export import export_bundle
from models.training.run import Run, start_run, supervision
from tests.conftest import CLASSES, CPU


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def test_a_bundle_is_what_was_trained(tiny_bundle: Path, tiny_run: Run) -> None:
    bundle = load_bundle(tiny_bundle, device=CPU)
    trained = load_file(tiny_run.existing("refine-generator", "generator.safetensors"))
    for name, tensor in bundle.generator.state_dict().items():
        torch.testing.assert_close(tensor, trained[name], atol=1e-3, rtol=1e-3)
    learned = load_file(tiny_run.existing("learn-prompts", "prompts.safetensors"))
    assert bundle.prompts is not None
    torch.testing.assert_close(bundle.prompts, learned["embeddings"], atol=1e-3, rtol=0)
    assert load_file(tiny_bundle / "prompts.safetensors").keys() == {"class_text", "context", "embeddings"}
    assert bundle.info.classes == CLASSES.with_synonyms({"cup": ["mug"]})
    assert bundle.info.stage == "refine-generator"
    assert not any(each.requires_grad for each in bundle.generator.parameters())


def test_its_image_tower_is_clips(tiny_bundle: Path, tiny_run: Run) -> None:
    tower = load_bundle(tiny_bundle, device=CPU).image_tower
    clip, _ = supervision(tiny_run)
    images = torch.rand(2, 3, 64, 64)
    assert tower is not None
    cosine = (tower.embed_images(images) * clip.embed_images(images)).sum(dim=1)
    torch.testing.assert_close(cosine, torch.ones(2), atol=1e-3, rtol=0)


def test_what_is_shared_is_stored_once(tiny_run: Run, tmp_path: Path) -> None:
    options = {"licence": "Apache-2.0", "trained_on": "nothing"}
    export_bundle(tiny_run, tmp_path, stage="zero-shot", **options)
    assert set(load_file(tmp_path / "clip_image.safetensors")) == {"head.proj.weight"}
    assert load_bundle(tmp_path, device=CPU).image_tower is not None


@pytest.mark.parametrize("level", [-1, -2])
def test_any_timm_backbone_goes_into_a_bundle(tiny_config: Config, tmp_path: Path, level: int) -> None:
    """The CNN generator shares nothing with CLIP's tower, and comes back as it went in."""
    plain = CnnConfig(backbone="test_resnet", pretrained=False, level=level)
    config = tiny_config.model_copy(update={"generator": plain})
    run = start_run(config, CLASSES, tmp_path / "work", device=CPU)
    export_bundle(run, tmp_path / "out", stage="zero-shot", licence="CC0", trained_on="nothing")
    bundle = load_bundle(tmp_path / "out", device=CPU)
    clip, text = supervision(run)
    built = build_generator(config, clip, text, device=CPU)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        cams, expected = bundle.generator(images), built(images)
    # Half precision is what a bundle stores, and a random head's evidence is a small sum of large terms.
    cosine = torch.nn.functional.cosine_similarity(cams.flatten(), expected.flatten(), dim=0)
    assert cosine > 0.999
    assert bundle.info.kind == "cnn"
    assert bundle.prompts is None
    assert bundle.image_tower is not None


def test_info(tiny_bundle: Path, copy: Path) -> None:
    info = read_info(tiny_bundle)
    assert info.to_json()["classes"][2] == {"index": 7, "name": "cup", "synonyms": ["mug"]}
    assert len(info.version) == 12
    assert read_info(copy).version == info.version
    assert set(info.nearest_nouns) == set(CLASSES.names)
    (copy / "bundle.yaml").write_text((copy / "bundle.yaml").read_text() + "\n# edited\n")
    assert read_info(copy).version != info.version


@pytest.mark.parametrize(
    ("bundle", "name"),
    [
        ("tiny_bundle", "generator"),
        ("tiny_bundle", "prompts"),
        ("tiny_open_bundle", "clip_text"),
        ("tiny_segmenter_bundle", "segmenter"),
    ],
)
def test_changed_and_missing_files_are_refused(
    bundle: str, name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(request.getfixturevalue(bundle), tmp_path / "copy"))
    weights = copy / f"{name}.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=f"expected .*{name}.safetensors with SHA-256"):
        load_bundle(copy, device=CPU)
    weights.unlink()
    with pytest.raises(BundleError, match=f"{name}.safetensors"):
        load_bundle(copy, device=CPU)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("format: 2", "format: 1", "bundle.yaml: format: Input should be 2"),
        ("name: tiny", "title: tiny", "bundle.yaml: (name|title): "),
        ("name: tiny", "name: tiny:batch", "name: .*without a colon, got 'tiny:batch'"),
        ("kind: zero_shot", "kind: gan", "bundle.yaml: generator: .*'gan'"),
        ("index: 9", "index: 999", "from 1 to 254, got 999"),
        ("format: 2", "format: [", "expected a readable bundle.yaml"),
        ("backbone: test_efficientnet", "backbone: test_resnet", "expected weights that fit"),
    ],
)
def test_another_manifest_is_refused(copy: Path, before: str, after: str, message: str) -> None:
    text = (copy / "bundle.yaml").read_text()
    assert before in text
    (copy / "bundle.yaml").write_text(text.replace(before, after, 1))
    with pytest.raises(BundleError, match=message):
        load_bundle(copy, device=CPU)


def test_unknown_bundles_name_the_shipped() -> None:
    with pytest.raises(BundleError, match="or one of coco-demo, got 'nope'"):
        find_bundle("nope")
    assert find_bundle("coco-demo").name == "coco-demo"


def test_unknown_stages_are_refused(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a stage of zero-shot, .* got 'final'"):
        export_bundle(tiny_run, tmp_path, stage="final", licence="", trained_on="")
