"""What the client gets of the real service, over a real socket: masks, and the models that make them."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from service.client import Client, InvalidRequest, NotFound, UnknownLabel
from tests.helpers.client_fixtures import COLORS
from tests.helpers.service_fixtures import png

pytestmark = pytest.mark.usefixtures("worker")  # each test finds a live worker


def test_labels_that_the_model_was_not_trained_on(client: Client, photo: bytes) -> None:
    with pytest.raises(UnknownLabel):
        client.pseudo_mask(photo, ["cat", "zebra"])
    result = client.pseudo_mask(photo, ["cat", "zebra"], vocabulary="open")
    assert [(each.name, each.zero_shot) for each in result.classes] == [
        ("cat", False),
        ("zebra", True),
    ]


def test_a_mask_is_the_services(
    client: Client, api: httpx.Client, photo: bytes, tmp_path: Path
) -> None:
    result = client.pseudo_mask(
        photo, ["Kitty", "bowl"], background_threshold=0.6, min_confidence=0.6
    )
    file = api.get(f"/jobs/{result.job_id}/mask.png").content
    assert result.png == file
    np.testing.assert_array_equal(result.label_map, np.asarray(Image.open(io.BytesIO(file))))
    assert (result.label_map.shape, result.label_map.dtype) == ((20, 30), np.uint8)
    assert set(np.unique(result.label_map)) == {0, 1, 2, 255}

    document = api.get(f"/jobs/{result.job_id}").json()
    assert document["options"]["background_threshold"] == 0.6
    assert document["options"]["min_confidence"] == 0.6
    cat, bowl = result.classes
    assert (cat.index, cat.name, bowl.name) == (1, "cat", "bowl")
    assert (
        cat.area == document["classes"][0]["area"] == pytest.approx(np.mean(result.label_map == 1))
    )
    assert cat.confidence == document["classes"][0]["confidence"]
    assert list(cat.box or ()) == document["classes"][0]["box"]
    assert cat.alignment_class is None
    assert result.ignored == document["ignored"] > 0
    assert not result.is_empty
    assert result.provenance["Model"] == "double 0123456789ab"
    assert result.provenance["Labels"] == "cat, bowl"

    result.save(tmp_path / "masks" / "cat.png")
    assert (tmp_path / "masks" / "cat.png").read_bytes() == file


def test_what_is_fetched_later(client: Client, api: httpx.Client, photo: bytes) -> None:
    result = client.pseudo_mask(photo, "cat")
    with np.load(io.BytesIO(api.get(f"/jobs/{result.job_id}/scores.npz").content)) as stored:
        np.testing.assert_array_equal(result.scores.scores, stored["scores"])
        np.testing.assert_array_equal(result.cams, stored["cams"])
    assert result.scores.scores.dtype == result.cams.dtype == np.float16
    assert (result.scores.names, result.scores.size) == (("cat",), (20, 30))
    overlay = api.get(f"/jobs/{result.job_id}/overlay.png").content
    np.testing.assert_array_equal(
        np.asarray(result.overlay), np.asarray(Image.open(io.BytesIO(overlay)))
    )
    client.cancel(result.job_id)  # which forgets what is done
    assert result.scores.size == (20, 30)  # fetched once, kept
    with pytest.raises(NotFound):
        client.job(result.job_id)


def test_any_image(client: Client, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(photo)
    pixels = np.asarray(Image.open(io.BytesIO(photo)))
    first = client.pseudo_mask(photo, "cat")
    for same in (tmp_path / "photo.png", str(tmp_path / "photo.png")):
        assert client.pseudo_mask(same, "cat").job_id == first.job_id  # the same bytes
    for image in (
        Image.open(io.BytesIO(photo)),
        pixels,
        pixels[::-1, ::-1],
        pixels[..., 0],
        np.dstack([pixels, pixels[..., :1]]),
    ):
        np.testing.assert_array_equal(client.pseudo_mask(image, "cat").label_map, first.label_map)
    assert client.pseudo_mask(Image.new("CMYK", (30, 20)), "cat").label_map.shape == (20, 30)


def test_a_pillow_image_is_masked_as_it_lies_in_memory(client: Client) -> None:
    """A file's orientation turns the file's mask, but not that of the pixels that Pillow has read of it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (30, 20), next(COLORS)).save(file, "JPEG", exif=exif)
    assert client.pseudo_mask(file.getvalue(), "cat").label_map.shape == (30, 20)
    with Image.open(file) as image:
        assert client.pseudo_mask(image, "cat").label_map.shape == (20, 30)


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (np.zeros((4, 4, 3)), ValueError, r"expected uint8 pixels .*, got float64 \(4, 4, 3\)"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"got uint8 \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r"got uint8 \(0, 4, 3\)"),
        (3, TypeError, "expected a path, bytes, a Pillow image or an array, got int"),
        ("nowhere.jpg", FileNotFoundError, "nowhere.jpg"),
    ],
)
def test_no_image(client: Client, image: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        client.pseudo_mask(image, "cat")  # type: ignore[arg-type]


def test_segment(client: Client) -> None:
    found = client.segment(png(color=(12, 0, 3)), min_confidence=0.2, refine="none")
    assert [each.name for each in found.classes] == ["dining table"]
    assert found.job.task == "segment"
    assert found.job.document["options"]["min_confidence"] == 0.2
    assert found.cams is None
    assert found.scores.names == ("dining table",)
    nothing = client.segment(png(color=(12, 1, 0)))
    assert nothing.is_empty
    assert not nothing.label_map.any()


def test_other_thresholds(client: Client, api: httpx.Client, photo: bytes) -> None:
    result = client.pseudo_mask(photo, "cat")
    path = f"/jobs/{result.job_id}/mask.png"
    for job in (result, result.job_id):
        stricter = client.rethreshold(job, background_threshold=0.9)
        assert stricter.png == api.get(path, params={"background_threshold": 0.9}).content
        assert (stricter.label_map == 1).sum() < (result.label_map == 1).sum()
    unsure = client.rethreshold(result, background_power=2, min_confidence=0.9)
    assert (unsure.label_map == 255).any()
    assert '"background_power": 2' in unsure.provenance["Options"]
    with pytest.raises(InvalidRequest, match="background_threshold"):
        client.rethreshold(result, background_threshold=7)
    with pytest.raises(TypeError, match=r"expected options background_power, .*, got 'refine'"):
        client.rethreshold(result, refine="none")  # type: ignore[call-arg]


def test_models(client: Client) -> None:
    [model] = client.models()
    assert (model.name, model.version, model.ready, model.default) == (
        "double",
        "0123456789ab",
        True,
        True,
    )
    assert model.can_segment
    assert model.classes.channel("kitty") == 0
    assert model.defaults.class_thresholds == {"bowl": 0.6}
    alone = client.model("double")
    assert alone.classes == model.classes
    assert alone.document["nearest_nouns"]["cat"][0]["noun"] == "sofa"
    with pytest.raises(NotFound, match="other"):
        client.model("other")
