from collections.abc import Callable
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.clip import FrozenClip
from models.config import Decoder
from models.generators.cnn import cnn_generator, zero_shot_generator
from models.generators.weaktr import WeakTrGenerator
from models.segmenters import Segmenter, pixel_loss
from models.segmenters.encoder_decoder import build_encoder_decoder
from models.segmenters.mask2former import _mask_targets, build_mask2former
from models.segmenters.on_features import build_feature_segmenter
from models.weaktr_sizes import WeakTrSizes
from tests.helpers.networks import TINY_MASK2FORMER

K = 3


def light() -> Segmenter:
    return build_encoder_decoder("fpn", "test_efficientnet", classes=K)


def mask2former() -> Segmenter:
    return build_mask2former(TINY_MASK2FORMER, classes=K)


def on_features() -> Segmenter:
    generator = torch.Generator().manual_seed(0)
    seen = cnn_generator("test_resnet", classes=K, pretrained=False, output_stride=16, generator=generator)
    return build_feature_segmenter(seen.eval().requires_grad_(False), classes=K, width=16)


every = pytest.mark.parametrize("build", [light, mask2former, on_features])


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 96)


@pytest.fixture
def label_maps() -> Tensor:
    maps = torch.zeros(2, 64, 96, dtype=torch.int64)
    maps[0, 10:40, 20:70] = 1
    maps[1, 10:40, 20:70] = 3
    return maps


@every
def test_probabilities(build: Callable[[], Segmenter], images: Tensor) -> None:
    segmenter = build().eval()
    with torch.no_grad():
        found = segmenter(images)
    stride = 16 if build is on_features else 4
    assert found.shape == (2, K + 1, 64 // stride, 96 // stride)
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2, 64 // stride, 96 // stride))


@every
def test_it_learns_a_picture(build: Callable[[], Segmenter], images: Tensor, label_maps: Tensor) -> None:
    segmenter = build().train()
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = torch.stack(list(segmenter.loss(images, label_maps).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@every
def test_images_without_any_label_teach_nothing(
    build: Callable[[], Segmenter], images: Tensor, label_maps: Tensor
) -> None:
    segmenter = build().eval()
    nothing = segmenter.loss(images, torch.full_like(label_maps, 255))
    total = torch.stack(list(nothing.values())).sum()
    total.backward()
    assert total.item() == 0
    assert not any(each.grad.any() for each in segmenter.parameters() if each.grad is not None)


def test_features_of_both_stages_are_decoded_on_the_finer_grid(tiny_clip: FrozenClip) -> None:
    generator = zero_shot_generator(tiny_clip, tiny_clip.embed_classes(["cat", "bowl", "cup"]), output_stride=32)
    segmenter = build_feature_segmenter(generator.requires_grad_(False), classes=K, width=16)
    assert len(segmenter.norms) == 2
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found = segmenter.eval()(images)
        assert torch.equal(segmenter.decode(generator.features(images)), found)
    assert found.shape == (2, K + 1, 4, 6)
    segmenter.train().loss(images, torch.ones(2, 64, 96, dtype=torch.int64))["cross_entropy"].backward()
    assert all(each.weight.grad is not None for each in segmenter.inputs)
    assert not any(each.grad is not None for each in generator.parameters())


def test_only_a_convolutional_generator_has_features_to_decode() -> None:
    weaktr = WeakTrGenerator(WeakTrSizes(native_size=64, width=48, depth=2, heads=3), classes=K)
    with pytest.raises(ValueError, match=r"expected a convolutional mask generator .* got a WeakTrGenerator"):
        build_feature_segmenter(weaktr, classes=K, width=16)


def test_light_gets_no_gradient_from_ignored_pixels(images: Tensor, label_maps: Tensor) -> None:
    segmenter = light().eval()
    gradients: list[Tensor] = []

    def watch(_: object, __: object, logits: Tensor) -> None:
        logits.register_hook(gradients.append)

    segmenter.network.register_forward_hook(watch)
    label_maps[:, 32:] = 255
    segmenter.loss(images, label_maps)["cross_entropy"].backward()
    touched = gradients[0].abs().sum(dim=(0, 1, 3)) > 0
    # Of the ignored rows only the first is touched, since logits are stretched over the border.
    assert touched.tolist() == [True] * 9 + [False] * 7


def test_mask2former_gets_no_gradient_from_ignored_cells(images: Tensor, label_maps: Tensor) -> None:
    segmenter = mask2former().eval()
    seen: list[Tensor] = []
    decide = segmenter.network.get_loss_dict

    def watch(**kwargs: object) -> object:
        seen.append(kwargs["masks_queries_logits"])
        return decide(**kwargs)

    segmenter.network.get_loss_dict = watch
    label_maps[:, 32:] = 255
    outputs: list[Tensor] = []
    segmenter.network.register_forward_hook(lambda *given: outputs.append(given[-1].masks_queries_logits))
    segmenter.loss(images, label_maps)
    # Below, the loss sees a constant; above, what the network says.
    assert (seen[0][..., 8:, :] == -10).all()
    assert torch.equal(seen[0][..., :8, :], outputs[0][..., :8, :])


def test_mask_targets_by_hand() -> None:
    label_map = torch.tensor([[0, 0, 2, 255], [0, 2, 2, 255], [255, 255, 1, 0], [255, 255, 0, 0]])
    masks, channels = _mask_targets(label_map, size=(2, 2))
    assert channels.tolist() == [0, 1, 2]
    expected = [[[0.75, 0], [0, 0.75]], [[0, 0], [0, 0.25]], [[0.25, 1], [0, 0]]]
    assert masks.tolist() == expected
    none, empty = _mask_targets(torch.full((4, 4), 255), size=(2, 2))
    assert (none.shape, empty.shape) == ((0, 2, 2), (0,))


@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_every_decoder_answers(decoder: str, images: Tensor) -> None:
    segmenter = build_encoder_decoder(decoder, "test_efficientnet", classes=K).eval()
    with torch.no_grad():
        found = segmenter(images)
    assert found.shape[:2] == (2, K + 1)
    torch.testing.assert_close(found.sum(dim=1), torch.ones_like(found[:, 0]))


def test_backbone_starts_from_a_trunk(tiny_clip: FrozenClip) -> None:
    trunk = tiny_clip.visual.trunk
    segmenter = build_encoder_decoder("fpn", "test_efficientnet", classes=K, trunk=trunk)
    expected = trunk.state_dict()
    for name, tensor in segmenter.backbone.model.state_dict().items():
        assert torch.equal(tensor, expected[name])
    with pytest.raises(ValueError, match="expected a trunk that is 'test_resnet'"):
        build_encoder_decoder("fpn", "test_resnet", classes=K, trunk=trunk)


def test_a_pretrained_encoder_keeps_its_statistics(tiny_clip: FrozenClip, images: Tensor, label_maps: Tensor) -> None:
    trunk = tiny_clip.visual.trunk
    segmenter = build_encoder_decoder("unet", "test_efficientnet", classes=K, trunk=trunk).train()
    before = {name: tensor.clone() for name, tensor in segmenter.named_buffers()}
    segmenter.loss(images, label_maps)
    moved = {name for name, tensor in segmenter.named_buffers() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("network.decoder") for name in moved)


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a timm backbone that fpn can stand on, got 'resnet1'"):
        build_encoder_decoder("fpn", "resnet1", classes=K)
    with pytest.raises(ValueError, match="expected a Mask2Former that transformers builds"):
        build_mask2former({**TINY_MASK2FORMER, "hidden_dim": "wide"}, classes=K)
    maps = torch.zeros(1, 64, 64, dtype=torch.int64)
    for options in ({"noise_aware": True}, {"class_weights": torch.ones(K + 1)}):
        with pytest.raises(ValueError, match="expected a segmenter with a loss of pixels for its options"):
            mask2former().loss(torch.rand(1, 3, 64, 64), maps, **options)  # type: ignore[arg-type]


def test_an_architecture_builds_the_same_network(images: Tensor) -> None:
    first = mask2former().eval()
    architecture = first.architecture
    assert "_name_or_path" not in str(architecture)
    again = build_mask2former(architecture, classes=K).eval()
    again.load_state_dict(first.state_dict())
    with torch.no_grad():
        assert torch.equal(first(images), again(images))


def test_mask2former_starts_from_a_backbone_or_a_whole(tmp_path: object, images: Tensor) -> None:
    first = mask2former().eval()
    first.network.save_pretrained(f"{tmp_path}/whole")
    first.network.model.pixel_level_module.encoder.save_pretrained(f"{tmp_path}/swin")
    # Another number of classes: all is kept but the class predictor.
    whole = build_mask2former({"num_queries": 6}, classes=7, weights=f"{tmp_path}/whole").eval()
    with torch.no_grad():
        assert whole(images).shape == (2, 8, 16, 24)
    assert equal_states(whole.backbone, first.backbone)
    rest = {key: value for key, value in TINY_MASK2FORMER.items() if key != "backbone_config"}
    swin = build_mask2former(rest, classes=K, weights=f"{tmp_path}/swin").eval()
    assert equal_states(swin.backbone, first.backbone)
    with torch.no_grad():
        assert swin(images).shape == (2, K + 1, 16, 24)


def equal_states(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_class_weights_multiply_the_loss_of_a_class() -> None:
    logits = torch.randn(1, K + 1, 4, 4, generator=torch.Generator().manual_seed(0))
    maps = torch.zeros(1, 4, 4, dtype=torch.int64)
    maps[0, :2] = 1
    pixels = F.cross_entropy(logits, maps, reduction="none")
    weights = torch.tensor([0.5, 3.0] + [1.0] * (K - 1))
    expected = (0.5 * pixels[0, 2:].sum() + 3 * pixels[0, :2].sum()) / 16
    assert pixel_loss(logits, maps, noise_aware=False, class_weights=weights)["cross_entropy"] == pytest.approx(
        expected
    )
