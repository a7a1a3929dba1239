from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from models.generators.weaktr import WeakTrGenerator, _mean_attention
from models.training.generator import classification_losses
from models.weaktr_sizes import WeakTrSizes
from tests.conftest import CPU

TINY = WeakTrSizes(native_size=64, width=48, depth=3, heads=3, mlp_ratio=2, reduction=4, feature_reduction=4)
REFERENCE = {"max_64x64": TINY, "avg_96x64": TINY.model_copy(update={"pooling": "avg"})}


def tiny_weaktr(sizes: WeakTrSizes = TINY) -> WeakTrGenerator:
    torch.manual_seed(0)
    generator = WeakTrGenerator(sizes, classes=4)
    generator.draw_weights()
    return generator


@pytest.mark.parametrize("name", REFERENCE)
def test_it_is_the_public_implementation(shared: Path, name: str) -> None:
    """The first at its native size, the second at another."""
    stored = np.load(shared / "reference" / f"weaktr_{name}.npz")
    generator = WeakTrGenerator(REFERENCE[name], classes=4, mean=(0, 0, 0), std=(1, 1, 1))
    state = {key.removeprefix("state."): torch.from_numpy(stored[key]) for key in stored if key.startswith("state.")}
    generator.load_state_dict(state)
    images = torch.from_numpy(stored["image"])
    with torch.no_grad():
        features = generator.features(images)
        steps = generator.cam_steps(features)
        logits = generator.classifier_logits(images)
        found = {
            "class_token_logits": logits.class_token,
            "coarse_logits": logits.coarse,
            "fine_logits": logits.fine,
            "cam": steps.cam,
            "patch_affinity": generator.affinity(features).flatten(3).flatten(1, 2),
            "fine_cam": steps.fine_cam,
        }
        assert torch.equal(generator(images), steps.fine_cam)
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, torch.from_numpy(stored[key]), atol=1e-6, rtol=1e-5)


def test_images_are_normalized_as_in_its_training() -> None:
    plain = WeakTrGenerator(TINY, classes=4, mean=(0, 0, 0), std=(1, 1, 1))
    generator = tiny_weaktr()
    generator.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 64, 64)
    normalized = (images - generator.mean) / generator.std
    assert generator.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    torch.testing.assert_close(generator(images), plain(normalized))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (70, 95), (16, 16), (33, 160)])
def test_sizes_are_floored_to_whole_patches(height: int, width: int) -> None:
    generator, images = tiny_weaktr(), torch.rand(2, 3, height, width)
    grid = (height // 16, width // 16)
    with torch.no_grad():
        cams = generator(images)
        cropped = generator(images[:, :, : 16 * grid[0], : 16 * grid[1]])
    assert cams.shape == (2, 4, *grid)
    assert generator.affinity(generator.features(images)).shape == (2, *grid, *grid)
    assert torch.equal(cams, cropped)
    assert cams.min() >= 0


def test_images_below_a_patch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected images of at least 16 × 16, got \(12, 64\)"):
        tiny_weaktr()(torch.rand(1, 3, 12, 64))


def test_sizes_that_do_not_divide_are_refused() -> None:
    cases = (({"heads": 5}, "48 and 5, 16 and 64"), ({"width": 6}, "6 and 3, 16 and 64"))
    for changes, got in cases:
        message = f"a width that 4 and the heads divide, (?s:.*) got {got}"
        with pytest.raises(ValueError, match=message):
            WeakTrSizes(**TINY.model_dump() | changes)
    with pytest.raises(ValueError, match="'max' or 'avg'"):
        WeakTrSizes(pooling="mean")


def test_the_folded_mean_is_the_mean_of_the_stack() -> None:
    queries, keys = torch.rand(2, 3, 2, 4, 9, 5)  # blocks, images, heads, tokens, channels
    weights = torch.rand(2, 3, 4, requires_grad=True)
    maps = ((queries / 5**0.5) @ keys.transpose(-1, -2)).softmax(-1)
    expected = torch.einsum("bln,lbnij->bij", weights, maps) / 12
    found = _mean_attention(queries.unbind(), keys.unbind(), weights)
    torch.testing.assert_close(found, expected)
    toward = torch.rand(2, 9, 9)
    gradients = [torch.autograd.grad((mean * toward).sum(), weights) for mean in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_half_precision_keeps_small_attention() -> None:
    generator, images = tiny_weaktr(), torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        single = generator(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = generator(images)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, rtol=0.05, atol=0.01 * single.max().item())


def gradients(generator: WeakTrGenerator) -> set[str]:
    found = {name: each.grad for name, each in generator.named_parameters()}
    return {name for name, grad in found.items() if grad is not None and grad.abs().max() > 0}


@pytest.mark.parametrize("trainable", ["all", "head"])
def test_masks_teach_the_head_and_the_fusion_alone(trainable: str) -> None:
    generator = tiny_weaktr()
    generator.let_learn(trainable)
    # Random attention is nearly even; a square tells its places apart.
    generator(torch.rand(2, 3, 64, 64)).square().sum().backward()
    names = [name for name, _ in generator.named_parameters()]
    learns = {name for name in names if name.startswith(("head.", "adaptive_attention_fusion."))}
    assert len(learns) == 8
    assert gradients(generator) == learns
    assert {name for name, each in generator.named_parameters() if each.requires_grad} == learns


def test_the_trunk_gets_no_gradient_even_if_it_asks_for_one() -> None:
    generator = tiny_weaktr()
    generator(torch.rand(1, 3, 64, 64)).square().sum().backward()
    trunk = ("blocks", "pos", "cls", "patch")
    assert not any(name.startswith(trunk) for name in gradients(generator))


def test_labels_teach_everything() -> None:
    generator = tiny_weaktr()
    losses = classification_losses(generator.evidence, device=CPU)
    terms = losses((torch.rand(2, 3, 64, 64), torch.eye(4)[:2]))
    assert terms.keys() == {"class_token", "coarse", "fine"}
    torch.stack([*terms.values()]).sum().backward()
    generator.let_all_learn()
    learns = {name for name, each in generator.named_parameters() if each.requires_grad}
    assert gradients(generator) == learns
    others = {name for name, _ in generator.named_parameters()} - learns
    assert others == {"norm.weight", "norm.bias"}


def test_the_fine_cams_opinion_teaches_the_fusion_alone() -> None:
    generator = tiny_weaktr()
    generator.classifier_logits(torch.rand(2, 3, 64, 64)).fine.sum().backward()
    fusion = {name for name, _ in generator.named_parameters() if "attention_fusion" in name}
    assert gradients(generator) == fusion


def peak_of_a_step(depth: int, *, learn: bool) -> int:
    """Bytes at the peak of a forward and, if it learns, a backward pass on an image of 256 patches."""
    generator = tiny_weaktr(TINY.model_copy(update={"depth": depth}))
    generator.let_learn("head")
    images = torch.rand(1, 3, 256, 256)
    watched = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with watched, torch.set_grad_enabled(learn):
        cams = generator(images)
        if learn:
            cams.sum().backward()
    events = [each for each in watched.profiler.kineto_results.events() if each.name() == "[memory]"]
    events.sort(key=lambda each: each.start_ns())
    # Allocations count up, what is freed down.
    return max(accumulate(each.nbytes() for each in events))


@pytest.mark.parametrize("learn", [False, True])
def test_memory_does_not_grow_with_stacked_maps(learn: bool) -> None:
    tokens = 4 + 256
    queries_and_keys, one_map = 4 * 2 * tokens * TINY.width, 4 * tokens**2
    grown = peak_of_a_step(14, learn=learn) - peak_of_a_step(8, learn=learn)
    # Six more blocks of three heads keep their queries and keys, and together not a tenth of one map.
    assert 6 * queries_and_keys <= grown < 6 * queries_and_keys + one_map / 10
