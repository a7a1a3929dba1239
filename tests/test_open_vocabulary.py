"""Labels that a bundle was not trained on: bundles with a text tower, and what the predictor makes of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.open_vocabulary import forgetful
from models import clip_text
from models.bundle import BundleError, load_bundle
from models.bundle_info import MANIFEST, TEXT_TOWER_FILE
from models.clip import FrozenClip, text_config
from models.config import CnnConfig, Config
from models.data.open_labels import with_open_labels
from models.export import export_bundle
from models.generators.zero_shot import zero_shot_generator
from models.open_vocabulary import REMEMBERED, ClosedVocabularyError, OpenVocabulary
from models.predictor import Labeled, Predictor
from models.run import Run, start_run
from models.segmentation import Segmentation
from models.stages import supervision
from tests.conftest import CLASSES, CPU

WORDS = {"licence": "CC0", "trained_on": "nothing"}


@pytest.fixture(scope="module")
def predictor(tiny_open_bundle: Path) -> Predictor:
    return Predictor(load_bundle(tiny_open_bundle, device=CPU))


@pytest.fixture(scope="module")
def untrained(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose head is the text-initialized one."""
    folder = tmp_path_factory.mktemp("untrained")
    export_bundle(tiny_run, folder, stage="zero-shot", parts=("text_tower",), **WORDS)
    return folder


def photo(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def asked(predictor: Predictor, *labels: str, seed: int = 0, refine: str = "none") -> Labeled:
    classes = with_open_labels(predictor.info.classes, labels)
    options = predictor.options(refine=refine, background_threshold=0.1)
    return Labeled(photo(seed), labels, options, classes)


def maps(predictor: Predictor, *labels: str, seed: int = 0) -> torch.Tensor:
    (activated,) = predictor.activate([asked(predictor, *labels, seed=seed)])
    return activated.maps


def test_the_text_tower_is_clips(tiny_open_bundle: Path, tiny_clip: FrozenClip) -> None:
    bundle = load_bundle(tiny_open_bundle, device=CPU)
    assert bundle.info.open_vocabulary
    assert bundle.info.to_json()["open_vocabulary"] is True
    assert bundle.text_tower is not None
    texts = ["fire truck", "a longer label of six words"]
    found, expected = bundle.text_tower.embed_classes(texts), tiny_clip.embed_classes(texts)
    torch.testing.assert_close((found * expected).sum(dim=1), torch.ones(2), atol=1e-3, rtol=0)
    assert not any(each.requires_grad for each in bundle.text_tower.parameters())
    assert not any(module.training for module in bundle.text_tower.modules())


def test_it_is_left_out_unless_wanted(tiny_bundle: Path, tiny_run: Run, tmp_path: Path) -> None:
    assert load_bundle(tiny_bundle, device=CPU).text_tower is None
    export_bundle(tiny_run, tmp_path, stage="zero-shot", parts=("text_tower",), **WORDS)
    assert (tmp_path / TEXT_TOWER_FILE).is_file()
    info = export_bundle(tiny_run, tmp_path, stage="zero-shot", **WORDS)
    assert not (tmp_path / TEXT_TOWER_FILE).exists()
    assert not info.open_vocabulary
    assert TEXT_TOWER_FILE not in info.files


def test_a_changed_text_tower_is_refused(tiny_open_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_open_bundle, tmp_path / "copy"))
    content = bytearray((copy / TEXT_TOWER_FILE).read_bytes())
    content[-1] ^= 1
    (copy / TEXT_TOWER_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=r"expected .*clip_text.safetensors with SHA-256"):
        load_bundle(copy, device=CPU)


def test_a_text_tower_without_its_image_tower_is_refused(
    tiny_open_bundle: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_open_bundle, tmp_path / "copy"))
    text = (copy / MANIFEST).read_text().replace("kind: zero_shot", "kind: cnn")
    (copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="a zero_shot generator on it, got a cnn generator"):
        load_bundle(copy, device=CPU)


def test_a_generator_that_is_not_clips_gets_no_text_tower(
    tiny_config: Config, tiny_run: Run, tmp_path: Path
) -> None:
    plain = CnnConfig(backbone="test_resnet", pretrained=False)
    config = tiny_config.model_copy(update={"generator": plain})
    run = start_run(config, CLASSES, tmp_path / "cnn", device=CPU)
    with pytest.raises(ValueError, match=r"expected a zero_shot .* open vocabulary, got cnn"):
        export_bundle(run, tmp_path / "out", stage="zero-shot", parts=("text_tower",), **WORDS)
    stage = "refine-generator"  # in which the whole backbone learned
    with pytest.raises(ValueError, match="expected a mask generator on the frozen trunk of CLIP"):
        export_bundle(tiny_run, tmp_path / "out", stage=stage, parts=("text_tower",), **WORDS)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_others_is_refused(tmp_path: Path, tiny_clip_folder: Path) -> None:
    copy = Path(shutil.copytree(tiny_clip_folder, tmp_path / "clip"))
    config = copy / "open_clip_config.json"
    config.write_text(
        config.read_text().replace('"context_length"', '"hf_tokenizer_name": "x", "context_length"')
    )
    with pytest.raises(ValueError, match="expected a CLIP with open_clip's own tokenizer"):
        text_config(f"local-dir:{copy}", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hf_model_name": "x/y"}, "expected a text tower of open_clip's own"),
        ({"no_causal_mask": True}, "expected a causal text transformer"),
    ],
)
def test_other_text_towers_are_refused(
    tiny_clip_folder: Path, change: dict[str, object], message: str
) -> None:
    config = text_config(f"local-dir:{tiny_clip_folder}", None)
    changed = {**config, "text_cfg": {**config["text_cfg"], **change}}
    with pytest.raises(ValueError, match=message):
        clip_text.build_text_tower(changed)


def test_the_head_is_the_zero_shot_generators(
    predictor: Predictor, tiny_run: Run, untrained: Path
) -> None:
    clip, _ = supervision(tiny_run)
    names = ["fire truck", "zebra"]
    expected = zero_shot_generator(clip, clip.embed_classes(names), output_stride=16).head.weight
    opened = OpenVocabulary(predictor.bundle)
    rows = torch.stack([opened.open_class(name).row for name in names])
    cosine = torch.nn.functional.cosine_similarity(rows, expected[:, :, 0, 0])
    torch.testing.assert_close(cosine, torch.ones(2), atol=1e-4, rtol=0)
    # A class of that generator has the CAM that it has as a label which nothing is known of.
    bundle = load_bundle(untrained, device=CPU)
    known, forgotten = Predictor(bundle), Predictor(forgetful(bundle))
    labels = ("cat", "dining table")
    torch.testing.assert_close(
        maps(known, *labels), maps(forgotten, *labels), atol=5e-3, rtol=0
    )  # the head is stored in half precision


def test_trained_labels_stay_as_they_are_beside_open_ones(predictor: Predictor) -> None:
    alone = maps(predictor, "cat", "mug")
    beside = maps(predictor, "zebra", "cat", "fire truck", "cup")
    assert torch.equal(beside[:2], alone)
    torch.testing.assert_close(beside[3:], maps(predictor, "zebra"), atol=1e-5, rtol=0)
    assert beside.shape[0] == 4
    assert (beside[2:].amax(dim=(1, 2)) > 0.99).all()


def test_open_and_closed_labels_share_a_batch(predictor: Predictor) -> None:
    batch = [
        asked(predictor, "zebra", "cat", seed=1),
        asked(predictor, "cup", seed=2),
        asked(predictor, "fire truck", "zebra", "bowl", seed=3),
        replace(asked(predictor, "cat", seed=4), classes=None),
    ]
    for each, together in zip(batch, predictor.activate(batch), strict=True):
        (alone,) = predictor.activate([each])
        assert together.classes == alone.classes
        torch.testing.assert_close(together.maps, alone.maps, atol=1e-5, rtol=0)
        assert together.opened.keys() == alone.opened.keys()
        one, two = predictor.finish(together), predictor.finish(alone)
        assert [vars(found)["zero_shot"] for found in one.classes] == [
            not CLASSES.knows(found.name) for found in two.classes
        ]
        assert (one.label_map == two.label_map).mean() >= 0.9999


def made(predictor: Predictor, *labels: str, refine: str = "pamr") -> Segmentation:
    each = asked(predictor, *labels, refine=refine)
    return predictor.pseudo_mask(each.image, each.labels, each.options, classes=each.classes)


@pytest.mark.parametrize("refine", ["none", "pamr"])
def test_a_segmentation_says_what_was_not_trained_on(predictor: Predictor, refine: str) -> None:
    result = made(predictor, "zebra", "MUG", "Fire-Truck", refine=refine)
    assert [(each.index, each.name, each.zero_shot) for each in result.classes] == [
        (7, "cup", False),
        (10, "fire truck", True),
        (11, "zebra", True),
    ]
    assert set(np.unique(result.label_map)) <= {0, 7, 10, 11}
    assert len(result.scores) == 3
    found = [each for each in result.classes if each.zero_shot and each.box]
    assert found or refine != "none"  # refined, a random network's masks may be empty
    for each in found:
        assert each.alignment_class is not None
        assert each.alignment_background is None
    # The bundle's one threshold, whatever it says of its classes.
    options = replace(predictor.options(), class_thresholds={"cup": 0.9})
    assert options.thresholds_of(("cup", "zebra")).tolist() == pytest.approx([0.9, 0.4])


def test_a_label_is_read_once_and_not_kept_forever(tiny_open_bundle: Path) -> None:
    bundle = load_bundle(tiny_open_bundle, device=CPU)
    predictor, read = Predictor(bundle), []
    assert bundle.text_tower is not None
    transformer = bundle.text_tower.text.transformer
    transformer.register_forward_pre_hook(lambda _module, _inputs: read.append(1))
    for labels in (("cat",), ("zebra", "cat"), ("fire truck", "zebra"), ("Zebra",)):
        predictor.activate([asked(predictor, *labels)])
    assert len(read) == 2
    assert OpenVocabulary(bundle)._remembered.cache_info().maxsize == REMEMBERED


def test_words_from_outside_do_not_fill_the_memory(
    tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_text, "REMEMBERED_WORDS", 20)
    made: list[Any] = []
    plain = open_clip.SimpleTokenizer
    monkeypatch.setattr(
        open_clip, "SimpleTokenizer", lambda **options: made.append(plain(**options)) or made[-1]
    )
    tower = clip_text.build_text_tower(text_config(f"local-dir:{tiny_clip_folder}", None))
    for number in range(30):
        words = f"{chr(97 + number % 26)}qx word{chr(97 + number // 26)}{chr(97 + number % 26)}z"
        assert torch.equal(tower.tokenizer([words]), plain()([words]))
    assert len(made[0].cache) <= 20 + len(words.split())


def test_half_precision_leaves_texts_alone(tiny_open_bundle: Path) -> None:
    bundle = load_bundle(tiny_open_bundle, device=CPU)
    exact, lower = Predictor(bundle), Predictor(bundle, precision="bfloat16")
    (one,), (two,) = (each.activate([asked(each, "zebra", "cat")]) for each in (exact, lower))
    assert torch.equal(one.opened["zebra"], two.opened["zebra"])
    assert (one.maps - two.maps).abs().mean() < 0.05


def test_a_closed_bundle_says_why(tiny_bundle: Path) -> None:
    predictor = Predictor(load_bundle(tiny_bundle, device=CPU))
    message = "expected a bundle with an open vocabulary for 'zebra', got 'tiny': it holds no text"
    with pytest.raises(ClosedVocabularyError, match=message):
        predictor.activate([asked(predictor, "zebra")])
    assert not made(predictor, "cat").classes[0].zero_shot
