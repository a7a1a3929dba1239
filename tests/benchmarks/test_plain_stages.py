"""What the speed of the stages is compared with computes the same."""

import torch

from benchmarks.plain_stages import (
    BACKGROUND_WEIGHT,
    EPSILON,
    REFINEMENT_WEIGHT,
    TEXT_WEIGHT,
    PlainStages,
    plain_cams,
    plain_prompts,
    plain_texts,
)
from models.clip import FrozenClip
from models.generators.weaktr import WeakTrGenerator
from models.inference.multi_scale import multi_scale_cams
from models.losses import soft_masks
from models.prompts import BackgroundPrompts
from models.training.generator import Refinement, generator_losses
from models.training.prompts import embed_backgrounds, prompt_losses
from models.weaktr_sizes import WeakTrSizes
from tests.conftest import CPU

NAMES = ("cat", "bowl", "cup")


def test_plain_and_library_agree(tiny_clip: FrozenClip) -> None:
    sizes = WeakTrSizes(native_size=64, width=48, depth=3, heads=3)
    generator = WeakTrGenerator(sizes, classes=3).eval()
    prompts = BackgroundPrompts(3, 4, tiny_clip.prompt_width, initialization="normal", generator=torch.Generator())
    images = torch.rand(2, 3, 64, 64)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    text = tiny_clip.embed_classes(NAMES)
    torch.testing.assert_close(plain_cams(generator, images), generator(images))
    torch.testing.assert_close(plain_texts(tiny_clip, NAMES), text)
    learned = tiny_clip.embed_prompts(prompts.context)
    torch.testing.assert_close(plain_prompts(tiny_clip, prompts.context), learned)

    def masks_of(images: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        return soft_masks(generator(images), present, size=tiny_clip.input_size, epsilon=EPSILON)

    plain = PlainStages(generator, tiny_clip, NAMES)
    for refinement, given in (
        (None, None),
        (Refinement(learned.detach(), REFINEMENT_WEIGHT), prompts),
    ):
        generator.zero_grad()
        plain.generator_step(images, labels, given)
        expected = generator.head.weight.grad
        assert expected is not None
        generator.zero_grad()
        losses_of = generator_losses(
            masks_of, tiny_clip, text, background_weight=BACKGROUND_WEIGHT, refinement=refinement
        )
        torch.stack([*losses_of((images, labels)).values()]).sum().backward()
        torch.testing.assert_close(generator.head.weight.grad, expected, atol=1e-5, rtol=1e-3)

    plain.prompt_step(images, labels, prompts)
    expected = prompts.context.grad
    assert expected is not None
    prompts.zero_grad()
    regions = embed_backgrounds([(images, labels)], masks_of, tiny_clip, device=CPU)
    losses = prompt_losses(prompts, tiny_clip, regions, text, text_weight=TEXT_WEIGHT)
    losses(torch.arange(4))["prompt"].backward()
    torch.testing.assert_close(prompts.context.grad, expected, atol=1e-5, rtol=1e-3)

    with torch.no_grad():
        channels = torch.tensor([0, 2])
        cams = plain.cams(images[:1], channels, scales=(1.0, 1.5))
        present = torch.tensor([(0, 0), (0, 2)])
        ours = multi_scale_cams(generator, images[:1], present, scales=(1.0, 1.5), flip=True)
    torch.testing.assert_close(cams[0], ours, atol=2e-4, rtol=0.03)
