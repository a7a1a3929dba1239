"""Damaged files, by the thousand and always the same ones: only ImageError ever escapes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from models.data.images import ImageError, check_image, read_image
from tests.models.data import test_images as pictures


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_done_to_the_bytes_only_image_errors_escape(seed: int) -> None:
    generator = random.Random(seed)
    exif = Image.Exif()
    exif[0x0112] = 6
    samples = [
        pictures.encode(pictures.photo(), "JPEG", exif=exif),
        pictures.encode(pictures.photo(), "JPEG", progressive=True),
        pictures.encode(pictures.photo(), "PNG", exif=exif),
        pictures.palette(transparent=True),
        pictures.sixteen_bit_gray(),
        pictures.encode(pictures.photo(), "WEBP", exif=exif),
        pictures.animation("PNG"),
        pictures.animation("WEBP"),
    ]
    outcomes = {"refused": 0, "read": 0}
    for _ in range(25):
        for sample in samples:
            data = damage(sample, generator)
            outcomes[attempt(read_image, data)] += 1
            attempt(check_image, data)
    assert min(outcomes.values()) > 0


def damage(data: bytes, generator: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(generator.randint(1, 8)):
        damaged[generator.randrange(len(damaged))] = generator.randrange(256)
    if generator.random() < 0.3:
        start = generator.randrange(len(damaged))
        del damaged[start : start + generator.randint(1, 40)]
    return bytes(damaged)


def attempt(function: Callable[..., Any], data: bytes) -> str:
    try:
        function(data, max_pixels=1_000_000)
    except ImageError:
        return "refused"
    return "read"
