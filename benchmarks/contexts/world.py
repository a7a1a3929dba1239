"""What there is in the world: eight objects, the context that each usually comes with, and backdrops."""

from __future__ import annotations

import colorsys
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.data.classes import ClassInfo, ClassList, Sample, write_class_list
from models.data.labels import read_folder
from models.data.mask_files import label_map_png
from models.io import to_json, write_atomically


@dataclass(frozen=True)
class Pair:
    """An object and its own context, with the word that joins them in a caption."""

    thing: str
    joint: str
    context: str


PAIRS = (
    Pair("boat", "on", "water"),
    Pair("bottle", "on", "table"),
    Pair("car", "on", "road"),
    Pair("cow", "on", "grass"),
    Pair("kite", "over", "beach"),
    Pair("plane", "in", "clouds"),
    Pair("sheep", "by", "fence"),
    Pair("train", "on", "rails"),
)
THINGS = tuple(pair.thing for pair in PAIRS)
CONTEXTS = tuple(pair.context for pair in PAIRS)
BACKDROPS = ("fog", "paper", "wall")
# What a background prompt may turn out to mean: every noun that captions have.
NOUNS = (*THINGS, *CONTEXTS, *BACKDROPS)
CLASSES = ClassList(tuple(ClassInfo(index, name) for index, name in enumerate(THINGS, start=1)))
SIDE = 96  # pixels of a scene


def own_context(thing: str) -> str:
    """Return the context that an object usually comes with."""
    return CONTEXTS[THINGS.index(thing)]


def joint(context: str) -> str:
    """Return how captions join a context to an object."""
    return PAIRS[CONTEXTS.index(context)].joint


# The objects: flat parts in the square [-1, 1]², drawn with a body color, a pose and a texture of their own.

_OVERSAMPLING = 3
_DARK, _LIGHT, _GLASS = (0.12, 0.11, 0.12), (0.95, 0.94, 0.9), (0.7, 0.85, 0.92)
Color = tuple[float, float, float] | Literal["body", "second"]


@dataclass(frozen=True)
class Part:
    """A polygon (corners x, y, x, y, …) or an ellipse (left, top, right, bottom)."""

    kind: Literal["polygon", "ellipse"]
    points: tuple[float, ...]
    color: Color = "body"


def _box(left: float, top: float, right: float, bottom: float, color: Color = "body") -> Part:
    return Part("polygon", (left, top, right, top, right, bottom, left, bottom), color)


def _ball(x: float, y: float, radius: float, color: Color = "body") -> Part:
    return Part("ellipse", (x - radius, y - radius, x + radius, y + radius), color)


SHAPES: dict[str, tuple[Part, ...]] = {
    "boat": (
        Part("polygon", (-0.95, 0.2, 0.95, 0.2, 0.6, 0.75, -0.6, 0.75)),
        _box(-0.1, -0.95, 0.0, 0.2, _DARK),
        Part("polygon", (0.05, -0.9, 0.05, 0.1, 0.8, 0.1), _LIGHT),
        Part("polygon", (-0.15, -0.7, -0.15, 0.1, -0.7, 0.1), "second"),
    ),
    "bottle": (
        _box(-0.2, -0.95, 0.2, -0.75, _DARK),
        _box(-0.18, -0.75, 0.18, -0.3),
        Part("polygon", (-0.18, -0.4, 0.18, -0.4, 0.5, -0.05, 0.5, 0.95, -0.5, 0.95, -0.5, -0.05)),
        _box(-0.5, 0.25, 0.5, 0.65, _LIGHT),
        _ball(0.0, 0.45, 0.14, "second"),
    ),
    "car": (
        _box(-1.0, -0.1, 1.0, 0.4),
        Part("polygon", (-0.6, -0.1, -0.4, -0.55, 0.35, -0.55, 0.65, -0.1)),
        Part("polygon", (-0.48, -0.12, -0.33, -0.45, -0.05, -0.45, -0.05, -0.12), _GLASS),
        Part("polygon", (0.05, -0.12, 0.05, -0.45, 0.28, -0.45, 0.5, -0.12), _GLASS),
        _ball(-0.55, 0.4, 0.24, _DARK),
        _ball(0.55, 0.4, 0.24, _DARK),
        _ball(-0.55, 0.4, 0.1, _LIGHT),
        _ball(0.55, 0.4, 0.1, _LIGHT),
    ),
    "cow": (
        _box(-0.65, 0.1, -0.5, 0.75, _LIGHT),
        _box(0.3, 0.1, 0.45, 0.75, _LIGHT),
        Part("ellipse", (-0.85, -0.45, 0.65, 0.4), _LIGHT),
        Part("ellipse", (-0.6, -0.4, -0.15, 0.05), "body"),
        Part("ellipse", (0.0, -0.15, 0.45, 0.3), "body"),
        Part("ellipse", (0.45, -0.75, 1.0, -0.15), _LIGHT),
        Part("ellipse", (0.6, -0.45, 1.0, -0.15), (0.9, 0.6, 0.6)),
    ),
    "kite": (
        Part("polygon", (0.0, -1.0, 0.65, -0.25, 0.0, -0.25)),
        Part("polygon", (0.0, -1.0, -0.65, -0.25, 0.0, -0.25), "second"),
        Part("polygon", (0.65, -0.25, 0.0, 0.6, 0.0, -0.25), "second"),
        Part("polygon", (-0.65, -0.25, 0.0, 0.6, 0.0, -0.25)),
        Part("polygon", (0.0, 0.6, 0.2, 0.72, -0.2, 0.84, 0.1, 1.0, -0.05, 1.0, -0.3, 0.84, 0.1, 0.72)),
    ),
    "plane": (
        Part("polygon", (0.35, 0.0, -0.3, -0.9, -0.05, -0.9, 0.6, 0.0), "second"),
        Part("polygon", (0.35, 0.0, -0.3, 0.9, -0.05, 0.9, 0.6, 0.0), "second"),
        Part("ellipse", (-1.0, -0.2, 1.0, 0.2)),
        Part("polygon", (-0.95, 0.0, -1.0, -0.5, -0.75, -0.5, -0.55, 0.0), "second"),
        Part("ellipse", (0.6, -0.12, 0.85, 0.12), _GLASS),
    ),
    "sheep": (
        _box(-0.5, 0.3, -0.38, 0.8, _DARK),
        _box(0.25, 0.3, 0.37, 0.8, _DARK),
        *(_ball(0.5 * np.cos(a) - 0.1, 0.25 * np.sin(a), 0.34, _LIGHT) for a in np.arange(8) / 8 * 2 * np.pi),
        Part("ellipse", (0.45, -0.5, 0.95, 0.1), _DARK),
        _ball(0.62, -0.3, 0.06, _LIGHT),
    ),
    "train": (
        _box(-1.0, -0.5, 1.0, 0.35),
        _box(-1.0, 0.0, 1.0, 0.12, "second"),
        *(_box(x, -0.38, x + 0.28, -0.1, _GLASS) for x in (-0.9, -0.5, -0.1, 0.3)),
        Part("polygon", (0.72, -0.5, 1.0, -0.5, 1.0, -0.05, 0.85, -0.05), _DARK),
        *(_ball(x, 0.4, 0.16, _DARK) for x in (-0.75, -0.35, 0.25, 0.65)),
    ),
}  # fmt: skip


HUES = {
    "boat": 0.5, "bottle": 0.36, "car": 0.05, "cow": 0.08,
    "kite": 0.9, "plane": 0.15, "sheep": 0.1, "train": 0.76,
}  # fmt: skip


def draw(
    random: np.random.Generator, name: str, *, side: int, center: tuple[float, float], size: float
) -> NDArray[np.float32]:
    """Draw an object on nothing.

    Hue, brightness, aspect, mirror and a slight turn vary within a class.

    Args:
        random: source of all variation.
        name: of the object.
        side: S in pixels.
        center: of the object (x, y) in pixels.
        size: of its square in pixels.

    Returns:
        Color and opacity in [0, 1], (S, S, 4).
    """
    canvas = Image.new("RGBA", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    hue = HUES[name] + random.uniform(-0.05, 0.05)
    colors = {
        "body": colorsys.hsv_to_rgb(hue % 1, random.uniform(0.4, 0.9), random.uniform(0.5, 0.9)),
        "second": colorsys.hsv_to_rgb((hue + 0.4) % 1, 0.5, random.uniform(0.6, 0.95)),
    }
    pose = _pose(random, np.array(center), size)
    for part in SHAPES[name]:
        color = colors[part.color] if isinstance(part.color, str) else part.color
        corners = _corners(part) @ pose[:2] + pose[2]
        pen.polygon(
            [tuple(each) for each in corners.tolist()],
            fill=tuple(round(255 * each) for each in color),
        )
    small = np.asarray(canvas.resize((side, side), Image.Resampling.BOX), np.float32) / 255
    noise = random.normal(0, 0.03, (side, side, 1)).astype(np.float32)
    small[..., :3] = small[..., :3] * random.uniform(0.85, 1.1) + noise
    return small.clip(0, 1)


def _pose(random: np.random.Generator, center: NDArray[np.float64], size: float) -> NDArray[np.float64]:
    """Return a 2×2 map and a shift below it, from [-1, 1]² to oversampled pixels, (3, 2)."""
    angle, aspect = random.uniform(-0.2, 0.2), random.uniform(0.85, 1.15)
    mirror = random.choice((-1, 1))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scale = np.diag([mirror * aspect, 1 / aspect]) * size / 2
    return np.vstack([scale @ turn, center]) * _OVERSAMPLING


def _corners(part: Part) -> NDArray[np.float64]:
    if part.kind == "polygon":
        return np.array(part.points).reshape(-1, 2)
    left, top, right, bottom = part.points
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack(
        [(left + right) / 2 + (right - left) / 2 * np.cos(angles),
         (top + bottom) / 2 + (bottom - top) / 2 * np.sin(angles)], axis=1,
    )  # fmt: skip


# Procedural textures of contexts and backdrops: a random generator in, (S, S, 3) in [0, 1] out.

Pixels = NDArray[np.float32]
Texture = Callable[[np.random.Generator, int], Pixels]


def smooth_noise(random: np.random.Generator, side: int, cells: int) -> Pixels:
    """Return noise in [0, 1] that changes over about side / cells pixels, (S, S)."""
    coarse = Image.fromarray(random.random((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BILINEAR))


def _paint(low: tuple[float, ...], high: tuple[float, ...], share: NDArray[np.floating]) -> Pixels:
    """Mix two colors by a share in [0, 1], (S, S)."""
    first, second = np.array(low, np.float32), np.array(high, np.float32)
    return (first + (second - first) * share[..., None].clip(0, 1)).astype(np.float32)


def _grid(random: np.random.Generator, side: int) -> tuple[Pixels, Pixels]:
    """Return rows and columns in pixels, from a random origin so that patterns are cut anywhere."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    return rows + random.uniform(0, 32), columns + random.uniform(0, 32)


def rails(random: np.random.Generator, side: int) -> Pixels:
    """Sleepers across two bright lines, on gravel."""
    rows, columns = _grid(random, side)
    pixels = _paint((0.36, 0.3, 0.26), (0.56, 0.5, 0.44), smooth_noise(random, side, side // 2))
    pixels[columns % 9 < 4] = (0.25, 0.16, 0.1)
    pixels[rows % 13 < 2.5] = (0.8, 0.8, 0.83)
    return pixels


def water(random: np.random.Generator, side: int) -> Pixels:
    """Blue with waves."""
    rows, _ = _grid(random, side)
    bend = smooth_noise(random, side, 8) * 9
    return _paint((0.08, 0.26, 0.5), (0.3, 0.55, 0.75), 0.5 + 0.5 * np.sin((rows + bend) * 0.9))


def clouds(random: np.random.Generator, side: int) -> Pixels:
    """White puffs on light blue."""
    puffs = (smooth_noise(random, side, 12) + 0.5 * smooth_noise(random, side, 24)) / 1.5
    return _paint((0.5, 0.7, 0.95), (0.98, 0.98, 1.0), (puffs - 0.4) * 5)


def grass(random: np.random.Generator, side: int) -> Pixels:
    """Green with blades."""
    blades = random.random((side // 6, side), dtype=np.float32).repeat(6, axis=0)
    return _paint((0.12, 0.32, 0.08), (0.45, 0.7, 0.25), np.resize(blades, (side, side)))


def road(random: np.random.Generator, side: int) -> Pixels:
    """Asphalt with yellow dashes."""
    rows, columns = _grid(random, side)
    pixels = _paint((0.16, 0.16, 0.18), (0.3, 0.3, 0.32), random.random((side, side), np.float32))
    pixels[(rows % 14 < 2.5) & (columns % 16 < 10)] = (0.85, 0.75, 0.2)
    return pixels


def fence(random: np.random.Generator, side: int) -> Pixels:
    """Orange planks with dark gaps."""
    _, columns = _grid(random, side)
    pixels = _paint((0.6, 0.33, 0.12), (0.78, 0.48, 0.2), smooth_noise(random, side, 16))
    pixels[columns % 8 < 2] = (0.15, 0.08, 0.03)
    return pixels


def table(random: np.random.Generator, side: int) -> Pixels:
    """A cloth checkered red and white."""
    rows, columns = _grid(random, side)
    odd = (rows // 6 + columns // 6) % 2
    return _paint((0.8, 0.12, 0.15), (0.97, 0.94, 0.92), odd.astype(np.float32))


def beach(random: np.random.Generator, side: int) -> Pixels:
    """Sand with dark speckles."""
    pixels = _paint((0.78, 0.66, 0.42), (0.92, 0.82, 0.6), smooth_noise(random, side, 20))
    pixels[random.random((side, side)) < 0.08] = (0.45, 0.33, 0.2)
    return pixels


def fog(random: np.random.Generator, side: int) -> Pixels:
    """Smooth gray."""
    return _paint((0.42, 0.43, 0.45), (0.6, 0.6, 0.6), smooth_noise(random, side, 3))


def paper(random: np.random.Generator, side: int) -> Pixels:
    """Grayish yellow, faintly ruled."""
    rows, _ = _grid(random, side)
    return _paint((0.56, 0.54, 0.46), (0.6, 0.58, 0.5), (rows % 10 > 1).astype(np.float32))


def wall(random: np.random.Generator, side: int) -> Pixels:
    """Faint gray bricks."""
    rows, columns = _grid(random, side)
    shifted = columns + 8 * (rows // 8 % 2)
    seams = (rows % 8 < 1) | (shifted % 16 < 1)
    return _paint((0.5, 0.48, 0.5), (0.42, 0.4, 0.42), seams.astype(np.float32))


TEXTURES: dict[str, Texture] = {
    texture.__name__: texture for texture in (rails, water, clouds, grass, road, fence, table, beach, fog, paper, wall)
}


# Scenes: one or two objects on a plain backdrop, each beside a patch of context, each pixel known.

OWN_SHARE = 0.9
"""How often an object comes with its own context in scenes to train on."""
LONE_SHARE = 0.4
"""How often the second place of a usual scene is a context alone."""


@dataclass(frozen=True)
class Place:
    """What stands somewhere: an object, a context, or an object beside a context."""

    thing: str | None
    context: str | None


@dataclass(frozen=True)
class Scene:
    """A picture and what it shows.

    Attributes:
        pixels: (S, S, 3) uint8.
        truth: label map of the objects, (S, S) uint8.
        contexts: 1 + number of the context that a pixel shows, 0 elsewhere, (S, S) uint8.
        places: what stands where, left to right.
        backdrop: the plain texture behind everything.
    """

    pixels: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    contexts: NDArray[np.uint8]
    places: tuple[Place, ...]
    backdrop: str

    @property
    def things(self) -> tuple[str, ...]:
        """The objects, sorted, each once."""
        return tuple(sorted({place.thing for place in self.places if place.thing}))


def usual_places(random: np.random.Generator, count: int, *, own_share: float = OWN_SHARE) -> tuple[Place, ...]:
    """Return distinct objects, each with its own context in a share of all cases, else with another or none.

    The second place may be a context alone.
    """
    things = random.permutation(THINGS)[:count].tolist()
    places = [
        Place(thing, own_context(thing)) if random.random() < own_share else Place(thing, _foreign(random, thing))
        for thing in things
    ]
    if count == 2 and random.random() < LONE_SHARE:
        alone = random.integers(2)
        places[alone] = Place(None, own_context(things[alone]))
    return tuple(places)


def shuffled_places(random: np.random.Generator) -> tuple[Place, ...]:
    """Return two objects that have swapped their contexts: who follows the context finds the wrong one."""
    left, right = random.permutation(THINGS)[:2].tolist()
    return Place(left, own_context(right)), Place(right, own_context(left))


def lone_contexts(random: np.random.Generator, count: int) -> tuple[Place, ...]:
    """Return distinct contexts without objects."""
    return tuple(Place(None, each) for each in random.permutation(CONTEXTS)[:count].tolist())


def _foreign(random: np.random.Generator, thing: str) -> str | None:
    others: list[str | None] = [each for each in CONTEXTS if each != own_context(thing)]
    return others[random.integers(len(others))] if random.random() < 0.5 else None


def compose(random: np.random.Generator, places: Sequence[Place]) -> Scene:
    """Paint a scene.

    Args:
        random: source of all variation.
        places: at most two; two stand side by side.
    """
    backdrop = str(random.choice(BACKDROPS))
    canvas = TEXTURES[backdrop](random, SIDE).copy()
    truth, contexts = np.zeros((2, SIDE, SIDE), np.uint8)
    objects = []
    for number, place in enumerate(places):
        width = SIDE / len(places)
        size = SIDE * random.uniform(0.38, 0.5)
        margin = max(width - size, 0) / 2
        x = width * (number + 0.5) + random.uniform(-0.7, 0.7) * margin
        y = SIDE * random.uniform(0.32, 0.68)
        if place.context:
            patch = context_patch(random, center=(x, y), size=size, reach=width / 2)
            canvas[patch] = TEXTURES[place.context](random, SIDE)[patch]
            contexts[patch] = 1 + CONTEXTS.index(place.context)
        if place.thing:
            drawn = draw(random, place.thing, side=SIDE, center=(x, y), size=size)
            objects.append((place.thing, drawn))
    for thing, drawn in objects:  # in front of all contexts
        opacity = drawn[..., 3:]
        canvas = canvas * (1 - opacity) + drawn[..., :3] * opacity
        truth[opacity[..., 0] > 0.5] = CLASSES.classes[THINGS.index(thing)].index
    contexts[truth > 0] = 0
    light = random.uniform(0.9, 1.1)
    pixels = (canvas * light * 255).clip(0, 255).astype(np.uint8)
    return Scene(pixels, truth, contexts, tuple(places), backdrop)


def context_patch(
    random: np.random.Generator, *, center: tuple[float, float], size: float, reach: float
) -> NDArray[np.bool_]:
    """Return where a context is: a wavy band at one side of an object, partly behind it, (S, S).

    Args:
        random: source of all variation.
        center: of the object (x, y) in pixels.
        size: of the object in pixels.
        reach: half the room that it has, in pixels; only who has all of it may be left or right of the object.
    """
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    along, depth = reach * random.uniform(0.8, 1.05), size * random.uniform(0.4, 0.6)
    sign = random.choice((-1, 1))
    offset = sign * (0.3 * size + depth)
    if reach == SIDE / 2 and random.random() < 0.5:
        across = (columns - center[0] - offset) / depth, (rows - center[1]) / along
    else:
        across = (rows - center[1] - offset) / depth, (columns - center[0]) / along
    wave = 0.3 * smooth_noise(random, SIDE, 7)
    inside: NDArray[np.bool_] = np.maximum(*np.abs(across)) + wave < 1.1
    return inside


# Captions of scenes: sometimes the object, sometimes the context, sometimes both, now and then the backdrop.

BACKDROP_SHARE = 0.1


def caption(random: np.random.Generator, scene: Scene) -> str:
    """Return a sentence that is true of a scene, such as "a photo of a train on rails." or "a photo of rails."."""
    if not scene.places or random.random() < BACKDROP_SHARE:
        return f"a photo of {scene.backdrop}."
    place = scene.places[random.integers(len(scene.places))]
    if place.thing is None:
        return f"a photo of {place.context}."
    if place.context is None:
        return f"a photo of {place.thing}."
    choices = (
        f"a photo of {place.thing}.",
        f"a photo of {place.context}.",
        f"a photo of {place.thing} {joint(place.context)} {place.context}.",
    )
    return choices[random.integers(3)]


# The data set on disk in VOC's layout: JPEGImages, SegmentationClass, ImageSets; labels and captions as CSV.

PAIR_SHARE = 0.5
"""How many scenes show two objects."""
CAPTIONED_LONE_SHARE = 1 / 3
"""How many captioned scenes show contexts alone."""
CAPTIONED_OWN_SHARE = 0.5
"""How often an object of a captioned scene comes with its own context: CLIP has seen more of the world than S."""
EMPTY_SHARE = 0.12
"""How many captioned scenes show a backdrop alone, so that CLIP knows what nothing looks like."""


@dataclass(frozen=True)
class Sizes:
    """Scenes of each split.

    Attributes:
        captions: for CLIP, with a sentence each; a third of them are contexts alone.
        train: for the mask generator and the prompts, with image-level labels.
        usual: held out, of the same kind as those to train on.
        shuffled: held out, two objects each, which have swapped their contexts.
    """

    captions: int = 2400
    train: int = 640
    usual: int = 200
    shuffled: int = 200


SPLITS = tuple(asdict(Sizes()))


def scenes(split: str, count: int, *, seed: int) -> Iterator[tuple[str, Scene, str]]:
    """Make a split's scenes: name, scene, caption. A scene depends on seed, split and its number alone."""
    places: dict[str, Callable[[np.random.Generator, int], tuple[Place, ...]]] = {
        "captions": _captioned,
        "train": usual_places,
        "usual": usual_places,
        "shuffled": lambda random, _: shuffled_places(random),
    }
    for number in range(count):
        random = np.random.default_rng([seed, SPLITS.index(split), number])
        shown = places[split](random, 2 if random.random() < PAIR_SHARE else 1)
        scene = compose(random, shown)
        yield f"{split}{number:05}", scene, caption(random, scene)


def _captioned(random: np.random.Generator, count: int) -> tuple[Place, ...]:
    draw = random.random()
    if draw < EMPTY_SHARE:
        return ()
    if draw < EMPTY_SHARE + CAPTIONED_LONE_SHARE:
        return lone_contexts(random, count)
    return usual_places(random, count, own_share=CAPTIONED_OWN_SHARE)


def write_dataset(folder: Path, sizes: Sizes, *, seed: int) -> None:
    """Write all splits, unless they are there already.

    Each split has ``labels_SPLIT.csv`` (image, labels) and ``captions_SPLIT.csv`` (image, caption).

    Raises:
        OSError: if the folder cannot be written.
    """
    note = to_json({"seed": seed, **asdict(sizes)})
    done = folder / "world.json"
    if done.is_file() and done.read_text(encoding="utf-8") == note:
        return
    for split, count in asdict(sizes).items():
        _write_split(folder, split, count, seed=seed)
    write_class_list(folder / "classes.txt", CLASSES)
    write_atomically(done, note.encode())


def _write_split(folder: Path, split: str, count: int, *, seed: int) -> None:
    labels, captions = [["image", "labels"]], [["image", "caption"]]
    for name, scene, sentence in scenes(split, count, seed=seed):
        photo = io.BytesIO()
        Image.fromarray(scene.pixels).save(photo, "JPEG", quality=92)
        write_atomically(folder / "JPEGImages" / f"{name}.jpg", photo.getvalue())
        truth = label_map_png(scene.truth)
        write_atomically(folder / "SegmentationClass" / f"{name}.png", truth)
        labels.append([f"{name}.jpg", ";".join(scene.things)])
        captions.append([f"{name}.jpg", sentence])
    names = "".join(f"{row[0][:-4]}\n" for row in labels[1:])
    write_atomically(folder / "ImageSets" / "Segmentation" / f"{split}.txt", names.encode())
    _write_csv(folder / f"labels_{split}.csv", labels)
    _write_csv(folder / f"captions_{split}.csv", captions)


def _write_csv(path: Path, rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())


def read_samples(folder: Path, split: str) -> list[Sample]:
    """Return a split's scenes with their image-level labels, for the library's stages."""
    return read_folder(folder / "JPEGImages", folder / f"labels_{split}.csv", CLASSES)


def read_truth(folder: Path, stem: str) -> np.ndarray:
    """Return a scene's label map, (S, S) uint8."""
    with Image.open(folder / "SegmentationClass" / f"{stem}.png") as picture:
        return np.array(picture)


def read_captions(folder: Path, split: str) -> list[tuple[Path, str]]:
    """Return a split's pictures with their sentences."""
    with (folder / f"captions_{split}.csv").open(encoding="utf-8", newline="") as file:
        return [(folder / "JPEGImages" / row["image"], row["caption"]) for row in csv.DictReader(file)]
