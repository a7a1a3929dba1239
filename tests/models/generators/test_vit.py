import torch
from torch import Tensor, nn

from models.generators.vit import _draw_attention
from models.generators.weaktr import WeakTrGenerator
from models.weaktr_sizes import WeakTrSizes

WIDTH = 48


def attention(heads: int) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    qkv, proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
    _draw_attention(qkv, proj, heads=heads)
    return qkv, proj


def test_the_products_are_the_identity_and_noise() -> None:
    qkv, proj = attention(heads=1)
    queries, keys, values = qkv.weight.detach().chunk(3)
    for product, expected in ((queries.T @ keys, 0.7), (proj.weight.detach() @ values, -0.4)):
        noise = product - expected * torch.eye(WIDTH)
        # Noise of variance 1 / C a number, times the strength of the identity.
        assert abs(noise.std().item() / abs(expected) * WIDTH**0.5 - 1) < 0.1
        assert abs(product.diagonal().mean().item() - expected) < 0.1
    assert not qkv.bias.any()
    assert not proj.bias.any()


def test_each_head_looks_for_what_is_alike() -> None:
    qkv, _ = attention(heads=4)
    tokens = torch.randn(64, WIDTH)
    queries, keys, _ = qkv(tokens).detach().chunk(3, dim=1)
    for query, key in zip(queries.chunk(4, dim=1), keys.chunk(4, dim=1), strict=True):
        to_itself = (query @ key.T / query.shape[1] ** 0.5).softmax(dim=1).diagonal()
        assert to_itself.mean() > 4 / 64  # 1 / 64 if it looked everywhere alike


def test_a_fresh_weaktr_keeps_like_places_together() -> None:
    """Left half black, right half white: a place's attention stays in its own half."""
    torch.manual_seed(0)
    sizes = WeakTrSizes(native_size=64, patch=8, width=48, depth=2, heads=3)
    generator = WeakTrGenerator(sizes, classes=3).eval()
    generator.draw_weights()
    image = torch.zeros(1, 3, 64, 64)
    image[..., 32:] = 1
    with torch.no_grad():
        affinity: Tensor = generator.affinity(generator.features(image))[0]
    left = affinity[:, :4].sum(dim=(0, 1))
    assert (left[:, :4].sum() / left.sum()).item() > 0.6
