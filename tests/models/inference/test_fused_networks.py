from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.bundle.bundle import load_bundle
from models.generators.cnn import cnn_generator
from models.inference.predictor import (
    PRECISIONS,
    LabeledImage,
    Predictor,
    UnlabeledImage,
    _fuse_network,
    autocast,
    fuse_batch_norms,
)
from models.refine import REFINERS
from models.segmenters.encoder_decoder import build_encoder_decoder
from tests.conftest import CPU
from worker.__main__ import _load_predictor
from worker.settings import WorkerSettings


def run(network: nn.Module) -> Tensor:
    torch.manual_seed(1)
    out: Tensor = network(torch.rand(2, 3, 64, 96))
    return out


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def trained(network: nn.Module) -> nn.Module:
    """Batch norms that do something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval().requires_grad_(False)


def generator(backbone: str) -> nn.Module:
    return cnn_generator(backbone, classes=3, pretrained=False, output_stride=16, generator=torch.Generator())


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda: generator("test_efficientnet"), 0),
        (lambda: generator("resnet18"), 0),
        (lambda: generator("test_vit"), 0),
        (lambda: build_encoder_decoder("fpn", "test_efficientnet", classes=3), 0),
        (lambda: build_encoder_decoder("unet", "resnet18", classes=3), 0),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)), 1),
    ],
)
def test_the_same_comes_out(build: Callable[[], nn.Module], left: int) -> None:
    network = trained(build())
    state = {name: value.clone() for name, value in network.state_dict().items()}
    before, count = run(network), norms(network)
    changed = _fuse_network(network, run)
    assert norms(changed) == left
    assert (changed is network) == (count == 0)
    torch.testing.assert_close(run(changed), before, atol=1e-5, rtol=1e-4)
    assert norms(network) == count
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in changed.modules())


class Twice(nn.Module):
    """A convolution whose output goes to a batch norm, and elsewhere too."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.other = way, nn.Identity()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        output = self.convolution(images)
        if self.way == "run twice":
            output = output[..., :4, :4] + self.convolution(images[..., :6, :6])
        normed: Tensor = self.norm(output)
        if self.way == "read by a module":
            normed = normed + self.other(output)
        return normed + output if self.way == "read by a sum" else normed


@pytest.mark.parametrize("way", ["run twice", "read by a module", "read by a sum"])
def test_a_convolution_that_others_read_keeps_its_batch_norm(way: str) -> None:
    network = trained(Twice(way))
    assert norms(_fuse_network(network, run)) == 1


def test_a_batch_norm_that_learns_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    assert norms(_fuse_network(network, run)) == 1
    untracked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert norms(_fuse_network(untracked.eval(), run)) == 1


def test_a_predictor_with_fused_networks_gives_the_same(tiny_segmenter_bundle: Path) -> None:
    bundle = load_bundle(tiny_segmenter_bundle, device=CPU)
    small = fuse_batch_norms(bundle)
    for network in (small.generator, small.image_tower, small.segmenter):
        assert network is not None
        assert norms(network) == 0
    predictor, plain = Predictor(bundle), Predictor(bundle)
    plain.bundle = bundle
    assert norms(predictor.bundle.generator) == 0
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    options = predictor.options(background_threshold=0.3)
    pairs = (
        [each.pseudo_mask(image, ["cat", "cup"], options) for each in (predictor, plain)],
        [each.segment(image, predictor.segment_options()) for each in (predictor, plain)],
    )
    for one, two in pairs:
        assert (one.label_map == two.label_map).mean() >= 0.9999
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-3)
        for ours, theirs in zip(one.classes, two.classes, strict=True):
            assert ours.alignment_class == pytest.approx(theirs.alignment_class, abs=1e-5)


LOWER = [name for name in PRECISIONS if name != "float32"]
CHAIN = "random_walk+pamr+region_vote"


@pytest.fixture(scope="module")
def full(tiny_segmenter_bundle: Path) -> Predictor:
    return Predictor(load_bundle(tiny_segmenter_bundle, device=CPU))


@pytest.fixture(scope="module", params=LOWER)
def lower(tiny_segmenter_bundle: Path, request: pytest.FixtureRequest) -> Predictor:
    return Predictor(load_bundle(tiny_segmenter_bundle, device=CPU), precision=request.param)


def photos() -> NDArray[np.uint8]:
    """Squares on a noisy ground, as the tiny bundle was trained on."""
    pixels = np.random.default_rng(0).integers(0, 80, (3, 60, 80, 3), dtype=np.uint8)
    pixels[:, 15:45, 20:60, 1] = 220
    return pixels


@pytest.mark.parametrize("refine", ["none", *REFINERS, CHAIN])
def test_masks_of_lower_precision_are_alike(full: Predictor, lower: Predictor, refine: str) -> None:
    options = full.options(refine=refine)
    batch = [LabeledImage(each, ["cat", "cup"], options) for each in photos()]
    for one, two in zip(full.pseudo_masks(batch), lower.pseudo_masks(batch), strict=True):
        assert two.scores.dtype == two.confidence.dtype == np.float16
        assert not np.array_equal(one.cams, two.cams)
        np.testing.assert_allclose(two.cams, one.cams, atol=0.1)
        # A weak network, whose CAMs are stretched.
        assert (one.label_map == two.label_map).mean() >= 0.9


@pytest.mark.parametrize("refine", ["none", CHAIN])
def test_segments_of_lower_precision_are_alike(full: Predictor, lower: Predictor, refine: str) -> None:
    batch = [UnlabeledImage(each, full.segment_options(refine=refine)) for each in photos()]
    for one, two in zip(full.segments(batch), lower.segments(batch), strict=True):
        assert (one.label_map == two.label_map).mean() >= 0.9


def test_networks_give_lower_precision_and_refiners_get_single(lower: Predictor) -> None:
    seen: list[torch.dtype] = []
    handle = lower.bundle.generator.head.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.dtype)
    )
    batch = [LabeledImage(each, ["cat"], lower.options(refine=CHAIN)) for each in photos()]
    try:
        outputs = lower.forward_cam(batch)
    finally:
        handle.remove()
    assert seen
    assert set(seen) <= {torch.bfloat16, torch.float16}
    for each in outputs:
        assert each.maps.dtype == torch.float32
        assert each.refiner_inputs.features is not None
        assert each.refiner_inputs.features.dtype == torch.float32


def test_a_batch_equals_its_images_alone(lower: Predictor) -> None:
    batch = [LabeledImage(each, ["cat"], lower.options()) for each in photos()]
    for each, made in zip(batch, lower.pseudo_masks(batch), strict=True):
        alone = lower.pseudo_mask(each.image, each.labels, each.options)
        assert (made.label_map == alone.label_map).mean() >= 0.99


def test_an_unknown_precision_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a precision of float32, .*, got 'int8'"):
        Predictor(load_bundle(tiny_bundle, device=CPU), precision="int8")


def test_single_precision_is_left_alone() -> None:
    with autocast("float32", device=CPU):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("bfloat16", device=CPU):
        assert torch.is_autocast_enabled("cpu")


def test_a_worker_takes_the_precision(tiny_bundle: Path) -> None:
    settings = WorkerSettings(
        redis_url="unix:///none", blobs="none", bundle=str(tiny_bundle), device="cpu", precision="bfloat16"
    )
    predictor = _load_predictor(settings)
    single = Predictor(load_bundle(tiny_bundle, device=CPU))
    image = LabeledImage(photos()[0], ["cat"], single.options(refine="none"))
    one, two = (each.pseudo_masks([image])[0] for each in (predictor, single))
    assert not np.array_equal(one.cams, two.cams)
