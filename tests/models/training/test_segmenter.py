import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.config import (
    Config,
    EncoderDecoderConfig,
    FeatureSegmenterConfig,
    SegmenterStageConfig,
    _Mask2FormerConfig,
    parse_config,
)
from models.data.classes import IGNORE_INDEX
from models.data.loaders import MaskCrops
from models.data.mask_folder import MaskSample, read_mask_folder
from models.segmenters import Segmenter
from models.training.export import export_bundle
from models.training.loop import Step
from models.training.run import Run, start_run
from models.training.segmenter import (
    _class_weights,
    _new_segmenter,
    _parameter_groups,
    segmenter_epochs,
    train_segmenter,
    trained_segmenter,
)
from tests.conftest import CLASSES, CPU, copy_run, with_stage
from tests.helpers.networks import TINY_MASK2FORMER
from tests.models.training.test_distributed import distance_of_updates, run_together
from tests.models.training.test_loop import Killed, kill_at


@pytest.fixture
def samples(tiny_data: Path, tiny_masks: Path) -> list[MaskSample]:
    return read_mask_folder(tiny_data / "images", tiny_masks, CLASSES)


def new_segmenter(config: Config) -> Segmenter:
    run = Run(config, CLASSES, Path("unused"), CPU)
    return _new_segmenter(run, device=CPU, read_generator=lambda: pytest.fail("it needs no mask generator"))


def train(run: Run, samples: list[MaskSample]) -> dict[str, Tensor]:
    return load_file(train_segmenter(run, samples, lambda step: None))


@pytest.fixture
def run(tiny_config: Config, tmp_path: Path) -> Run:
    return start_run(tiny_config, CLASSES, tmp_path / "work", device=CPU)


def test_it_leaves_weights_a_description_and_a_log(run: Run, samples: list[MaskSample]) -> None:
    assert trained_segmenter(run) is None
    weights = train(run, samples)
    found = trained_segmenter(run)
    assert found is not None
    spec, tensors = found
    assert (spec.kind, spec.backbone, spec.decoder) == ("light", "test_efficientnet", "fpn")
    assert tensors.keys() == weights.keys()
    folder = run.work / "train-segmenter"
    steps = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [(step["epoch"], step["step"]) for step in steps] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert set(steps[0]["losses"]) == {"cross_entropy", "loss"}
    left = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    assert left == {"segmenter.safetensors", "segmenter.json", "log.jsonl", "inputs.json"}
    (folder / "segmenter.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a description of a segmenter"):
        trained_segmenter(run)


@pytest.fixture
def finished(tiny_run: Run, tmp_path: Path) -> Run:
    """A run after stage (c), whose segmenter is a decoder of the mask generator's features."""
    run = copy_run(tiny_run, tmp_path / "finished")
    config = with_stage(run.config, "train_segmenter", epochs=12, learning_rate=0.02)
    segmenter = FeatureSegmenterConfig(kind="features", width=8)
    return replace(run, config=config.model_copy(update={"segmenter": segmenter}))


def test_a_decoder_of_the_mask_generators_features_learns(finished: Run, samples: list[MaskSample]) -> None:
    steps: list[Step] = []
    weights = load_file(train_segmenter(finished, samples, steps.append))
    losses = [step.losses["loss"] for step in steps]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert not any("backbone" in key for key in weights)  # the generator's own weights are stored with it
    found = trained_segmenter(finished)
    assert found is not None
    assert (found[0].kind, found[0].width) == ("features", 8)


def test_a_decoder_belongs_to_the_generator_that_it_was_trained_on(
    finished: Run, samples: list[MaskSample], run: Run, tmp_path: Path
) -> None:
    train_segmenter(finished, samples, lambda step: None)
    words = {"licence": "none", "trained_on": "squares"}
    assert export_bundle(finished, tmp_path / "c", stage="refine-generator", **words).can_segment
    assert not export_bundle(finished, tmp_path / "a", stage="train-generator", **words).can_segment
    assert finished.is_current("train-segmenter")
    weights = load_file(finished.existing("refine-generator", "generator.safetensors"))
    finished.save("refine-generator", "generator.safetensors", {key: each + 1 for key, each in weights.items()})
    assert not finished.is_current("train-segmenter")
    with pytest.raises(ValueError, match="expected a segmenter trained on the features of this mask generator"):
        export_bundle(finished, tmp_path / "b", stage="refine-generator", **words)
    unfinished = replace(run, config=finished.config)
    with pytest.raises(ValueError, match=r"expected .*refine-generator"):
        train_segmenter(unfinished, samples, lambda step: None)


def test_no_class_in_enough_masks_is_refused(run: Run, samples: list[MaskSample]) -> None:
    strict = replace(run, config=with_stage(run.config, "train_segmenter", min_masks=100))
    with pytest.raises(ValueError, match="expected a class in at least 100 masks"):
        train_segmenter(strict, samples, lambda step: None)


def test_rare_classes_are_ignored_and_named(
    tiny_config: Config, samples: list[MaskSample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shows(sample: MaskSample, name: str) -> bool:
        return bool((sample.read_mask() == CLASSES.channel(name) + 1).any())

    bowls = [each for each in samples if shows(each, "bowl")]
    kept = [each for each in samples if each not in bowls[1:]]
    counts = {name: sum(shows(each, name) for each in kept) for name in CLASSES.names}
    assert counts["bowl"] == 1
    seen: list[MaskSample] = []
    monkeypatch.setattr(
        "models.training.segmenter.MaskCrops",
        lambda given, **options: seen.extend(given) or MaskCrops(given, **options),
    )
    run = start_run(with_stage(tiny_config, "train_segmenter", min_masks=2), CLASSES, tmp_path / "work", device=CPU)
    train_segmenter(run, kept, lambda step: None)
    found = trained_segmenter(run)
    assert found is not None
    assert found[0].masks == counts
    assert found[0].untaught == tuple(name for name, count in counts.items() if count < 2)
    assert len(found[0].untaught) < len(CLASSES)
    used = next(each for each in seen if each.image == bowls[0].image)
    was_bowl = bowls[0].read_mask() == CLASSES.channel("bowl") + 1
    assert (used.read_mask()[was_bowl] == IGNORE_INDEX).all()


def test_rare_classes_weigh_more() -> None:
    pixels = torch.tensor([7200, 1800, 1000, 0])
    assert _class_weights(pixels, balance=0) is None
    weights = _class_weights(pixels, balance=0.5)
    assert weights is not None
    torch.testing.assert_close(weights[1], 2 * weights[0])
    # As if a quarter of an equal share, 625 pixels.
    torch.testing.assert_close(weights[3] / weights[0], torch.tensor((7200 / 625) ** 0.5))
    torch.testing.assert_close((weights * pixels).sum(), torch.tensor(10_000.0))


def test_balance_changes_what_is_learned(run: Run, samples: list[MaskSample], tmp_path: Path) -> None:
    config = with_stage(run.config, "train_segmenter", class_balance=0.5)
    balanced = train(start_run(config, CLASSES, tmp_path / "balanced", device=CPU), samples)
    plain = train(run, samples)
    assert any(not torch.equal(plain[key], balanced[key]) for key in plain)
    with pytest.raises(ValueError, match="expected noise_aware or class_balance, got both"):
        SegmenterStageConfig(noise_aware=True, class_balance=0.5)


def test_squares_are_found(tiny_config: Config, samples: list[MaskSample], tmp_path: Path) -> None:
    config = with_stage(tiny_config, "train_segmenter", epochs=12, learning_rate=0.02, backbone_rate=1.0)
    run = start_run(config, CLASSES, tmp_path / "work", device=CPU)
    steps: list[Step] = []
    train_segmenter(run, samples, steps.append)
    losses = [step.losses["loss"] for step in steps]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


def test_a_killed_stage_goes_on(run: Run, tiny_config: Config, samples: list[MaskSample], tmp_path: Path) -> None:

    with pytest.raises(Killed):
        train_segmenter(run, samples, kill_at(1, 0))
    checkpoint = run.work / "train-segmenter" / "checkpoint.pt"
    assert checkpoint.is_file()
    resumed = train(run, samples)
    whole_run = start_run(tiny_config, CLASSES, tmp_path / "whole", device=CPU)
    whole = train(whole_run, samples)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [(each.work / "train-segmenter" / "log.jsonl").read_text() for each in (run, whole_run)]
    assert logs[0] == logs[1]
    assert not checkpoint.exists()


def test_other_masks_are_another_run(run: Run, samples: list[MaskSample]) -> None:
    with pytest.raises(Killed):
        train_segmenter(run, samples, kill_at(1, 0))
    with pytest.raises(ValueError, match="delete it to start anew"):
        train_segmenter(run, samples[:4], lambda step: None)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_mask2former_trains(tiny_config: Config, samples: list[MaskSample], tmp_path: Path, precision: str) -> None:
    architecture = {key: value for key, value in TINY_MASK2FORMER.items() if key != "num_queries"}
    settings = _Mask2FormerConfig(kind="mask2former", weights=None, queries=6, architecture=architecture)
    config = with_stage(tiny_config, "train_segmenter", precision=precision, max_gradient_norm=0.01, epochs=1)
    config = config.model_copy(update={"segmenter": settings})
    run = start_run(config, CLASSES, tmp_path / "work", device=CPU)
    weights = train(run, samples)
    assert all(tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point())
    found = trained_segmenter(run)
    assert found is not None
    assert found[0].kind == "mask2former"
    log = (run.work / "train-segmenter" / "log.jsonl").read_text().splitlines()
    assert set(json.loads(log[0])["losses"]) == {"class", "mask", "dice", "loss"}


def test_the_backbone_learns_more_slowly(tiny_config: Config) -> None:
    segmenter = new_segmenter(tiny_config)
    fast, slow = _parameter_groups(segmenter, backbone_rate=0.1)
    assert (fast.rate, slow.rate) == (1.0, 0.1)
    count = sum(1 for _ in segmenter.parameters())
    assert len(list(fast.parameters)) + len(list(slow.parameters)) == count
    encoder = {id(each) for each in segmenter.backbone.parameters()}
    assert {id(each) for each in slow.parameters} == encoder


def test_settings() -> None:
    assert segmenter_epochs(SegmenterStageConfig(epochs=7), photos=100) == 7
    # The paper's 80,000 iterations of 8 photos on 10,582: 1,322 batches an epoch
    assert segmenter_epochs(SegmenterStageConfig(iterations=80_000), photos=10_582) == 61
    for text, message in (
        ("train_segmenter: {crop_size: 100}", "train_segmenter.crop_size"),
        ("train_segmenter: {scale: [2.0, 0.5]}", "expected scale from small to large"),
        ("segmenter: {kind: light, decoder: fpnn}", "segmenter.light.decoder"),
        ("segment: {refine: magic}", "segment.refine: expected one of none"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_config(f"name: x\n{text}", source="x")


def test_a_foreign_trunk_is_refused(tiny_config: Config) -> None:
    settings = EncoderDecoderConfig(backbone="test_resnet", weights="clip")
    config = tiny_config.model_copy(update={"segmenter": settings})
    with pytest.raises(ValueError, match="CLIP's trunk, test_efficientnet, got 'test_resnet'"):
        new_segmenter(config)


TOGETHER = """
import os, sys
from dataclasses import replace
from pathlib import Path
import torch
from models.training import segmenter as stage
from models.data.classes import IGNORE_INDEX
from models.data.loaders import MaskCrops
from models.data.mask_folder import read_mask_folder
from models.training.run import open_run
from models.training.segmenter import build_segmenter, train_segmenter
from models.training.distributed import join_processes

def without_dropout(*args, **kwargs):
    segmenter = build_segmenter(*args, **kwargs)
    for module in segmenter.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    return segmenter

stage.build_segmenter = without_dropout
work, images, masks = map(Path, sys.argv[1:])
torch.set_num_threads(1)
with join_processes(os.environ, backend="gloo") as processes:
    run = replace(open_run(work, device=torch.device("cpu")), processes=processes)
    train_segmenter(run, read_mask_folder(images, masks, run.classes), lambda step: None)
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_would(
    tiny_config: Config, tiny_data: Path, tiny_masks: Path, tmp_path: Path
) -> None:
    """Without dropout and with every pixel labeled, half a batch each is the whole batch."""
    config = with_stage(tiny_config, "train_segmenter", scale=(1.5, 2.0), learning_rate=1e-3, backbone_rate=1.0)
    learned = []
    for processes in (1, 2):
        work = tmp_path / str(processes)
        start_run(config, CLASSES, work, device=CPU)
        run_together(TOGETHER, work, tiny_data / "images", tiny_masks, processes=processes)
        learned.append(load_file(work / "train-segmenter" / "segmenter.safetensors"))
    initial = new_segmenter(config).state_dict()
    assert distance_of_updates(initial, *learned) < 0.02
