import pytest
import timm
import torch

import models.backbones  # noqa: F401 (registers the network)

NAME = "efficientnet_lite0_lite2"


@pytest.fixture(scope="module")
def pair() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=0, global_pool="", output_stride=32).eval()


def test_features_of_both_stand_side_by_side(pair: torch.nn.Module) -> None:
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        maps = pair(images)
        alone = [each.forward_features(images) for each in pair.networks.values()]
    assert maps.shape == (2, pair.num_features, 2, 3)
    assert torch.equal(maps, torch.cat(alone, dim=1))


def test_earlier_stages_are_those_that_feature_info_names(pair: torch.nn.Module) -> None:
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        last, stages = pair.forward_intermediates(images, indices=[2, 3])
        assert torch.equal(last, pair(images))
    for stage, number in zip(stages, (2, 3), strict=True):
        info = pair.feature_info[number]
        assert stage.shape == (1, info["num_chs"], 64 // info["reduction"], 96 // info["reduction"])


def test_pooled_output_is_the_mean_over_places(pair: torch.nn.Module) -> None:
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps = pair(images)
        pair.reset_classifier(0, global_pool="avg")
        pooled = pair(images)
        pair.reset_classifier(0, global_pool="")
    torch.testing.assert_close(pooled, maps.mean(dim=(2, 3)))


def test_a_segmenter_gets_the_levels_of_both() -> None:
    levels = timm.create_model(NAME, features_only=True, out_indices=(3, 4)).eval()
    widths = [
        timm.create_model(f"tf_efficientnet_lite{number}", features_only=True).feature_info.channels()[3:]
        for number in (0, 2)
    ]
    with torch.no_grad():
        fine, coarse = levels(torch.rand(1, 3, 64, 64))
    assert levels.feature_info.channels() == [sum(each) for each in zip(*widths, strict=True)]
    assert levels.feature_info.reduction() == [16, 32]
    assert fine.shape == (1, levels.feature_info.channels()[0], 4, 4)
    assert coarse.shape == (1, levels.feature_info.channels()[1], 2, 2)


def test_weights_of_timm_and_classifiers_are_refused(pair: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match=f"expected weights for {NAME} from a CLIP or a bundle"):
        timm.create_model(NAME, pretrained=True)
    with pytest.raises(ValueError, match=r"expected average pooling or none, and no classifier, .* and 10 classes"):
        pair.reset_classifier(10)
