"""SemPLeS on CLIP's own ViT: ten lines of configuration, and one vector of each class that learns."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.build import build_generator
from models.bundle.bundle import load_bundle
from models.config import load_config
from models.inference.predictor import Predictor
from models.training.export import export_bundle
from models.training.run import Run, open_run, start_run, supervision
from tests.conftest import CLASSES, CPU
from tests.helpers.command import semples_ok

STAGES = ("train-generator", "refine-generator")
CONFIG = """
name: mine
clip: {{model: tiny-vit, pretrained: "{weights}"}}
generator: {{kind: clip_vit, method: {method}}}
prompts: {{tokens: 4}}
train_generator: {{epochs: 1, batch_size: 4, crop_size: 64, learning_rate: 0.01}}
learn_prompts: {{epochs: 2, batch_size: 4, crop_size: 64, views: 2}}
refine_generator: {{epochs: 1, batch_size: 4, crop_size: 64, learning_rate: 0.01}}
inference: {{image_size: 96, refine: random_walk}}
segmenter: {{kind: light, backbone: test_efficientnet, weights: none}}
train_segmenter: {{epochs: 1, batch_size: 4, crop_size: 64}}
"""


@pytest.fixture(scope="module", params=["gradcam", "dense"])
def done(
    request: pytest.FixtureRequest, tiny_vit_weights: Path, data_options: list[object],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:  # fmt: skip
    folder = tmp_path_factory.mktemp("vit")
    config = folder / "mine.yaml"
    config.write_text(CONFIG.format(weights=tiny_vit_weights, method=request.param))
    semples_ok("run-all", folder / "work", *data_options, "--config", config, "--device", "cpu")
    return open_run(folder / "work", device=CPU)


def test_one_vector_of_each_class_learns(done: Run) -> None:
    clip, class_text = supervision(done)
    start = build_generator(done.config, clip, class_text, device=CPU, classes=done.classes).state_dict()
    texts = clip.embed_texts([f"a clean origami {name}." for name in done.classes.names])
    torch.testing.assert_close(start["head.weight"], texts)
    prompts = load_file(done.work / "learn-prompts" / "prompts.safetensors")["embeddings"]
    for stage in STAGES:
        learned = load_file(done.work / stage / "generator.safetensors")
        changed = {name for name, tensor in learned.items() if not torch.equal(tensor, start[name])}
        assert changed == {"head.weight"} | ({"prompts"} if stage == "refine-generator" else set())
        assert learned["head.weight"].isfinite().all()
    torch.testing.assert_close(learned["prompts"], prompts)


def test_its_bundle_serves_known_and_other_labels(done: Run, tmp_path: Path) -> None:
    plain = Predictor(load_bundle(done.work / "bundle", device=CPU))
    assert plain.info.can_segment
    words = {"licence": "none", "trained_on": "squares"}
    export_bundle(done, tmp_path, stage="refine-generator", parts=("text_tower",), **words)
    opened = Predictor(load_bundle(tmp_path, device=CPU))
    photo = torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8).numpy()
    one, two = (each.pseudo_mask(photo, ["cat", "cup"], each.options()) for each in (plain, opened))
    assert (one.label_map == two.label_map).all()
    assert torch.allclose(opened.bundle.generator.get_buffer("prompts").norm(dim=1), torch.ones(4), atol=1e-2)


def test_a_sample_of_a_class_that_is_common_stuff(tiny_vit_weights: Path, tmp_path: Path) -> None:
    """Synonyms and CLIP's names count: a background text that says the same is left out."""
    config = tmp_path / "mine.yaml"
    text = CONFIG.format(weights=tiny_vit_weights, method="gradcam")
    config.write_text(text + "synonyms: {cat: [grass]}\nclip_names: {cup: lamp}\n")
    run = start_run(load_config(str(config)), CLASSES, tmp_path / "work", device=CPU)
    generator = build_generator(run.config, *supervision(run), device=CPU, classes=run.classes)
    stuff = run.config.generator.background_texts  # type: ignore[union-attr]
    expected = sorted([(CLASSES.channel("cat"), stuff.index("grass")), (CLASSES.channel("cup"), stuff.index("lamp"))])
    assert [tuple(each) for each in generator.get_buffer("excluded").nonzero().tolist()] == expected
    with pytest.raises(ValueError, match="expected the names of 4 classes for a clip_vit generator, got 0"):
        build_generator(run.config, *supervision(run), device=CPU)
