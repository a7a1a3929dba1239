"""The generated world, and the whole benchmark on it in miniature."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from benchmarks.contexts import world
from benchmarks.contexts.experiment import GENERATORS, Experiment, Row, Score, ablate, compare
from benchmarks.contexts.tables import ablation_table, background_table, generator_table, spread, write_sheet
from benchmarks.contexts.tiny_clip import soft_holes
from benchmarks.contexts.vit import compare_backgrounds, compare_vit
from models.clip import load_clip
from models.config import Config, load_config


def some(split: str, count: int = 80) -> list[world.Scene]:
    return [scene for _, scene, _ in world.scenes(split, count, seed=7)]


def test_everything_of_the_world_can_be_drawn() -> None:
    assert set(world.SHAPES) == set(world.THINGS)
    assert set(world.TEXTURES) == {*world.CONTEXTS, *world.BACKDROPS}
    assert len(set(world.NOUNS)) == len(world.NOUNS)
    assert len({world.own_context(thing) for thing in world.THINGS}) == len(world.THINGS) == 8


def test_objects_come_with_their_own_context_nine_times_in_ten() -> None:
    random = np.random.default_rng(0)
    drawn = [each for _ in range(2000) for each in world.usual_places(random, 2)]
    places = [each for each in drawn if each.thing]
    assert 0.1 < 1 - len(places) / len(drawn) < 0.3  # contexts alone
    own = sum(each.context == world.own_context(str(each.thing)) for each in places) / len(places)
    assert 0.87 < own < 0.93
    assert set(Counter(each.thing for each in places)) == set(world.THINGS)


def test_shuffled_scenes_never_show_an_object_beside_its_own_context() -> None:
    shown = some("shuffled")
    for left, right in (scene.places for scene in shown):
        assert left.thing != right.thing
        assert left.context == world.own_context(str(right.thing))
        assert right.context == world.own_context(str(left.thing))


def test_captioned_scenes_show_contexts_alone_too() -> None:
    shown = some("captions")
    alone = [scene for scene in shown if not scene.things]
    assert 0.2 < len(alone) / len(shown) < 0.5
    assert {each.context for scene in alone for each in scene.places} == set(world.CONTEXTS)
    assert not any(scene.truth.any() for scene in alone)


@pytest.mark.parametrize("split", world.SPLITS)
def test_label_maps_show_what_the_labels_say(split: str) -> None:
    for scene in some(split, 25):
        assert scene.pixels.shape == (world.SIDE, world.SIDE, 3)
        indices = {world.CLASSES.classes[world.CLASSES.channel(name)].index for name in scene.things}
        assert set(np.unique(scene.truth)) - {0} == indices
        named = {1 + world.CONTEXTS.index(each.context) for each in scene.places if each.context}
        assert set(np.unique(scene.contexts)) - {0} <= named
        assert not (scene.contexts[scene.truth > 0]).any()


def test_a_context_touches_its_object_and_leaves_most_of_the_scene() -> None:
    near = []
    for scene in some("usual", 80):
        if len(scene.places) > 1 or not scene.places[0].context:
            continue
        context, thing = scene.contexts > 0, scene.truth > 0
        assert 0.03 < context.mean() < 0.6
        rows, columns = np.nonzero(thing)
        box = np.s_[max(rows.min() - 3, 0) : rows.max() + 4, max(columns.min() - 3, 0) : columns.max() + 4]
        near.append(context[box].any())
    assert np.mean(near) > 0.9


def test_a_scene_depends_on_seed_split_and_number_alone() -> None:
    short = list(world.scenes("train", 3, seed=1))
    long = list(world.scenes("train", 5, seed=1))
    for (name, scene, sentence), (other, again, same) in zip(short, long, strict=False):
        assert (name, sentence) == (other, same)
        np.testing.assert_array_equal(scene.pixels, again.pixels)
    different = next(world.scenes("train", 1, seed=2))[1]
    assert not np.array_equal(different.pixels, short[0][1].pixels)


def test_captions_are_true_and_mention_each_alone_and_both() -> None:
    random = np.random.default_rng(0)
    scene = world.compose(random, [world.Place("train", "rails")])
    drawn = Counter(world.caption(random, scene) for _ in range(300))
    backdrop = f"a photo of {scene.backdrop}."
    assert set(drawn) == {"a photo of train.", "a photo of rails.", "a photo of train on rails.", backdrop}
    assert min(drawn[each] for each in drawn if each != backdrop) > 60
    assert world.caption(random, world.compose(random, [])).removesuffix(".").split()[-1] in world.BACKDROPS
    without = world.compose(random, [world.Place("cow", None)])
    assert {world.caption(random, without) for _ in range(50)} <= {"a photo of cow.", f"a photo of {without.backdrop}."}
    assert world.joint("clouds") == "in"


def test_the_data_set_has_vocs_layout(tmp_path: Path) -> None:
    sizes = world.Sizes(captions=3, train=4, usual=2, shuffled=2)
    world.write_dataset(tmp_path, sizes, seed=0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    world.write_dataset(tmp_path, sizes, seed=0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == before
    assert len(list((tmp_path / "JPEGImages").iterdir())) == 11
    listed = (tmp_path / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    samples = world.read_samples(tmp_path, "train")
    assert [sample.stem for sample in samples] == listed
    for sample in samples:
        shown = {world.CLASSES.classes[channel].index for channel in sample.channels}
        assert set(np.unique(world.read_truth(tmp_path, sample.stem))) - {0} == shown
        with Image.open(sample.path) as photo:
            assert photo.size == (world.SIDE, world.SIDE)
    pairs = world.read_captions(tmp_path, "captions")
    assert len(pairs) == 3
    assert all(path.is_file() and text.startswith("a photo of ") for path, text in pairs)


def miniature() -> Config:
    config = load_config("contexts").model_dump()
    for stage in ("pretrain_generator", "train_generator", "learn_prompts", "refine_generator"):
        config[stage] |= {"epochs": 1, "batch_size": 4, "crop_size": 32}
    config["learn_prompts"]["views"] = 1
    config["inference"]["image_size"] = 64
    return Config.model_validate(config)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    made = Experiment(
        tmp_path_factory.mktemp("contexts"),
        miniature(),
        world.Sizes(captions=70, train=8, usual=3, shuffled=3),
        clip_epochs=2,
        say=lambda _: None,
    )
    made.prepare()
    return made


def test_the_clip_is_one_that_the_library_loads(experiment: Experiment) -> None:
    clip = load_clip(f"local-dir:{experiment.folder / 'clip'}", None)
    texts = clip.embed_classes(world.THINGS)
    assert texts.shape == (8, 64)
    # Anchored: no two embeddings are opposed.
    images = clip.embed_images(torch.rand(4, 3, 64, 64) - 0.5)
    assert (images @ texts.T).min() > -0.3
    config = experiment.config
    prompts = torch.zeros(8, config.prompts.tokens, clip.prompt_width)
    assert clip.embed_prompts(prompts).shape == (8, 64)


def test_every_variant_is_made_once_and_measured(experiment: Experiment) -> None:
    rows = ablate(experiment)
    assert [row.name.split(",")[0] for row in rows] == ["base CAM network", "(a)", "(c)", "(c)", "(c)"]
    for row in rows:
        assert set(row.scores) == {"usual", "shuffled"}
        assert all(0 <= each.fixed <= each.oracle <= 1 for each in row.scores.values())
    assert [row.found is None for row in rows] == [True] * 4 + [False]
    weights = {path: path.stat().st_mtime_ns for path in experiment.folder.rglob("*.safetensors")}
    lines: list[str] = []
    again = ablate(Experiment(experiment.folder, experiment.config, experiment.sizes, 2, lines.append))
    assert again == rows
    assert not lines
    assert {path: path.stat().st_mtime_ns for path in weights} == weights


def test_the_sheet_shows_scenes_and_four_variants(experiment: Experiment, tmp_path: Path) -> None:
    ablate(experiment)
    write_sheet(experiment, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * world.SIDE, 5 * world.SIDE)
        pixels = np.array(sheet).reshape(5, world.SIDE, 6, world.SIDE, 3)
    assert np.ptp(pixels[1:].astype(int), axis=(1, 3)).max() > 50


def test_other_generators_start_from_their_own_base(experiment: Experiment) -> None:
    table = compare(experiment)
    assert [[row.name for row in rows] for _, rows in table] == [["base", "(a)", "(c)"]] * len(table)
    for number, changes in enumerate(GENERATORS.values()):
        config, base = (
            load_config(str(experiment.folder / f"{name}{number or ''}" / "config.yaml"))
            for name in ("learned", "base")
        )
        assert f"base{number or ''}/" in (config.generator.weights or "")
        expected = changes.get("generator", experiment.config.generator.model_dump())
        assert expected.items() <= base.generator.model_dump().items()
    text = generator_table([table, table])
    assert text.count("\n") == 1 + len(table)


def test_a_clip_with_a_vit_is_a_generator_too(experiment: Experiment) -> None:
    name, rows = compare_vit(experiment)
    assert [row.name for row in rows] == ["base", "(a)", "(c)"]
    assert len({row.scores["usual"].oracle for row in rows}) > 1
    start, learned = (
        load_file(experiment.folder / work / "train-generator" / "generator.safetensors")
        for work in ("base-vit", "learned-vit")
    )
    assert {key for key, value in start.items() if not torch.equal(value, learned[key])} == {"head.weight"}
    clip = load_clip(f"local-dir:{experiment.folder / 'clip-vit'}", None)
    assert (clip.embed_images(torch.rand(4, 3, 64, 64)) @ clip.embed_classes(world.THINGS).T).min() > -0.3
    backgrounds = compare_backgrounds(experiment)
    assert [row.name for row in backgrounds] == [
        "texts: backdrops", "prompts", "both: backdrops",
        "texts: backdrops and contexts", "both: backdrops and contexts",
    ]  # fmt: skip
    assert backgrounds[0].scores == rows[0].scores
    assert len({row.scores["usual"].oracle for row in backgrounds}) > 2
    assert compare_backgrounds(experiment) == backgrounds
    assert generator_table([[(name, rows)]]).count("\n") == 2
    assert background_table([backgrounds] * 2).count("\n") == 6


def test_tables_show_mean_and_spread() -> None:
    def row(value: float, found: int | None = None) -> Row:
        score = Score(value, value, 0.5)
        return Row("(c)", {"usual": score, "shuffled": score}, found)

    assert spread([0.5]) == "50.0"
    assert spread([0.5, 0.7]) == "60.0 ± 14.1"
    lines = ablation_table([[row(0.5, 7)], [row(0.7, 8)]]).splitlines()
    assert lines[2] == "| (c) |" + " 60.0 ± 14.1 |" * 4 + " 7, 8 |"
    assert ablation_table([[row(0.5)]]).splitlines()[2].endswith("| – |")


def test_half_of_the_pictures_have_soft_holes() -> None:
    masks = soft_holes(400, generator=torch.Generator().manual_seed(0))
    assert masks.shape == (400, 1, 64, 64)
    assert masks.min() >= 0
    assert masks.max() <= 1 + 1e-6
    whole = (masks > 0.999).flatten(1).all(dim=1).float().mean().item()
    assert 0.4 < whole < 0.6
