"""The offline CLIP at tiny sizes: nouns, both towers, its folder, its evaluation."""

import csv
import itertools
import random
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch.nn import functional
from torchvision.transforms import Normalize

from benchmarks.offline_clip import anchor, build, evaluate, image_tower, nouns, targets, text_tower

CONFIG = build.model_config(text_tower.text_config(width=32, heads=2, layers=2), embedding_width=48)


@pytest.fixture(scope="module")
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


@pytest.fixture
def small_clip() -> open_clip.CLIP:
    return open_clip.CLIP(**CONFIG).eval()


@pytest.mark.parametrize("network", image_tower.NETWORKS.values(), ids=image_tower.NETWORKS)
def test_every_weight_finds_its_place_in_timm(network: image_tower.Network) -> None:
    blocks = [
        f"_blocks.{number}.{part}.{kind}"
        for number in range(sum(network.repeats))
        for part, kind in (
            *(() if number == 0 else (("_expand_conv", "weight"),)),
            ("_depthwise_conv", "weight"),
            ("_project_conv", "weight"),
            *((f"_bn{i}", k) for i in range(number == 0, 3) for k in ("weight", "running_var")),
        )
    ]
    state = timm.create_model(network.timm_name, pretrained=False).state_dict()
    expected = {key for key in state if key.startswith("blocks.") and key.endswith(("weight", "_var"))}
    assert {image_tower.timm_key(key, network.repeats) for key in blocks} == expected


LITE0 = image_tower.NETWORKS["lite0"].repeats


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("_conv_stem.weight", "conv_stem.weight"),
        ("_bn1.running_mean", "bn2.running_mean"),
        ("_fc.bias", "classifier.bias"),
        ("_blocks.0._project_conv.weight", "blocks.0.0.conv_pw.weight"),
        ("_blocks.4._bn0.bias", "blocks.2.1.bn1.bias"),
        ("_blocks.15._project_conv.weight", "blocks.6.0.conv_pwl.weight"),
    ],
)
def test_timm_key(key: str, expected: str) -> None:
    assert image_tower.timm_key(key, LITE0) == expected


@pytest.mark.parametrize("key", ["fc.weight", "_blocks.16._bn1.bias", "_blocks.0._expand_conv.weight"])
def test_foreign_weight_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="expected a weight of an EfficientNet-Lite, got"):
        image_tower.timm_key(key, LITE0)


def test_centered_rows_raise_no_class() -> None:
    assert torch.equal(image_tower.centered(torch.tensor([[3.0, 1.0], [1.0, 5.0]])), torch.tensor([[1.0, -2], [-1, 2]]))


def test_projection_keeps_the_directions_of_most_energy() -> None:
    rows = torch.tensor([[0.0, 3.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    directions = image_tower.projection(rows, 2)
    torch.testing.assert_close(directions.abs(), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]))


def test_a_mixture_of_rows_is_read_back_from_its_embedding() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = image_tower.centered(torch.randn(7, 5, generator=generator))
    directions = image_tower.projection(rows, 5)  # all of them
    torch.testing.assert_close(directions @ (directions.T @ rows[2]), rows[2])


def test_projection_refuses_more_directions_than_mixtures() -> None:
    with pytest.raises(ValueError, match="expected at least 3 mixtures, got 2"):
        image_tower.projection(torch.ones(2, 4), 3)


def test_center_by_hand() -> None:
    centered = targets.center(torch.tensor([4.0, 6.0]), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(centered, torch.tensor([0.6, 0.8]))


def test_installed_classifier_knows_a_zebra(shared: Path) -> None:
    network = image_tower.NETWORKS["lite0"]
    pytest.importorskip(network.package)
    with Image.open(shared / "data" / "coco100" / "images" / "000000000034.jpg") as photo:
        preprocess = open_clip.image_transform(
            image_tower.IMAGE_SIZE, is_train=False, mean=[image_tower.IMAGE_MEAN] * 3, std=[image_tower.IMAGE_STD] * 3
        )
        image = preprocess(photo)[None]
    best = image_tower.installed_classifier(network)(image).argmax().item()
    assert text_tower.imagenet_names()[int(best)] == "zebra"


def test_half_precision_for_matrices_only() -> None:
    stored = build.compact_state({"matrix": torch.ones(2, 2), "vector": torch.ones(2), "count": torch.tensor(3)})
    assert stored["matrix"].dtype == torch.float16
    assert stored["vector"].dtype == torch.float32
    assert stored["count"].dtype == torch.int64


def test_saved_folder_is_an_ordinary_open_clip_model(
    small_clip: open_clip.CLIP, tokenizer: SimpleTokenizer, tmp_path: Path
) -> None:
    build.save_clip(small_clip, tmp_path, config=CONFIG)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    loaded.eval()
    texts = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a photo of a cat.", "snow"])
    assert torch.equal(texts, tokenizer(["a photo of a cat.", "snow"]))
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for method, value in (("encode_text", texts), ("encode_image", image)):
            expected = getattr(small_clip, method)(value, normalize=True)
            got = getattr(loaded, method)(value, normalize=True)
            torch.testing.assert_close(got, expected, atol=5e-3, rtol=0)
    normalize = next(step for step in preprocess.transforms if isinstance(step, Normalize))
    assert normalize.mean == pytest.approx([127 / 255] * 3)
    assert normalize.std == pytest.approx([128 / 255] * 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["open_clip_config.json", "open_clip_model.safetensors"]


def test_weakest_direction_by_hand() -> None:
    projection = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.5]])
    weak = anchor.weakest_direction(projection)
    assert weak.direction.abs().tolist() == pytest.approx([0, 0, 1])
    torch.testing.assert_close(weak.shift @ projection, weak.direction)
    assert weak.shift.abs().tolist() == pytest.approx([0, 2])


def test_anchor_adds_one_constant_to_all_embeddings(small_clip: open_clip.CLIP, tokenizer: SimpleTokenizer) -> None:
    plain = small_clip
    wider_config, anchored = anchor.with_projection_bias(CONFIG, plain)
    assert wider_config["vision_cfg"]["timm_proj_bias"] is True
    anchor.anchor(anchored, text_shift=2.0, image_shift=3.0)
    direction = functional.normalize(anchored.visual.head.proj.bias.detach(), dim=0)
    assert plain.visual.head.proj.bias is None
    encode = text_tower.full_length_encoder(plain, tokenizer)
    shifted = text_tower.full_length_encoder(anchored, tokenizer)
    texts = ["a photo of a cat.", "snow"]
    torch.testing.assert_close(shifted(texts), encode(texts) + 2 * direction, atol=1e-4, rtol=0)
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = plain.encode_image(images), anchored.encode_image(images)
    rest = before - torch.outer(before @ direction, direction)
    torch.testing.assert_close(after, rest + 3 * direction, atol=1e-4, rtol=0)


def test_anchor_is_given_once(small_clip: open_clip.CLIP) -> None:
    config, anchored = anchor.with_projection_bias(CONFIG, small_clip)
    with pytest.raises(ValueError, match="expected a CLIP without an anchor"):
        anchor.with_projection_bias(config, anchored)


def test_average_precision_by_hand() -> None:
    scores = torch.tensor([0.9, 0.1, 0.5, 0.4])
    relevant = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert evaluate.average_precision(scores, relevant) == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_class_map_leaves_out_absent_classes() -> None:
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert evaluate.class_map(scores, labels) == pytest.approx((1 + 1 / 2) / 2)
    assert evaluate.chance_map(labels, trials=400, seed=0) == pytest.approx(0.75, abs=0.03)


def write_photos(folder: Path, rows: list[tuple[str, str]]) -> None:
    (folder / "classes.txt").write_text("1 cat\n15 potted plant\n")
    with (folder / "labels.csv").open("w", newline="") as table:
        csv.writer(table).writerows([("image", "labels"), *rows])


def test_photos_without_a_label_are_left_out(tmp_path: Path) -> None:
    write_photos(tmp_path, [("a.jpg", "potted plant;cat"), ("b.jpg", ""), ("c.jpg", "cat")])
    photos = evaluate.read_photos(tmp_path)
    assert [path.name for path in photos.paths] == ["a.jpg", "c.jpg"]
    assert photos.classes == ["cat", "potted plant"]
    assert photos.labels.tolist() == [[1, 1], [1, 0]]


def test_unknown_label_is_refused(tmp_path: Path) -> None:
    write_photos(tmp_path, [("a.jpg", "dog")])
    with pytest.raises(ValueError, match=r"expected a label of classes\.txt, got 'dog'"):
        evaluate.read_photos(tmp_path)


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


def test_visible_nouns_are_common_concrete_singular_and_decent(small_wordnet: nouns.WordNet) -> None:
    chosen = nouns.visible_nouns(small_wordnet, frequency=lambda noun: 4.0)
    # entity and word are abstract, Paris is a name, "rail fence" a phrase, rails a plural.
    assert chosen == ["rail", "sky"]
    assert nouns.visible_nouns(small_wordnet, frequency=lambda noun: 4.0, excluded=["sky"]) == ["rail"]
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


def test_kinds_are_all_classes_below_a_synset(small_wordnet: nouns.WordNet) -> None:
    found = targets.kinds(small_wordnet, ["00000002", "00000005", "99999999"])
    assert found == {"00000002": (0,), "00000005": (1,), "00000001": (0, 1)}


@pytest.fixture
def text_targets(small_wordnet: nouns.WordNet) -> targets.Targets:
    """Three classes, of which the second is a rail; their sentences are the axes."""
    return targets.Targets(torch.eye(3), torch.eye(3), small_wordnet, {"00000002": (1,)})


def test_half_of_a_mixture_are_kinds_and_half_are_similar_names(text_targets: targets.Targets) -> None:
    similar_to_first = torch.tensor([[1.0, 0.0, 0.0]]).expand(2, -1)
    rail, other = text_targets.mixture(["rail", "qux"], similar_to_first)
    torch.testing.assert_close(rail, torch.tensor([0.5, 0.5, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(other, torch.tensor([1.0, 0.0, 0.0]), atol=1e-4, rtol=0)


def test_targets_have_unit_length(text_targets: targets.Targets) -> None:
    sentences = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    embedded = text_targets.embed(["rail", "sky", "qux"], sentences)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    assert embedded[0].argmax() == 1


def test_imagenet_classes_are_synsets() -> None:
    offsets = targets.imagenet_synsets()
    assert len(set(offsets)) == 1000
    assert offsets[text_tower.imagenet_names().index("zebra")] == "02391049"


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


def test_long_texts_reach_the_positions_of_learned_prompts(tokenizer: SimpleTokenizer) -> None:
    made = text_tower.long_texts(["rail", "sky", "potted plant"], 200, seed=3)
    texts = [each.text for each in made]
    assert all(noun in each.text for each in made for noun in each.nouns)
    assert made == text_tower.long_texts(["rail", "sky", "potted plant"], 200, seed=3)
    lengths = [len(tokenizer.encode(text)) + 2 for text in texts]
    # A learned prompt has 36 tokens; both shorter and longer texts are needed.
    assert min(lengths) < 25
    assert max(lengths) >= 36
    assert all(text.startswith("a photo of ") and text.endswith(".") for text in texts)


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
        names=(0,),
        templates=("a photo of a {}.", "{}"),
        long=("a photo of a cat, a snow and a potted plant.", "a photo of snow snow snow."),
        long_targets=torch.randn(2, 48, generator=generator),
    )


def test_batches_pair_texts_with_their_targets(lessons: text_tower.Lessons, tokenizer: SimpleTokenizer) -> None:
    expected = {
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
            assert torch.equal(expected[tuple(tokens[1:end])], target)
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
    assert [tokens.tolist() for tokens, _ in parts] == [[[2, 0], [4, 4]], [[3, 3, 3, 3, 0], [1, 1, 1, 1, 1]]]
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
    text_tower.distill(small_clip, drawn, steps=80, peak_rate=5e-3, on_step=lambda done, loss: losses.append(loss))
    assert len(losses) == 80
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])
    after = small_clip.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert "token_embedding.weight" in changed
    assert "text_projection" in changed
    assert not any(key.startswith(("visual.", "logit_")) for key in changed)
