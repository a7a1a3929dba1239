"""The stage before (a): what learns, what starts from it, what stops it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.build import build_generator
from models.config import CnnConfig, Config, PretrainConfig
from models.data.classes import Sample
from models.data.labels import read_folder
from models.training import generator
from models.training.generator import classification_losses, pretrain_generator
from models.training.pipeline import plan
from models.training.run import MissingStageError, Run, start_run
from tests.conftest import CLASSES, CPU


@pytest.fixture
def config(tiny_config: Config) -> Config:
    pretrain = PretrainConfig(
        epochs=2, batch_size=4, crop_size=64, learning_rate=0.01, augmentation="light"
    )
    cnn = CnnConfig(backbone="test_resnet", pretrained=False)
    return tiny_config.model_copy(update={"generator": cnn, "pretrain_generator": pretrain})


@pytest.fixture
def samples(tiny_data: Path) -> list[Sample]:
    return read_folder(tiny_data / "images", tiny_data / "labels.csv", CLASSES)


def test_the_loss_is_the_soft_margin_of_each_reading() -> None:
    labels = torch.tensor([[1.0, 0.0]])
    losses = classification_losses(
        lambda images: {"near": images.new_zeros(1, 2), "far": labels * 100 - 50}, device=CPU
    )((torch.zeros(1, 3, 4, 4), labels))
    assert losses["near"].item() == pytest.approx(0.6931, abs=1e-4)
    assert losses["far"].item() == pytest.approx(0, abs=1e-4)


def test_evidence_is_the_mean_of_the_signed_maps(config: Config) -> None:
    clip_free = build_generator(config, None, torch.zeros(4, 1), device=CPU)  # type: ignore[arg-type]
    images = torch.rand(2, 3, 64, 64)
    evidence = clip_free.evidence(images)["classify"]
    torch.testing.assert_close(evidence, clip_free.logits(images).mean(dim=(2, 3)))


def test_the_stages_start_from_what_it_leaves(
    config: Config, samples: list[Sample], tmp_path: Path
) -> None:
    run = start_run(config, CLASSES, tmp_path, device=CPU)
    with pytest.raises(MissingStageError, match="from 'semples pretrain-generator'"):
        generator.train_generator(run, samples, lambda step: None)
    steps = []
    left = load_file(pretrain_generator(run, samples, steps.append))
    assert len(steps) == 4
    clip, text = generator.supervision(run)
    fresh = build_generator(config, clip, text, device=CPU).state_dict()
    moved = {name for name, tensor in left.items() if not torch.equal(tensor, fresh[name])}
    # Batch statistics too: here alone the generator is in training mode.
    assert {"head.weight"} < moved
    assert any("running_mean" in name for name in moved)
    started = generator.initial_generator(run, clip, text)
    assert not started.training
    torch.testing.assert_close(dict(started.state_dict()), left, rtol=0, atol=0)


def test_another_run_may_start_from_its_weights(
    config: Config, samples: list[Sample], tmp_path: Path
) -> None:
    first = start_run(config, CLASSES, tmp_path / "first", device=CPU)
    path = pretrain_generator(first, samples, lambda step: None)
    cnn = CnnConfig(backbone="test_resnet", pretrained=False, weights=str(path))
    second = config.model_copy(update={"generator": cnn, "pretrain_generator": None})
    run = start_run(second, CLASSES, tmp_path / "second", device=CPU)
    clip, text = generator.supervision(run)
    started = generator.initial_generator(run, clip, text)
    torch.testing.assert_close(dict(started.state_dict()), load_file(path), rtol=0, atol=0)
    foreign = config.model_copy(
        update={"generator": cnn.model_copy(update={"backbone": "test_efficientnet"})}
    )
    with pytest.raises(ValueError, match=r"expected backbone\..* got no such tensor"):
        build_generator(foreign, clip, text, device=CPU)


def test_all_stages_begin_with_it_if_so_configured(
    config: Config, tiny_run: Run, samples: list[Sample], tmp_path: Path
) -> None:
    def names(run: Run) -> list[str]:
        stages_of = plan(run, samples, tmp_path, tmp_path, licence="CC0", trained_on="squares")
        return [stage.name for stage in stages_of]

    run = start_run(config, CLASSES, tmp_path, device=CPU)
    assert names(run) == ["pretrain-generator", *names(tiny_run)]


def test_a_run_without_the_section_does_not_pretrain(tiny_run: Run, samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="expected a section pretrain_generator"):
        pretrain_generator(tiny_run, samples, lambda step: None)
