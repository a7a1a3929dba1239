"""The predictor's two halves: what the networks say of a batch, and finishing its photos in other threads."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.bundle.bundle import load_bundle
from models.inference.masks import Segmentation
from models.inference.predictor import CannotSegmentError, LabeledImage, Predictor, UnlabeledImage
from models.refine import NO_REFINER, REFINERS
from models.refine.regions import Regions, superpixels
from tests.conftest import CPU

ALL = "+".join(REFINERS)


@pytest.fixture(scope="module")
def predictor(tiny_segmenter_bundle: Path) -> Predictor:
    return Predictor(load_bundle(tiny_segmenter_bundle, device=CPU))


def photos(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (count, 60, 80, 3), dtype=np.uint8)


def labeled(predictor: Predictor, count: int, *refiners: str) -> list[LabeledImage]:
    names = [["cat"], ["cup", "cat"], ["bowl"]]
    return [
        LabeledImage(
            pixels,
            names[number % len(names)],
            predictor.options(
                refine=refiners[number % len(refiners)],
                background_threshold=0.3,
                min_confidence=0.4,
            ),
        )
        for number, pixels in enumerate(photos(count))
    ]


def unlabeled(predictor: Predictor, count: int, *refiners: str) -> list[UnlabeledImage]:
    return [
        UnlabeledImage(
            pixels, predictor.segment_options(refine=refiners[number % len(refiners)], min_confidence=0.1)
        )
        for number, pixels in enumerate(photos(count))
    ]  # fmt: skip


def assert_same(one: Segmentation, two: Segmentation) -> None:
    assert np.array_equal(one.label_map, two.label_map)
    assert np.array_equal(one.confidence, two.confidence)
    assert np.array_equal(one.scores, two.scores)
    assert (one.cams is None) == (two.cams is None)
    assert one.cams is None or np.array_equal(one.cams, two.cams)
    assert one.classes == two.classes


def assert_alike(one: Segmentation, two: Segmentation) -> None:
    assert [each.name for each in one.classes] == [each.name for each in two.classes]
    np.testing.assert_allclose(one.scores, two.scores, atol=1e-3)  # half precision
    assert (one.label_map == two.label_map).mean() >= 0.9999


@pytest.mark.parametrize("refine", [NO_REFINER, *REFINERS])
def test_a_batch_segmented_equals_its_images_alone(predictor: Predictor, refine: str) -> None:
    batch = unlabeled(predictor, 3, refine, NO_REFINER)
    for each, made in zip(batch, predictor.segments(batch), strict=True):
        assert_alike(made, predictor.segment(each.image, each.options))


def test_before_rounding_a_batch_is_within_1e_5_of_its_images(predictor: Predictor) -> None:
    masks, segments = labeled(predictor, 3, ALL), unlabeled(predictor, 3, ALL)
    pairs = [
        *zip(predictor.forward_cam(masks), [predictor.forward_cam([each])[0] for each in masks], strict=True),
        *zip(
            predictor.forward_segmenter(segments),
            [predictor.forward_segmenter([each])[0] for each in segments],
            strict=True,
        ),
    ]  # fmt: skip
    for together, alone in pairs:
        torch.testing.assert_close(together.maps, alone.maps, atol=1e-5, rtol=0)
        assert together.refiner_inputs.features is not None
        assert alone.refiner_inputs.features is not None
        torch.testing.assert_close(
            together.refiner_inputs.features, alone.refiner_inputs.features, atol=1e-5, rtol=1e-4
        )


def test_photos_are_finished_in_other_threads_while_others_activate(predictor: Predictor) -> None:
    chains = (ALL, "pamr", "random_walk", NO_REFINER)
    masks, segments = labeled(predictor, 4, *chains), unlabeled(predictor, 4, *chains)
    expected = predictor.pseudo_masks(masks) + predictor.segments(segments)
    with ThreadPoolExecutor(4) as pool:
        futures = []
        for _ in range(2):
            futures += [
                pool.submit(predictor.postprocess, each) for each in predictor.forward_cam(masks)
            ]
            outputs = predictor.forward_segmenter(segments)
            futures += [pool.submit(predictor.postprocess, each) for each in outputs]
        made = [future.result() for future in futures]
    for ours, theirs in zip(made, expected * 2, strict=True):
        assert_same(ours, theirs)


def test_finishing_asks_neither_generator_nor_segmenter(predictor: Predictor) -> None:
    asking: list[str] = []
    bundle = predictor.bundle
    outputs = predictor.forward_cam(labeled(predictor, 2, ALL))
    outputs += predictor.forward_segmenter(unlabeled(predictor, 2, ALL))
    handles = [
        module.register_forward_pre_hook(lambda module, _inputs: asking.append(type(module).__name__))
        for network in (bundle.generator, bundle.segmenter)
        for module in network.modules()
    ]  # fmt: skip
    try:
        for each in outputs:
            predictor.postprocess(each)
        assert asking == []
        predictor.forward_cam(labeled(predictor, 1, NO_REFINER))
        assert asking
    finally:
        for handle in handles:
            handle.remove()


def test_the_same_activation_can_be_finished_twice(predictor: Predictor) -> None:
    (output,) = predictor.forward_cam(labeled(predictor, 1, ALL))
    first = predictor.postprocess(output)
    assert_same(first, predictor.postprocess(output))
    strict = replace(output.source, options=replace(output.source.options, min_confidence=0.9))
    other = predictor.postprocess(replace(output, source=strict))
    assert other.ignored > first.ignored


def test_features_are_kept_for_those_who_need_them(predictor: Predictor) -> None:
    walked, plain = predictor.forward_cam(labeled(predictor, 2, "random_walk", "pamr"))
    assert walked.refiner_inputs.features is not None
    assert plain.refiner_inputs.features is None
    assert walked.refiner_inputs.regions is plain.refiner_inputs.regions is None


def test_a_network_that_proposes_regions_is_asked_while_activating(predictor: Predictor) -> None:
    asked: list[threading.Thread] = []

    def propose(image: torch.Tensor) -> Regions:
        asked.append(threading.current_thread())
        return superpixels(image)

    other = Predictor(predictor.bundle)
    other._propose = propose
    batch = labeled(predictor, 2, "region_vote", "pamr")
    outputs = other.forward_cam(batch)
    assert asked == [threading.current_thread()]
    with ThreadPoolExecutor(1) as pool:
        made = list(pool.map(other.postprocess, outputs))
    assert asked == [threading.current_thread()]
    for ours, theirs in zip(made, predictor.pseudo_masks(batch), strict=True):
        assert_same(ours, theirs)


def test_a_batch_to_segment_has_one_size(predictor: Predictor, tiny_bundle: Path) -> None:
    assert predictor.segment_size(60, 80) == (64, 64)
    options = predictor.segment_options()
    mixed = [UnlabeledImage(photos(1)[0], options), UnlabeledImage(photos(1)[0, :30], options)]
    with pytest.raises(ValueError, match="expected images of one working size"):
        predictor.forward_segmenter(mixed)
    with pytest.raises(CannotSegmentError):
        Predictor(load_bundle(tiny_bundle, device=CPU)).segment_size(60, 80)


def test_a_cpu_has_no_device_memory(predictor: Predictor) -> None:
    predictor.release_memory()
    assert predictor.device_memory() is None
