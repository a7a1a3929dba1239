"""The offline CLIP's text tower and its distillation, at tiny sizes."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch.nn import functional

from benchmarks.offline_clip import build, nouns, text_tower


@pytest.fixture(scope="module")
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


@pytest.fixture
def small_clip() -> open_clip.CLIP:
    text = text_tower.text_config(width=32, heads=2, layers=2)
    torch.manual_seed(0)
    return open_clip.CLIP(**build.model_config(text, embedding_width=48)).eval()


def test_encoder_state_stacks_query_key_value() -> None:
    prefix = "encoder.layer.0."
    state = {
        f"{prefix}attention.self.{part}.{kind}": torch.full((2, 2) if kind == "weight" else (2,), n)
        for n, part in enumerate(("query", "key", "value"), start=1)
        for kind in ("weight", "bias")
    }
    for part in ("attention.output.dense", "attention.output.LayerNorm", "intermediate.dense",
                 "output.dense", "output.LayerNorm"):  # fmt: skip
        for kind in ("weight", "bias"):
            state[f"{prefix}{part}.{kind}"] = torch.zeros(1)
    renamed = nouns.encoder_state(state, layers=1)
    assert renamed["layers.0.self_attn.in_proj_bias"].tolist() == [1, 1, 2, 2, 3, 3]
    block = torch.nn.TransformerEncoderLayer(2, 1, 2)
    assert set(renamed) == {f"layers.0.{key}" for key in block.state_dict()}


def test_embeddings_are_cached_by_text(tmp_path: Path) -> None:
    class Teacher:
        def embed(self, texts: list[str], on_progress: object) -> torch.Tensor:
            return torch.tensor([[float(len(text))] for text in texts])

    first = nouns.embed_cached(["a", "bcd"], tmp_path, load=Teacher)
    second = nouns.embed_cached(["a", "bcd"], tmp_path, load=pytest.fail)
    assert first.tolist() == second.tolist() == [[1.0], [3.0]]
    assert nouns.embed_cached(["ab"], tmp_path, load=Teacher).tolist() == [[2.0]]


def test_cropped_encoding_equals_full_length(small_clip: open_clip.CLIP, tokenizer: SimpleTokenizer) -> None:
    texts = ["a photo of a cat.", "a photo of a very big red potted plant.", "sky"]
    cropped = text_tower.pad([text_tower.token_sequence(tokenizer, text, most=20) for text in texts])
    assert cropped.shape[1] < text_tower.CONTEXT_LENGTH
    with torch.no_grad():
        short = text_tower.encode_cropped(small_clip, cropped)
        full = small_clip.encode_text(tokenizer(texts))
        encoded = text_tower.full_length_encoder(small_clip, tokenizer)(texts)
    torch.testing.assert_close(short, full, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(encoded, full, atol=1e-5, rtol=1e-5)


def test_positions_choose_the_position_embeddings(small_clip: open_clip.CLIP) -> None:
    tokens = torch.tensor([[49406, 320, 49407]])
    with torch.no_grad():
        plain = text_tower.encode_cropped(small_clip, tokens, positions=torch.tensor([0, 1, 2]))
        moved = text_tower.encode_cropped(small_clip, tokens, positions=torch.tensor([0, 40, 41]))
        small_clip.positional_embedding[1:3] = small_clip.positional_embedding[40:42]
        expected = text_tower.encode_cropped(small_clip, tokens)
    assert not torch.allclose(plain, moved, atol=1e-4)
    torch.testing.assert_close(moved, expected)


def test_long_text_is_cut_but_keeps_its_end(tokenizer: SimpleTokenizer) -> None:
    sequence = text_tower.token_sequence(tokenizer, "cat " * 30, most=12)
    assert len(sequence) == 12
    assert (sequence[0], sequence[-1]) == (tokenizer.sot_token_id, tokenizer.eot_token_id)


def test_token_texts_spell_words_and_survive_byte_pieces(tokenizer: SimpleTokenizer) -> None:
    spelled = text_tower.token_texts(tokenizer)
    assert len(spelled) == text_tower.VOCABULARY_SIZE
    assert spelled[tokenizer.encode("giraffe")[0]] == "giraffe"
    assert all(spelled)


def test_initialization_projects_tokens_back_to_the_teacher(small_clip: open_clip.CLIP) -> None:
    generator = torch.Generator().manual_seed(1)
    # Of rank 20, so that 32 channels lose nothing.
    factors = torch.randn(text_tower.VOCABULARY_SIZE, 20, generator=generator)
    teacher = factors @ torch.randn(20, 48, generator=generator)
    text_tower.initialize_from_teacher(small_clip, teacher, seed=0)
    tokens = small_clip.token_embedding.weight
    assert tokens.std().item() == pytest.approx(text_tower.TOKEN_SCALE, rel=1e-3)
    cosine = functional.cosine_similarity(tokens @ small_clip.text_projection, teacher, dim=-1)
    assert cosine.min().item() > 0.999


@pytest.fixture
def lessons() -> text_tower.Lessons:
    generator = torch.Generator().manual_seed(2)
    return text_tower.Lessons(
        nouns=("cat", "potted plant", "snow"),
        noun_targets=torch.randn(3, 48, generator=generator),
        core=(1,),
        templates=("a photo of a {}.", "{}"),
        long=("a photo of a cat, a snow and a potted plant.", "a photo of snow snow snow."),
        long_targets=torch.randn(2, 48, generator=generator),
    )


def test_batches_pair_texts_with_their_targets(lessons: text_tower.Lessons, tokenizer: SimpleTokenizer) -> None:
    wanted = {
        tuple(tokenizer.encode(template.format(noun))): target
        for noun, target in zip(lessons.nouns, lessons.noun_targets, strict=True)
        for template in lessons.templates
    } | {tuple(tokenizer.encode(text)): target for text, target in zip(lessons.long, lessons.long_targets, strict=True)}
    drawn = list(itertools.islice(text_tower.batches(lessons, tokenizer, size=6, seed=0), 8))
    assert sorted(len(batch.tokens) for batch in drawn) == [3, 3, 6, 6, 6, 6, 6, 6]
    for batch in drawn:
        for tokens, target in zip(batch.tokens.tolist(), batch.targets, strict=True):
            end = tokens.index(tokenizer.eot_token_id)
            assert tokens[0] == tokenizer.sot_token_id
            assert not any(tokens[end + 1 :])
            assert torch.equal(wanted[tuple(tokens[1:end])], target)
    shifted = [batch for batch in drawn if batch.positions[1] > 1]
    assert 1 <= len(shifted) <= 2


def test_shifted_positions_keep_the_start_and_stay_in_range() -> None:
    for seed in range(50):
        positions = text_tower.shifted_positions(12, random.Random(seed)).tolist()
        assert positions[0] == 0
        assert positions[1:] == list(range(positions[1], positions[1] + 11))
        assert 1 <= positions[1] <= text_tower.CONTEXT_LENGTH - 11


def test_split_by_length_groups_similar_lengths() -> None:
    targets = torch.arange(4.0)[:, None]
    parts = text_tower.split_by_length([[1] * 5, [2], [3] * 4, [4, 4]], targets, size=2)
    assert [tokens.tolist() for tokens, _ in parts] == [
        [[2, 0], [4, 4]],
        [[3, 3, 3, 3, 0], [1, 1, 1, 1, 1]],
    ]
    assert [part.flatten().tolist() for _, part in parts] == [[1.0, 3.0], [2.0, 0.0]]


def test_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [text_tower.learning_rate(step, steps=10, peak=2.0, warmup=2) for step in (0, 5, 10)]
    # Half of the peak (nearly), the middle of the cosine, its end.
    assert rates == pytest.approx([1.0, 1.0, 0.0])


def test_distillation_teaches_the_text_tower_only(
    small_clip: open_clip.CLIP, lessons: text_tower.Lessons, tokenizer: SimpleTokenizer
) -> None:
    before = {key: value.clone() for key, value in small_clip.state_dict().items()}
    losses: list[float] = []
    drawn = text_tower.batches(lessons, tokenizer, size=6, seed=0)
    text_tower.distill(
        small_clip,
        drawn,
        steps=80,
        peak_rate=5e-3,
        on_step=lambda done, loss: losses.append(loss),
    )
    assert len(losses) == 80
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])
    after = small_clip.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert "token_embedding.weight" in changed
    assert "text_projection" in changed
    assert not any(key.startswith(("visual.", "logit_")) for key in changed)
