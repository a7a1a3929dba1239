"""Segmenting without labels: bundles that can, the predictor, and what nothing found gives."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from models.bundle.bundle import BundleError, load_bundle, read_info
from models.data.mask_files import read_soft_maps, scores_npz
from models.inference.masks import decide
from models.inference.predictor import CannotSegmentError, Predictor
from models.segmenters import Segmenter
from models.training.export import export_bundle
from models.training.run import Run
from tests.conftest import CPU


class Fixed(Segmenter):
    """Answers one distribution everywhere, or another in the right half."""

    def __init__(self, left: list[float], right: list[float] | None = None) -> None:
        super().__init__(mean=(0, 0, 0), std=(1, 1, 1))
        self.left, self.right = torch.tensor(left), torch.tensor(right or left)

    @property
    def backbone(self) -> torch.nn.Module:
        return self

    def loss(self, images: Tensor, label_maps: Tensor, *, noise_aware: bool = False) -> dict[str, Tensor]:  # fmt: skip
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2] // 4, images.shape[-1] // 4
        half = torch.arange(width) >= width // 2
        rows = torch.where(half, self.right[:, None], self.left[:, None])
        return rows[None, :, None].expand(len(images), -1, height, -1)


def photo(height: int = 60, width: int = 80) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor(tiny_segmenter_bundle: Path) -> Predictor:
    return Predictor(load_bundle(tiny_segmenter_bundle, device=CPU))


def answering(predictor: Predictor, *distributions: list[float]) -> Predictor:
    bundle = predictor.bundle
    assert bundle.info.segment is not None
    still = bundle.info.segment.model_copy(update={"flip": False})
    info = bundle.info.model_copy(update={"segment": still})
    return Predictor(replace(bundle, info=info, segmenter=Fixed(*distributions)))


def test_a_segmentation_is_complete(predictor: Predictor) -> None:
    stages: list[tuple[str, float]] = []
    result = predictor.segment(
        photo(), predictor.segment_options(), on_progress=lambda *done: stages.append(done)
    )
    assert result.label_map.shape == result.confidence.shape == (60, 80)
    names = [each.name for each in result.classes]
    assert names == [each for each in predictor.info.classes.names if each in names]
    assert result.scores.shape == (len(names), 64, 64)
    assert result.scores.dtype == np.float16
    assert result.cams is None
    assert [stage for stage, _ in stages] == ["segment", "refine"]
    assert [share for _, share in stages] == sorted(share for _, share in stages)


def test_classes_and_scores_by_hand(predictor: Predictor) -> None:
    # Channels: background, bowl, cat, cup, dining table. Left a cup, right background; the others win nowhere.
    halves = answering(predictor, [0.2, 0.1, 0.1, 0.6, 0.0], [0.6, 0.0, 0.0, 0.2, 0.2])
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


def test_nothing_found_is_all_background(predictor: Predictor, tmp_path: Path) -> None:
    empty = answering(predictor, [0.6, 0.1, 0.1, 0.1, 0.1])
    for refine in ("none", "pamr"):
        result = empty.segment(photo(), empty.segment_options(refine=refine))
        assert not result.label_map.any()
        assert result.classes == ()
        assert result.scores.shape == (0, 64, 64)
        assert result.ignored == 0
        assert result.confidence[0, 0] == pytest.approx(0.6, abs=1e-3)
    (tmp_path / "scores.npz").write_bytes(scores_npz(result))
    assert read_soft_maps(tmp_path / "scores.npz").names == ()


def test_stored_scores_give_the_fresh_result(predictor: Predictor, tmp_path: Path) -> None:
    first = predictor.segment(photo(), predictor.segment_options(refine="pamr"))
    other = predictor.segment_options(refine="pamr", min_confidence=0.5)
    fresh = predictor.segment(photo(), other)
    (tmp_path / "scores.npz").write_bytes(scores_npz(first))
    again = decide(read_soft_maps(tmp_path / "scores.npz"), other)
    assert np.array_equal(again.label_map, fresh.label_map)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (7, 5), (333, 1)])
def test_odd_sizes(predictor: Predictor, size: tuple[int, int]) -> None:
    result = predictor.segment(photo(*size), predictor.segment_options())
    assert result.label_map.shape == size


def test_wrong_input(predictor: Predictor, tiny_bundle: Path) -> None:
    with pytest.raises(ValueError, match=r"expected an image \(H, W, 3\) uint8"):
        predictor.segment(photo()[..., 0], predictor.segment_options())
    with pytest.raises(ValueError, match="expected one of none, pamr"):
        predictor.segment_options(refine="magic")
    without = Predictor(load_bundle(tiny_bundle, device=CPU))
    with pytest.raises(CannotSegmentError, match="expected a bundle with a segmenter, got 'tiny'"):
        without.segment_options()
    with pytest.raises(CannotSegmentError):
        without.segment(photo(), predictor.segment_options())


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


def test_its_segmenter_is_what_was_trained(
    tiny_segmenter_bundle: Path,
) -> None:
    segmenter = load_bundle(tiny_segmenter_bundle, device=CPU).segmenter
    assert segmenter is not None
    assert not segmenter.training
    assert not any(each.requires_grad for each in segmenter.parameters())
    stored = load_file(tiny_segmenter_bundle / "segmenter.safetensors")
    assert all(value.dtype == torch.float16 for value in stored.values() if value.ndim > 1)
    for name, tensor in segmenter.state_dict().items():
        torch.testing.assert_close(tensor, stored[name].to(tensor.dtype))


def test_changed_or_missing_segmenters_are_refused(
    tiny_segmenter_bundle: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_segmenter_bundle, tmp_path / "copy"))
    weights = copy / "segmenter.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundleError, match=r"segmenter.safetensors with SHA-256"):
        load_bundle(copy, device=CPU)
    weights.unlink()
    with pytest.raises(BundleError, match=r"segmenter.safetensors"):
        load_bundle(copy, device=CPU)
    manifest = copy / "bundle.yaml"
    text = manifest.read_text()
    manifest.write_text(text.replace("decoder: fpn", "decoder: unet"))
    shutil.copy(tiny_segmenter_bundle / "segmenter.safetensors", weights)
    with pytest.raises(BundleError, match="expected weights that fit"):
        load_bundle(copy, device=CPU)
    manifest.write_text(text[: text.index("segment:\n")] + text[text.index("metrics:") :])
    with pytest.raises(BundleError, match="expected segmenter and segment together"):
        read_info(copy)


def test_a_bundle_can_leave_it_out(
    tiny_run: Run, tiny_segmenter_bundle: Path, tmp_path: Path
) -> None:
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
