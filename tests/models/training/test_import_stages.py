"""Imported weights and prompts at work: in a bundle, in the stages, in place of a stage."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.build import build_generator
from models.bundle.bundle import load_bundle
from models.bundle.import_checkpoint import weaktr_weights
from models.clip import FrozenClip
from models.config import Config, WeakTrConfig, parse_config
from models.data.classes import Sample
from models.inference.predictor import Predictor
from models.tensors import write_tensors
from models.training.export import export_bundle
from models.training.generator import refine_generator, train_generator
from models.training.loop import Step
from models.training.pipeline import build_stages
from models.training.prompts import adopt_prompts, learn_prompts, learned_prompts
from models.training.run import Run, start_run, supervision
from tests.conftest import CLASSES, CPU
from tests.models.bundle.test_import_checkpoint import public_weaktr


@pytest.fixture
def weaktr_config(tiny_config: Config, tmp_path: Path) -> Config:
    """The tiny run with an imported WeakTr."""
    imported = weaktr_weights(public_weaktr(4), CLASSES, channels=None, source="f.pth")
    write_tensors(tmp_path / "weaktr.safetensors", imported.tensors)
    generator = f"{{kind: weaktr, weights: {tmp_path}/weaktr.safetensors, native_size: 64, width: 48, depth: 3, " \
        "heads: 3, mlp_ratio: 2, reduction: 4, feature_reduction: 4}"  # fmt: skip
    settings = parse_config(f"name: weaktr\ngenerator: {generator}", source="here").generator
    return tiny_config.model_copy(update={"generator": settings})


def test_an_imported_weaktr_goes_into_a_bundle(weaktr_config: Config, tmp_path: Path) -> None:
    run = start_run(weaktr_config, CLASSES, tmp_path / "work", device=CPU)
    export_bundle(run, tmp_path / "out", stage="zero-shot", licence="MIT", trained_on="nothing")
    bundle = load_bundle(tmp_path / "out", device=CPU)
    assert bundle.info.kind == "weaktr"
    assert not any(each.requires_grad for each in bundle.generator.parameters())
    clip, text = supervision(run)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found = bundle.generator(images)
        expected = build_generator(run.config, clip, text, device=CPU)(images)
    # A bundle stores half precision.
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.002 * expected.max().item())
    predictor = Predictor(bundle)
    options = predictor.options(refine="random_walk+pamr", background_threshold=0.2)
    image = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    segmentation = predictor.pseudo_mask(image, ["cat", "cup"], options)
    assert segmentation.label_map.shape == (60, 90)
    assert set(np.unique(segmentation.label_map)) <= {0, 4, 7}
    assert segmentation.cams is not None
    assert segmentation.cams.shape[0] == 2
    # The longer side of 64 pixels is four patches.
    assert segmentation.cams.shape[2] == 4


def test_stages_teach_an_imported_weaktr_its_head_and_fusion(
    weaktr_config: Config, tiny_samples: list[Sample], tmp_path: Path
) -> None:
    run = start_run(weaktr_config, CLASSES, tmp_path / "work", device=CPU)
    clip, text = supervision(run)
    initial = build_generator(run.config, clip, text, device=CPU).state_dict()
    for stage in (train_generator, learn_prompts, refine_generator):
        stage(run, tiny_samples, lambda step: None)
    (tmp_path / "weaktr.safetensors").unlink()  # trained weights stand alone
    export_bundle(run, tmp_path / "out", stage="refine-generator", licence="", trained_on="squares")
    trained = load_bundle(tmp_path / "out", device=CPU).generator.state_dict()
    moved = {
        name for name, each in trained.items() if not torch.allclose(each, initial[name], rtol=1e-2, atol=1e-4)
    }  # fmt: skip
    assert moved
    assert {name.split(".")[0] for name in moved} <= {"head", "adaptive_attention_fusion"}


def test_weights_of_other_sizes_are_refused(weaktr_config: Config, tiny_clip: FrozenClip, tmp_path: Path) -> None:
    text = tiny_clip.embed_classes(CLASSES.names)
    assert isinstance(weaktr_config.generator, WeakTrConfig)
    deeper = weaktr_config.generator.model_copy(update={"depth": 4})
    config = weaktr_config.model_copy(update={"generator": deeper})
    message = r"expected blocks.3.norm1.weight \(48,\) in .*weaktr.safetensors, got no such tensor"
    with pytest.raises(ValueError, match=message):
        build_generator(config, tiny_clip, text, device=CPU)
    message = r"expected cls_token \(1, 3, 48\) in .*weaktr.safetensors, got \(1, 4, 48\)"
    with pytest.raises(ValueError, match=message):
        build_generator(weaktr_config, tiny_clip, text[:3], device=CPU)
    (tmp_path / "weaktr.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        build_generator(weaktr_config, tiny_clip, text, device=CPU)


def test_a_weaktr_has_no_logits_for_sigmoid_masks(
    weaktr_config: Config, tiny_samples: list[Sample], tmp_path: Path
) -> None:
    stage = weaktr_config.train_generator.model_copy(update={"mask": "sigmoid"})
    config = weaktr_config.model_copy(update={"train_generator": stage})
    run = start_run(config, CLASSES, tmp_path / "work", device=CPU)
    with pytest.raises(ValueError, match="expected mask 'minmax' for a WeakTrGenerator"):
        train_generator(run, tiny_samples, lambda step: None)


def test_adopted_prompts_stand_for_stage_b(tiny_config: Config, tmp_path: Path) -> None:
    run = start_run(tiny_config, CLASSES, tmp_path, device=CPU)
    context = torch.rand(4, 4, 16)
    adopt_prompts(run, context)
    learned = learned_prompts(run)
    assert torch.equal(learned["context"], context)
    clip, _ = supervision(run)
    torch.testing.assert_close(learned["embeddings"], clip.embed_prompts(context))
    with pytest.raises(ValueError, match=r"expected a run without prompts, got .*prompts.safetensors"):
        adopt_prompts(run, context)


def stages_of(run: Run, samples: list[Sample]) -> dict[str, bool]:
    """Each stage of run-all and whether it is done."""
    place = run.work
    found = build_stages(run, samples, place, place / "bundle", licence="none", trained_on="nothing")
    return {stage.name: stage.done for stage in found}


def test_run_all_leaves_imported_prompts_alone(tiny_config: Config, tmp_path: Path) -> None:
    run = start_run(tiny_config, CLASSES, tmp_path, device=CPU)
    assert {"train-generator", "learn-prompts"} <= stages_of(run, []).keys()
    adopt_prompts(run, torch.rand(4, 4, 16))
    assert not {"train-generator", "learn-prompts"} & stages_of(run, []).keys()


def test_what_was_made_of_other_prompts_is_not_done(
    tiny_config: Config, tiny_samples: list[Sample], tmp_path: Path
) -> None:
    run = start_run(tiny_config, CLASSES, tmp_path, device=CPU)
    adopt_prompts(run, torch.rand(4, 4, 16))
    refine_generator(run, tiny_samples, lambda step: None)
    assert stages_of(run, tiny_samples)["refine-generator"]
    (tmp_path / "learn-prompts" / "prompts.safetensors").unlink()
    adopt_prompts(run, torch.rand(4, 4, 16))
    assert not stages_of(run, tiny_samples)["refine-generator"]


def test_a_checkpoint_of_other_prompts_is_refused(
    tiny_config: Config, tiny_samples: list[Sample], tmp_path: Path
) -> None:
    stage = tiny_config.refine_generator.model_copy(update={"epochs": 2})
    config = tiny_config.model_copy(update={"refine_generator": stage})
    run = start_run(config, CLASSES, tmp_path, device=CPU)

    def kill(step: Step) -> None:
        if step.epoch:
            raise InterruptedError

    adopt_prompts(run, torch.rand(4, 4, 16))
    with pytest.raises(InterruptedError):
        refine_generator(run, tiny_samples, kill)
    (tmp_path / "learn-prompts" / "prompts.safetensors").unlink()
    adopt_prompts(run, torch.rand(4, 4, 16))
    with pytest.raises(ValueError, match="of this configuration, these photos and earlier stages"):
        refine_generator(run, tiny_samples, kill)


def test_a_weaktr_from_nothing_is_refused(weaktr_config: Config, tiny_samples: list[Sample], tmp_path: Path) -> None:
    generator = weaktr_config.generator.model_copy(update={"weights": None})
    config = weaktr_config.model_copy(update={"generator": generator})
    run = start_run(config, CLASSES, tmp_path / "work", device=CPU)
    with pytest.raises(ValueError, match=r"expected generator.weights .* its masks would mean"):
        train_generator(run, tiny_samples, lambda step: None)


@pytest.mark.parametrize("shape", [(3, 4, 16), (4, 5, 16), (4, 4, 512)])
def test_prompts_of_another_form_are_not_adopted(shape: tuple[int, ...], tiny_config: Config, tmp_path: Path) -> None:
    run = start_run(tiny_config, CLASSES, tmp_path, device=CPU)
    with pytest.raises(ValueError, match=r"expected prompts \(4, 4, 16\) .* got \("):
        adopt_prompts(run, torch.rand(shape))
    assert not (tmp_path / "learn-prompts").exists()
