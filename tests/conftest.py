"""Seams for all tests: a tiny CLIP, a synthetic data set, a tiny run, its bundle, shared data."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from models.clip import FrozenClip, load_clip
from models.config import Config, parse_config
from models.data.classes import ClassInfo, ClassList, Sample, write_class_list
from models.data.labels import read_folder
from models.data.mask_folder import read_mask_folder
from models.training import generator, prompts
from models.training.export import export_bundle
from models.training.run import Run, open_run, start_run, supervision
from models.training.segmenter import train_segmenter
from tests.helpers.vit import TINY_VIT, tiny_vit_clip

pytest_plugins = [
    "tests.helpers.service_fixtures",
    "tests.helpers.chaos",
    "tests.helpers.browser",
    "tests.helpers.batches",
    "tests.helpers.client_fixtures",
    "tests.helpers.webhooks",
]

# In the background or under nohup, pytest starts with these ignored, and so would the programs that tests stop by them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Tests run beside servers and workers: more threads only wait for each other.
torch.set_num_threads(1)

CLASSES = ClassList((ClassInfo(3, "bowl"), ClassInfo(4, "cat"), ClassInfo(7, "cup"), ClassInfo(9, "dining table")))
CPU = torch.device("cpu")


def with_stage(config: Config, stage: str, **changes: object) -> Config:
    return config.model_copy(update={stage: getattr(config, stage).model_copy(update=changes)})


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data beside the repository; CI must have it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail("expected ../shared in CI, got none")
        pytest.skip("../shared is not here")
    return folder


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP of open_clip's own format: real tokenizer, real towers, a few thousand parameters."""
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {
            "timm_model_name": "test_efficientnet",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    # Embeddings of random networks all point one way; a wider projection spreads them.
    with torch.no_grad():
        model.text_projection.normal_(0, 1)
        model.visual.head.proj.weight.normal_(0, 1)
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tiny_clip_folder: Path) -> FrozenClip:
    return load_clip(f"local-dir:{tiny_clip_folder}", None)


@pytest.fixture(scope="session")
def tiny_vit_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as it comes from the model hub: random weights of "tiny-vit", a CLIP that open_clip now knows."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "configs").mkdir()
    (folder / "configs" / "tiny-vit.json").write_text(json.dumps(TINY_VIT))
    open_clip.add_model_config(folder / "configs")
    torch.save(tiny_vit_clip().state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder / "open_clip_pytorch_model.bin"


@pytest.fixture(scope="session")
def tiny_config(tiny_clip_folder: Path) -> Config:
    return parse_config(
        f"""
        name: tiny
        clip: {{model: "local-dir:{tiny_clip_folder}", pretrained: null}}
        generator: {{kind: zero_shot, output_stride: 16}}
        synonyms: {{cup: [mug]}}
        prompts: {{tokens: 4}}
        train_generator: {{epochs: 1, batch_size: 4, crop_size: 64, augmentation: light}}
        learn_prompts: {{epochs: 2, batch_size: 4, crop_size: 64, views: 2}}
        refine_generator: {{epochs: 1, batch_size: 4, crop_size: 64, augmentation: strong}}
        inference: {{image_size: 64, scales: [1.0], background_threshold: 0.4}}
        segmenter: {{kind: light, backbone: test_efficientnet, weights: clip}}
        train_segmenter: {{epochs: 2, batch_size: 4, crop_size: 64, learning_rate: 0.01}}
        segment: {{image_size: 64}}
        """,
        source="tiny",
    )


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight noisy photos of colored squares with labels.csv and true masks."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    random = np.random.default_rng(0)
    rows = ["image,labels"]
    for number in range(8):
        info = CLASSES.classes[number % 4]
        pixels = random.integers(0, 80, (60, 80, 3), dtype=np.uint8)
        pixels[15:45, 20:60, number % 3] = 220
        truth = np.zeros((60, 80), dtype=np.uint8)
        truth[15:45, 20:60] = info.index
        Image.fromarray(pixels).save(folder / "images" / f"photo{number}.jpg")
        Image.fromarray(truth).save(folder / "masks" / f"photo{number}.png")
        rows.append(f"photo{number}.jpg,{info.name}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def data_options(tiny_data: Path) -> list[object]:
    return ["--images", tiny_data / "images", "--labels", tiny_data / "labels.csv"]


@pytest.fixture(scope="session")
def tiny_masks(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The true masks of the tiny data, laid out as make-pseudo-masks writes its own."""
    folder = tmp_path_factory.mktemp("masks")
    shutil.copytree(tiny_data / "masks", folder / "masks")
    write_class_list(folder / "classes.txt", CLASSES)
    return folder


@pytest.fixture(scope="session")
def tiny_samples(tiny_data: Path) -> list[Sample]:
    return read_folder(tiny_data / "images", tiny_data / "labels.csv", CLASSES)


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Config, tiny_samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run through all three stages."""
    run = start_run(tiny_config, CLASSES, tmp_path_factory.mktemp("work"), device=CPU)
    for stage in (generator.train_generator, prompts.learn_prompts, generator.refine_generator):
        stage(run, tiny_samples, lambda step: None)
    return run


def copy_run(run: Run, work: Path) -> Run:
    """Copy a run's work directory, so that more can be done in it."""
    shutil.copytree(run.work, work)
    return open_run(work, device=CPU)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with classes bowl, cat, cup (mug) and dining table, of random weights barely trained."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    export_bundle(tiny_run, folder, stage="refine-generator", licence="Apache-2.0", trained_on="squares")
    return folder


@pytest.fixture(scope="session")
def tiny_open_bundle(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with CLIP's text tower and a backbone that is still CLIP's, which takes any label."""
    work = tmp_path_factory.mktemp("open") / "work"
    run = copy_run(tiny_run, work)
    clip, class_text = supervision(run)
    learned = load_file(run.existing("refine-generator", "generator.safetensors"))
    untouched = generator.initial_generator(run, clip, class_text).state_dict()
    tensors = {**untouched, "head.weight": learned["head.weight"]}
    run.save("refine-generator", "generator.safetensors", tensors)
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    export_bundle(
        run, folder, stage="refine-generator", licence="Apache-2.0", trained_on="squares", parts=("text_tower",)
    )
    return folder


@pytest.fixture(scope="session")
def tiny_segmenter_bundle(
    tiny_run: Run, tiny_data: Path, tiny_masks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny bundle with a segmenter that has seen four epochs, enough to find something in each photo."""
    work = tmp_path_factory.mktemp("segmenter") / "work"
    run = copy_run(tiny_run, work)
    run = replace(run, config=with_stage(run.config, "train_segmenter", epochs=4))
    samples = read_mask_folder(tiny_data / "images", tiny_masks, CLASSES)
    train_segmenter(run, samples, lambda step: None)
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    export_bundle(run, folder, stage="refine-generator", licence="Apache-2.0", trained_on="squares")
    return folder
