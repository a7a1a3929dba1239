"""Features that are computed once: the same CAMs, the same training, and what is refused."""

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from models.clip import FrozenClip
from models.config import Config, GeneratorStageConfig
from models.data.classes import Sample
from models.data.loaders import Crops, RandomBatches, light_augmentation
from models.generators import MaskGenerator
from models.generators.cnn import zero_shot_generator
from models.generators.weaktr import WeakTrGenerator
from models.training.feature_cache import FeatureCache, KeyedCrops
from models.training.generator import train_generator
from models.training.run import start_run
from models.weaktr_sizes import WeakTrSizes
from tests.conftest import CLASSES, CPU
from tests.helpers.vit import vit_generator

PRESENT = torch.tensor([(0, 1), (1, 0), (1, 2), (2, 2)])
KEYS = torch.tensor([(7, 0), (7, 1), (9, 0)])


@pytest.fixture(params=["gradcam", "dense", "zero_shot"])
def head_learns(request: pytest.FixtureRequest, tiny_clip: FrozenClip) -> MaskGenerator:
    made: MaskGenerator
    if request.param == "zero_shot":
        made = zero_shot_generator(tiny_clip, tiny_clip.embed_classes(["cat", "bowl", "cup"]), output_stride=16)
    else:
        made = vit_generator(method=request.param)
    made.eval().let_learn("head")
    return made


def test_cams_and_gradients_are_those_of_features_computed_anew(head_learns: MaskGenerator, tmp_path: Path) -> None:
    images = torch.rand(3, 3, 64, 96)
    cache = FeatureCache(head_learns, tmp_path, capacity=3)

    def learned(cams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        parameters = [each for each in head_learns.parameters() if each.requires_grad]
        gradients = torch.autograd.grad(
            (cams * torch.linspace(0, 1, cams[0].numel()).view_as(cams[0])).sum(), parameters
        )
        return cams.detach(), torch.cat([each.flatten() for each in gradients])

    expected = learned(head_learns.cams_of(images, PRESENT))
    for _ in range(2):  # what is computed, and what is read
        for one, other in zip(learned(cache.cams_of(images, PRESENT, KEYS)), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=4e-3 * float(other.abs().max()))


def test_a_crop_is_computed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    generator, seen = vit_generator(), []
    features = generator.features

    def count(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return features(images)

    monkeypatch.setattr(generator, "features", count)
    images, cache = torch.rand(3, 3, 64, 64), FeatureCache(generator, tmp_path, capacity=3)
    first = cache.cams_of(images[:2], torch.tensor([(0, 1), (1, 0)]), KEYS[:2])
    cache.cams_of(images[1:], torch.tensor([(0, 1), (1, 0)]), KEYS[1:])
    nothing = torch.zeros(2, 3, 64, 64)  # the crops themselves are not looked at again
    again = cache.cams_of(nothing, torch.tensor([(0, 0), (1, 1)]), KEYS[[1, 0]])
    assert seen == [2, 1]
    torch.testing.assert_close(again, first[[1, 0]])
    assert not list(tmp_path.iterdir())


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch, tiny_clip: FrozenClip, tmp_path: Path) -> None:
    images, present = torch.rand(1, 3, 64, 64), torch.tensor([(0, 1)])
    trunk_learns = zero_shot_generator(tiny_clip, tiny_clip.embed_classes(["cat", "bowl", "cup"]), output_stride=16)
    trunk_learns.let_learn("all")
    fusion_learns = WeakTrGenerator(WeakTrSizes(native_size=64, width=48, depth=2, heads=3), classes=3)
    for generator in (trunk_learns, fusion_learns):
        with pytest.raises(ValueError, match="expected a mask generator of which the head alone learns"):
            FeatureCache(generator, tmp_path, capacity=1).cams_of(images, present, KEYS[:1])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(
        ValueError, match=r"expected 0\.\d GB free in .* for the features of 999 crops, got 0\.0 GB; set"
    ):
        FeatureCache(vit_generator(), tmp_path, capacity=999).cams_of(images, present, KEYS[:1])
    with pytest.raises(ValueError, match="expected mask: minmax with views, got sigmoid"):
        GeneratorStageConfig(views=2, mask="sigmoid")


def test_every_second_epoch_has_the_same_crops(tiny_samples: list[Sample]) -> None:
    def crops(seed: int) -> KeyedCrops:
        transform = light_augmentation(32, min_area=0.5)
        return KeyedCrops(Crops(tiny_samples, classes=4, transform=transform, seed=seed))

    batches = RandomBatches(crops, len(tiny_samples), batch_size=4, seed=0, views=2)

    def by_key(epoch: int) -> dict[tuple[int, ...], torch.Tensor]:
        return {
            tuple(key.tolist()): image
            for images, _, keys in batches.epoch(epoch)
            for image, key in zip(images, keys, strict=True)
        }

    first, second, third = by_key(0), by_key(1), by_key(2)
    assert len(first) == len(tiny_samples)
    assert set(first) == set(third)
    assert not set(first) & set(second)
    assert list(first) != list(third)  # in another order
    assert all(torch.equal(first[key], third[key]) for key in first)


@pytest.mark.parametrize("size", [None, 3])
def test_a_stage_learns_the_same(
    size: int | None,
    monkeypatch: pytest.MonkeyPatch,
    tiny_vit_weights: Path,
    tiny_samples: list[Sample],
    tmp_path: Path,
) -> None:
    stage = {
        "epochs": 4, "batch_size": 4, "crop_size": 64, "learning_rate": 0.01, "views": 2, "micro_batch_size": size,
    }  # fmt: skip
    config = {
        "name": "mine",
        "clip": {"model": "tiny-vit", "pretrained": str(tiny_vit_weights)},
        "generator": {"kind": "clip_vit"},
        "train_generator": stage,
    }

    def train(work: Path) -> tuple[list[float], torch.Tensor]:
        run = start_run(Config.model_validate(config), CLASSES, work, device=CPU)
        weights = load_file(train_generator(run, tiny_samples, lambda _: None))
        log = (work / "train-generator" / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["losses"]["loss"] for line in log], weights["head.weight"]

    losses, head = train(tmp_path / "kept")

    def anew(cache: FeatureCache, images: Any, present: Any, keys: Any) -> torch.Tensor:
        return cache.generator.cams_of(images, present)

    monkeypatch.setattr(FeatureCache, "cams_of", anew)
    expected, other = train(tmp_path / "anew")
    assert len(losses) == 8
    assert losses == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(head, other, rtol=0, atol=1e-2)
