"""A frozen CLIP of open_clip: embeddings of images, texts and soft prompts; both towers together or each alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import huggingface_hub
import open_clip
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

import models.backbones  # noqa: F401 (registers a network that a CLIP may name)


class NormalizedModule(nn.Module):
    """A network with a mean and std per RGB channel, (1, 3, 1, 1), which bundles keep beside the weights."""

    mean: Tensor
    std: Tensor

    def set_normalization(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the input normalization, per RGB channel."""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images in [0, 1], (B, 3, H, W), as in the network's training; 0 is the mean color."""
        return (images - self.mean) / self.std


CLASS_TEMPLATE = "a photo of {}."
_LOCAL = "local-dir:"
_HUB_FILE = "open_clip_model.safetensors"  # open_clip's name for weights in a repository of the hub
_HUB_SECONDS = 10  # to wait for the hub's first answer
_TEXT_BATCH = 256
_CACHED_WORDS = 10_000
_IMAGE_PARTS = ("visual.", "logit_")

Tokenizer = Callable[[list[str]], Tensor]


class _TextEmbeddings:
    """Mixin of modules with a causal text transformer of open_clip (``text``) and its tokenizer."""

    text: Any
    tokenizer: Tokenizer

    @property
    def prompt_width(self) -> int:
        """Width of a token embedding, and so of a soft prompt's tokens."""
        return int(self.text.token_embedding.weight.shape[1])

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed at least one text, → (N, D), L2-normalized."""
        if not texts:
            raise ValueError("expected at least one text, got none")
        chunks = [list(texts[at : at + _TEXT_BATCH]) for at in range(0, len(texts), _TEXT_BATCH)]
        return torch.cat([self._embed_chunk(chunk) for chunk in chunks])

    def _embed_chunk(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts).to(self.text.token_embedding.weight.device)
        ends = tokens.argmax(dim=1)  # [end] is the highest token
        sequence = self.text.token_embedding(tokens[:, : int(ends.max()) + 1])
        return F.normalize(self._encode(sequence, ends), dim=-1)

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Embed the class texts "a photo of {name}.", → (K, D), L2-normalized."""
        return self.embed_texts([CLASS_TEMPLATE.format(name) for name in names])

    def embed_prompts(self, contexts: Tensor) -> Tensor:
        """Embed soft prompts [start] a photo of P_1 … P_M . [end], (N, M, width) → (N, D), with gradient."""
        if contexts.ndim != 3 or contexts.shape[-1] != self.prompt_width:
            raise ValueError(f"expected contexts (N, M, {self.prompt_width}), got {tuple(contexts.shape)}")
        # The period is the ordinary one, with the end-of-word mark; the released experiments have the one without.
        fixed = self.tokenizer([CLASS_TEMPLATE.format("")])[0].to(contexts.device)
        fixed = fixed[: int(fixed.argmax()) + 1]
        embedded = self.text.token_embedding(fixed).expand(contexts.shape[0], -1, -1)
        sequence = torch.cat([embedded[:, :4], contexts, embedded[:, 4:]], dim=1)
        ends = torch.full((len(sequence),), sequence.shape[1] - 1, device=sequence.device)
        return F.normalize(self._encode(sequence, ends), dim=-1)

    def _encode(self, sequence: Tensor, ends: Tensor) -> Tensor:
        """Run the text tower on token embeddings (N, L, width), [end] at the places ends (N,); → (N, D)."""
        text, length = self.text, sequence.shape[1]
        available = text.positional_embedding.shape[0]
        if length > available:
            raise ValueError(f"expected at most {available} tokens, got {length}")
        # With a causal mask, what follows [end] cannot matter: cropping is exact and several times faster.
        hidden = text.transformer(
            sequence + text.positional_embedding[:length],
            attn_mask=text.attn_mask[:length, :length],
        )
        end = text.ln_final(hidden)[torch.arange(len(hidden), device=ends.device), ends]
        projection = text.text_projection
        embedding: Tensor = projection(end) if isinstance(projection, nn.Module) else end @ projection
        return embedding


class FrozenTextTower(_TextEmbeddings, nn.Module):
    """CLIP's text tower without the image tower, in evaluation mode."""

    def __init__(self, text: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.text = text.requires_grad_(False)
        self.tokenizer = tokenizer
        self.eval()


def _text_tower(model: nn.Module) -> Any:
    """The owner of the text tower's parts: open_clip keeps them on the model (CLIP) or under its .text."""
    return getattr(model, "text", model)


def text_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of an open_clip model's text tower, for a tower from ``build_text_tower``."""
    weights: Mapping[str, Tensor] = _text_tower(model).state_dict()
    return {key: value for key, value in weights.items() if not key.startswith(_IMAGE_PARTS)}


def build_text_tower(config: Mapping[str, Any]) -> FrozenTextTower:
    """Build a text tower with random weights from a CLIP's ``text_config``.

    Raises:
        ValueError: if it is not a causal transformer of open_clip's own.
    """
    # open_clip builds towers only in pairs; the smallest image tower costs nothing and is dropped.
    vision = {"layers": 1, "width": 8, "head_width": 8, "patch_size": 8, "image_size": 8}
    described = config["text_cfg"]
    if described.get("hf_model_name"):  # it would be downloaded, and a bundle's author chose the name
        raise ValueError("expected a text tower of open_clip's own, got one of a model hub")
    model = open_clip.CLIP(config["embed_dim"], vision, described, quick_gelu=config.get("quick_gelu", False))
    if model.attn_mask is None:
        raise ValueError("expected a causal text transformer, got another")
    del model.visual, model.logit_scale
    tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length, **described.get("tokenizer_kwargs", {}))
    return FrozenTextTower(model, _bounded(tokenizer))


def _bounded(tokenizer: Any) -> Tokenizer:
    """Bound the cache of open_clip's tokenizer, which keeps every word: requests bring new ones without end."""
    initial = dict(tokenizer.cache)

    def tokenize(texts: list[str]) -> Tensor:
        if len(tokenizer.cache) > _CACHED_WORDS:
            tokenizer.cache = dict(initial)
        tokens: Tensor = tokenizer(texts)
        return tokens

    return tokenize


class FrozenImageTower(NormalizedModule):
    """CLIP's image tower without gradients to its own parameters, always in evaluation mode.

    Gradients still flow through to the images.
    """

    def __init__(self, visual: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Channels last makes convolutional towers about 1.5 times faster on a CPU; transformers are unaffected.
        tower = visual.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.visual: Any = tower
        self.set_normalization(mean=mean, std=std)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: batch statistics of a frozen network must not move."""
        return super().train(False)

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) in pixels that the image tower was trained at."""
        size = self.visual.image_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed normalized images of the input size, (B, 3, H, W) → (B, D), L2-normalized; B may be 0."""
        if images.shape[0] == 0:
            # Networks differ in what they do with an empty batch, so it never reaches them.
            width = self.visual(images.new_zeros((1, 3, *self.input_size))).shape[-1]
            return images.new_zeros((0, width)) + images.sum()
        return F.normalize(self.visual(images), dim=-1)


class FrozenClip(_TextEmbeddings, FrozenImageTower):
    """Both towers of a CLIP; gradients flow through to images and to soft prompts.

    ``config`` is open_clip's description: embed_dim, vision_cfg, text_cfg and quick_gelu.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        config: Mapping[str, Any],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        network: Any = model.eval().requires_grad_(False)
        super().__init__(network.visual, mean=mean, std=std)
        self.model: Any = network
        self.tokenizer = tokenizer
        self._config = dict(config)

    @property
    def vision_config(self) -> dict[str, Any]:
        """open_clip's description of the image tower, to build it alone."""
        return {key: value for key, value in self._config.items() if key != "text_cfg"}

    @property
    def text_config(self) -> dict[str, Any]:
        """open_clip's description of the text tower, to build it alone; ValueError if the tokenizer is not its own."""
        if self._config["text_cfg"].get("hf_tokenizer_name"):
            raise ValueError("expected a CLIP with open_clip's own tokenizer, got another")
        return {key: value for key, value in self._config.items() if key != "vision_cfg"}

    @property
    def logit_scale(self) -> float:
        """Factor of cosines that it was trained with; bundles do not keep it, and OpenAI's models have 100."""
        scale = getattr(self.model, "logit_scale", None)
        return 100.0 if scale is None else float(scale.exp())

    @property
    def text(self) -> Any:
        """The owner of the text tower's parts."""
        return _text_tower(self.model)


def load_clip(model: str, pretrained: str | None, *, normalization: str = "clip") -> FrozenClip:
    """Load an open_clip model by its name, or ``local-dir:PATH``, on the CPU.

    ``pretrained`` is open_clip's weights tag or a file; None if the name includes the weights. Normalization "clip" has
    the mean and std that the model was trained with, "imagenet" those of the released SemPLeS experiments.

    Raises:
        ValueError: if the model cannot be loaded, is not causal, or the normalization is unknown.
    """
    if normalization not in ("clip", "imagenet"):
        raise ValueError(f"expected normalization 'clip' or 'imagenet', got {normalization!r}")
    _check_weights(model, pretrained)
    try:
        with _asking_the_hub(model, pretrained):
            network = open_clip.create_model(
                model,
                pretrained=pretrained,
                # open_clip only warns when weights were trained with the other activation.
                force_quick_gelu=_needs_quick_gelu(model, pretrained),
                # A folder without its weights would give a random network.
                require_pretrained=model.startswith(_LOCAL),
            )
        tokenizer = open_clip.get_tokenizer(model)
    except (OSError, RuntimeError, KeyError, SafetensorError) as error:
        if "ailed to download" in str(error):
            raise ValueError(_how_to_fetch(model, pretrained)) from error
        raise ValueError(
            f"expected a CLIP that open_clip loads (by name it is downloaded once), got {model!r}: {error}"
        ) from error
    if getattr(_text_tower(network), "attn_mask", None) is None:
        raise ValueError(f"expected a CLIP with a causal text transformer, got {model!r}")
    mean, std = network.visual.image_mean, network.visual.image_std
    if normalization == "imagenet":
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    described = _model_config(model)
    config = {key: described[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
    config["quick_gelu"] = described.get("quick_gelu", False) or _needs_quick_gelu(model, pretrained)
    return FrozenClip(network, tokenizer, config=config, mean=mean, std=std)


def join_towers(image: FrozenImageTower, text: FrozenTextTower, config: Mapping[str, Any]) -> FrozenClip:
    """Return the CLIP of two towers that were built alone; ``config`` describes both, as in FrozenClip."""
    model: Any = text.text
    model.visual = image.visual
    mean, std = (buffer.flatten().tolist() for buffer in (image.mean, image.std))
    return FrozenClip(model, text.tokenizer, config=config, mean=mean, std=std)


def _check_weights(model: str, pretrained: str | None) -> None:
    """Check that weights are a file, or known to open_clip by name, before it builds a network for them."""
    if not pretrained or open_clip.get_model_config(model) is None:
        return
    if not open_clip.get_pretrained_cfg(model, pretrained) and not Path(pretrained).is_file():
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise ValueError(
            f"expected a file of weights, or the name of those that open_clip knows of {model} ({known}); got "
            f"{pretrained!r}, which is neither"
        )


@contextmanager
def _asking_the_hub(model: str, pretrained: str | None) -> Iterator[None]:
    """Let the hub's client look into its cache alone if the hub does not answer: it would try again for a minute.

    open_clip logs what it raises, too.
    """
    known = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else None
    asks = bool(known and known.get("hf_hub")) or model.startswith("hf-hub:")
    before, level = huggingface_hub.constants.HF_HUB_OFFLINE, logging.root.manager.disable
    huggingface_hub.constants.HF_HUB_OFFLINE = before or (asks and not _answers(huggingface_hub.constants.ENDPOINT))
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(level)
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    """Whether a server answers, whatever it says."""
    try:
        with urlopen(Request(address, method="HEAD"), timeout=_HUB_SECONDS):
            return True
    except HTTPError:
        return True
    except OSError:
        return False


def _how_to_fetch(model: str, pretrained: str | None) -> str:
    """Say which file to put on a machine that cannot download weights."""
    known = open_clip.get_pretrained_cfg(model, pretrained) or {}
    repository, _, name = str(known.get("hf_hub", "")).rpartition("/")
    place = f"https://huggingface.co/{repository}/resolve/main/{name or _HUB_FILE}" if repository else known.get("url")
    activation = f"{model}-quickgelu"
    named = activation if known.get("quick_gelu") and open_clip.get_model_config(activation) else model
    return (
        f"expected the weights {pretrained!r} of {model} from the model hub or its cache, got no answer; fetch {place} "
        f"elsewhere, and give its path as pretrained with the model {named}"
    )


def _needs_quick_gelu(model: str, pretrained: str | None) -> bool:
    """Whether weights, such as OpenAI's, were trained with QuickGELU without the model's name saying so."""
    known = open_clip.get_pretrained_cfg(model, pretrained) if pretrained else None
    return bool(known and known.get("quick_gelu", False))


def _model_config(model: str) -> dict[str, Any]:
    config: dict[str, Any] | None
    if model.startswith(_LOCAL):
        path = Path(model.removeprefix(_LOCAL)) / "open_clip_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    else:
        config = open_clip.get_model_config(model)
    if config is None:
        raise ValueError(f"expected a model that open_clip has a configuration of, got {model!r}")
    return config


def build_image_tower(config: Mapping[str, Any], *, mean: Sequence[float], std: Sequence[float]) -> FrozenImageTower:
    """Build an image tower with random weights from a CLIP's ``vision_config``."""
    # open_clip builds towers only in pairs; the smallest text tower costs nothing and is dropped.
    text = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    model = open_clip.CLIP(config["embed_dim"], vision, text, quick_gelu=config.get("quick_gelu", False))
    return FrozenImageTower(model.visual, mean=mean, std=std)
