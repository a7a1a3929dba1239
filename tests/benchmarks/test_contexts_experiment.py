"""The whole benchmark in miniature: every variant, kept on disk, in a table."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.contexts.experiment import GENERATORS, Experiment, Row, Score, ablate, compare
from benchmarks.contexts.tables import ablation_table, generator_table, spread, write_sheet
from benchmarks.contexts.tiny_clip import soft_holes
from benchmarks.contexts.world import SIDE, THINGS, Sizes
from models.clip import load_clip
from models.config import Config, load_config


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
        Sizes(captions=70, train=8, usual=3, shuffled=3),
        clip_epochs=2,
        say=lambda _: None,
    )
    made.prepare()
    return made


def test_the_clip_is_one_that_the_library_loads(experiment: Experiment) -> None:
    clip = load_clip(f"local-dir:{experiment.folder / 'clip'}", None)
    texts = clip.embed_classes(THINGS)
    assert texts.shape == (8, 64)
    # Anchored: no two embeddings are opposed.
    images = clip.embed_images(torch.rand(4, 3, 64, 64) - 0.5)
    assert (images @ texts.T).min() > -0.3
    config = experiment.config
    prompts = torch.zeros(8, config.prompts.tokens, clip.prompt_width)
    assert clip.embed_prompts(prompts).shape == (8, 64)


def test_every_variant_is_made_once_and_measured(experiment: Experiment) -> None:
    rows = ablate(experiment)
    assert [row.name.split(",")[0] for row in rows] == [
        "base CAM network",
        "(a)",
        "(c)",
        "(c)",
        "(c)",
    ]
    for row in rows:
        assert set(row.scores) == {"usual", "shuffled"}
        assert all(0 <= each.fixed <= each.oracle <= 1 for each in row.scores.values())
    assert [row.found is None for row in rows] == [True] * 4 + [False]
    weights = {path: path.stat().st_mtime_ns for path in experiment.folder.rglob("*.safetensors")}
    said: list[str] = []
    again = ablate(Experiment(experiment.folder, experiment.config, experiment.sizes, 2, said.append))
    assert again == rows
    assert not said
    assert {path: path.stat().st_mtime_ns for path in weights} == weights


def test_the_sheet_shows_scenes_and_four_variants(experiment: Experiment, tmp_path: Path) -> None:
    ablate(experiment)
    write_sheet(experiment, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * SIDE, 5 * SIDE)
        pixels = np.array(sheet).reshape(5, SIDE, 6, SIDE, 3)
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
