import re

import pytest

from models.build import class_captions
from models.config import FeatureSegmenterConfig, _config_names, dump_config, load_config, parse_config
from models.data.coco import COCO_CLASSES
from models.data.voc import VOC_CLASSES
from tests.helpers.paths import ROOT


def test_defaults_are_the_papers() -> None:
    config = parse_config("name: voc", source="here")
    assert config.clip.model == "ViT-B-32"
    assert config.clip.pretrained == "openai"
    assert (config.train_generator.background_weight, config.learn_prompts.text_weight) == (2.4, 0.02)
    assert config.prompts.tokens == 30


def test_round_trip() -> None:
    config = parse_config("name: a\nseed: 3\ngenerator: {kind: zero_shot}", source="here")
    assert parse_config(dump_config(config), source="there") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: a\ntrain_generator: {epoch: 3}",
            r"f.yaml: train_generator.epoch: expected a known key, perhaps epochs, got 'epoch'",
        ),
        ("name: a\ngenerator: {kind: gan}", "f.yaml: generator: expected kind one of 'cnn', .* got 'gan'"),
        ("name: a\nsegmenter: {decoder: fpn}", "f.yaml: segmenter: expected a kind, .* got none"),
        ("name: a\nsegmentor: {}", "f.yaml: segmentor: expected a known key, perhaps segmenter"),
        ("name: a\nqqq: {}", "f.yaml: qqq: expected a known key, got 'qqq'"),
        ("name: a\ninference: {refine: crf9}", "f.yaml: inference.refine: expected one of none, pamr"),
        ("name: a\ninference: {scales: []}", "f.yaml: inference.scales"),
        (
            "name: a\ngenerator: {kind: zero_shot}\ntrain_generator: {prompt_share: 0.2}",
            "f.yaml: .*expected prompt_share and full_share_margin in refine_generator alone",
        ),
        ("name: a\nrefine_generator: {prompt_share: 0.2}", "f.yaml: .*expected prompt_share and .* for a zero_shot"),
        (
            "name: a\nrefine_generator: {full_share_margin: 0.05}",
            "f.yaml: .*expected prompt_share and full_share_margin .* for a zero_shot",
        ),
        (
            "name: a\ngenerator: {kind: zero_shot}\ntrain_generator: {full_share_margin: 0.05}",
            "f.yaml: .*expected prompt_share and full_share_margin in refine_generator alone",
        ),
        (
            "name: a\ngenerator: {kind: zero_shot}\nrefine_generator: {full_share_margin: 0.05}",
            "f.yaml: .*expected refine_generator.prompt_share with full_share_margin, got 0",
        ),
        ("name: A B", "f.yaml: name: String should match"),
        ("- a", "f.yaml: the top level"),
        ("a: [", "f.yaml: expected YAML"),
    ],
)
def test_mistakes_have_a_place(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_config(text, source="f.yaml")


def test_unknown_configurations_name_the_known() -> None:
    with pytest.raises(ValueError, match=r"expected a YAML file or one of .*coco-demo.*, got 'vog'"):
        load_config("vog")
    with pytest.raises(ValueError, match=r"expected a readable YAML file, got 'no.yaml'"):
        load_config("no.yaml")


def test_the_tutorials_configuration_loads() -> None:
    tutorial = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"config\.yaml <<'END'\n(.*?)END\n", tutorial, re.DOTALL)
    config = parse_config(block, source="tutorial.md")
    assert isinstance(config.segmenter, FeatureSegmenterConfig)


@pytest.mark.parametrize("name", _config_names())
def test_shipped_configurations_load(name: str) -> None:
    assert load_config(name).name == name


# Batch and learning rate of (a), (b) and (c), w_b, w_t, w_r, inference scales, the segmenter's iterations.
PAPER = {
    "voc": ((64, 6.4e-5), (128, 0.025), (64, 6.4e-5), 2.4, 0.02, 0.05, (1.0, 1.2), 80_000),
    "coco": ((32, 3.2e-7), (128, 2.5e-3), (24, 2.4e-7), 0.75, 0.01, 0.2, (1.0, 0.8, 1.2), 100_000),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_configurations(name: str) -> None:
    config = load_config(name)
    stages = (config.train_generator, config.learn_prompts, config.refine_generator)
    assert all(stage.epochs == 60 and stage.weight_decay == 0.03 for stage in stages)
    assert config.train_generator.background_weight == config.refine_generator.background_weight
    found = (
        *((stage.batch_size, stage.learning_rate) for stage in stages),
        config.train_generator.background_weight,
        config.learn_prompts.text_weight,
        config.refine_generator.refinement_weight,
        config.inference.scales,
        config.train_segmenter.iterations,
    )
    assert found == PAPER[name]


def test_the_papers_names_fit_the_classes() -> None:
    captions = class_captions(load_config("voc"), VOC_CLASSES)
    assert set(captions) - set(VOC_CLASSES.names) == {"dining table", "player", "potted plant", "tv monitor"}
    assert class_captions(load_config("coco"), COCO_CLASSES) == COCO_CLASSES.names
    for name, classes in (("voc", VOC_CLASSES), ("coco", COCO_CLASSES)):
        assert classes.with_synonyms(load_config(name).synonyms).names == classes.names
