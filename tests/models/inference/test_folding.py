from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.bundle.bundle import load_bundle
from models.generators.cnn import cnn_generator
from models.inference.optimize import fuse_batch_norms, fuse_network
from models.inference.predictor import Predictor
from models.segmenters.encoder_decoder import build_encoder_decoder
from tests.conftest import CPU


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
    return cnn_generator(
        backbone, classes=3, pretrained=False, output_stride=16, generator=torch.Generator()
    )


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
    changed = fuse_network(network, run)
    assert norms(changed) == left
    assert (changed is network) == (count == 0)
    torch.testing.assert_close(run(changed), before, atol=1e-5, rtol=1e-4)
    assert norms(network) == count
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in changed.modules())  # fmt: skip


class Twice(nn.Module):
    """What a convolution says goes to a batch norm, and by another way too."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.other = way, nn.Identity()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        said = self.convolution(images)
        if self.way == "run twice":
            said = said[..., :4, :4] + self.convolution(images[..., :6, :6])
        normed: Tensor = self.norm(said)
        if self.way == "read by a module":
            normed = normed + self.other(said)
        return normed + said if self.way == "read by a sum" else normed


@pytest.mark.parametrize("way", ["run twice", "read by a module", "read by a sum"])
def test_a_convolution_that_others_read_keeps_its_batch_norm(way: str) -> None:
    network = trained(Twice(way))
    assert norms(fuse_network(network, run)) == 1


def test_a_batch_norm_that_learns_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    assert norms(fuse_network(network, run)) == 1
    untracked = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert norms(fuse_network(untracked.eval(), run)) == 1


def test_a_predictor_works_with_less_and_says_the_same(tiny_segmenter_bundle: Path) -> None:
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
