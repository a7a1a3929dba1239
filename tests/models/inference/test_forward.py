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
from models.inference.multi_scale import resize_images
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
def second_opinion(
    tiny_run: Run, tiny_data: Path, tiny_masks: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
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


def maps_of(bundle: Bundle, weight: float, *labels: list[str]) -> list[Tensor]:
    inference = bundle.info.inference.model_copy(update={"segmenter_weight": weight})
    predictor = Predictor(replace(bundle, info=bundle.info.model_copy(update={"inference": inference})))
    options = predictor.options()
    batch = [LabeledImage(*each, options) for each in zip(photos(len(labels)), labels, strict=True)]
    return [output.maps for output in predictor.forward_cam(batch)]


def test_cams_are_averaged_with_the_segmenters_shares_of_the_labels(second_opinion: Bundle) -> None:
    labels = [["cat"], ["bowl", "cat", "cup"]]
    alone, both = maps_of(second_opinion, 0.0, *labels), maps_of(second_opinion, 0.25, *labels)
    assert second_opinion.segmenter is not None
    classes = second_opinion.info.classes
    for number, (names, before, after) in enumerate(zip(labels, alone, both, strict=True)):
        image = torch.from_numpy(photos(2)[number]).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            found = second_opinion.segmenter(resize_images(image, before.shape[-2:]))
            found = found + second_opinion.segmenter(resize_images(image, before.shape[-2:]).flip(-1)).flip(-1)
        known = [each for each in names if each != "cup"]  # which it does not know
        shares = found[:, [0, *(classes.channel(each) + 1 for each in known)]]
        shares = shares[:, 1:] / shares.sum(dim=1, keepdim=True)
        expected = F.interpolate(shares, size=before.shape[-2:], mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(
            after[: len(known)], 0.75 * before[: len(known)] + 0.25 * expected, atol=0.01, rtol=0
        )
        assert torch.equal(after[len(known) :], before[len(known) :])


def test_a_segmenter_that_knows_no_label_changes_nothing(second_opinion: Bundle) -> None:
    assert torch.equal(maps_of(second_opinion, 0.5, ["cup"])[0], maps_of(second_opinion, 0.0, ["cup"])[0])


def test_features_for_the_segmenter_are_those_of_the_cams(second_opinion: Bundle) -> None:
    predictor = Predictor(second_opinion)
    segmenter, fused = predictor.bundle.segmenter, predictor.bundle.generator
    assert isinstance(segmenter, FeatureSegmenter)
    assert segmenter.generator is fused  # so they are computed once
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert second_opinion.segmenter is not None
    torch.testing.assert_close(segmenter(images), second_opinion.segmenter(images), atol=1e-4, rtol=0)
