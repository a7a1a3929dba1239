import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from models.bundle.bundle import load_bundle
from models.bundle.manifest import BundleError, read_info
from models.data.classes import UnknownLabelError
from models.data.mask_files import read_soft_maps, scores_npz
from models.inference.masks import MaskOptions, Segmentation, SoftMaps, decide
from models.inference.predictor import CannotSegmentError, LabeledImage, Predictor, UnlabeledImage
from models.refine import NO_REFINER, REFINERS
from models.refine.regions import Regions, superpixels
from models.segmenters import Segmenter
from models.training.export import export_bundle
from models.training.run import Run
from tests.conftest import CPU


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Path) -> Predictor:
    return Predictor(load_bundle(tiny_bundle, device=CPU))


def photo(height: int = 60, width: int = 80) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_segmentation_is_complete(predictor: Predictor) -> None:
    result = predictor.pseudo_mask(photo(), ["cup", "cat"], predictor.options())
    assert result.label_map.shape == result.confidence.shape == (60, 80)
    assert result.label_map.dtype == np.uint8
    assert set(np.unique(result.label_map)) <= {0, 4, 7}
    assert [each.name for each in result.classes] == ["cat", "cup"]
    assert result.scores.dtype == result.cams.dtype == np.float16
    assert result.scores.shape == (2, 64, 64)
    assert result.cams.shape == (2, 4, 4)
    for each in result.classes:
        region = result.label_map == each.index
        assert each.area == pytest.approx(region.mean())
        if each.box is not None:
            left, top, right, bottom = each.box
            assert region[top:bottom, left:right].sum() == region.sum()
            assert region[top].any()
            assert region[:, right - 1].any()
            assert each.confidence is not None
            assert -1 <= (each.alignment_class or 0) <= 1
            assert each.alignment_background is not None


def test_stored_scores_give_the_fresh_result_at_any_threshold(predictor: Predictor) -> None:
    first = predictor.pseudo_mask(photo(), ["cat", "cup"], predictor.options())
    other = predictor.options(background_threshold=0.7, min_confidence=0.5)
    fresh = predictor.pseudo_mask(photo(), ["cat", "cup"], other)
    again = decide(SoftMaps(first.scores, np.array([4, 7]), ("cat", "cup"), (60, 80)), other)
    assert (fresh.label_map == 255).any()
    assert np.array_equal(again.label_map, fresh.label_map)
    assert fresh.ignored == pytest.approx((fresh.label_map == 255).mean())


def test_a_class_without_pixels_has_no_figures(predictor: Predictor) -> None:
    strict = predictor.options(background_threshold=0.9999, refine="pamr")
    result = predictor.pseudo_mask(photo(), ["cat"], strict).classes[0]
    assert (result.area, result.confidence, result.box) == (0, None, None)
    assert result.alignment_class is result.alignment_background is None


@pytest.mark.parametrize("refine", ["none", "pamr", "random_walk+pamr+region_vote"])
def test_a_batch_equals_its_images_alone(predictor: Predictor, refine: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 60, 80, 3), dtype=np.uint8)
    threshold = predictor.options(refine=refine, background_threshold=0.3)
    batch = [
        LabeledImage(pixels[0], ["cat"], predictor.options(refine=refine)),
        LabeledImage(pixels[1], ["cup", "cat"], threshold),
        LabeledImage(pixels[2, :, :75], ["cup"], predictor.options(refine="none")),
    ]
    for each, made in zip(batch, predictor.pseudo_masks(batch), strict=True):
        assert_alike(made, predictor.pseudo_mask(each.image, each.labels, each.options))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_says_how_much_of_its_memory_is_used(tiny_bundle: Path) -> None:
    assert Predictor(load_bundle(tiny_bundle, device=torch.device("cuda"))).device_memory()


def test_a_batch_has_one_working_size(predictor: Predictor) -> None:
    assert predictor.working_size(60, 80) == (64, 64)
    assert predictor.working_size(30, 80) == (32, 64)
    options = predictor.options()
    mixed = [LabeledImage(photo(), ["cat"], options), LabeledImage(photo(30), ["cat"], options)]
    sizes = r"expected images of one working size, got \[\(32, 64\), \(64, 64\)\]"
    with pytest.raises(ValueError, match=sizes):
        predictor.pseudo_masks(mixed)


def test_label_order_does_not_matter(predictor: Predictor) -> None:
    options = predictor.options()
    one = predictor.pseudo_mask(photo(), ["cat", "cup"], options)
    two = predictor.pseudo_mask(photo(), ["CUP", "cat", "cat"], options)
    assert np.array_equal(one.label_map, two.label_map)


def test_refinement_changes_scores_not_cams(predictor: Predictor) -> None:
    plain = predictor.pseudo_mask(photo(), ["cat"], predictor.options(refine="none"))
    refined = predictor.pseudo_mask(photo(), ["cat"], predictor.options(refine="pamr"))
    assert np.array_equal(plain.cams, refined.cams)
    assert not np.array_equal(plain.scores, refined.scores)


def test_progress_can_stop_the_work(predictor: Predictor) -> None:
    seen: list[tuple[str, float]] = []

    def stop_at_refine(stage: str, fraction: float) -> None:
        seen.append((stage, fraction))
        if stage == "refine":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        predictor.pseudo_mask(photo(), ["cat"], predictor.options(), on_progress=stop_at_refine)
    assert [stage for stage, _ in seen] == ["cam", "refine"]
    assert [fraction for _, fraction in seen] == sorted(fraction for _, fraction in seen)


def test_wrong_input(predictor: Predictor) -> None:
    options = predictor.options()
    with pytest.raises(UnknownLabelError, match="nearest known: cat"):
        predictor.pseudo_mask(photo(), ["catt"], options)
    with pytest.raises(ValueError, match=r"expected an image \(H, W, 3\) uint8, got \(60, 80\)"):
        predictor.pseudo_mask(photo()[..., 0], ["cat"], options)
    with pytest.raises(ValueError, match="expected background_threshold"):
        predictor.options(background_threshold=2)
    with pytest.raises(ValueError, match="expected one of none, pamr"):
        predictor.options(refine="magic")
    assert predictor.options() == MaskOptions("pamr", 0.0, background_threshold=0.4)


ALL = "+".join(REFINERS)


@pytest.fixture(scope="module")
def full(tiny_segmenter_bundle: Path) -> Predictor:
    return Predictor(load_bundle(tiny_segmenter_bundle, device=CPU))


def photos(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(2).integers(0, 256, (count, 60, 80, 3), dtype=np.uint8)


def labeled(full: Predictor, count: int, *refiners: str) -> list[LabeledImage]:
    options = partial(full.options, background_threshold=0.3, min_confidence=0.4)
    names, chains = cycle([["cat"], ["cup", "cat"], ["bowl"]]), cycle(refiners)
    return [LabeledImage(pixels, next(names), options(refine=next(chains))) for pixels in photos(count)]


def unlabeled(full: Predictor, count: int, *refiners: str) -> list[UnlabeledImage]:
    options, chains = partial(full.segment_options, min_confidence=0.1), cycle(refiners)
    return [UnlabeledImage(pixels, options(refine=next(chains))) for pixels in photos(count)]


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
def test_a_batch_segmented_equals_its_images_alone(full: Predictor, refine: str) -> None:
    batch = unlabeled(full, 3, refine, NO_REFINER)
    for each, made in zip(batch, full.segments(batch), strict=True):
        assert_alike(made, full.segment(each.image, each.options))


def test_before_rounding_a_batch_is_within_1e_5_of_its_images(full: Predictor) -> None:
    masks, segments = labeled(full, 3, ALL), unlabeled(full, 3, ALL)
    together = full.forward_cam(masks) + full.forward_segmenter(segments)
    alone = [full.forward_cam([each])[0] for each in masks]
    alone += [full.forward_segmenter([each])[0] for each in segments]
    for one, two in zip(together, alone, strict=True):
        torch.testing.assert_close(one.maps, two.maps, atol=1e-5, rtol=0)
        ours, theirs = one.refiner_inputs.features, two.refiner_inputs.features
        assert ours is not None
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_images_are_postprocessed_in_other_threads_meanwhile(full: Predictor) -> None:
    chains = (ALL, "pamr", "random_walk", NO_REFINER)
    masks, segments = labeled(full, 4, *chains), unlabeled(full, 4, *chains)
    expected = full.pseudo_masks(masks) + full.segments(segments)
    with ThreadPoolExecutor(4) as pool:
        futures = []
        for _ in range(2):
            futures += [pool.submit(full.postprocess, each) for each in full.forward_cam(masks)]
            outputs = full.forward_segmenter(segments)
            futures += [pool.submit(full.postprocess, each) for each in outputs]
        made = [future.result() for future in futures]
    for ours, theirs in zip(made, expected * 2, strict=True):
        assert_same(ours, theirs)


def test_postprocess_runs_neither_generator_nor_segmenter(full: Predictor) -> None:
    called: list[str] = []
    bundle = full.bundle
    outputs = full.forward_cam(labeled(full, 2, ALL))
    outputs += full.forward_segmenter(unlabeled(full, 2, ALL))
    handles = [
        module.register_forward_pre_hook(lambda module, _inputs: called.append(type(module).__name__))
        for network in (bundle.generator, bundle.segmenter)
        for module in network.modules()
    ]
    try:
        for each in outputs:
            full.postprocess(each)
        assert called == []
        full.forward_cam(labeled(full, 1, NO_REFINER))
        assert called
    finally:
        for handle in handles:
            handle.remove()


def test_an_output_can_be_postprocessed_twice(full: Predictor) -> None:
    (output,) = full.forward_cam(labeled(full, 1, ALL))
    first = full.postprocess(output)
    assert_same(first, full.postprocess(output))
    strict = replace(output.source, options=replace(output.source.options, min_confidence=0.9))
    other = full.postprocess(replace(output, source=strict))
    assert other.ignored > first.ignored


def test_features_are_kept_for_refiners_that_need_them(full: Predictor) -> None:
    walked, plain = full.forward_cam(labeled(full, 2, "random_walk", "pamr"))
    assert walked.refiner_inputs.features is not None
    assert plain.refiner_inputs.features is None
    assert walked.refiner_inputs.regions is plain.refiner_inputs.regions is None


def test_a_network_proposes_regions_in_the_forward_pass(full: Predictor) -> None:
    threads: list[threading.Thread] = []

    def propose(image: torch.Tensor) -> Regions:
        threads.append(threading.current_thread())
        return superpixels(image)

    other = Predictor(full.bundle)
    other._propose = propose
    batch = labeled(full, 2, "region_vote", "pamr")
    outputs = other.forward_cam(batch)
    assert threads == [threading.current_thread()]
    with ThreadPoolExecutor(1) as pool:
        made = list(pool.map(other.postprocess, outputs))
    assert threads == [threading.current_thread()]
    for ours, theirs in zip(made, full.pseudo_masks(batch), strict=True):
        assert_same(ours, theirs)


def test_a_batch_to_segment_has_one_size(full: Predictor, tiny_bundle: Path) -> None:
    assert full.segment_size(60, 80) == (64, 64)
    options = full.segment_options()
    mixed = [UnlabeledImage(photos(1)[0], options), UnlabeledImage(photos(1)[0, :30], options)]
    with pytest.raises(ValueError, match="expected images of one working size"):
        full.forward_segmenter(mixed)
    with pytest.raises(CannotSegmentError):
        Predictor(load_bundle(tiny_bundle, device=CPU)).segment_size(60, 80)


def test_a_cpu_has_no_device_memory(full: Predictor) -> None:
    full.release_memory()
    assert full.device_memory() is None


class Fixed(Segmenter):
    """Answers one distribution everywhere, or another in the right half."""

    def __init__(self, left: list[float], right: list[float] | None = None) -> None:
        super().__init__(mean=(0, 0, 0), std=(1, 1, 1))
        self.left, self.right = torch.tensor(left), torch.tensor(right or left)

    @property
    def backbone(self) -> torch.nn.Module:
        return self

    def loss(self, *_: object, **__: object) -> dict[str, Tensor]:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2] // 4, images.shape[-1] // 4
        half = torch.arange(width) >= width // 2
        rows = torch.where(half, self.right[:, None], self.left[:, None])
        return rows[None, :, None].expand(len(images), -1, height, -1)


def answering(full: Predictor, *distributions: list[float]) -> Predictor:
    bundle = full.bundle
    assert bundle.info.segment is not None
    still = bundle.info.segment.model_copy(update={"flip": False})
    info = bundle.info.model_copy(update={"segment": still})
    return Predictor(replace(bundle, info=info, segmenter=Fixed(*distributions)))


def test_a_segmentation_is_complete_without_labels(full: Predictor) -> None:
    stages: list[tuple[str, float]] = []
    result = full.segment(photo(), full.segment_options(), on_progress=lambda *done: stages.append(done))
    assert result.label_map.shape == result.confidence.shape == (60, 80)
    names = [each.name for each in result.classes]
    assert names == [each for each in full.info.classes.names if each in names]
    assert result.scores.shape == (len(names), 64, 64)
    assert result.scores.dtype == np.float16
    assert result.cams is None
    assert [stage for stage, _ in stages] == ["segment", "refine"]
    assert [share for _, share in stages] == sorted(share for _, share in stages)


def test_classes_and_scores_by_hand(full: Predictor) -> None:
    # Channels: background, bowl, cat, cup, dining table. Left a cup, right background; the others win nowhere.
    halves = answering(full, [0.2, 0.1, 0.1, 0.6, 0.0], [0.6, 0.0, 0.0, 0.2, 0.2])
    result = halves.segment(photo(), halves.segment_options())
    assert [each.name for each in result.classes] == ["cup"]
    assert result.classes[0].area == pytest.approx(0.5, abs=0.05)
    assert result.classes[0].alignment_class is not None
    # Probabilities as they were, whatever became of the other classes.
    assert result.scores[0, 32, 0] == pytest.approx(0.6, abs=1e-3)
    assert result.scores[0, 32, 63] == pytest.approx(0.2, abs=1e-3)
    assert result.background is not None
    assert result.background[32, 0] == pytest.approx(0.2, abs=1e-3)
    assert result.label_map[30, 0] == 7
    assert result.label_map[30, 79] == 0
    assert result.confidence[30, 79] == pytest.approx(0.6, abs=1e-3)
    doubtful = halves.segment(photo(), halves.segment_options(min_confidence=0.8))
    assert doubtful.ignored == 1
    assert [each.name for each in doubtful.classes] == ["cup"]


def test_nothing_found_is_all_background(full: Predictor, tmp_path: Path) -> None:
    empty = answering(full, [0.6, 0.1, 0.1, 0.1, 0.1])
    for refine in ("none", "pamr"):
        result = empty.segment(photo(), empty.segment_options(refine=refine))
        assert not result.label_map.any()
        assert result.classes == ()
        assert result.scores.shape == (0, 64, 64)
        assert result.ignored == 0
        assert result.confidence[0, 0] == pytest.approx(0.6, abs=1e-3)
    (tmp_path / "scores.npz").write_bytes(scores_npz(result))
    assert read_soft_maps(tmp_path / "scores.npz").names == ()


def test_stored_scores_give_the_fresh_result(full: Predictor, tmp_path: Path) -> None:
    first = full.segment(photo(), full.segment_options(refine="pamr"))
    other = full.segment_options(refine="pamr", min_confidence=0.5)
    fresh = full.segment(photo(), other)
    (tmp_path / "scores.npz").write_bytes(scores_npz(first))
    again = decide(read_soft_maps(tmp_path / "scores.npz"), other)
    assert np.array_equal(again.label_map, fresh.label_map)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 5), (333, 1)])
def test_odd_sizes(full: Predictor, size: tuple[int, int]) -> None:
    made = full.pseudo_mask(photo(*size), ["cat"], full.options())
    found = full.segment(photo(*size), full.segment_options())
    assert made.label_map.shape == found.label_map.shape == size


def test_wrong_input_without_labels(full: Predictor, tiny_bundle: Path) -> None:
    with pytest.raises(ValueError, match=r"expected an image \(H, W, 3\) uint8"):
        full.segment(photo()[..., 0], full.segment_options())
    with pytest.raises(ValueError, match="expected one of none, pamr"):
        full.segment_options(refine="magic")
    without = Predictor(load_bundle(tiny_bundle, device=CPU))
    with pytest.raises(CannotSegmentError, match="expected a bundle with a segmenter, got 'tiny'"):
        without.segment_options()
    with pytest.raises(CannotSegmentError):
        without.segment(photo(), full.segment_options())


def test_bundles_say_whether_they_can(tiny_segmenter_bundle: Path, tiny_bundle: Path) -> None:
    able, unable = (read_info(path) for path in (tiny_segmenter_bundle, tiny_bundle))
    assert (able.can_segment, unable.can_segment) == (True, False)
    assert able.to_json()["segment"] == {"refine": "none", "min_confidence": 0.0}
    assert unable.to_json()["segment"] is None
    assert "segmenter" not in able.to_json()
    assert load_bundle(tiny_bundle, device=CPU).segmenter is None


def test_older_manifests_load(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    text = (copy / "bundle.yaml").read_text()
    older = text.replace("segmenter: null\n", "").replace("segment: null\n", "")
    assert older != text
    (copy / "bundle.yaml").write_text(older)
    assert load_bundle(copy, device=CPU).segmenter is None


def test_its_segmenter_is_what_was_trained(tiny_segmenter_bundle: Path) -> None:
    segmenter = load_bundle(tiny_segmenter_bundle, device=CPU).segmenter
    assert segmenter is not None
    assert not segmenter.training
    assert not any(each.requires_grad for each in segmenter.parameters())
    stored = load_file(tiny_segmenter_bundle / "segmenter.safetensors")
    assert all(value.dtype == torch.float16 for value in stored.values() if value.ndim > 1)
    for name, tensor in segmenter.state_dict().items():
        torch.testing.assert_close(tensor, stored[name].to(tensor.dtype))


def test_manifests_that_do_not_fit_the_segmenter_are_refused(tiny_segmenter_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_segmenter_bundle, tmp_path / "copy"))
    manifest = copy / "bundle.yaml"
    text = manifest.read_text()
    manifest.write_text(text.replace("decoder: fpn", "decoder: unet"))
    with pytest.raises(BundleError, match="expected weights that fit"):
        load_bundle(copy, device=CPU)
    manifest.write_text(text[: text.index("segment:\n")] + text[text.index("metrics:") :])
    with pytest.raises(BundleError, match="expected segmenter and segment together"):
        read_info(copy)


def test_a_bundle_can_leave_it_out(tiny_run: Run, tiny_segmenter_bundle: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(tiny_run.work, work)
    (work / "train-segmenter").mkdir()
    for name in ("segmenter.safetensors", "segmenter.json"):
        (work / "train-segmenter" / name).write_bytes(b"not looked at")
    info = export_bundle(
        replace(tiny_run, work=work), tmp_path / "out", stage="refine-generator", licence="CC0",
        trained_on="squares", parts=(),
    )  # fmt: skip
    assert not info.can_segment
    assert not (tmp_path / "out" / "segmenter.safetensors").exists()
