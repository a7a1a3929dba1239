from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.open_vocabulary import forgetful
from models.bundle.bundle import load_bundle
from models.data.classes import with_open_labels
from models.generators.cnn import zero_shot_generator
from models.inference.masks import Segmentation, SoftMaps, _thresholds
from models.inference.open_vocabulary import _CACHE_SIZE, OpenVocabulary
from models.inference.predictor import LabeledImage, Predictor
from models.training.export import export_bundle
from models.training.run import Run, supervision
from tests.conftest import CLASSES, CPU


@pytest.fixture(scope="module")
def predictor(tiny_open_bundle: Path) -> Predictor:
    return Predictor(load_bundle(tiny_open_bundle, device=CPU))


@pytest.fixture(scope="module")
def untrained(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    export_bundle(tiny_run, folder, stage="zero-shot", parts=("text_tower",), licence="CC0", trained_on="nothing")
    return folder


def photo(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def labeled(predictor: Predictor, *labels: str, seed: int = 0, refine: str = "none") -> LabeledImage:
    classes = with_open_labels(predictor.info.classes, labels)
    options = predictor.options(refine=refine, background_threshold=0.1)
    return LabeledImage(photo(seed), labels, options, classes)


def maps(predictor: Predictor, *labels: str, seed: int = 0) -> torch.Tensor:
    (output,) = predictor.forward_cam([labeled(predictor, *labels, seed=seed)])
    return output.maps


def test_the_head_is_the_zero_shot_generators(predictor: Predictor, tiny_run: Run, untrained: Path) -> None:
    clip, _ = supervision(tiny_run)
    names = ["fire truck", "zebra"]
    expected = zero_shot_generator(clip, clip.embed_classes(names), output_stride=16).head.weight
    opened = OpenVocabulary(predictor.bundle)
    rows = torch.stack([opened.zero_shot_class(name).row for name in names])
    cosine = torch.nn.functional.cosine_similarity(rows, expected[:, :, 0, 0])
    torch.testing.assert_close(cosine, torch.ones(2), atol=1e-4, rtol=0)
    # A class of that generator has the CAM that it has as a label which nothing is known of.
    bundle = load_bundle(untrained, device=CPU)
    known, forgotten = Predictor(bundle), Predictor(forgetful(bundle))
    one, two = (maps(each, "cat", "dining table") for each in (known, forgotten))
    torch.testing.assert_close(one, two, atol=5e-3, rtol=0)  # stored in half precision


def test_trained_labels_stay_as_they_are_beside_open_ones(predictor: Predictor) -> None:
    alone = maps(predictor, "cat", "mug")
    beside = maps(predictor, "zebra", "cat", "fire truck", "cup")
    assert torch.equal(beside[:2], alone)
    torch.testing.assert_close(beside[3:], maps(predictor, "zebra"), atol=1e-5, rtol=0)
    assert beside.shape[0] == 4
    assert (beside[2:].amax(dim=(1, 2)) > 0.99).all()


def test_open_and_closed_labels_share_a_batch(predictor: Predictor) -> None:
    batch = [
        labeled(predictor, "zebra", "cat", seed=1),
        labeled(predictor, "cup", seed=2),
        labeled(predictor, "fire truck", "zebra", "bowl", seed=3),
        replace(labeled(predictor, "cat", seed=4), classes=None),
    ]
    for each, together in zip(batch, predictor.forward_cam(batch), strict=True):
        (alone,) = predictor.forward_cam([each])
        assert together.classes == alone.classes
        torch.testing.assert_close(together.maps, alone.maps, atol=1e-5, rtol=0)
        assert together.zero_shot.keys() == alone.zero_shot.keys()
        one, two = predictor.postprocess(together), predictor.postprocess(alone)
        assert [vars(found)["zero_shot"] for found in one.classes] == [
            not CLASSES.knows(found.name) for found in two.classes
        ]
        assert (one.label_map == two.label_map).mean() >= 0.9999


def made(predictor: Predictor, *labels: str, refine: str = "pamr") -> Segmentation:
    each = labeled(predictor, *labels, refine=refine)
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
    maps = SoftMaps(np.zeros((2, 1, 1), dtype=np.float16), np.array([7, 11]), ("cup", "zebra"), (1, 1))
    assert _thresholds(options, maps).tolist() == pytest.approx([0.9, 0.4])


def test_a_label_is_read_once_and_not_kept_forever(tiny_open_bundle: Path) -> None:
    bundle = load_bundle(tiny_open_bundle, device=CPU)
    predictor, read = Predictor(bundle), []
    assert bundle.text_tower is not None
    transformer = bundle.text_tower.text.transformer
    transformer.register_forward_pre_hook(lambda _module, _inputs: read.append(1))
    for labels in (("cat",), ("zebra", "cat"), ("fire truck", "zebra"), ("Zebra",)):
        predictor.forward_cam([labeled(predictor, *labels)])
    assert len(read) == 2
    assert OpenVocabulary(bundle)._cached.cache_info().maxsize == _CACHE_SIZE


def test_half_precision_leaves_texts_alone(tiny_open_bundle: Path) -> None:
    bundle = load_bundle(tiny_open_bundle, device=CPU)
    exact, lower = Predictor(bundle), Predictor(bundle, precision="bfloat16")
    (one,), (two,) = (each.forward_cam([labeled(each, "zebra", "cat")]) for each in (exact, lower))
    assert torch.equal(one.zero_shot["zebra"], two.zero_shot["zebra"])
    assert (one.maps - two.maps).abs().mean() < 0.05


def test_a_closed_bundle_says_why(tiny_bundle: Path) -> None:
    predictor = Predictor(load_bundle(tiny_bundle, device=CPU))
    message = "expected a bundle with an open vocabulary for 'zebra', got 'tiny': it holds no text"
    with pytest.raises(ValueError, match=message):
        predictor.forward_cam([labeled(predictor, "zebra")])
    assert not made(predictor, "cat").classes[0].zero_shot
