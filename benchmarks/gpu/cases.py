"""What is compared: mask generators, refiners, segmenters, CLIP, the predictor, one step of each training stage.

The networks are tiny ones with random weights, and the demo bundle's; the inputs are the photos of ``make demo``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from types import MappingProxyType
from typing import Any, Final

import torch
import torch.nn.functional as F
from open_clip import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from benchmarks.contexts.tiny_clip import CONTEXT_LENGTH, IMAGE_SIZE, MEAN, STD, model_config
from benchmarks.gpu.compare import CPU, FLOAT32, TF32, Case, Outputs, amp_precision, computing
from benchmarks.gpu.steps import PAPER_STAGES, PRETRAIN, generator_step, gradients_of, segmenter_step
from benchmarks.offline_clip.anchor import anchor
from benchmarks.service_load.load import read_photos
from models import find_bundle, load_bundle
from models.build import build_generator, build_segmenter
from models.bundle.bundle import Bundle
from models.clip import FrozenClip
from models.config import Config
from models.data.classes import ClassInfo, ClassList, with_open_labels
from models.data.images import read_image
from models.generators import MaskGenerator
from models.generators.cnn import cosine_affinity
from models.inference.masks import LabeledImage, UnlabeledImage
from models.inference.multi_scale import multi_scale_cams, resize_images
from models.inference.predictor import Predictor
from models.prompts import BackgroundPrompts
from models.refine import REFINERS, RefinerContext, build_refiner
from models.refine.regions import superpixels
from tests.helpers.networks import TINY_MASK2FORMER
from tests.helpers.vit import TINY_VIT, tiny_vit_clip

BUNDLE: Final = "coco-demo"
NAMES: Final = ("cat", "cup", "clock")  # K = 3, what the demo's photos show, in their order
CLASSES: Final = ClassList(tuple(ClassInfo(index, name) for index, name in enumerate(NAMES, start=1)))
OPEN_LABELS: Final = ("whiskers", "saucer", "dial")
SIDE = 128  # of inputs, in pixels
PROMPT_TOKENS = 4

# The configuration of a tiny network of each kind; a new kind is one line here.
GENERATORS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "cnn": {"backbone": "test_resnet", "pretrained": False},
        "zero_shot": {},
        "weaktr": {"native_size": 64, "width": 48, "depth": 3, "heads": 3},
        "clip_vit": {},
    }
)
SEGMENTERS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "light": {"backbone": "test_resnet", "weights": "clip"},
        "features": {"width": 16},
        "mask2former": {"weights": None, "queries": 6, "architecture": TINY_MASK2FORMER},
    }
)
# Its loss matches queries with masks: in half precision others match, which is no fault.
_UNSTEADY = frozenset({"mask2former"})


def all_cases(*, image_size: int | None) -> Iterator[Case]:
    """Return all that is compared; the predictor's working images have a longer side, None for the bundle's own."""
    yield from (Case(f"mask generator {kind}", partial(_generator, kind)) for kind in GENERATORS)
    yield from (Case(f"refiner {name}", partial(_refiner, name), (FLOAT32,)) for name in REFINERS)
    yield from (Case(f"segmenter {kind}", partial(_segmenter, kind)) for kind in SEGMENTERS)
    yield Case("CLIP", _clip)
    for what in PREDICTIONS:
        yield Case(f"predictor {BUNDLE}, {what}", partial(_predictor, what, image_size))
    _new_predictor.cache_clear()  # their memory is not to count in what is measured later
    for kind in GENERATORS:
        for stage in (PRETRAIN, *(stage for stage, letter in PAPER_STAGES.items() if letter != "b")):
            yield Case(f"step of {stage}, {kind}", partial(_generator_step, stage, kind))
    yield Case("step of learn-prompts", partial(_generator_step, "learn-prompts", "zero_shot"))
    for kind in SEGMENTERS:
        precisions = (FLOAT32, TF32) if kind in _UNSTEADY else Case.precisions
        yield Case(f"step of train-segmenter, {kind}", partial(_segmenter_step, kind), precisions)


@cache
def _photos() -> Sequence[Any]:
    """The demo's photos as pixels, (H, W, 3) uint8 each."""
    return [read_image(photo.data).pixels for photo in read_photos(None)]


def _resized_photos(side: int) -> Tensor:
    tensors = [torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255 for pixels in _photos()]
    return torch.cat([resize_images(each, (side, side)) for each in tensors])


def _inputs(device: torch.device) -> tuple[Tensor, Tensor]:
    """Photos in [0, 1], (3, 3, SIDE, SIDE), and their labels, (3, K): what each shows, and one thing more."""
    return _resized_photos(SIDE).to(device), (torch.eye(3) + torch.eye(3).roll(1, dims=0)).to(device)


def _label_maps() -> Tensor:
    """Label maps, (3, SIDE, SIDE): a rectangle of each photo's class with an ignored border."""
    maps = torch.zeros(3, SIDE, SIDE, dtype=torch.int64)
    for channel, label_map in enumerate(maps, start=1):
        label_map[20:90, 10 * channel : 70 + 10 * channel] = 255
        label_map[24:86, 10 * channel + 4 : 66 + 10 * channel] = channel
    return maps


def tiny_clip() -> FrozenClip:
    """Return a tiny random CLIP on the CPU, always the same, whose cosines are where the losses have gradients."""
    model, tokenizer, config = _tiny_towers()
    return FrozenClip(copy.deepcopy(model), tokenizer, config=config, mean=[MEAN] * 3, std=[STD] * 3)


@cache
def _tiny_towers() -> tuple[CLIP, SimpleTokenizer, dict[str, Any]]:
    # Fewer dimensions than the text tower's width: of a square random projection, the anchor needs a direction that it
    # hardly reaches, at the cost of half precision.
    config = {**model_config("cnn"), "embed_dim": 32}
    config["vision_cfg"]["timm_proj_bias"] = True
    tokenizer = SimpleTokenizer(context_length=CONTEXT_LENGTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(**config).eval()
        # Embeddings of random networks all point one way; a wider projection spreads them.
        for projection in (model.text_projection, model.visual.head.proj.weight):
            nn.init.normal_(projection)
    with torch.no_grad():
        text = model.encode_text(tokenizer(list(NAMES))).norm(dim=1).mean()
        image = model.encode_image((_resized_photos(IMAGE_SIZE) - MEAN) / STD).norm(dim=1).mean()
    anchor(model, text_shift=0.5 * float(text), image_shift=0.5 * float(image))
    return model, tokenizer, config


def _tiny_clip_with_vit() -> FrozenClip:
    with torch.random.fork_rng(devices=[]):
        model = tiny_vit_clip()
    return FrozenClip(model, SimpleTokenizer(), config=TINY_VIT, mean=[MEAN] * 3, std=[STD] * 3)


def tiny_networks(kind: str, device: torch.device) -> tuple[MaskGenerator, FrozenClip]:
    """A tiny mask generator and CLIP on a device; their weights are drawn on the CPU."""
    clip = _tiny_clip_with_vit() if kind == "clip_vit" else tiny_clip()
    generator = build_generator(
        _config(generator=kind), clip, clip.embed_classes(NAMES), device=device, classes=CLASSES
    )
    return generator, clip.to(device)


def _config(*, generator: str = "cnn", segmenter: str = "light") -> Config:
    sections = {
        "generator": {"kind": generator, **GENERATORS[generator]},
        "segmenter": {"kind": segmenter, **SEGMENTERS[segmenter]},
    }
    return Config.model_validate({"name": "tiny", **sections})


def _new_segmenter(kind: str, device: torch.device) -> Any:
    return build_segmenter(
        _config(segmenter=kind),
        classes=len(NAMES),
        device=device,
        read_clip=tiny_clip,
        read_generator=lambda: tiny_networks("cnn", device)[0].requires_grad_(False),
    )


@torch.inference_mode()
def _generator(kind: str, device: torch.device, precision: str) -> Outputs:
    generator, _ = tiny_networks(kind, device)
    images, labels = _inputs(device)
    with computing(precision, device):
        cams = multi_scale_cams(generator.cams_of, images, labels.nonzero(), scales=(1.0, 1.5), flip=True)
        features = generator.features(images)
    return {"CAMs": cams, "affinity": generator.affinity(features.float())}


@torch.inference_mode()
def _refiner(name: str, device: torch.device, _precision: str) -> Outputs:
    images, _ = _inputs(device)
    coarse = torch.rand(3, len(NAMES), 8, 8, generator=torch.Generator().manual_seed(0))
    scores = F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").clamp(0, 1).to(device)
    context = RefinerContext(
        affinity=lambda photos: cosine_affinity(F.adaptive_avg_pool2d(photos - photos.mean(), 16)),
        background=lambda maps: (1 - maps.amax(dim=0)).clamp(min=0),
        proposals=superpixels,
        rescale=lambda maps, _originals: maps,
        box_share=0.4,
    )
    return {"scores": build_refiner(name, context)(images, scores)}


@torch.inference_mode()
def _segmenter(kind: str, device: torch.device, precision: str) -> Outputs:
    segmenter = _new_segmenter(kind, device).eval()
    with computing(precision, device):
        return {"probabilities": segmenter(_inputs(device)[0])}


@torch.inference_mode()
def _clip(device: torch.device, precision: str) -> Outputs:
    clip = tiny_clip().to(device)
    prompts = tiny_prompts(clip)
    images, _ = _inputs(device)
    with computing(precision, device):
        return {
            "images": clip.embed_images(clip.normalize(resize_images(images, clip.input_size))),
            "texts": clip.embed_classes(NAMES),
            "prompts": clip.embed_prompts(prompts.context),
        }


def tiny_prompts(clip: FrozenClip) -> BackgroundPrompts:
    generator = torch.Generator().manual_seed(0)
    prompts = BackgroundPrompts(
        len(NAMES), PROMPT_TOKENS, clip.prompt_width, initialization="normal", generator=generator
    )
    return prompts.to(clip.mean.device)


def demo_bundle(device: torch.device, *, image_size: int | None) -> Bundle:
    """Load the demo bundle, whose working images have a longer side, None for its own."""
    bundle = load_bundle(find_bundle(BUNDLE), device=device)
    if image_size is None:
        return bundle
    info = bundle.info
    smaller = {"image_size": image_size}
    sections: dict[str, Any] = {"inference": info.inference.model_copy(update=smaller)}
    if info.segment is not None:
        sections["segment"] = info.segment.model_copy(update=smaller)
    return replace(bundle, info=info.model_copy(update=sections))


def _pseudo_masks(predictor: Predictor, refine: str | None, labels: Sequence[str]) -> list[Any]:
    """Segment each photo alone: their sizes differ."""
    options, classes = predictor.options(refine=refine), with_open_labels(predictor.info.classes, labels)
    return [
        predictor.pseudo_masks([LabeledImage(pixels, [label], options, classes)])[0]
        for pixels, label in zip(_photos(), labels, strict=True)
    ]


def _segments(predictor: Predictor) -> list[Any]:
    options = predictor.segment_options()
    return [predictor.segments([UnlabeledImage(pixels, options)])[0] for pixels in _photos()]


PREDICTIONS: Final[Mapping[str, Callable[[Predictor], list[Any]]]] = MappingProxyType(
    {
        "pseudo masks, no refiner": lambda predictor: _pseudo_masks(predictor, "none", NAMES),
        "pseudo masks": lambda predictor: _pseudo_masks(predictor, None, NAMES),
        "pseudo masks of any label": lambda predictor: _pseudo_masks(predictor, "none", OPEN_LABELS),
        "segmentations": _segments,
    }
)


@cache
def _new_predictor(device: torch.device, precision: str, image_size: int | None) -> Predictor:
    return Predictor(demo_bundle(device, image_size=image_size), precision=precision)


def _predictor(what: str, image_size: int | None, device: torch.device, precision: str) -> Outputs:
    made = PREDICTIONS[what](_new_predictor(device, amp_precision(precision), image_size))
    return {"label maps": torch.cat([torch.from_numpy(each.label_map).flatten() for each in made]).long()}


def _generator_step(stage: str, kind: str, device: torch.device, precision: str) -> Outputs:
    generator, clip = tiny_networks(kind, device)
    step = generator_step(stage, generator, clip, tiny_prompts(clip), _inputs(CPU), names=NAMES)
    return gradients_of(step, precision)


def _segmenter_step(kind: str, device: torch.device, precision: str) -> Outputs:
    images, _ = _inputs(CPU)
    step = segmenter_step(_new_segmenter(kind, device), (images, _label_maps()), device=device)
    return gradients_of(step, precision)
