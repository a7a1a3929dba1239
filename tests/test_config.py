import re
from pathlib import Path

import pytest

from models.config import ConfigError, config_names, dump_config, load_config, parse_config
from models.segmenter_config import LightConfig


def test_defaults_are_the_papers() -> None:
    config = parse_config("name: voc", source="here")
    assert config.clip.model == "ViT-B-32"
    assert config.clip.pretrained == "openai"
    assert (config.train_generator.background_weight, config.learn_prompts.text_weight) == (
        2.4,
        0.02,
    )
    assert config.prompts.tokens == 30


def test_round_trip() -> None:
    config = parse_config("name: a\nseed: 3\ngenerator: {kind: zero_shot}", source="here")
    assert parse_config(dump_config(config), source="there") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\ntrain_generator: {epoch: 3}", r"f.yaml: train_generator.epoch: Extra inputs"),
        ("name: a\ngenerator: {kind: gan}", "f.yaml: generator: .*'cnn', 'zero_shot'"),
        (
            "name: a\ninference: {refine: crf9}",
            "f.yaml: inference.refine: expected one of none, pamr",
        ),
        ("name: a\ninference: {scales: []}", "f.yaml: inference.scales"),
        ("name: A B", "f.yaml: name: String should match"),
        ("- a", "f.yaml: the top level"),
        ("a: [", "f.yaml: expected YAML"),
    ],
)
def test_mistakes_have_a_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(text, source="f.yaml")


def test_unknown_configurations_name_the_known() -> None:
    with pytest.raises(
        ConfigError, match=r"expected a YAML file or one of .*coco-demo.*, got 'vog'"
    ):
        load_config("vog")
    with pytest.raises(ConfigError, match=r"expected a readable YAML file, got 'no.yaml'"):
        load_config("no.yaml")


def test_the_readmes_configuration_loads() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    config = parse_config(block, source="README.md")
    assert isinstance(config.segmenter, LightConfig)


@pytest.mark.parametrize("name", config_names())
def test_shipped_configurations_load(name: str) -> None:
    assert load_config(name).name == name
