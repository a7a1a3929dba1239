import re
from pathlib import Path

import pytest
import torch

from models.build import require_backbone
from models.config import _config_names, load_config, parse_config
from models.training.run import start_run
from tests.conftest import CLASSES


@pytest.mark.parametrize("name", ["resnet50", "test_resnet", "resnet50.a1_in1k", "hf-hub:timm/resnet50.a1_in1k"])
def test_what_timm_has_is_taken(name: str) -> None:
    require_backbone(name, place="here")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnot50", "here: expected a backbone that timm knows, perhaps resnet50 or .*, got 'resnot50'"),
        ("resnet50.a9_in1k", r"perhaps resnet50\..*, got 'resnet50.a9_in1k'"),
        ("qqqq", "expected a backbone that timm knows, got 'qqqq'"),
    ],
)
def test_what_it_has_not_is_refused_with_what_is_near(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_backbone(name, place="here")


@pytest.mark.parametrize(
    "section", ["generator: {backbone: resnot50, kind: cnn}", "segmenter: {backbone: resnot50, kind: light}"]
)
def test_a_run_does_not_begin_with_one(section: str, tmp_path: Path) -> None:
    config = parse_config(f"name: a\n{section}", source="f.yaml")
    place = re.escape(f"{section.partition(':')[0]}.backbone: expected a backbone")
    with pytest.raises(ValueError, match=place):
        start_run(config, CLASSES, tmp_path / "work", device=torch.device("cpu"))
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("name", _config_names())
def test_the_projects_own_are_known(name: str) -> None:
    for place, backbone in load_config(name).backbones.items():
        require_backbone(backbone, place=place)
