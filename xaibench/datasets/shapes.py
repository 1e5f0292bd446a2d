"""Generated scenes with objects: an object silhouette pasted on a procedural texture, so that the truth is known.

The construction of BAM (Yang and Kim 2019): each image shows one of 10 objects in one of 10 scenes and has a label
for each. What a network trained on the object labels may use is exactly the object's mask.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..errors import UserError, nearest
from ..rng import seed_of
from .base import Dataset, Example

VERSION = 1  # raised when any pixel of any image changes
SIDE = 64
SPLITS = {"train": range(0, 50_000), "validation": range(50_000, 52_000), "test": range(52_000, 54_000)}

# The longer side of an object's bounding box, in pixels: a third to a half of the scene's side. The lower end leaves
# room for thin tips that fall between pixel centres.
SIZES = (SIDE / 3 + 2, SIDE / 2)

_CENTRES = np.arange(SIDE) + 0.5
_Y, _X = np.meshgrid(_CENTRES, _CENTRES, indexing="ij")


class Shapes(Dataset):
    """64x64 RGB scenes of 10 textures with one of 10 objects at random place, turn, colour and size.

    Images come from one infinite sequence. Image k depends on (generator_seed, k) alone; a split is a range of k, in
    which ids start at 0. Every 100 consecutive images show each of the 100 pairs of object and scene once, in random
    order, so that both labels are balanced and independent.

    split: train (50000 images), validation (2000) or test (2000).
    task: which of the two labels `Example.label` is. `Example.mask` is what that label is about: the object's pixels
        for `object`, all the others for `scene`.
    generator_seed: another value is another sequence.
    objects: with 2, every scene shows two objects of different classes that do not overlap, and is two samples: an even
        id has the label and the mask of the first object, the next one those of the second. `Example.labels` says which
        classes are there.
    """

    has_masks = True
    added = {"objects": 1}

    def __init__(
        self,
        split: str = "test",
        task: Literal["object", "scene"] = "object",
        generator_seed: int = 0,
        objects: Literal[1, 2] = 1,
    ) -> None:
        if split not in SPLITS:
            raise UserError(f"dataset.split={split}: {nearest(split, SPLITS)}")
        if objects not in (1, 2) or (objects == 2 and task == "scene"):
            raise UserError(f"dataset.objects={objects}: expected 1, or 2 with dataset.task=object")
        self.split, self.task, self.generator_seed, self.objects = split, task, generator_seed, objects
        self.class_names = tuple(OBJECTS if task == "object" else SCENES)
        several = "" if objects == 1 else f":objects={objects}"
        self.fingerprint = f"shapes-{VERSION}:generator_seed={generator_seed}:split={split}:task={task}{several}"

    def __len__(self) -> int:
        return len(SPLITS[self.split])

    def __getitem__(self, index: int) -> Example:
        drawn = self._draw(index)
        mask = torch.from_numpy(drawn.mask)
        if self.task == "scene":
            return Example(_pixels(drawn.image), drawn.scene_label, ~mask)
        labels = None
        if self.objects == 2:
            labels = torch.zeros(len(OBJECTS))
            labels[list(_two_labels(self.generator_seed, self._position(index)))] = 1
        return Example(_pixels(drawn.image), drawn.object_label, mask, labels)

    def object_label(self, index: int) -> int:
        """The class of the object, whatever the task."""
        if self.objects == 2:
            return _two_labels(self.generator_seed, self._position(index))[index % 2]
        return _labels(self.generator_seed, self._position(index))[0]

    def scene_label(self, index: int) -> int:
        """The class of the scene, whatever the task."""
        return _labels(self.generator_seed, self._position(index))[1]

    def object_mask(self, index: int) -> torch.Tensor:
        """Bool [64,64], whatever the task: exactly the pixels in which the image differs from its background."""
        return torch.from_numpy(self._draw(index).mask)

    def background(self, index: int) -> torch.Tensor:
        """The same scene without the object: float32 [3,64,64] in [0, 1]."""
        return _pixels(self._draw(index).background)

    def concepts(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        if self.objects == 1:
            return super().concepts(indices)
        found = {name: torch.zeros(len(indices), SIDE, SIDE, dtype=torch.bool) for name in self.class_names}
        for row, index in enumerate(indices):
            for drawn in draw_two(self.generator_seed, self._position(index)):
                found[self.class_names[drawn.object_label]][row] = torch.from_numpy(drawn.mask)
        return found

    def _position(self, index: int) -> int:
        return SPLITS[self.split][index // self.objects]

    def _draw(self, index: int) -> "Drawing":
        if self.objects == 2:
            return draw_two(self.generator_seed, self._position(index))[index % 2]
        return draw(self.generator_seed, self._position(index))


@dataclass(frozen=True)
class Drawing:
    """One image of the sequence. image, background: uint8 [3,64,64]; mask: bool [64,64], the object's pixels."""

    image: np.ndarray
    background: np.ndarray
    mask: np.ndarray
    object_label: int
    scene_label: int


def draw(seed: int, position: int) -> Drawing:
    """Image number `position` of the sequence that belongs to `seed`."""
    object_label, scene_label = _labels(seed, position)
    rng = _generator(seed, "image", position)
    near, far, fill = _colours(rng)
    texture = list(SCENES.values())[scene_label](rng)
    mask = _rasterise(_place(list(OBJECTS.values())[object_label], rng))

    scene = near + texture * (far - near) + _shading(rng)
    object_ = fill + _shading(rng)
    noise = 0.08 * (rng.random((SIDE, SIDE)) - 0.5)
    background = _quantise(scene + noise)
    image = np.where(mask, _quantise(object_ + noise), background)
    # An object's pixel may happen to have the scene's colour; one grey level in red keeps the mask exact.
    image[0] ^= mask & (image == background).all(0)
    return Drawing(image, background, mask, object_label, scene_label)


def draw_two(seed: int, position: int) -> tuple[Drawing, Drawing]:
    """A scene with two objects, as each of them sees it: the background has the other one."""
    labels, scene_label = _two_labels(seed, position), _labels(seed, position)[1]
    rng = _generator(seed, "two objects", position)
    near, far, fill = _colours(rng)
    texture = list(SCENES.values())[scene_label](rng)
    first = second = np.ones((SIDE, SIDE), dtype=bool)
    while (first & second).any():
        first, second = (_rasterise(_place(list(OBJECTS.values())[label], rng)) for label in labels)

    noise = 0.08 * (rng.random((SIDE, SIDE)) - 0.5)
    scene = near + texture * (far - near) + _shading(rng) + noise
    shades = [fill + _shading(rng) + noise, _colours(rng)[2] + _shading(rng) + noise]
    empty, (one, other) = _quantise(scene), map(_quantise, shades)
    # As in `draw`: an object's pixel differs from the scene's.
    one[0] ^= first & (one == empty).all(0)
    other[0] ^= second & (other == empty).all(0)
    with_first, with_second = np.where(first, one, empty), np.where(second, other, empty)
    image = np.where(second, other, with_first)
    return (
        Drawing(image, with_second, first, labels[0], scene_label),
        Drawing(image, with_first, second, labels[1], scene_label),
    )


def _generator(seed: int, *purpose: object) -> np.random.Generator:
    # Only `random` is drawn from it: 53 bits of PCG64 each, the same on every platform and in every version of numpy.
    return np.random.Generator(np.random.PCG64(seed_of("shapes", seed, *purpose)))


def _labels(seed: int, position: int) -> tuple[int, int]:
    """Object and scene: the pairs are shuffled within each block of 100 positions."""
    block, place = divmod(position, 100)
    pair = np.argsort(_generator(seed, "labels", block).random(100), kind="stable")[place]
    return int(pair) // 10, int(pair) % 10


def _two_labels(seed: int, position: int) -> tuple[int, int]:
    """The classes of two objects: the first is the one that is there alone, the second any other."""
    first = _labels(seed, position)[0]
    step = 1 + int((len(OBJECTS) - 1) * _generator(seed, "second label", position).random())
    return first, (first + step) % len(OBJECTS)


def _colours(rng: np.random.Generator) -> np.ndarray:
    """Two colours of the scene and one of the object, [3,3,1,1] in [0, 1].

    Random corners of a triangle in the RGB cube without a flat angle: the object is never a mixture of the scene's
    colours, and the three are exchangeable, so that no colour tells which one is the object.
    """
    a, b, c = np.moveaxis(0.05 + 0.9 * rng.random((24, 3, 3)), 1, 0)
    sides = [((p - q) ** 2).sum(-1) for p, q in ((a, b), (b, c), (c, a))]
    squared_area = ((b - a) ** 2).sum(-1) * ((c - a) ** 2).sum(-1) - ((b - a) * (c - a)).sum(-1) ** 2
    squared_height = squared_area / np.maximum.reduce(sides)
    first = np.argmax(np.minimum(squared_height, 0.3**2))  # the first that is tall enough, else the tallest
    return np.stack([a[first], b[first], c[first]])[..., None, None]


def _shading(rng: np.random.Generator) -> np.ndarray:
    """A faint ramp of brightness across the image, [64,64] in [-0.1, 0.1]."""
    u, _ = _rotated(rng)
    return 0.2 * u / (SIDE * np.sqrt(2))


def _quantise(values: np.ndarray) -> np.ndarray:
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8)


def _pixels(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).float() / 255


# Objects: closed outlines, filled by the even-odd rule, achiral and different under any turn.


def _polar(radii: list[float], turn: float = 0.0) -> np.ndarray:
    """The closed outline [n,2] through points at these radii and at equal angles."""
    angles = 2 * np.pi * (np.arange(len(radii)) + turn) / len(radii)
    return np.stack([np.cos(angles), np.sin(angles)], -1) * np.array(radii)[:, None]


def _outline(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=np.float64)


def _mirrored(*points: tuple[float, float]) -> np.ndarray:
    """The outline through the points and, in reverse, through their reflections in the x axis."""
    return _outline(*points, *((x, -y) for x, y in reversed(points)))


def _heart() -> np.ndarray:
    t = 2 * np.pi * np.arange(40) / 40
    return np.stack([16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)], -1)


def _crescent() -> np.ndarray:
    outer, inner = np.linspace(-2.2, 2.2, 32), np.linspace(1.9, -1.9, 24)
    tip = np.cos(2.2), np.sin(2.2)
    radius = tip[1] / np.sin(1.9)
    return np.concatenate(
        [
            np.stack([np.cos(outer), np.sin(outer)], -1),
            np.stack([tip[0] - radius * np.cos(1.9) + radius * np.cos(inner), radius * np.sin(inner)], -1)[1:-1],
        ]
    )


OBJECTS: dict[str, list[np.ndarray]] = {
    "disc": [_polar([1.0] * 40)],
    "square": [_polar([1.0] * 4)],
    "triangle": [_polar([1.0] * 3)],
    "star": [_polar([1.0, 0.42] * 5)],
    "cross": [_polar([1.0, 0.4472135955, 1.0] * 4)],
    "ring": [_polar([1.0] * 40), _polar([0.55] * 40)],
    "crescent": [_crescent()],
    "arrow": [_mirrored((1.2, 0.0), (0.1, 1.0), (0.1, 0.38), (-1.2, 0.38))],
    "heart": [_heart()],
    "hourglass": [_outline((-1, -1), (1, -1), (0.18, 0), (1, 1), (-1, 1), (-0.18, 0))],
}


def _place(outlines: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Turn, scale and move the outlines to a random place inside the scene -> their edges [n,4] as x0,y0,x1,y1."""
    angle, size, *place = rng.random(4)
    cos, sin = np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)
    edges = np.concatenate([np.stack([points, np.roll(points, -1, axis=0)], 1) for points in outlines])
    edges = edges @ np.array([[cos, sin], [-sin, cos]])
    low, high = edges.min((0, 1)), edges.max((0, 1))
    scale = (SIZES[0] + size * (SIZES[1] - SIZES[0])) / (high - low).max()
    corner = (SIDE - scale * (high - low)) * place
    return ((edges - low) * scale + corner).reshape(-1, 4)


def _rasterise(edges: np.ndarray) -> np.ndarray:
    """Bool [64,64]: the pixels whose centre has an odd number of edges to its left."""
    x0, y0, x1, y1 = edges.T
    rows, which = np.nonzero((y0 <= _CENTRES[:, None]) != (y1 <= _CENTRES[:, None]))
    x0, y0, x1, y1 = x0[which], y0[which], x1[which], y1[which]
    crossing = x0 + (_CENTRES[rows] - y0) * (x1 - x0) / (y1 - y0)
    columns = np.ceil(crossing - 0.5).astype(np.int64).clip(0, SIDE)
    counts = np.bincount(rows * (SIDE + 1) + columns, minlength=SIDE * (SIDE + 1)).reshape(SIDE, SIDE + 1)
    return counts.cumsum(1)[:, :SIDE] % 2 == 1


# Scenes: how much of the second colour each pixel has, [64,64] in [0, 1]. Most are a signed distance in pixels to the
# edge of a pattern with random turn, phase and period, whose features stay well below the size of an object.


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _rotated(rng: np.random.Generator, phase: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates in a frame of random turn around the centre, moved by up to `phase` along both axes."""
    angle, du, dv = rng.random(3)
    cos, sin = np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)
    x, y = _X - SIDE / 2, _Y - SIDE / 2
    return cos * x + sin * y + phase * du, cos * y - sin * x + phase * dv


def _inside(distance: np.ndarray) -> np.ndarray:
    return (distance + 0.5).clip(0, 1)


def _fold(u: np.ndarray, period: float) -> np.ndarray:
    """The distance to the nearest multiple of the period."""
    return np.abs(u - period * np.rint(u / period))


def _stripes(rng: np.random.Generator) -> np.ndarray:
    period = _between(rng, 6, 11)
    u, _ = _rotated(rng, period)
    return _inside(_fold(u, period) - period / 4)


def _zigzag(rng: np.random.Generator) -> np.ndarray:
    period = _between(rng, 7, 11)
    u, v = _rotated(rng, 2 * period)
    return _inside((_fold(u + _fold(v, 1.6 * period), period) - period / 4) / np.sqrt(2))


def _checks(rng: np.random.Generator) -> np.ndarray:
    period = _between(rng, 11, 17)
    u, v = (_fold(w, period) - period / 4 for w in _rotated(rng, period))
    return _inside(np.sign(u * v) * np.minimum(np.abs(u), np.abs(v)))


def _lattice(rng: np.random.Generator) -> np.ndarray:
    period = _between(rng, 8, 12)
    u, v = _rotated(rng, period)
    return _inside(1.0 - np.minimum(_fold(u, period), _fold(v, period)))


def _bricks(rng: np.random.Generator) -> np.ndarray:
    height = _between(rng, 6, 8)
    u, v = _rotated(rng, 2 * height)
    shift = np.floor(v / height) % 2 * height
    return _inside(0.9 - np.minimum(_fold(u + shift, 2 * height), _fold(v, height)))


def _dots(rng: np.random.Generator) -> np.ndarray:
    period = _between(rng, 8, 12)
    u, v = _rotated(rng, period)
    return _inside(0.3 * period - np.hypot(_fold(u, period), _fold(v, period)))


def _centred(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Radius in pixels and angle in turns around a random point in the middle of the scene."""
    x, y = _X - _between(rng, 20, 44), _Y - _between(rng, 20, 44)
    return np.hypot(x, y), np.arctan2(y, x) / (2 * np.pi)


def _rings(rng: np.random.Generator) -> np.ndarray:
    period = _between(rng, 7, 11)
    radius, _ = _centred(rng)
    return _inside(_fold(radius + period * rng.random(), period) - period / 4)


def _rays(rng: np.random.Generator) -> np.ndarray:
    count = 7 + np.floor(6 * rng.random())
    radius, turns = _centred(rng)
    return _inside((_fold(turns + rng.random(), 1 / count) - 0.25 / count) * 2 * np.pi * radius)


def _cells(rng: np.random.Generator) -> np.ndarray:
    """Flat polygons: each pixel has the value of the nearest of 49 sites, one in each field of a grid."""
    jitter = rng.random((2, 7, 7))
    x, y = (np.arange(7) + jitter[0]) * (SIDE / 7), (np.arange(7)[:, None] + jitter[1]) * (SIDE / 7)
    squared = (_X[..., None] - x.ravel()) ** 2 + (_Y[..., None] - y.ravel()) ** 2
    return rng.random(49)[squared.argmin(-1)]


def _clouds(rng: np.random.Generator) -> np.ndarray:
    """Plane waves of random direction and of 12 to 40 pixels, stretched to the whole range."""
    total = np.zeros((SIDE, SIDE))
    for length in (12, 16, 22, 30, 40):
        u, _ = _rotated(rng, length)
        total += np.sqrt(length) * np.cos(2 * np.pi * u / length)
    return (total - total.min()) / (total.max() - total.min())


SCENES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "stripes": _stripes,
    "zigzag": _zigzag,
    "checks": _checks,
    "lattice": _lattice,
    "bricks": _bricks,
    "dots": _dots,
    "rings": _rings,
    "rays": _rays,
    "cells": _cells,
    "clouds": _clouds,
}
