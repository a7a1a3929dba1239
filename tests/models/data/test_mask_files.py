import io

import numpy as np
import pytest
from PIL import Image

from models.data.mask_files import _cubehelix, label_map_png, overlay_png, soft_overlay, voc_palette


def test_voc_colors() -> None:
    colors = voc_palette()
    assert colors[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]
    assert len(np.unique(colors, axis=0)) == 256


def test_a_label_map_survives_exactly() -> None:
    label_map = np.arange(256, dtype=np.uint8).reshape(8, 32)
    picture = Image.open(io.BytesIO(label_map_png(label_map, text={"Model": "tiny 1"})))
    assert picture.mode == "P"
    assert np.array_equal(np.array(picture), label_map)
    assert picture.info["Model"] == "tiny 1"
    assert picture.convert("RGB").getpixel((1, 0)) == (128, 0, 0)


def test_overlay_colors_only_the_object() -> None:
    image = np.full((20, 20, 3), 100, dtype=np.uint8)
    label_map = np.zeros((20, 20), dtype=np.uint8)
    label_map[5:15, 5:15] = 1
    shown = np.array(Image.open(io.BytesIO(overlay_png(image, label_map))))
    assert shown[0, 0].tolist() == [100, 100, 100]
    assert shown[10, 10].tolist() == [177, 50, 50]
    with pytest.raises(ValueError, match="expected a label map of"):
        overlay_png(image, label_map[1:])


def test_a_soft_overlay_is_as_strong_as_the_best_map() -> None:
    image = np.full((2, 3, 3), 100, dtype=np.uint8)
    image[..., 0] = 160  # gray 120
    maps = np.zeros((2, 2, 3), dtype=np.float32)
    maps[0, 0, 0], maps[1, 0, 0] = 1.0, 0.2
    maps[1, 1] = 0.5
    shown = soft_overlay(image, maps, [1, 4])
    assert shown[0, 1].tolist() == [120, 120, 120]
    assert shown[0, 0].tolist() == [round(0.2 * 120 + 0.8 * 255), 24, 24]  # red, class 1
    assert shown[1, 2].tolist() == [72, 72, round(0.6 * 120 + 0.4 * 255)]  # blue, class 4
    assert (soft_overlay(image, maps[:0], []) == 120).all()
    with pytest.raises(ValueError, match=r"expected maps \(1, 2, 3\), got \(2, 2, 3\)"):
        soft_overlay(image, maps, [1])


def test_the_pictures_colors_grow_brighter() -> None:
    luma = _cubehelix().astype(float) @ [0.30, 0.59, 0.11]
    assert _cubehelix()[0].tolist() == [0, 0, 0]
    assert _cubehelix()[255].tolist() == [255, 255, 255]
    assert (np.diff(luma) > -0.51).all()  # rounding aside
    assert np.abs(luma - np.arange(256)).max() < 1.5
