import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch

from models import clip
from models.bundle.bundle import load_bundle
from models.bundle.manifest import MANIFEST, TEXT_TOWER_FILE, BundleError
from models.clip import FrozenClip, build_image_tower, load_clip
from models.config import ClipConfig, CnnConfig, Config
from models.training.export import export_bundle
from models.training.run import Run, read_clip, start_run
from tests.conftest import CLASSES, CPU


def test_embeddings_have_unit_length(tiny_clip: FrozenClip) -> None:
    images = tiny_clip.embed_images(tiny_clip.normalize(torch.rand(2, 3, 64, 64)))
    texts = tiny_clip.embed_classes(["cat", "dining table"])
    for embeddings in (images, texts):
        assert embeddings.shape == (2, 16)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_texts_are_embedded_as_open_clip_does(tiny_clip: FrozenClip) -> None:
    texts = ["cat", "a photo of a very long dining table in a kitchen.", ""]
    whole = tiny_clip.model.encode_text(tiny_clip.tokenizer(texts), normalize=True)
    torch.testing.assert_close(tiny_clip.embed_texts(texts), whole)


def test_a_soft_prompt_of_hard_tokens_is_the_text(tiny_clip: FrozenClip) -> None:
    words = "big red fire truck on rails"
    tokens = tiny_clip.tokenizer([words])[0]
    inner = tokens[1 : int(tokens.argmax())]
    context = tiny_clip.model.token_embedding(inner)[None]
    torch.testing.assert_close(tiny_clip.embed_prompts(context), tiny_clip.embed_classes([words]))


def test_gradient_reaches_prompts_and_images_but_not_clip(tiny_clip: FrozenClip) -> None:
    context = torch.rand(2, 3, tiny_clip.prompt_width, requires_grad=True)
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    cosine = (tiny_clip.embed_prompts(context) * tiny_clip.embed_images(images)).sum()
    cosine.backward()
    assert context.grad is not None
    assert context.grad.abs().max() > 0
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in tiny_clip.parameters())


def test_it_stays_in_evaluation_mode(tiny_clip: FrozenClip) -> None:
    tiny_clip.train()
    assert not any(module.training for module in tiny_clip.modules())


def test_no_image_gives_an_empty_embedding_with_gradient(tiny_clip: FrozenClip) -> None:
    none = torch.zeros(0, 3, 64, 64, requires_grad=True)
    embeddings = tiny_clip.embed_images(none)
    assert embeddings.shape == (0, 16)
    embeddings.sum().backward()
    assert none.grad is not None


def test_wrong_prompts_are_refused(tiny_clip: FrozenClip) -> None:
    with pytest.raises(ValueError, match=r"expected contexts \(N, M, 16\), got \(1, 2, 5\)"):
        tiny_clip.embed_prompts(torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match="expected at most 77 tokens, got 78"):
        tiny_clip.embed_prompts(torch.zeros(1, 72, 16))
    with pytest.raises(ValueError, match="expected at least one text, got none"):
        tiny_clip.embed_texts([])


def test_normalization_is_clips_own_or_imagenets(tiny_clip_folder: Path) -> None:
    model = f"local-dir:{tiny_clip_folder}"
    gray = torch.full((1, 3, 2, 2), 0.5)
    assert load_clip(model, None).normalize(gray).abs().max() == 0
    imagenet = load_clip(model, None, normalization="imagenet").normalize(gray)
    assert imagenet[0, 0, 0, 0].item() == pytest.approx((0.5 - 0.485) / 0.229)
    with pytest.raises(ValueError, match="expected normalization 'clip' or 'imagenet', got 'voc'"):
        load_clip(model, None, normalization="voc")


def test_openais_weights_get_their_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's ViT-B-32 is built with GELU; OpenAI's weights were trained with QuickGELU."""
    create = open_clip.create_model

    def without_download(model: str, **options: object) -> object:
        return create(model, **{**options, "pretrained": None, "require_pretrained": False})

    monkeypatch.setattr(open_clip, "create_model", without_download)
    monkeypatch.setattr(clip, "_answers", lambda _: True)
    loaded = load_clip("ViT-B-32", "openai")
    tower = build_image_tower(loaded.vision_config, mean=[0.5] * 3, std=[0.5] * 3)
    for network in (loaded.visual, loaded.model.transformer, tower.visual):
        kinds = {type(each).__name__ for each in network.modules()}
        assert "QuickGELU" in kinds
        assert "GELU" not in kinds
    assert load_clip("ViT-B-32", "laion2b_s34b_b79k").vision_config["quick_gelu"] is False


def test_no_weights_and_no_model_are_refused(tiny_clip_folder: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_clip_folder / "open_clip_config.json", tmp_path)
    with pytest.raises(ValueError, match="expected a CLIP that open_clip loads"):
        load_clip(f"local-dir:{tmp_path}", None)
    with pytest.raises(ValueError, match=r"expected a CLIP that open_clip loads .* got 'ViT-Z'"):
        load_clip("ViT-Z", None)


@pytest.mark.parametrize("answers", [True, False])
def test_the_hub_is_asked_again_only_if_it_answers(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(*_: object, **__: object) -> None:
        seen.append(huggingface_hub.constants.HF_HUB_OFFLINE)
        raise OSError("stop")

    monkeypatch.setattr(open_clip, "create_model", look)
    monkeypatch.setattr(clip, "_answers", lambda _: answers)
    for pretrained in ("openai", None):  # without weights nothing is asked
        with pytest.raises(ValueError, match="stop"):
            load_clip("ViT-B-32", pretrained)
    assert seen == [not answers, False]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_a_server_answers_whatever_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(BaseHTTPRequestHandler, "log_message", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # says 501
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert clip._answers(address)
        server.shutdown()
        thread.join()
    assert not clip._answers(address)


def test_weights_that_are_neither_a_name_nor_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file of weights, or .* \(openai, .*got 'opena1', which"):
        load_clip("ViT-B-32", "opena1")
    with pytest.raises(ValueError, match="which is neither"):
        load_clip("ViT-B-32", str(tmp_path))


def test_a_named_model_takes_the_same_path() -> None:
    clip = load_clip("ViT-B-32", None)
    assert clip.input_size == (224, 224)
    assert clip.prompt_width == 512
    prompt = clip.embed_prompts(clip.model.token_embedding(torch.tensor([[2368]])))
    torch.testing.assert_close(prompt, clip.embed_classes([clip.tokenizer.decode([2368])]))


def test_the_image_tower_alone_embeds_as_the_whole(tiny_clip: FrozenClip) -> None:
    tower = build_image_tower(tiny_clip.vision_config, mean=[0.5] * 3, std=[0.25] * 3)
    tower.visual.load_state_dict(tiny_clip.visual.state_dict())
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(tower.embed_images(images), tiny_clip.embed_images(images))


WORDS = {"licence": "CC0", "trained_on": "nothing"}


def test_the_text_tower_is_clips(tiny_open_bundle: Path, tiny_clip: FrozenClip) -> None:
    bundle = load_bundle(tiny_open_bundle, device=CPU)
    assert bundle.info.open_vocabulary
    assert bundle.info.to_json()["open_vocabulary"] is True
    assert bundle.text_tower is not None
    texts = ["fire truck", "a longer label of six words"]
    found, expected = bundle.text_tower.embed_classes(texts), tiny_clip.embed_classes(texts)
    torch.testing.assert_close((found * expected).sum(dim=1), torch.ones(2), atol=1e-3, rtol=0)
    assert not any(each.requires_grad for each in bundle.text_tower.parameters())
    assert not any(module.training for module in bundle.text_tower.modules())


def test_both_towers_of_a_bundle_are_a_clip_to_train_with(tiny_open_bundle: Path, tiny_clip: FrozenClip) -> None:
    clip = read_clip(ClipConfig(model=f"bundle:{tiny_open_bundle}", pretrained=None))
    texts, images = ["cat", "fire truck"], tiny_clip.normalize(torch.rand(2, 3, 64, 64))
    for found, expected in (
        (clip.embed_classes(texts), tiny_clip.embed_classes(texts)),
        (clip.embed_images(images), tiny_clip.embed_images(images)),
    ):
        torch.testing.assert_close((found * expected).sum(dim=1), torch.ones(2), atol=1e-3, rtol=0)
    assert (clip.vision_config, clip.text_config) == (tiny_clip.vision_config, tiny_clip.text_config)
    assert torch.equal(clip.mean, tiny_clip.mean)


def test_a_bundle_without_a_tower_is_no_clip(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="expected a bundle with both towers of a CLIP, got"):
        read_clip(ClipConfig(model=f"bundle:{tiny_bundle}", pretrained=None))
    with pytest.raises(BundleError, match=r"expected a folder with bundle\.yaml or one of"):
        read_clip(ClipConfig(model="bundle:nowhere", pretrained=None))
    with pytest.raises(ValueError, match=r"expected clip\.pretrained: null"):
        read_clip(ClipConfig(model=f"bundle:{tiny_bundle}"))


def test_it_is_left_out_unless_wanted(tiny_bundle: Path, tiny_run: Run, tmp_path: Path) -> None:
    assert load_bundle(tiny_bundle, device=CPU).text_tower is None
    export_bundle(tiny_run, tmp_path, stage="zero-shot", parts=("text_tower",), **WORDS)
    assert (tmp_path / TEXT_TOWER_FILE).is_file()
    info = export_bundle(tiny_run, tmp_path, stage="zero-shot", **WORDS)
    assert not (tmp_path / TEXT_TOWER_FILE).exists()
    assert not info.open_vocabulary
    assert TEXT_TOWER_FILE not in info.files


def test_a_text_tower_without_its_image_tower_is_refused(tiny_open_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_open_bundle, tmp_path / "copy"))
    text = (copy / MANIFEST).read_text().replace("kind: zero_shot", "kind: cnn")
    (copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="a zero_shot or clip_vit generator on it, got a cnn"):
        load_bundle(copy, device=CPU)


def test_a_generator_that_is_not_clips_gets_no_text_tower(tiny_config: Config, tiny_run: Run, tmp_path: Path) -> None:
    plain = CnnConfig(backbone="test_resnet", pretrained=False)
    config = tiny_config.model_copy(update={"generator": plain})
    run = start_run(config, CLASSES, tmp_path / "cnn", device=CPU)
    with pytest.raises(ValueError, match=r"expected a zero_shot .* open vocabulary, got cnn"):
        export_bundle(run, tmp_path / "out", stage="zero-shot", parts=("text_tower",), **WORDS)
    stage = "refine-generator"  # in which the whole backbone learned
    with pytest.raises(ValueError, match="expected a mask generator on the frozen trunk of CLIP"):
        export_bundle(tiny_run, tmp_path / "out", stage=stage, parts=("text_tower",), **WORDS)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_others_is_refused(tiny_clip: FrozenClip) -> None:
    config = {**tiny_clip.vision_config, "text_cfg": {"hf_tokenizer_name": "x"}}
    other = FrozenClip(tiny_clip.model, tiny_clip.tokenizer, config=config, mean=[0.5] * 3, std=[0.25] * 3)
    with pytest.raises(ValueError, match="expected a CLIP with open_clip's own tokenizer"):
        _ = other.text_config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hf_model_name": "x/y"}, "expected a text tower of open_clip's own"),
        ({"no_causal_mask": True}, "expected a causal text transformer"),
    ],
)
def test_other_text_towers_are_refused(tiny_clip: FrozenClip, change: dict[str, object], message: str) -> None:
    config = tiny_clip.text_config
    changed = {**config, "text_cfg": {**config["text_cfg"], **change}}
    with pytest.raises(ValueError, match=message):
        clip.build_text_tower(changed)


def test_words_from_outside_do_not_fill_the_memory(tiny_clip: FrozenClip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "_CACHED_WORDS", 20)
    made: list[Any] = []
    plain = open_clip.SimpleTokenizer
    monkeypatch.setattr(open_clip, "SimpleTokenizer", lambda **options: made.append(plain(**options)) or made[-1])
    tower = clip.build_text_tower(tiny_clip.text_config)
    for number in range(30):
        words = f"{chr(97 + number % 26)}qx word{chr(97 + number // 26)}{chr(97 + number % 26)}z"
        assert torch.equal(tower.tokenizer([words]), plain()([words]))
    assert len(made[0].cache) <= 20 + len(words.split())
