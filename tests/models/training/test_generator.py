import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.build import build_generator, build_masks, load_generator
from models.bundle.bundle import load_bundle
from models.bundle.import_checkpoint import weaktr_weights
from models.clip import FrozenClip
from models.config import CnnConfig, Config, PretrainConfig, parse_config
from models.data.classes import Sample
from models.data.loaders import Crops, derive_seed, light_augmentation, ordered_batches
from models.generators.cnn import text_initialized_head
from models.inference.predictor import Predictor
from models.tensors import write_tensors
from models.training import generator, prompts
from models.training import run as run_module
from models.training.export import export_bundle
from models.training.generator import refine_generator, train_generator
from models.training.pipeline import build_stages
from models.training.prompts import (
    RegionBatches,
    RegionEmbeddings,
    adopt_prompts,
    embed_regions,
    learn_prompts,
    learned_prompts,
    prompt_margins,
)
from models.training.run import OnStep, Run, open_run, start_run, supervision
from tests.conftest import CLASSES, CPU, copy_run, with_stage
from tests.models.bundle.test_import_checkpoint import public_weaktr
from tests.models.training.test_loop import Killed, kill_at

Stage = Callable[[Run, Sequence[Sample], OnStep], Path]


def with_margins(run: Run) -> Run:
    """Let stage (c) start, without training, from prompts that count by their margins."""
    settings = {"epochs": 0, "prompt_share": 0.25, "full_share_margin": 0.02}
    return replace(run, config=with_stage(run.config, "refine_generator", **settings))


def digest(module: nn.Module) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        state.update(name.encode() + tensor.numpy().tobytes())
    return state.hexdigest()


def masks_of_everything(images: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    return torch.full((len(present), 64, 64), 0.5)


def test_stage_c_adds_refinement_to_stage_a(tiny_clip: FrozenClip) -> None:
    text = tiny_clip.embed_classes(CLASSES.names)
    batch = torch.rand(2, 3, 64, 64), torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0]])
    a = generator.generator_losses(masks_of_everything, tiny_clip, text, background_weight=1.0)(batch)
    c = generator.generator_losses(
        masks_of_everything, tiny_clip, text, background_weight=1.0, refinement=generator.Refinement(text, 0.5)
    )(batch)
    assert set(a) == {"match"}
    assert set(c) == {"match", "refine"}
    assert torch.equal(a["match"], c["match"])


def test_a_batch_without_labels_is_zero_not_nan(tiny_clip: FrozenClip, tiny_config: Config) -> None:
    text = tiny_clip.embed_classes(CLASSES.names)
    losses = generator.generator_losses(
        masks_of_everything, tiny_clip, text, background_weight=1.0, refinement=generator.Refinement(text, 0.5)
    )((torch.rand(2, 3, 64, 64), torch.zeros(2, 4)))
    assert {name: loss.item() for name, loss in losses.items()} == {"match": 0, "refine": 0}


def test_backgrounds_are_embedded_once_each(tiny_clip: FrozenClip) -> None:
    batches = [(torch.rand(2, 3, 64, 64), torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 0]]))] * 2
    regions = embed_regions(batches, masks_of_everything, tiny_clip, device=CPU)
    assert regions.channels.tolist() == [0, 3, 2] * 2
    # The mask is one half everywhere, so the background is half the normalized image.
    halved = tiny_clip.embed_images(tiny_clip.normalize(batches[0][0]) / 2)
    torch.testing.assert_close(regions.background[:3], halved[[0, 0, 1]])
    assert not len(regions.foreground)
    with pytest.raises(ValueError, match="expected at least one labeled image"):
        embed_regions([(torch.rand(1, 3, 64, 64), torch.zeros(1, 4))], masks_of_everything, tiny_clip, device=CPU)


def test_foregrounds_are_embedded_where_asked_for(tiny_clip: FrozenClip) -> None:
    def quarter(images: Tensor, present: Tensor) -> Tensor:
        return torch.full((len(present), *images.shape[-2:]), 0.25)

    images = torch.rand(1, 3, 64, 64)
    batches = [(images, torch.tensor([[0, 1.0, 0, 0]]))]
    regions = embed_regions(batches, quarter, tiny_clip, device=CPU, foregrounds=True)
    expected = tiny_clip.embed_images(tiny_clip.normalize(images) / 4)
    torch.testing.assert_close(regions.foreground, expected)


def test_a_margin_is_the_mean_difference_of_cosines() -> None:
    x, y = torch.eye(2)
    regions = RegionEmbeddings(
        background=torch.stack([x, x, y, y]),
        channels=torch.tensor([0, 0, 2, 0]),
        foreground=torch.stack([y, x, x]),  # of the first three
    )
    margins = prompt_margins(torch.stack([x, x, (x + y) / 2**0.5]), regions)
    torch.testing.assert_close(margins, torch.tensor([0.5, 0.0, 0.0]))


def test_region_batches_cover_each_region_once() -> None:
    batches = RegionBatches(10, batch_size=3, seed=0)
    epoch = [batch.tolist() for batch in batches.epoch(0)]
    assert len(epoch) == len(batches) == 3
    seen = [each for batch in epoch for each in batch]
    assert len(set(seen)) == 9
    assert epoch != [batch.tolist() for batch in batches.epoch(1)]  # a new order each epoch
    assert epoch[2:] == [batch.tolist() for batch in batches.epoch(0, skip=2)]
    assert len(RegionBatches(2, batch_size=3, seed=0)) == 1


def test_each_epoch_of_regions_is_of_another_view() -> None:
    batches = RegionBatches(12, views=3, batch_size=4, seed=0)
    epochs = [[batch.tolist() for batch in batches.epoch(number)] for number in range(4)]
    assert [sorted(epoch[0]) for epoch in epochs] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [0, 1, 2, 3]]


def test_only_the_head_learns_if_so_configured(tiny_config: Config, tiny_clip: FrozenClip) -> None:
    text = tiny_clip.embed_classes(CLASSES.names)
    generator = build_generator(tiny_config, tiny_clip, text, device=CPU)
    generator.let_learn("head")
    learning = [name for name, each in generator.named_parameters() if each.requires_grad]
    assert learning == ["head.weight"]


def test_each_stage_changes_its_own_parameters_only(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_samples: list[Sample]
) -> None:
    """Hash everything before and after each stage: (b) changes prompts only, (a) and (c) the generator only."""
    run = start_run(tiny_run.config, CLASSES, tmp_path, device=CPU)
    watched: dict[str, nn.Module] = {}

    before: dict[str, str] = {}

    def watch(module: ModuleType, name: str) -> None:
        build = getattr(module, name)

        def keep(*args: object, **kwargs: object) -> nn.Module:
            watched[name] = build(*args, **kwargs)
            before[name] = digest(watched[name])
            return watched[name]

        monkeypatch.setattr(module, name, keep)

    watch(run_module, "read_clip")
    watch(generator, "build_generator")
    watch(prompts, "load_generator")
    watch(prompts, "build_prompts")

    def changed(stage: Stage) -> tuple[set[str], set[str]]:
        watched.clear()
        before.clear()
        stage(run, tiny_samples, lambda step: None)
        differing = {name for name, module in watched.items() if digest(module) != before[name]}
        return differing, set(watched)

    of_generator = {"build_generator"}, {"read_clip", "build_generator"}
    of_prompts = {"build_prompts"}, {"read_clip", "load_generator", "build_prompts"}
    assert changed(generator.train_generator) == of_generator
    assert changed(prompts.learn_prompts) == of_prompts
    assert changed(generator.refine_generator) == of_generator


@pytest.mark.parametrize("mask", ["minmax", "sigmoid"])
def test_any_backbone_trains_with_either_mask(
    tiny_config: Config, tmp_path: Path, tiny_samples: list[Sample], mask: str
) -> None:
    config = with_stage(tiny_config, "train_generator", mask=mask, learning_rate=0.01)
    config = config.model_copy(update={"generator": CnnConfig(backbone="test_resnet", pretrained=False)})
    run = start_run(config, CLASSES, tmp_path, device=CPU)
    trained = load_file(generator.train_generator(run, tiny_samples, lambda step: None))
    clip, text = supervision(run)
    initial = build_generator(config, clip, text, device=CPU).state_dict()
    moved = {name for name, tensor in trained.items() if not torch.equal(tensor, initial[name])}
    assert "head.weight" in moved
    assert any(name.startswith("backbone") for name in moved)
    # Statistics stay those of the pre-training.
    assert not any("running" in name for name in moved)


def test_a_and_c_start_from_the_same_weights(tiny_config: Config, tiny_clip: FrozenClip) -> None:
    text = tiny_clip.embed_classes(CLASSES.names)
    builds = [build_generator(tiny_config, tiny_clip, text, device=CPU) for _ in range(2)]
    assert digest(builds[0]) == digest(builds[1])


def test_c_may_start_from_texts_less_a_share_of_the_prompts(
    tiny_run: Run, tiny_samples: list[Sample], tmp_path: Path
) -> None:
    run = copy_run(tiny_run, tmp_path / "work")
    run = replace(run, config=with_stage(run.config, "refine_generator", epochs=0, prompt_share=0.25))
    found = load_file(refine_generator(run, tiny_samples, lambda step: None))["head.weight"]
    clip, class_text = supervision(run)
    expected = text_initialized_head(clip, class_text - 0.25 * learned_prompts(run)["embeddings"])
    torch.testing.assert_close(found[:, :, 0, 0], expected)
    assert not torch.allclose(expected, text_initialized_head(clip, class_text), atol=1e-2)


def test_prompts_that_are_near_the_object_count_less(tiny_run: Run, tiny_samples: list[Sample], tmp_path: Path) -> None:
    run = with_margins(copy_run(tiny_run, tmp_path / "work"))
    path = run.existing("learn-prompts", "prompts.safetensors")
    learned = load_file(path)
    with pytest.raises(ValueError, match=r"expected the prompts' margins .* got an earlier version's prompts"):
        refine_generator(run, tiny_samples, lambda step: None)
    write_tensors(path, learned | {"margins": torch.tensor([-0.1, 0.01, 0.02, 0.5])})
    found = load_file(refine_generator(run, tiny_samples, lambda step: None))["head.weight"]
    clip, class_text = supervision(run)
    shares = torch.tensor([[0], [0.125], [0.25], [0.25]])
    expected = text_initialized_head(clip, class_text - shares * learned["embeddings"])
    torch.testing.assert_close(found[:, :, 0, 0], expected)


def test_b_measures_the_margins_on_the_first_view(tiny_run: Run, tiny_samples: list[Sample], tmp_path: Path) -> None:
    run = with_margins(copy_run(tiny_run, tmp_path / "work"))
    learn_prompts(run, tiny_samples, lambda step: None)
    learned = learned_prompts(run)

    settings = run.config.learn_prompts
    assert settings.views == 2
    clip, class_text = supervision(run)
    weights = run.existing("train-generator", "generator.safetensors")
    matched = load_generator(run.config, clip, class_text, weights, device=CPU)
    masks_of = build_masks(matched, clip, mask="minmax", epsilon=settings.epsilon)
    transform = light_augmentation(settings.crop_size, min_area=settings.crop_min_area)
    crops = Crops(tiny_samples, classes=4, transform=transform, seed=derive_seed(run.config.seed, 0))
    batches = ordered_batches(crops, batch_size=3, workers=0)
    regions = embed_regions(batches, masks_of, clip, device=CPU, foregrounds=True)
    expected = prompt_margins(learned["embeddings"], regions)
    torch.testing.assert_close(learned["margins"], expected, atol=1e-5, rtol=1e-3)
    assert expected.abs().max() > 1e-4


def test_imported_prompts_have_no_margins(tiny_config: Config, tmp_path: Path) -> None:
    run = with_margins(start_run(tiny_config, CLASSES, tmp_path, device=CPU))
    with pytest.raises(ValueError, match=r"expected refine_generator.full_share_margin 0 for imported .* got 0\.02"):
        adopt_prompts(run, torch.rand(4, 4, 16))
    assert not (tmp_path / "learn-prompts").exists()


def test_a_stage_leaves_its_log_and_files(tiny_run: Run) -> None:
    log = (tiny_run.work / "learn-prompts" / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in log]
    # 8 photos in batches of 4, twice
    assert [(step["epoch"], step["step"]) for step in steps] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert set(steps[0]["losses"]) == {"prompt", "loss"}
    learned = load_file(tiny_run.existing("learn-prompts", "prompts.safetensors"))
    assert learned["context"].shape == (4, 4, 16)
    torch.testing.assert_close(learned["embeddings"].norm(dim=1), torch.ones(4))


def test_a_killed_stage_goes_on_as_if_nothing_had_been(
    tiny_run: Run, tmp_path: Path, tiny_samples: list[Sample]
) -> None:
    run = start_run(tiny_run.config, CLASSES, tmp_path, device=CPU)
    shutil.copytree(tiny_run.work / "train-generator", tmp_path / "train-generator")

    with pytest.raises(Killed):
        prompts.learn_prompts(run, tiny_samples, kill_at(1, 1))
    resumed = load_file(prompts.learn_prompts(run, tiny_samples, lambda step: None))
    whole = load_file(tiny_run.existing("learn-prompts", "prompts.safetensors"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [(work / "learn-prompts" / "log.jsonl").read_text() for work in (run.work, tiny_run.work)]
    assert logs[0] == logs[1]
    assert not (tmp_path / "learn-prompts" / "checkpoint.pt").exists()


def test_the_same_seed_gives_the_same_weights(tiny_run: Run, tmp_path: Path, tiny_samples: list[Sample]) -> None:
    run = start_run(tiny_run.config, CLASSES, tmp_path, device=CPU)
    again = load_file(generator.train_generator(run, tiny_samples, lambda step: None))
    first = load_file(tiny_run.existing("train-generator", "generator.safetensors"))
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())


def test_stages_in_the_wrong_order(tiny_config: Config, tmp_path: Path, tiny_samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="expected a work directory"):
        open_run(tmp_path, device=CPU)
    run = start_run(tiny_config, CLASSES, tmp_path, device=CPU)
    with pytest.raises(ValueError, match="from 'semples train-generator', got no such file"):
        prompts.learn_prompts(run, tiny_samples, lambda step: None)
    with pytest.raises(ValueError, match="from 'semples learn-prompts', got no such file"):
        generator.refine_generator(run, tiny_samples, lambda step: None)


@pytest.fixture
def config(tiny_config: Config) -> Config:
    pretrain = PretrainConfig(epochs=2, batch_size=4, crop_size=64, learning_rate=0.01, augmentation="light")
    cnn = CnnConfig(backbone="test_resnet", pretrained=False)
    return tiny_config.model_copy(update={"generator": cnn, "pretrain_generator": pretrain})


def test_the_loss_is_the_soft_margin_of_each_reading() -> None:
    labels = torch.tensor([[1.0, 0.0]])
    losses = generator.classification_losses(
        lambda images: {"near": images.new_zeros(1, 2), "far": labels * 100 - 50}, device=CPU
    )((torch.zeros(1, 3, 4, 4), labels))
    assert losses["near"].item() == pytest.approx(0.6931, abs=1e-4)
    assert losses["far"].item() == pytest.approx(0, abs=1e-4)


def test_evidence_is_the_mean_of_the_signed_maps(config: Config) -> None:
    clip_free = build_generator(config, None, torch.zeros(4, 1), device=CPU)  # type: ignore[arg-type]
    images = torch.rand(2, 3, 64, 64)
    evidence = clip_free.evidence(images)["classify"]
    torch.testing.assert_close(evidence, clip_free.logits(images).mean(dim=(2, 3)))


def test_the_stages_start_from_what_it_leaves(config: Config, tiny_samples: list[Sample], tmp_path: Path) -> None:
    run = start_run(config, CLASSES, tmp_path, device=CPU)
    with pytest.raises(ValueError, match="from 'semples pretrain-generator'"):
        generator.train_generator(run, tiny_samples, lambda step: None)
    steps = []
    left = load_file(generator.pretrain_generator(run, tiny_samples, steps.append))
    assert len(steps) == 4
    clip, text = supervision(run)
    fresh = build_generator(config, clip, text, device=CPU).state_dict()
    moved = {name for name, tensor in left.items() if not torch.equal(tensor, fresh[name])}
    # Batch statistics too: here alone the generator is in training mode.
    assert {"head.weight"} < moved
    assert any("running_mean" in name for name in moved)
    started = generator.initial_generator(run, clip, text)
    assert not started.training
    torch.testing.assert_close(dict(started.state_dict()), left, rtol=0, atol=0)


def test_another_run_may_start_from_its_weights(config: Config, tiny_samples: list[Sample], tmp_path: Path) -> None:
    first = start_run(config, CLASSES, tmp_path / "first", device=CPU)
    path = generator.pretrain_generator(first, tiny_samples, lambda step: None)
    cnn = CnnConfig(backbone="test_resnet", pretrained=False, weights=str(path))
    second = config.model_copy(update={"generator": cnn, "pretrain_generator": None})
    run = start_run(second, CLASSES, tmp_path / "second", device=CPU)
    clip, text = supervision(run)
    started = generator.initial_generator(run, clip, text)
    torch.testing.assert_close(dict(started.state_dict()), load_file(path), rtol=0, atol=0)
    foreign = config.model_copy(update={"generator": cnn.model_copy(update={"backbone": "test_efficientnet"})})
    with pytest.raises(ValueError, match=r"expected backbone\..* got no such tensor"):
        build_generator(foreign, clip, text, device=CPU)


def test_all_stages_begin_with_it_if_so_configured(
    config: Config, tiny_run: Run, tiny_samples: list[Sample], tmp_path: Path
) -> None:
    run = start_run(config, CLASSES, tmp_path, device=CPU)
    assert [*stages_of(run, tiny_samples)] == ["pretrain-generator", *stages_of(tiny_run, tiny_samples)]


def test_a_run_without_the_section_does_not_pretrain(tiny_run: Run, tiny_samples: list[Sample]) -> None:
    with pytest.raises(ValueError, match="expected a section pretrain_generator"):
        generator.pretrain_generator(tiny_run, tiny_samples, lambda step: None)


@pytest.fixture
def weaktr_config(tiny_config: Config, tmp_path: Path) -> Config:
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
    moved = {name for name, each in trained.items() if not torch.allclose(each, initial[name], rtol=1e-2, atol=1e-4)}
    assert moved
    assert {name.split(".")[0] for name in moved} <= {"head", "adaptive_attention_fusion"}


def test_weights_of_other_sizes_are_refused(weaktr_config: Config, tiny_clip: FrozenClip, tmp_path: Path) -> None:
    text = tiny_clip.embed_classes(CLASSES.names)
    config = with_stage(weaktr_config, "generator", depth=4)
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
    config = with_stage(weaktr_config, "train_generator", mask="sigmoid")
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
    config = with_stage(tiny_config, "refine_generator", epochs=2)
    run = start_run(config, CLASSES, tmp_path, device=CPU)
    adopt_prompts(run, torch.rand(4, 4, 16))
    with pytest.raises(Killed):
        refine_generator(run, tiny_samples, kill_at(1, 0))
    (tmp_path / "learn-prompts" / "prompts.safetensors").unlink()
    adopt_prompts(run, torch.rand(4, 4, 16))
    with pytest.raises(ValueError, match="of this configuration, these photos and earlier stages"):
        refine_generator(run, tiny_samples, lambda step: None)


def test_a_weaktr_from_nothing_is_refused(weaktr_config: Config, tiny_samples: list[Sample], tmp_path: Path) -> None:
    config = with_stage(weaktr_config, "generator", weights=None)
    run = start_run(config, CLASSES, tmp_path / "work", device=CPU)
    with pytest.raises(ValueError, match=r"expected generator.weights .* its masks would mean"):
        train_generator(run, tiny_samples, lambda step: None)


@pytest.mark.parametrize("shape", [(3, 4, 16), (4, 5, 16), (4, 4, 512)])
def test_prompts_of_another_form_are_not_adopted(shape: tuple[int, ...], tiny_config: Config, tmp_path: Path) -> None:
    run = start_run(tiny_config, CLASSES, tmp_path, device=CPU)
    with pytest.raises(ValueError, match=r"expected prompts \(4, 4, 16\) .* got \("):
        adopt_prompts(run, torch.rand(shape))
    assert not (tmp_path / "learn-prompts").exists()
