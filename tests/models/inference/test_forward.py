import pytest
import torch
from torch import Tensor

from models.inference.forward import _CachingGenerator


class Counting:
    def __init__(self) -> None:
        self.passes = 0

    def features(self, images: Tensor) -> Tensor:
        self.passes += 1
        return torch.nn.functional.avg_pool2d(images, 8)

    def cams(self, features: Tensor) -> Tensor:
        return features[:, :1]


@pytest.mark.parametrize(("size", "passes"), [(32, 2), (64, 3)])
def test_features_are_computed_once(size: int, passes: int) -> None:
    generator = Counting()
    caching = _CachingGenerator(generator, size=(size, size))
    images, larger = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 48, 48)
    for seen in (larger, images):
        expected = torch.nn.functional.avg_pool2d(seen, 8)[:, :1]
        made = caching(torch.cat([seen, seen.flip(-1)]))
        torch.testing.assert_close(made[:2], expected)
    other = images if size == 32 else torch.rand(2, 3, size, size)
    features = caching.features(other)
    torch.testing.assert_close(features, torch.nn.functional.avg_pool2d(other, 8))
    assert generator.passes == passes
