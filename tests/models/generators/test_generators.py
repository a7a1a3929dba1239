import pytest
import torch

from models.clip import FrozenClip, load_clip
from models.generators import MaskGenerator
from models.generators.clip_vit import ClipVitGenerator
from models.generators.cnn import (
    _EVIDENCE_SCALE,
    CnnGenerator,
    classifier_backbone,
    cnn_generator,
    detail_stage,
    text_initialized_head,
    zero_shot_generator,
)
from models.generators.weaktr import WeakTrGenerator
from models.weaktr_sizes import WeakTrSizes
from tests.helpers.vit import vit_generator

# test_vit cannot dilate: it keeps its own stride, which is 16
BACKBONES = ["test_efficientnet", "test_resnet", "test_convnext", "test_vit"]


def random_cnn(name: str) -> CnnGenerator:
    return cnn_generator(
        name, classes=3, pretrained=False, output_stride=16, generator=torch.Generator().manual_seed(0)
    ).eval()


@pytest.fixture(params=[*BACKBONES, "zero_shot", "weaktr", "clip_vit"])
def mask_generator(request: pytest.FixtureRequest, tiny_clip: FrozenClip) -> MaskGenerator:
    if request.param == "zero_shot":
        text = tiny_clip.embed_classes(["cat", "bowl", "cup"])
        return zero_shot_generator(tiny_clip, text, output_stride=16)
    if request.param == "weaktr":
        return WeakTrGenerator(WeakTrSizes(native_size=64, width=48, depth=2, heads=3), classes=3)
    if request.param == "clip_vit":
        return vit_generator()
    return random_cnn(request.param)


def test_contract(mask_generator: MaskGenerator) -> None:
    images = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cams = mask_generator(images)
        single = mask_generator(images[1:])
    assert cams.shape == (2, 3, 10, 10)
    assert cams.min() >= 0
    assert cams.max() > 0
    torch.testing.assert_close(cams[1:], single, atol=1e-5, rtol=1e-4)


def test_chosen_classes_alone(mask_generator: MaskGenerator) -> None:
    images, present = torch.rand(2, 3, 96, 160), torch.tensor([(1, 2), (0, 0), (1, 0)])
    with torch.no_grad():
        features = mask_generator.features(images)
        chosen = mask_generator.chosen_cams(features, present)
        torch.testing.assert_close(mask_generator.cams_of(images, present), chosen)
        if not isinstance(mask_generator, ClipVitGenerator):  # whose classes compete
            torch.testing.assert_close(chosen, mask_generator.cams(features)[present[:, 0], present[:, 1]])
    assert chosen.shape == (3, 6, 10)


def test_features_are_all_that_cams_and_affinity_need(mask_generator: MaskGenerator) -> None:
    images = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = mask_generator.features(images)
        affinity = mask_generator.affinity(features)
        assert torch.equal(mask_generator.cams(features), mask_generator(images))
        first = mask_generator.cams(features[:1])
    torch.testing.assert_close(first, mask_generator(images)[:1].detach())
    assert affinity.shape == (2, 6, 10, 6, 10)
    assert affinity.min() >= 0
    assert affinity.flatten(1).sum(dim=1).min() > 0
    torch.testing.assert_close(mask_generator.affinity(features[1:]), affinity[1:])


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "deit_tiny_patch16_224", "vgg11_bn"])
def test_families_that_dislike_other_sizes_or_dilation(name: str) -> None:
    with torch.no_grad():
        cams = random_cnn(name)(torch.rand(1, 3, 96, 128))
    assert cams.shape[:2] == (1, 3)
    assert cams.shape[2] * 4 == cams.shape[3] * 3


def seen_from_the_center(level: int) -> int:
    """Count the rows of an image on which the evidence at its center depends."""
    generator = cnn_generator(
        "test_resnet", classes=1, pretrained=False, output_stride=8,
        generator=torch.Generator().manual_seed(0), level=level,
    ).eval()  # fmt: skip
    image = torch.rand(1, 3, 96, 96, requires_grad=True)
    evidence = generator.logits(image)
    assert evidence.shape == (1, 1, 12, 12)
    evidence[0, 0, 6, 6].backward()
    assert image.grad is not None
    return int(image.grad.abs().sum(dim=(0, 1, 3)).count_nonzero())


def test_an_earlier_map_sees_less_around_a_place() -> None:
    assert seen_from_the_center(-2) < seen_from_the_center(-1)


def test_unknown_backbone() -> None:
    with pytest.raises(ValueError, match="expected a backbone that timm can build, got 'resnet-x'"):
        random_cnn("resnet-x")


def test_zero_shot_evidence_is_clips_score(tiny_clip: FrozenClip) -> None:
    """At CLIP's own stride, evidence averaged over space ranks classes as CLIP's embedding does."""
    text = tiny_clip.embed_classes(["cat", "bowl", "cup"])
    generator = zero_shot_generator(tiny_clip, text, output_stride=32)
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        evidence = generator.logits(images).mean(dim=(2, 3))
        scores = tiny_clip.visual(tiny_clip.normalize(images)) @ text.T
    ratio = evidence / scores
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-3, atol=0)
    norms = text_initialized_head(tiny_clip, text).norm(dim=1)
    assert norms.mean().item() == pytest.approx(_EVIDENCE_SCALE)


def test_zero_shot_needs_a_timm_trunk() -> None:
    clip = load_clip("RN50", None)
    with pytest.raises(ValueError, match="expected a CLIP whose image tower is a timm trunk"):
        zero_shot_generator(clip, torch.zeros(1, 1024), output_stride=16)


def test_affinity_is_on_the_grid_of_the_finer_stage(tiny_clip: FrozenClip) -> None:
    text = tiny_clip.embed_classes(["cat", "bowl", "cup"])
    generator = zero_shot_generator(tiny_clip, text, output_stride=32)
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = generator.features(images)
        affinity = generator.affinity(features)
        last, (fine,) = generator.backbone.forward_intermediates(generator.normalize(images), indices=[3])
        more = generator.cams(features, more=generator.head.weight[:2, :, 0, 0])
    assert generator(images).shape == (1, 3, 2, 3)
    assert affinity.shape == (1, 4, 6, 4, 6)
    assert torch.equal(more, torch.cat([generator(images), generator(images)[:, :2]], dim=1))
    # By hand: two places of the finer stage that point in opposite ways from its mean are not alike.
    centered = (fine - fine.mean(dim=(2, 3), keepdim=True)).flatten(2)[0]
    opposite = (centered.T @ centered) < 0
    assert (affinity.flatten(3).flatten(1, 2)[0][opposite] == 0).all()
    assert affinity.diagonal(dim1=1, dim2=3).diagonal(dim1=1, dim2=2).min() > 0.5
    assert generator.box_share == 0
    assert last.shape[-2:] == (2, 3)


@pytest.mark.parametrize(
    ("name", "stage"),
    [("test_efficientnet", 3), ("test_resnet", 3), ("test_convnext", None)],
)
@pytest.mark.parametrize("stride", [16, 32])
def test_the_finer_stage_is_before_the_last(name: str, stride: int, stage: int | None) -> None:
    """A ConvNeXt normalizes its last map once more, which ``forward_intermediates`` leaves out."""
    assert detail_stage(classifier_backbone(name, output_stride=stride)) == stage


def test_sides_of_crops_may_be_any(tiny_clip: FrozenClip) -> None:
    generator = zero_shot_generator(tiny_clip, tiny_clip.embed_classes(["cat"]), output_stride=32)
    assert generator(torch.rand(1, 3, 80, 112)).shape == (1, 1, 3, 4)
