import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.data.images import ImageError, check_image, read_image

RED = (255, 0, 0)


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def photo(width: int = 40, height: int = 30) -> Image.Image:
    """A smooth picture with detail in every corner, so that a turn or a cut shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing: it must be refused on its header."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64))


def chunk(name: bytes, data: bytes) -> bytes:
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def sixteen_bit_gray() -> bytes:
    values = np.array([[0, 256, 257, 32768, 65535]], dtype=np.uint16)
    return encode(Image.fromarray(values), "PNG")


def sixteen_bit_rgb() -> bytes:
    """Pillow cannot write this one: 1 x 1, red 65535, green 32768, blue 0."""
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(">HHH", 65535, 32768, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")


def palette(*, transparent: bool) -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    return encode(image, "PNG", **({"transparency": 1} if transparent else {}))


TAKEN: list[tuple[str, Callable[[], bytes], list[tuple[int, ...]]]] = [
    ("rgb png", lambda: encode(Image.new("RGB", (1, 1), RED), "PNG"), [RED]),
    ("rgb webp", lambda: encode(Image.new("RGB", (1, 1), RED), "WEBP", lossless=True), [RED]),
    ("gray png", lambda: encode(Image.new("L", (1, 1), 77), "PNG"), [(77, 77, 77)]),
    ("bilevel png", lambda: encode(Image.new("1", (1, 1), 1), "PNG"), [(255, 255, 255)]),
    ("palette", lambda: palette(transparent=False), [RED, (0, 0, 255)]),
    ("palette with transparency", lambda: palette(transparent=True), [RED, (255, 255, 255)]),
    ("half transparent", lambda: encode(Image.new("RGBA", (1, 1), (0, 0, 0, 127)), "PNG"), [(128,) * 3]),
    ("gray, transparent", lambda: encode(Image.new("LA", (1, 1), (0, 0)), "PNG"), [(255,) * 3]),
    (
        "transparent color key",
        lambda: encode(Image.new("RGB", (1, 1), RED), "PNG", transparency=RED),
        [(255, 255, 255)],
    ),
    ("16-bit gray is scaled, not clipped", sixteen_bit_gray, [(0,) * 3, (1,) * 3, (1,) * 3, (128,) * 3, (255,) * 3]),
    ("16-bit rgb", sixteen_bit_rgb, [(255, 128, 0)]),
]


@pytest.mark.parametrize(("data", "expected"), [row[1:] for row in TAKEN], ids=[r[0] for r in TAKEN])
def test_pixels(data: Callable[[], bytes], expected: list[tuple[int, ...]]) -> None:
    image = read_image(data())
    assert image.pixels.dtype == np.uint8
    assert image.pixels.flags.writeable
    assert image.exif_orientation == 1
    assert image.pixels.tolist() == [[list(color) for color in expected]]


@pytest.mark.parametrize(
    ("values", "gray", "value_range"),
    [
        ([0, 2048, 4095], [0, 128, 255], (0, 4095)),  # 12 bits
        ([0, 512, 1023], [0, 128, 255], (0, 1023)),  # 10 bits
        ([383, 8383, 16383], [0, 128, 255], (383, 16383)),  # 14 bits, with an offset
        ([0, 128, 255], [0, 128, 255], (0, 255)),  # 8 bits
        ([7, 7, 8], [0, 0, 255], (7, 8)),
        ([0, 8192, 16384], [0, 32, 64], None),  # a dark picture of 16 bits
        ([30000, 30001, 30002], [117, 117, 117], None),
        ([0, 0, 0], [0, 0, 0], None),
        ([4095, 4095, 4095], [16, 16, 16], None),
    ],
)
def test_sixteen_bit_gray_of_fewer_bits_is_scaled_by_its_own_range(
    values: list[int], gray: list[int], value_range: tuple[int, int] | None
) -> None:
    data = encode(Image.fromarray(np.array([values], dtype=np.uint16)), "PNG")
    image = read_image(data)
    assert image.pixels[0].tolist() == [[each] * 3 for each in gray]
    assert image.value_range == value_range
    assert check_image(data).width == 3


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "P"])
def test_only_sixteen_bit_gray_is_scaled(mode: str) -> None:
    assert read_image(encode(Image.new(mode, (2, 1), 1), "PNG")).value_range is None


@pytest.mark.parametrize(
    ("ink", "color"),
    [((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 0), (255, 255, 255))],
    ids=["cyan", "black", "paper"],
)
def test_cmyk_jpeg_has_the_colors_a_person_sees(ink: tuple[int, ...], color: tuple[int, ...]) -> None:
    image = read_image(encode(Image.new("CMYK", (8, 8), ink), "JPEG", quality=95))
    assert np.abs(image.pixels.astype(int) - np.array(color)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "JPEG"])
def test_exif_orientation_is_applied_and_reported(orientation: int, file_format: str) -> None:
    upright = photo()
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 98}}
    data = encode(stored, file_format, exif=exif, **options[file_format])

    image = read_image(data)
    header = check_image(data)

    assert image.exif_orientation == orientation
    difference = np.abs(image.pixels.astype(int) - np.asarray(upright).astype(int))
    assert difference.mean() < (3 if file_format == "JPEG" else 1e-9)
    assert (header.width, header.height) == (40, 30)
    assert (header.exif_orientation, header.format) == (orientation, file_format)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_no_reason_to_refuse() -> None:
    data = encode(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\xff\xff")
    assert read_image(data).exif_orientation == 1
    assert check_image(data).exif_orientation == 1


def test_unknown_orientation_counts_as_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    assert read_image(encode(photo(), "JPEG", exif=exif)).exif_orientation == 1


def test_a_phone_photo_with_an_embedded_preview_is_its_first_picture() -> None:
    preview = Image.new("RGB", (8, 6))
    data = encode(photo(), "MPO", save_all=True, append_images=[preview])
    assert read_image(data).pixels.shape == (30, 40, 3)
    assert check_image(data).format == "JPEG"


def animation(file_format: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), "blue")]
    return encode(frames[0], file_format, save_all=True, append_images=frames[1:])


REFUSED: list[tuple[str, Callable[[], bytes], str]] = [
    ("nothing", lambda: b"", "unreadable"),
    ("text", lambda: b"hello, this is not an image", "unsupported"),
    ("a page", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "unsupported"),
    *((form, partial(encode, photo(), form), "unsupported") for form in ("PDF", "GIF", "TIFF", "BMP")),
    *((f"animated {form}", partial(animation, form), "unsupported") for form in ("PNG", "WEBP")),
    ("81 megapixels", lambda: png_header(9000, 9000), "too_large"),
    ("1 gigapixel", lambda: png_header(32000, 32000), "too_large"),
    ("one line of 40,000,001", lambda: png_header(40_000_001, 1), "too_large"),
    ("jpeg magic and no more", lambda: b"\xff\xd8\xff\xe0", "unreadable"),
    ("png magic and no more", lambda: b"\x89PNG\r\n\x1a\n", "unreadable"),
    ("half a jpeg", lambda: half(encode(photo(200, 200), "JPEG")), "unreadable"),
    ("half a progressive jpeg", lambda: half(encode(photo(200, 200), "JPEG", progressive=True)), "unreadable"),
    ("half a png", lambda: half(encode(photo(200, 200), "PNG")), "unreadable"),
    ("half a webp", lambda: half(encode(photo(200, 200), "WEBP")), "unreadable"),
    ("png with too little data", lambda: png_header(100, 100), "unreadable"),
]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


# Pillow warns of a decompression bomb before our own limit is looked at; here warnings are errors.
# Both ways must end in the same refusal.
@pytest.mark.parametrize("action", ["error", "ignore"])
@pytest.mark.parametrize("function", [read_image, check_image])
@pytest.mark.parametrize(("data", "kind"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED])
def test_refused(data: Callable[[], bytes], kind: str, function: Callable[[bytes], Any], action: Any) -> None:
    content = data()
    with warnings.catch_warnings():
        warnings.simplefilter(action, Image.DecompressionBombWarning)
        with pytest.raises(ImageError) as caught:
            function(content)
    assert caught.value.kind == kind
    assert "\n" not in str(caught.value)


def test_long_strips_are_refused() -> None:
    assert read_image(encode(Image.new("1", (32_768, 1)), "PNG")).pixels.shape == (1, 32_768, 3)
    with pytest.raises(ImageError, match="and 32768 a side, got 40000 x 1") as caught:
        read_image(encode(Image.new("1", (40_000, 1)), "PNG"))
    assert caught.value.kind == "too_large"


def test_the_pixel_limit_is_inclusive() -> None:
    data = encode(Image.new("L", (10, 10)), "PNG")
    assert read_image(data, max_pixels=100).pixels.shape == (10, 10, 3)
    with pytest.raises(ImageError, match=r"expected at most 99 pixels .* got 10 x 10"):
        read_image(data, max_pixels=99)


def test_a_limit_above_pillows_own_does_not_let_a_bomb_through() -> None:
    with pytest.raises(ImageError) as caught:
        read_image(png_header(9600, 9600), max_pixels=10**9)
    assert caught.value.kind == "too_large"


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_done_to_the_bytes_only_image_errors_escape(seed: int) -> None:
    generator = random.Random(seed)
    exif = Image.Exif()
    exif[0x0112] = 6
    samples = [
        encode(photo(), "JPEG", exif=exif),
        encode(photo(), "JPEG", progressive=True),
        encode(photo(), "PNG", exif=exif),
        palette(transparent=True),
        sixteen_bit_gray(),
        encode(photo(), "WEBP", exif=exif),
        animation("PNG"),
        animation("WEBP"),
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
