from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.bundle.bundle import Bundle, load_bundle
from models.config import FeatureSegmenterConfig
from models.data.mask_folder import read_mask_folder
from models.generators import AddedClass
from models.inference.forward import _CachingGenerator, _without_faint
from models.inference.multi_scale import normalize_cams, resize_images
from models.inference.predictor import LabeledImage, Predictor
from models.segmenters.on_features import FeatureSegmenter
from models.training.export import export_bundle
from models.training.run import Run
from models.training.segmenter import train_segmenter
from tests.conftest import CLASSES, CPU, copy_run


class Counting:
    def __init__(self) -> None:
        self.passes = 0

    def features(self, images: Tensor) -> Tensor:
        self.passes += 1
        return torch.nn.functional.avg_pool2d(images, 8)

    def chosen_cams(self, features: Tensor, present: Tensor, *, added: Sequence[AddedClass]) -> Tensor:
        assert not added
        return features[present[:, 0], present[:, 1]]


@pytest.mark.parametrize(("size", "passes"), [(32, 2), (64, 3)])
def test_features_are_computed_once(size: int, passes: int) -> None:
    generator = Counting()
    caching = _CachingGenerator(generator, size=(size, size))
    images, larger = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 48, 48)
    for seen in (larger, images):
        expected = torch.nn.functional.avg_pool2d(seen, 8)[:, 1]
        made = caching(torch.cat([seen, seen.flip(-1)]), torch.tensor([(0, 1), (1, 1), (2, 0)]))
        torch.testing.assert_close(made[:2], expected)
    other = images if size == 32 else torch.rand(2, 3, size, size)
    features = caching.features(other)
    torch.testing.assert_close(features, torch.nn.functional.avg_pool2d(other, 8))
    assert generator.passes == passes


def test_the_faint_and_the_untaught_leave_their_share_to_the_background() -> None:
    shares = torch.tensor([0.2, 0.5, 0.1, 0.2]).view(1, 4, 1, 1)
    kept = _without_faint(shares, [3], min_peak=0.3)
    torch.testing.assert_close(kept.flatten(), torch.tensor([0.5, 0.5, 0.0, 0.0]))
    assert torch.equal(_without_faint(shares, [], min_peak=0.0), shares)


@pytest.fixture(scope="module")
def fusing(tiny_run: Run, tiny_data: Path, tiny_masks: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with a segmenter on its mask generator's features that does not know "cup"."""
    work = tmp_path_factory.mktemp("second") / "work"
    run = copy_run(tiny_run, work)
    run = replace(
        run, config=run.config.model_copy(update={"segmenter": FeatureSegmenterConfig(kind="features", width=8)})
    )
    train_segmenter(run, read_mask_folder(tiny_data / "images", tiny_masks, CLASSES), lambda step: None)
    export_bundle(run, work / "out", stage="refine-generator", licence="none", trained_on="squares")
    bundle = load_bundle(work / "out", device=CPU)
    assert bundle.info.segmenter is not None
    segmenter = bundle.info.segmenter.model_copy(update={"untaught": ("cup",)})
    return replace(bundle, info=bundle.info.model_copy(update={"segmenter": segmenter}))


def photos(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 255, (count, 48, 64, 3), dtype=np.uint8))


def maps_of(bundle: Bundle, weight: float, *labels: list[str], least: int = 1) -> list[Tensor]:
    assert bundle.info.segment is not None
    segment = bundle.info.segment.model_copy(update={"fusion_weight": weight, "fusion_min_masks": least})
    predictor = Predictor(replace(bundle, info=bundle.info.model_copy(update={"segment": segment})))
    options = predictor.options()
    batch = [LabeledImage(*each, options) for each in zip(photos(len(labels)), labels, strict=True)]
    return [output.maps for output in predictor.forward_cam(batch)]


def test_cams_are_averaged_with_the_segmenters_shares_of_the_labels(fusing: Bundle) -> None:
    labels = [["cat"], ["bowl", "cat", "cup"]]
    alone, both = maps_of(fusing, 0.0, *labels), maps_of(fusing, 0.25, *labels)
    assert fusing.segmenter is not None
    classes = fusing.info.classes
    for number, (names, before, after) in enumerate(zip(labels, alone, both, strict=True)):
        image = torch.from_numpy(photos(2)[number]).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            found = fusing.segmenter(resize_images(image, before.shape[-2:]))
            found = found + fusing.segmenter(resize_images(image, before.shape[-2:]).flip(-1)).flip(-1)
        known = [each for each in names if each != "cup"]  # which it does not know
        shares = found[:, [0, *(classes.channel(each) + 1 for each in known)]]
        shares = shares[:, 1:] / shares.sum(dim=1, keepdim=True)
        expected = F.interpolate(shares, size=before.shape[-2:], mode="bilinear", align_corners=False)[0]
        average = normalize_cams(0.75 * before[: len(known)] + 0.25 * expected)
        torch.testing.assert_close(after[: len(known)], average, atol=0.01, rtol=0)
        assert torch.equal(after[len(known) :], before[len(known) :])


def test_a_segmenter_that_knows_no_label_changes_nothing(fusing: Bundle) -> None:
    assert torch.equal(maps_of(fusing, 0.5, ["cup"])[0], maps_of(fusing, 0.0, ["cup"])[0])


def test_a_class_of_few_masks_keeps_its_cam(fusing: Bundle) -> None:
    assert fusing.info.segmenter is not None
    masks = fusing.info.segmenter.masks
    assert masks.keys() == {*CLASSES.names}
    assert masks["cat"] > 0
    alone = maps_of(fusing, 0.0, ["cat"])[0]
    assert torch.equal(maps_of(fusing, 0.5, ["cat"], least=masks["cat"] + 1)[0], alone)
    assert not torch.equal(maps_of(fusing, 0.5, ["cat"], least=masks["cat"])[0], alone)


def test_features_are_computed_once_for_cams_segmenter_and_affinity(
    fusing: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fusing.info.segment is not None
    segment = fusing.info.segment.model_copy(update={"fusion_weight": 0.5})
    predictor = Predictor(replace(fusing, info=fusing.info.model_copy(update={"segment": segment})))
    passes: list[Tensor] = []
    generator = predictor.bundle.generator
    compute = generator.features
    monkeypatch.setattr(generator, "features", lambda images: passes.append(images) or compute(images))
    options = predictor.options(refine="random_walk")
    predictor.forward_cam([LabeledImage(photos(1)[0], ["cat"], options)])
    assert len(passes) == len(fusing.info.inference.scales)


def test_the_networks_for_serving_share_the_generator(fusing: Bundle) -> None:
    predictor = Predictor(fusing)
    segmenter = predictor.bundle.segmenter
    assert isinstance(segmenter, FeatureSegmenter)
    assert segmenter.generator is predictor.bundle.generator
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert fusing.segmenter is not None
    torch.testing.assert_close(segmenter(images), fusing.segmenter(images), atol=1e-4, rtol=0)
