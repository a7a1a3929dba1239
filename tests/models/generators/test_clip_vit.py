"""The mask generator on CLIP's ViT: the public implementations' numbers, and a plain formulation by autograd."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.clip_vit import clip_es_cams, plain_cams
from models.clip import FrozenImageTower
from models.clip_vit_options import ClipVitOptions
from models.generators import AddedClass, clip_blocks
from models.generators.clip_blocks import LastBlock, check_tower, dense_embeddings, embed_patches, run_blocks
from models.generators.clip_vit import BackgroundTexts, ClipVitGenerator, text_gradients
from models.refine.random_walk import _source_boxes, _two_steps, _walk
from tests.helpers.vit import random_vit, vit_generator

ES = ("clip_es_64x64.npz", "clip_es_96x128.npz")  # native, and another size
NACLIP = ("naclip_64x64.npz", "naclip_96x80.npz")


def reference(shared: Path, name: str) -> tuple[Any, dict[str, Tensor]]:
    """The small random ViT of a reference file, and the arrays beside its weights."""
    arrays = {key: torch.from_numpy(value) for key, value in np.load(shared / "reference" / name).items()}
    visual = random_vit(width=128, layers=4, heads=2, output=32)
    weights = {key[6:]: value for key, value in arrays.items() if key.startswith("state.")}
    weights.pop("positional_embedding_new", None)  # a copy that the public code keeps
    visual.load_state_dict(weights)
    return visual, {key: value for key, value in arrays.items() if not key.startswith("state.")}


@pytest.fixture
def half_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public CLIP-ES rounds its position embeddings to half precision."""
    exact = clip_blocks._positions
    monkeypatch.setattr(clip_blocks, "_positions", lambda *args, **more: exact(*args, **more).half().float())


def generator_of(visual: Any, classes: Tensor, background: Tensor, scale: float, method: str) -> ClipVitGenerator:
    names = tuple(f"stuff {number}" for number in range(len(background)))
    return ClipVitGenerator(
        FrozenImageTower(visual, mean=[0.0] * 3, std=[1.0] * 3),
        classes,
        background=BackgroundTexts.of(names, background, [["a class"]] * len(classes)),
        logit_scale=scale,
        options=ClipVitOptions.model_validate({"method": method, "background_texts": names}),
    )


def all_of(count: int) -> Tensor:
    return torch.tensor([[0, channel] for channel in range(count)])


def close(found: Tensor, expected: Tensor, *, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("name", ES)
@pytest.mark.usefixtures("half_positions")
def test_gradcam_is_the_public_clip_es(shared: Path, name: str) -> None:
    visual, arrays = reference(shared, name)
    generator = generator_of(
        visual, arrays["class_text"], arrays["background_text"], arrays["logit_scale"].item(), "gradcam"
    )
    with torch.inference_mode():
        features = generator.features(arrays["image"])
        affinity = generator.affinity(features)[0]
        cams = generator.chosen_cams(features, all_of(3))
    between = affinity.flatten(2).flatten(0, 1)
    close(cams, arrays["cam"])
    close(between, arrays["attention"])
    texts = torch.cat([arrays["class_text"], arrays["background_text"]])
    tokens, _ = generator._unpack(features)
    embedding = F.normalize(LastBlock.run(visual, tokens).embedding, dim=-1)
    close((arrays["logit_scale"] * embedding @ texts.T).softmax(dim=1), arrays["probabilities"])
    # The random walk refiner, from the public CAMs on: their boxes depend on single levels of 0…255.
    cam, steps = arrays["cam"], _two_steps(between)
    close(steps, arrays["transition"])
    close((cam.flatten(1) @ steps.T).view_as(cam), arrays["refined"])
    assert torch.equal(_source_boxes(cam, share=generator.box_share).float(), arrays["boxes"])
    assert generator.walk_from_boxes
    close(_walk(cam, affinity, box_share=generator.box_share, from_boxes=True), arrays["refined_in_boxes"])


@pytest.mark.parametrize("name", NACLIP)
def test_dense_is_the_public_naclip(shared: Path, name: str) -> None:
    visual, arrays = reference(shared, name)
    text = arrays["text"]
    generator = generator_of(visual, text[:2], text[2:], 1.0, "dense")
    with torch.inference_mode():
        tokens, grid = embed_patches(visual, arrays["image"], mode="bicubic")
        last, _ = run_blocks(visual, tokens)
        embeddings = dense_embeddings(visual, last, grid, deviation=arrays["gaussian_std"].item())
        found = generator(arrays["image"])
    close(embeddings, arrays["features_naclip"])
    close(torch.unflatten((embeddings @ text.T).mT, 2, grid), arrays["cosines_naclip"])
    close(found, (40 * arrays["cosines_naclip"]).softmax(dim=1)[:, :2])


@pytest.mark.parametrize(("layers", "quick"), [(3, True), (11, False)])
@pytest.mark.parametrize("size", [(64, 64), (80, 112), (150, 90)])
def test_gradcam_is_the_plain_formulation(layers: int, *, quick: bool, size: tuple[int, int]) -> None:
    patch = 14 if size[0] == 150 else 16  # which divides neither side
    generator = vit_generator(layers=layers, quick=quick, patch=patch)
    image = torch.rand(1, 3, *size)
    with torch.inference_mode():
        features = generator.features(image)
        found = generator.chosen_cams(features, all_of(3))
        affinity = generator.affinity(features)[0].flatten(2).flatten(0, 1)
    assert found.shape[1:] == (round(size[0] / patch), round(size[1] / patch))
    texts = torch.cat([generator.head.weight.detach(), generator.background_text])
    for plain in (plain_cams, clip_es_cams):
        cams, attention = plain(generator, image, texts, 3)
        close(found, cams)
        close(affinity, attention)
    assert found.amax(dim=(1, 2)).tolist() == pytest.approx([1, 1, 1])


def test_the_gradient_of_a_shift_is_autograds() -> None:
    visual = random_vit(width=32, layers=2, heads=4, output=8, quick=False).double()
    tokens, toward = torch.randn(2, 13, 32).double(), torch.randn(2, 3, 8).double()
    last, shift = LastBlock.run(visual, tokens), torch.zeros(2, 1, 32).double().requires_grad_()
    block = visual.transformer.resblocks[-1]
    normalized = block.ln_1(tokens)
    shifted = torch.cat([normalized[:, :1], normalized[:, 1:] + shift], dim=1)
    output = tokens + block.attn(shifted, shifted, shifted)[0]
    output = output + block.mlp(block.ln_2(output))
    embedding = visual.ln_post(output)[:, 1:].mean(dim=1) @ visual.proj
    close(last.embedding, embedding.detach(), atol=1e-6)
    rows = [torch.autograd.grad(embedding, shift, toward[:, at], retain_graph=True)[0][:, 0] for at in range(3)]
    close(last.shift_gradients(toward), torch.stack(rows, dim=1), atol=1e-6)


def test_gradients_of_probabilities_are_autograds() -> None:
    embedding, texts = torch.randn(2, 8, requires_grad=True), torch.randn(2, 5, 8)
    kept = torch.tensor([[True] * 5, [True, False, True, True, False]])
    scale = torch.tensor(7.0)
    found = text_gradients(embedding.detach(), texts, kept, scale=scale, count=3)
    cosines = F.cosine_similarity(embedding[:, None], texts, dim=-1)
    shares = (scale * cosines).masked_fill(~kept, -torch.inf).softmax(dim=1)
    for at in range(3):
        (expected,) = torch.autograd.grad(shares[:, at].sum(), embedding, retain_graph=True)
        close(found[:, at], expected, atol=1e-5)
    assert found[1, 1].abs().max() == 0


@pytest.mark.parametrize("method", ["gradcam", "dense"])
def test_photos_with_different_labels_are_what_they_are_alone(method: str) -> None:
    generator = vit_generator(method=method, classes=5)
    images = torch.rand(4, 3, 64, 96)
    # The third photo has no labels; pairs need not be sorted by image.
    present = torch.tensor([[1, 4], [0, 0], [1, 2], [3, 1], [1, 0]])
    with torch.inference_mode():
        together = generator.chosen_cams(generator.features(images), present)
        for image in (0, 1, 3):
            own = present[:, 0] == image
            pairs = torch.stack([torch.zeros_like(present[own][:, 0]), present[own][:, 1]], dim=1)
            close(together[own], generator.chosen_cams(generator.features(images[image, None]), pairs), atol=1e-5)
        assert generator.chosen_cams(generator.features(images), present[:0]).shape == (0, 4, 6)
    assert together.min() >= 0
    assert together.max() <= 1


def test_many_labels_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = vit_generator(classes=5)
    images = torch.rand(3, 3, 64, 64)
    whole = generator(images).detach()
    monkeypatch.setattr("models.generators.clip_vit._MAPS_AT_ONCE", 4)
    close(generator(images).detach(), whole, atol=1e-5)


def test_threads_and_inference_mode_do_not_matter() -> None:
    generator = vit_generator()
    images = [torch.rand(1, 3, 64, 64) for _ in range(6)]

    def run(image: Tensor) -> Tensor:
        with torch.inference_mode():
            return generator.chosen_cams(generator.features(image), all_of(2)).clone()

    alone = [generator.chosen_cams(generator.features(image), all_of(2)).detach() for image in images]
    with ThreadPoolExecutor(4) as threads:
        for one, other in zip(alone, threads.map(run, images), strict=True):
            close(one, other.clone(), atol=1e-6)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["gradcam", "dense"])
def test_lower_precision_is_near(method: str, precision: torch.dtype) -> None:
    generator = vit_generator(method=method)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        exact = generator(image)
        with torch.autocast("cpu", dtype=precision):
            lower = generator(image)
    assert lower.isfinite().all()
    assert (exact - lower.float()).abs().mean() < 0.05


def cams_of(generator: ClipVitGenerator, image: Tensor, *, added: Sequence[AddedClass] = ()) -> Tensor:
    pairs = all_of(generator.head.out_features + len(added))[-1:]
    return generator.chosen_cams(generator.features(image), pairs, added=added).detach()


def test_a_background_text_that_is_a_class_of_the_photo_is_left_out() -> None:
    image = torch.rand(1, 3, 64, 64)
    stuff = ("water", "tree", "sky")
    generator = vit_generator(classes=2, names=[["cat"], ["sea", "Water"]], stuff=stuff)
    without = vit_generator(classes=2, names=[["cat"], ["sea"]], stuff=stuff)
    without.background_text[0] = without.background_text[1]  # and tree twice
    assert generator.excluded.tolist() == [[False] * 3, [True, False, False]]
    tree_once = vit_generator(classes=2, names=[["cat"], ["sea"]], stuff=stuff[1:])
    tree_once.background_text.copy_(generator.background_text[1:])
    for one, other in ((generator, tree_once), (generator, without)):
        other.load_state_dict({**other.state_dict(), "head.weight": one.head.weight})
    close(cams_of(generator, image), cams_of(tree_once, image), atol=1e-5)
    row = torch.randn(16)
    named, other = (cams_of(generator, image, added=[AddedClass(name, row)]) for name in ("tree", "dog"))
    assert not torch.allclose(named, other, atol=1e-4)


def test_learned_prompts_stand_beside_or_in_place_of_the_texts() -> None:
    image, prompts = torch.rand(1, 3, 64, 64), torch.randn(3, 16)
    made: dict[str, list[Tensor]] = {}
    for use in ("texts", "prompts", "both"):
        generator = vit_generator(background=use)
        before = cams_of(generator, image)
        generator.use_prompts(prompts)
        made[use] = [before, cams_of(generator, image)]
    assert torch.equal(*made["texts"])
    for use in ("prompts", "both"):  # as with texts, while there are none
        assert torch.equal(made[use][0], made["texts"][0])
        assert not torch.allclose(made[use][1], made[use][0], atol=1e-4)
    assert not torch.allclose(made["prompts"][1], made["both"][1], atol=1e-4)


@pytest.mark.parametrize("method", ["gradcam", "dense"])
def test_the_head_alone_learns(method: str) -> None:
    generator = vit_generator(method=method)
    for start in (lambda: generator.let_learn("all"), generator.let_all_learn):
        start()
        assert [name for name, each in generator.named_parameters() if each.requires_grad] == ["head.weight"]
    assert not generator.features(torch.rand(1, 3, 64, 64)).requires_grad
    features = generator.features(torch.rand(2, 3, 64, 64))
    weight = generator.head.weight
    pattern = torch.randn(2, 4, 4)

    def loss() -> Tensor:
        return (generator.chosen_cams(features, torch.tensor([[0, 0], [1, 2]])) * pattern).sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn_like(weight)
    with torch.no_grad():
        ends = []
        for step in (1e-3, -1e-3):
            weight.add_(step * direction)
            ends.append(loss().item())
            weight.sub_(step * direction)
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx((gradient * direction).sum().item(), rel=0.05, abs=1e-3)
    assert generator.evidence(torch.rand(2, 3, 64, 64))["classify"].shape == (2, 3)


@pytest.mark.parametrize("layers", [9, 14])
def test_attention_maps_do_not_grow_with_the_blocks(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    visual = random_vit(width=32, layers=layers, heads=2, output=8)
    softmax, made, most = torch.Tensor.softmax, [], 0

    def watched(self: Tensor, *args: Any, **more: Any) -> Tensor:
        nonlocal most
        maps = softmax(self, *args, **more)
        made.append(weakref.ref(maps))
        most = max(most, sum(each() is not None for each in made))
        return maps

    monkeypatch.setattr(torch.Tensor, "softmax", watched)
    tokens, _ = embed_patches(visual, torch.rand(1, 3, 64, 64), mode="bilinear")
    run_blocks(visual, tokens)
    assert len(made) == 8
    assert most <= 2  # a new one while the last one's variable still holds it


def other_towers() -> dict[str, Callable[[], nn.Module]]:
    vision = open_clip.transformer.VisionTransformer
    sizes = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2, "output_dim": 8}
    return {
        "ModifiedResNet": lambda: open_clip.modified_resnet.ModifiedResNet([1, 1, 1, 1], 8, 2, image_size=32, width=8),
        "other blocks": lambda: vision(**sizes, ls_init_value=0.1),
        "pools otherwise": lambda: vision(**sizes, attentional_pool=True),
    }


@pytest.mark.parametrize("found", other_towers())
def test_other_towers_are_refused(found: str) -> None:
    with pytest.raises(ValueError, match=f"open_clip's VisionTransformer, as OpenAI's, got .*{found}"):
        check_tower(other_towers()[found]())
