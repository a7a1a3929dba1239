import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SamConfig, SamImageProcessor, SamModel

from models.bundle.bundle import Bundle, load_bundle
from models.inference.postprocess import _match_range, _power_background
from models.inference.predictor import Predictor
from models.refine import RefinerContext, build_refiner
from models.refine.regions import Regions, _from_masks, _partition, _SamProposals, _vote, load_sam, superpixels
from tests.conftest import CPU

SCORES = torch.tensor([[[0.9, 0.5, 0.1, 0.0]], [[0.0, 0.2, 0.4, 0.8]]])


def vote(scores: Tensor, regions: Regions) -> Tensor:
    """Vote without a background."""
    return _vote(scores, regions, lambda maps: torch.zeros(maps.shape[1:]))


def test_a_partition_by_hand() -> None:
    voted = vote(SCORES, _partition(torch.tensor([[7, 7, 2, 2]])))
    expected = torch.tensor([[[0.7, 0.7, 0.05, 0.05]], [[0.1, 0.1, 0.6, 0.6]]])
    torch.testing.assert_close(voted, expected)


def test_the_more_confident_region_paints_over_the_less() -> None:
    masks = torch.tensor([[[True, True, True, True]], [[True, False, False, False]]])
    expected = torch.tensor([[[0.9, 0.375, 0.375, 0.375]], [[0.0, 0.35, 0.35, 0.35]]])
    torch.testing.assert_close(vote(SCORES, _from_masks(masks)), expected)
    torch.testing.assert_close(vote(SCORES, _from_masks(masks.flip(0))), expected)


def test_sure_background_paints_over_an_unsure_object() -> None:
    scores = torch.tensor([[[0.5, 0.0, 0.0, 0.0]]])
    # The first two pixels may be an object of 0.25; all but the first are surely background.
    regions = _from_masks(torch.tensor([[[True, True, False, False]], [[False, True, True, True]]]))
    found = _vote(scores, regions, lambda maps: 1 - maps.amax(dim=0))
    torch.testing.assert_close(found, torch.tensor([[[0.25, 0.0, 0.0, 0.0]]]))
    torch.testing.assert_close(vote(scores, regions), torch.tensor([[[0.25, 0.25, 0.0, 0.0]]]))


def test_pixels_without_a_region_keep_their_scores() -> None:
    masks = torch.tensor([[[False, True, True, False]], [[False] * 4]])
    expected = torch.tensor([[[0.9, 0.3, 0.3, 0.0]], [[0.0, 0.3, 0.3, 0.8]]])
    torch.testing.assert_close(vote(SCORES, _from_masks(masks)), expected)


def test_without_regions_nothing_changes() -> None:
    nothing = Regions(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(vote(SCORES, nothing), SCORES)


def test_numbers_say_whose_pixel_it_is() -> None:
    regions = _from_masks(torch.tensor([[[True, True, False]], [[False, True, True]]]))
    assert regions.pixels.tolist() == [0, 1, 1, 2]
    assert regions.numbers().tolist() == [0, 0, 1, 1]


def test_superpixels_follow_colors() -> None:
    image = torch.zeros(3, 40, 60)
    image[:, :, 30:] = 1
    regions = superpixels(image)
    assert len(regions.offsets) == 2
    left = set(regions.pixels[: regions.offsets[1]].tolist())
    assert left == {60 * row + column for row in range(40) for column in range(30)}


def test_superpixels_cover_the_image_once() -> None:
    regions = superpixels(torch.rand(3, 32, 48))
    assert sorted(regions.pixels.tolist()) == list(range(32 * 48))


PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
LAYER = {"num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 16}
IMAGE = {"image_size": 64, "window_size": 0, "global_attn_indexes": [0], "num_pos_feats": 4}
CONFIG = SamConfig(
    vision_config={**LAYER, **IMAGE, "hidden_size": 16, "output_channels": 8},
    prompt_encoder_config={"hidden_size": 8, "image_size": 64, "mask_input_channels": 4},
    mask_decoder_config={**LAYER, "hidden_size": 8, "iou_head_hidden_dim": 8},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random SAM that is sure of its masks."""
    torch.manual_seed(0)
    model = SamModel(CONFIG)
    decoder = model.mask_decoder
    with torch.no_grad():
        # As the library draws them, all logits and qualities are near 0, which SAM's thresholds refuse.
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(0, 1)
        for each in decoder.output_hypernetworks_mlps:
            each.proj_out.weight.mul_(100)
        decoder.iou_prediction_head.proj_out.weight.mul_(0.01)
        decoder.iou_prediction_head.proj_out.bias.fill_(1)
    path = tmp_path_factory.mktemp("sam")
    model.save_pretrained(path)
    side, small = {"height": 64, "width": 64}, {"height": 16, "width": 16}
    processor = SamImageProcessor(
        size={"longest_edge": 64}, pad_size=side, mask_size={"longest_edge": 16}, mask_pad_size=small
    )
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sam(folder: Path) -> _SamProposals:
    return replace(load_sam(str(folder), device=CPU), points_per_side=6)


def equal(one: Regions, two: Regions) -> bool:
    return torch.equal(one.pixels, two.pixels) and torch.equal(one.offsets, two.offsets)


def photo(height: int = 40, width: int = 60) -> Tensor:
    return torch.rand(3, height, width)


@pytest.mark.parametrize("size", [(40, 60), (64, 32), (3, 4), (1, 1), (96, 160)])
def test_regions_are_pixels_of_the_image(sam: _SamProposals, size: tuple[int, int]) -> None:
    regions = sam(photo(*size))
    assert len(regions.offsets)
    assert regions.pixels.dtype == regions.offsets.dtype == torch.int64
    assert regions.pixels.min() >= 0
    assert regions.pixels.max() < size[0] * size[1]
    # None is empty, and none has a pixel twice.
    assert regions.numbers().bincount().min() > 0
    entries = torch.stack([regions.numbers(), regions.pixels])
    assert len(entries.unique(dim=1)[0]) == len(regions.pixels)


def test_the_same_image_gives_the_same_regions(folder: Path, sam: _SamProposals) -> None:
    image = photo()
    first = sam(image)
    assert equal(first, sam(image))
    assert equal(first, sam(image.double()))
    again = replace(load_sam(str(folder), device=CPU), points_per_side=6)
    assert equal(first, again(image))
    with torch.inference_mode():
        assert equal(first, sam(image))


def test_masks_that_sam_doubts_are_left_out(sam: _SamProposals) -> None:
    image, scores = photo(), torch.rand(2, 40, 60)
    doubting = replace(sam, min_quality=2.0)(image)
    assert len(doubting.pixels) == len(doubting.offsets) == 0
    assert torch.equal(vote(scores, doubting), scores)


def test_overlapping_masks_are_dropped(sam: _SamProposals) -> None:
    image = photo()
    assert len(sam(image).offsets) < len(replace(sam, max_overlap=1.0)(image).offsets)


def test_region_vote_takes_them(sam: _SamProposals) -> None:
    image, scores = photo()[None], torch.rand(1, 2, 40, 60)
    context = RefinerContext(lambda images: images, _power_background(0.4), sam, _match_range, 0.4)
    refined = build_refiner("region_vote", context)(image, scores)
    assert torch.equal(refined[0], _vote(scores[0], sam(image[0]), _power_background(0.4)))
    assert not torch.equal(refined, scores)


def with_sam(bundle: Bundle, name: str) -> Bundle:
    inference = bundle.info.inference.model_copy(update={"sam": name})
    return replace(bundle, info=bundle.info.model_copy(update={"inference": inference}))


def test_a_bundle_can_ask_for_sam(tiny_bundle: Path, folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle, device=CPU)
    copy = shutil.copytree(folder, tmp_path / "sam")
    predictor, plain = Predictor(with_sam(bundle, str(copy))), Predictor(bundle)
    shutil.rmtree(copy)  # it is loaded once, not for every image
    options = predictor.options(refine="region_vote")
    voted = predictor.pseudo_mask(PIXELS, ["cat"], options)
    other = plain.pseudo_mask(PIXELS, ["cat"], options)
    assert np.array_equal(voted.cams, other.cams)
    assert not np.array_equal(voted.scores, other.scores)


def test_a_bundle_whose_sam_is_missing_gives_no_predictor(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle, device=CPU)
    with pytest.raises(ValueError, match="expected a SAM in"):
        Predictor(with_sam(bundle, str(tmp_path)))


TENSOR, TENSORS = "mask_decoder.mask_tokens.weight", r"of its \d+ tensors"


def configure(folder: Path, content: object) -> None:
    (folder / "config.json").write_text(json.dumps(content))


def put_in_place(folder: Path, changed: dict[str, Tensor]) -> None:
    rest = load_file(folder / "model.safetensors")
    del rest[TENSOR]
    save_file({**rest, **changed}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "header"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
        (lambda folder: configure(folder, {"vision_config": {"hidden_size": "a"}}), "hidden_size"),
        (lambda folder: configure(folder, {"model_type": "swin"}), rf"without \d+ {TENSORS}"),
        (lambda folder: put_in_place(folder, {}), f"without 1 {TENSORS}"),
        (lambda folder: put_in_place(folder, {TENSOR: torch.ones(2)}), f"without 1 {TENSORS}"),
    ],
)
def test_what_is_no_sam_is_refused_in_one_line(
    folder: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "sam")
    damage(copy)
    with pytest.raises(ValueError, match=f"^expected a SAM in '{copy}'.*{message}.*$") as caught:
        load_sam(str(copy), device=CPU)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected a SAM in '{tmp_path}/none'"):
        load_sam(f"{tmp_path}/none", device=CPU)


def test_without_transformers_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="expected the package transformers for SAM, got none"):
        load_sam("anything", device=CPU)


def test_without_a_sam_transformers_is_not_needed(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    predictor = Predictor(load_bundle(tiny_bundle, device=CPU))
    options = predictor.options(refine="region_vote")
    assert predictor.pseudo_mask(PIXELS, ["cat"], options).scores.shape == (1, 64, 64)
