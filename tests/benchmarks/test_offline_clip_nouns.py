"""The offline CLIP's nouns: WordNet, the shipped noun list, the vocabulary to be taught."""

from __future__ import annotations

from pathlib import Path

import pytest
from open_clip.tokenizer import SimpleTokenizer

from benchmarks.offline_clip import nouns, text_tower
from tests.helpers.paths import ROOT

DATA_NOUN = """\
  1 a line of licence
00000001 03 n 01 entity 0 000 | that which is
00000002 06 n 02 rail 0 rail_fence 0 001 @ 00000001 n 0000 | a bar
00000003 15 n 01 Paris 0 001 @i 00000001 n 0000 | a city
00000004 10 n 01 word 0 000 | a word
00000005 17 n 01 sky 0 001 @ 00000001 n 0000 | the air
00000006 06 n 01 slurword 0 002 @ 00000001 n 0000 ;u 00000007 n 0000 | an insult
00000007 10 n 02 disparagement 0 depreciation 0 000 | a belittling remark
00000008 06 n 01 rails 0 001 @ 00000001 n 0000 | several bars
"""
INDEX_NOUN = """\
  1 a line of licence
entity n 1 0 1 0 00000001
rail n 2 1 @ 2 1 00000002 00000004
rail_fence n 1 1 @ 1 0 00000002
paris n 1 1 @i 1 0 00000003
word n 1 0 1 1 00000004
sky n 1 1 @ 1 1 00000005
slurword n 1 1 ;u 1 0 00000006
rails n 1 1 @ 1 0 00000008
"""


@pytest.fixture
def small_wordnet(tmp_path: Path) -> nouns.WordNet:
    (tmp_path / "data.noun").write_text(DATA_NOUN)
    (tmp_path / "index.noun").write_text(INDEX_NOUN)
    return nouns.read_wordnet(tmp_path)


def test_wordnet_senses_and_synsets(small_wordnet: nouns.WordNet) -> None:
    assert small_wordnet.senses["rail"] == ("00000002", "00000004")
    assert small_wordnet.senses["rail fence"] == ("00000002",)
    rail = small_wordnet.synsets["00000002"]
    assert rail.words == ("rail", "rail fence")
    assert (rail.category, rail.parents, rail.instance_of) == (6, ("00000001",), ())
    assert small_wordnet.synsets["00000003"].instance_of == ("00000001",)
    assert small_wordnet.synsets["00000006"].usages == ("00000007",)


def test_wordnet_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected WordNet's index\.noun and data\.noun"):
        nouns.read_wordnet(tmp_path)


def test_visible_nouns_are_common_concrete_singular_and_decent(
    small_wordnet: nouns.WordNet,
) -> None:
    chosen = nouns.visible_nouns(small_wordnet, frequency=lambda noun: 4.0)
    # entity and word are abstract, Paris is a name, "rail fence" a phrase, rails a plural.
    assert chosen == ["rail", "sky"]
    assert nouns.visible_nouns(
        small_wordnet, frequency=lambda noun: 4.0, excluded=["sky"]
    ) == ["rail"]  # fmt: skip
    rare = nouns.visible_nouns(small_wordnet, frequency={"sky": 3.0, "rail": 2.9}.__getitem__)
    assert rare == ["sky"]


def test_offensive_and_plural_words(small_wordnet: nouns.WordNet) -> None:
    assert nouns.is_offensive("slurword", small_wordnet)
    assert not nouns.is_offensive("rail", small_wordnet)
    assert nouns.is_plural("rails", small_wordnet)
    assert not nouns.is_plural("rail", small_wordnet)


def test_known_nouns_keeps_names_and_phrases(small_wordnet: nouns.WordNet) -> None:
    frequency = {"paris": 5.0, "rail fence": 3.0}
    chosen = nouns.known_nouns(small_wordnet, frequency=lambda noun: frequency.get(noun, 0.0))
    assert chosen == ["paris", "rail fence"]


def test_shipped_noun_list_is_sorted_lowercase_and_clean() -> None:
    path = ROOT / "models" / "nouns.txt"
    shipped = path.read_text(encoding="utf-8").splitlines()
    assert shipped == sorted(set(shipped))
    assert all(noun == noun.lower().strip() and noun for noun in shipped)
    assert 2000 <= len(shipped) <= 3000
    wanted = {"rail", "grass", "kitchen", "court", "snow", "road", "sky", "water", "railroad"}
    assert wanted <= set(shipped)
    assert not set(nouns.read_words("excluded")) & set(shipped)


def test_vocabulary_holds_out_no_class_name(small_wordnet: nouns.WordNet) -> None:
    def make() -> text_tower.Vocabulary:
        return text_tower.make_vocabulary(small_wordnet, held_out=2, seed=0, frequency=lambda noun: 4.0)

    made = make()
    assert len(made.held_out) == 2
    assert not set(made.held_out) & set(made.training)
    assert not set(made.held_out) & {*text_tower.CLASS_NAMES, *nouns.SCENERY}
    assert set(made.core) <= set(made.training)
    assert {"tv", "couch", "potted plant", "traffic light"} <= set(made.core)
    assert made == make()


def test_class_names_begin_with_coco() -> None:
    assert len(set(text_tower.CLASS_NAMES[:80])) == 80
    assert text_tower.CLASS_NAMES[0] == "person"
    assert text_tower.CLASS_NAMES[79] == "toothbrush"
    assert len(text_tower.imagenet_names()) == 1000


def test_long_texts_reach_the_positions_of_learned_prompts() -> None:
    tokenizer = SimpleTokenizer()
    texts = text_tower.long_texts(["rail", "sky", "potted plant"], 200, seed=3)
    assert texts == text_tower.long_texts(["rail", "sky", "potted plant"], 200, seed=3)
    lengths = [len(tokenizer.encode(text)) + 2 for text in texts]
    # A learned prompt has 36 tokens; both shorter and longer texts are needed.
    assert min(lengths) < 25
    assert max(lengths) >= 36
    assert all(text.startswith("a photo of ") and text.endswith(".") for text in texts)
