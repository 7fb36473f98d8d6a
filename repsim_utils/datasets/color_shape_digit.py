"""ColorShapeDigit: small images with three independent factors to be predicted.

Each image shows one of 8 shapes in one of 10 colors, with one of 10 digits drawn on it. A model can be
asked for any subset of the three, so that two models may share none, some or all of their task while they see
the very same images.

Images are drawn from signed distances on whole batches. All randomness comes from one counter-based stream
(Philox), in which image ``i`` owns a fixed block of numbers: any slice of the data set can be drawn alone.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

VERSION = 1  # raised when the same ids and seed give other pixels
SHAPES = ("circle", "triangle", "square", "pentagon", "hexagon", "heptagon", "star", "cross")
DIGITS = tuple("0123456789")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "gray")
FACTORS = ("shape", "digit", "color")
SPLITS = ("train", "validation", "test")
N_COMBINATIONS = len(SHAPES) * len(DIGITS) * len(COLORS)

_NAMES = {"shape": SHAPES, "digit": DIGITS, "color": COLORS}
_SPLIT_START = {"train": 0, "validation": 2**40, "test": 2**41}  # splits own separate stretches of the stream
_CHUNK = 128  # images drawn together: their planes stay in the processor's cache
_RGB = (
    (214, 40, 40), (245, 133, 25), (242, 214, 40), (52, 160, 60), (45, 200, 210),
    (40, 80, 205), (130, 55, 170), (245, 130, 190), (125, 78, 40), (150, 150, 150),
)  # fmt: skip


class _Outline(NamedTuple):
    """A shape, folded into one sector, is where two half-planes meet: ``normal @ (x, |y|) <= offset``."""

    fold: int  # rotational symmetry
    normal_1: tuple[float, float]
    offset_1: float
    normal_2: tuple[float, float]
    offset_2: float


def _polygon(k: int, radius: float) -> _Outline:
    return _Outline(k, (1.0, 0.0), radius * math.cos(math.pi / k), (1.0, 0.0), radius)


def _star(outer: float, inner: float, k: int = 5) -> _Outline:
    tip, notch = (outer, 0.0), (inner * math.cos(math.pi / k), inner * math.sin(math.pi / k))
    edge = (notch[0] - tip[0], notch[1] - tip[1])
    length = math.hypot(*edge)
    normal = (edge[1] / length, -edge[0] / length)
    return _Outline(k, normal, normal[0] * tip[0] + normal[1] * tip[1], (1.0, 0.0), outer)


# Radii bring the areas near one another, so that size alone says little of the shape.
_OUTLINES = (
    _polygon(64, 1.0), _polygon(3, 1.42), _polygon(4, 1.25), _polygon(5, 1.14), _polygon(6, 1.09),
    _polygon(7, 1.06), _star(1.45, 0.75), _Outline(4, (0.0, 1.0), 0.5, (1.0, 0.0), 1.22),
)  # fmt: skip


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, stop: float) -> list[tuple[float, float]]:
    """Points of an elliptic arc; degrees, 0 to the right, 90 downwards (y grows downwards)."""
    angles = np.radians(np.linspace(start, stop, 17))
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


def _skeletons() -> list[list[list[list[tuple[float, float]]]]]:
    """Digits as pen strokes in a box of width 1.2 and height 2, in three hands: [hand][digit][stroke][point]."""
    top, bottom = _arc(0, -0.5, 0.5, 0.5, 0, 360), _arc(0, 0.5, 0.55, 0.5, 0, 360)
    round_hand: list[list[list[tuple[float, float]]]] = [
        [_arc(0, 0, 0.58, 1, 0, 360)],
        [[(-0.35, -0.6), (0.05, -1), (0.05, 1)]],
        [[*_arc(0, -0.45, 0.55, 0.55, 180, 380), (-0.58, 1), (0.6, 1)]],
        [_arc(-0.05, -0.5, 0.55, 0.5, 200, 450), _arc(-0.05, 0.5, 0.6, 0.5, -90, 160)],
        [[(0.3, 1), (0.3, -1), (-0.6, 0.4), (0.65, 0.4)]],
        [[(0.5, -1), (-0.42, -1), (-0.48, -0.1), *_arc(-0.05, 0.38, 0.6, 0.62, 230, 500)]],
        [[(0.35, -1), (-0.2, -0.4), *_arc(0, 0.42, 0.56, 0.58, 195, 555)]],
        [[(-0.6, -1), (0.6, -1), (-0.1, 1)]],
        [top, bottom],
        [[*_arc(0, -0.42, 0.56, 0.58, 375, 15), (0.2, 0.4), (-0.35, 1)]],
    ]
    a, b, c, d, e, f, g = (
        [(-0.5, -1.0), (0.5, -1.0)], [(0.5, -1.0), (0.5, 0.0)], [(0.5, 0.0), (0.5, 1.0)], [(0.5, 1.0), (-0.5, 1.0)],
        [(-0.5, 1.0), (-0.5, 0.0)], [(-0.5, 0.0), (-0.5, -1.0)], [(-0.5, 0.0), (0.5, 0.0)],
    )  # fmt: skip
    segments = [
        [a, b, c, d, e, f], [b, c], [a, b, g, e, d], [a, b, g, c, d], [f, g, b, c],
        [a, f, g, c, d], [a, f, g, e, c, d], [a, b, c], [a, b, c, d, e, f, g], [a, b, c, d, f, g],
    ]  # fmt: skip
    book_hand = list(round_hand)
    book_hand[1] = [[(-0.35, -0.65), (0, -1), (0, 1)], [(-0.4, 1), (0.4, 1)]]
    book_hand[3] = [[(-0.5, -1), (0.5, -1), (-0.02, -0.2), *_arc(-0.05, 0.4, 0.6, 0.6, -75, 150)]]
    book_hand[4] = [[(-0.3, -1), (-0.6, 0.2), (0.6, 0.2)], [(0.25, -0.5), (0.25, 1)]]
    book_hand[6] = [[*_arc(0.25, 0.1, 0.85, 1.1, 270, 180), *_arc(0, 0.42, 0.58, 0.58, 180, 540)]]
    book_hand[7] = [[(-0.6, -1), (0.6, -1), (-0.2, 1)], [(-0.3, 0), (0.45, 0)]]
    book_hand[9] = [[*_arc(0, -0.42, 0.56, 0.58, 360, 0), (0.56, 1)]]
    return [round_hand, segments, book_hand]


_GLYPH_SIZE, _GLYPH_EXTENT = 40, 1.7  # pixels of a glyph's distance map, and the half-width that it covers


@cache
def _glyphs() -> Tensor:
    """Distance to every digit's strokes, in half-heights of the digit: float32 (hand, digit, size, size)."""
    axis = np.linspace(-_GLYPH_EXTENT, _GLYPH_EXTENT, _GLYPH_SIZE)
    grid = np.stack(np.meshgrid(axis, axis, indexing="xy"), -1)[..., None, :]  # (s, s, 1, 2)
    maps = []
    for digit in (digit for hand in _skeletons() for digit in hand):
        starts = np.array([p for stroke in digit for p in stroke[:-1]])
        edges = np.array([q for stroke in digit for q in stroke[1:]]) - starts
        along = ((grid - starts) * edges).sum(-1) / np.maximum((edges**2).sum(-1), 1e-12)
        nearest = starts + np.clip(along, 0, 1)[..., None] * edges
        maps.append(np.sqrt(((grid - nearest) ** 2).sum(-1)).min(-1))
    return torch.tensor(np.stack(maps), dtype=torch.float32).reshape(3, 10, _GLYPH_SIZE, _GLYPH_SIZE)


@cache
def _noise_table() -> np.ndarray:
    """Standard normal quantiles, so that a 16-bit number becomes a normal deviate by look-up: float32 (65536,)."""
    levels = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    return torch.special.ndtri(levels).float().numpy()


_N_UNIFORM = 32  # uniform numbers that an image may use beside its pixel noise


def _random_blocks(seed: int, start: int, n: int, n_noise: int) -> tuple[Tensor, Tensor]:
    """Numbers of images start … start + n: uniforms float32 (32, n), standard normals float32 (n, n_noise)."""
    words = _N_UNIFORM // 4 + math.ceil(n_noise / 4)
    counters = math.ceil(words / 4)  # one Philox counter yields four 64-bit words
    generator = np.random.Philox(np.random.SeedSequence(seed)).advance(start * counters)
    raw = generator.random_raw(n * counters * 4).view(np.uint16).reshape(n, counters * 16)
    uniform = torch.from_numpy(raw[:, :_N_UNIFORM].T.astype(np.float32))
    normal = _noise_table()[raw[:, _N_UNIFORM : _N_UNIFORM + n_noise]]
    return (uniform + 0.5) / 65536, torch.from_numpy(normal)


def render(
    shape: Tensor,
    digit: Tensor,
    color: Tensor,
    *,
    seed: int,
    size: int = 28,
    difficulty: float = 0.5,
    start: int = 0,
) -> Tensor:
    """Draw one image for each triple of ids.

    Parameters
    ----------
    shape, digit, color : int Tensor or sequence, (n,)
        Ids into `SHAPES`, `DIGITS` and `COLORS`.
    seed : int
        Non-negative. Row ``i`` depends only on its ids and on ``(seed, start + i)``.
    size : int
        Height and width in pixels, 16 or more.
    difficulty : float
        From 0 (clean) to 1 (hard): pixel noise, uneven backgrounds and colors, displacement, rotation and loss
        of contrast grow with it.
    start : int
        Index of the first row in the stream of this seed.

    Returns
    -------
    Tensor
        uint8 (n, 3, size, size).

    Raises
    ------
    ValueError
        If ids are out of range or of unequal number, or if another argument is outside its range.
    """
    ids = [_as_ids(name, values) for name, values in (("shape", shape), ("digit", digit), ("color", color))]
    n = len(ids[0])
    if any(len(values) != n for values in ids):
        raise ValueError(f"shape, digit and color need one id an image each, got {[len(v) for v in ids]}")
    if not 0 <= difficulty <= 1:
        raise ValueError(f"difficulty must be between 0 (clean) and 1 (hard), got {difficulty}")
    if size < 16:
        raise ValueError(f"size must be at least 16 pixels, got {size}")
    if seed < 0 or start < 0:
        raise ValueError(f"seed and start must not be negative, got {seed} and {start}")
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)

    def draw(low: int) -> None:
        rows = slice(low, min(low + _CHUNK, n))
        shapes, digits, colors = (values[rows] for values in ids)
        images[rows] = _draw(shapes, digits, colors, seed, start + low, size, difficulty)

    threads = torch.get_num_threads()  # chunks are too small to share out: one chunk a core is twice as fast
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(draw, range(0, n, _CHUNK)))
    finally:
        torch.set_num_threads(threads)
    return images


def combination_ids(index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, digit and color ids of the images at these indices: the 800 combinations follow one another in turn."""
    combination = index % N_COMBINATIONS
    return combination // 100, combination // 10 % 10, combination % 10


class ColorShapeDigit:
    """The same number of images of each of the 800 combinations, held in memory.

    Parameters
    ----------
    n_per_combination : int
        Images of each combination; the data set has 800 times as many. A smaller data set is the beginning of a
        larger one.
    split : {"train", "validation", "test"}
        Splits are drawn from separate stretches of the random stream and share no image.
    seed : int
    size : int
        Height and width in pixels.
    difficulty : float
        From 0 (clean) to 1 (hard); see `render`.

    Attributes
    ----------
    images : Tensor
        uint8 (n, 3, size, size).
    shape, digit, color : Tensor
        int64 (n,), ids into `SHAPES`, `DIGITS` and `COLORS`.

    Raises
    ------
    ValueError
        If the split is unknown or a number out of range.
    """

    def __init__(
        self, n_per_combination: int, *, split: str, seed: int = 0, size: int = 28, difficulty: float = 0.5
    ) -> None:
        if n_per_combination < 1:
            raise ValueError(f"n_per_combination must be at least 1, got {n_per_combination}")
        self.shape, self.digit, self.color = combination_ids(torch.arange(n_per_combination * N_COMBINATIONS))
        self.images = render(
            self.shape, self.digit, self.color, seed=seed, size=size, difficulty=difficulty, start=split_start(split)
        )

    def __len__(self) -> int:
        return len(self.images)

    def labels(self, *factors: str) -> tuple[Tensor, tuple[str, ...]]:
        """Class ids for the joint prediction of some factors, and the names of those classes.

        Parameters
        ----------
        *factors : {"shape", "digit", "color"}
            One to three different factors; two factors give one class for each pair of their values.

        Returns
        -------
        ids : Tensor
            int64 (n,).
        names : tuple of str
            Name of class 0, 1, …, such as ``"star 7"``.

        Raises
        ------
        ValueError
            If a factor is unknown or given twice, or none is given.
        """
        names = class_names(*factors)
        ids = torch.zeros(len(self), dtype=torch.int64)
        for factor in factors:
            ids = ids * len(_NAMES[factor]) + getattr(self, factor)
        return ids, names


def class_names(*factors: str) -> tuple[str, ...]:
    """Names of the classes of a joint prediction, in the order of their ids; see `ColorShapeDigit.labels`."""
    if not factors or len(set(factors)) < len(factors) or not set(factors) <= set(FACTORS):
        raise ValueError(f"factors must be one to three different ones of {FACTORS}, got {factors}")
    return tuple(" ".join(values) for values in product(*(_NAMES[factor] for factor in factors)))


def split_start(split: str) -> int:
    """Index in the random stream at which a split begins."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    return _SPLIT_START[split]


def _as_ids(factor: str, values: Tensor) -> Tensor:
    ids = torch.as_tensor(values, dtype=torch.int64).reshape(-1)
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < len(_NAMES[factor]):
        raise ValueError(f"{factor} ids must be between 0 and {len(_NAMES[factor]) - 1}, got {ids.unique().tolist()}")
    return ids


def _draw(shape: Tensor, digit: Tensor, color: Tensor, seed: int, start: int, size: int, hard: float) -> Tensor:
    """One chunk of images; `hard` is the difficulty. Lengths are in pixels, planes are (n, size * size)."""
    n, pixels = len(shape), size * size
    uniform, noise = _random_blocks(seed, start, n, 3 * pixels)
    draws = iter(uniform.unsqueeze(-1))  # each next(draws) is a fresh uniform number an image, (n, 1)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * next(draws)

    # Where the shape sits: centre, radius and rotation.
    unit = size / 28
    radius = unit * between(8.6 - 0.6 * hard, 9.4)
    shift = unit * (0.4 + 0.6 * hard)
    middle = (size - 1) / 2
    cx, cy = middle + between(-shift, shift), middle + between(-shift, shift)
    turn = math.pi * (0.02 + 0.03 * hard)
    pixel = torch.arange(size, dtype=torch.float32)
    x = (pixel.repeat(size) - cx) / radius
    y = (pixel.repeat_interleave(size) - cy) / radius
    inside = _coverage(_shape_distance(x, y, shape, between(-turn, turn)) * radius)

    # Where the digit sits on it, in which hand, and how it is slanted.
    height = between(0.54, 0.66)
    angle, slant = between(-turn, turn), between(-0.2, 0.2) * (0.3 + 0.7 * hard)
    dx, dy = between(-0.08, 0.08) * hard, between(-0.08, 0.08) * hard
    hand = (next(draws)[:, 0] * 3).long()
    distance = _digit_distance(x - dx, y - dy, digit, hand, height, angle, slant)
    pen = between(0.09, 0.16)
    ink = _coverage((distance * height - pen) * radius)

    # Paint: background, then shape, then digit; dark ink on light colors and light ink on dark ones.
    ramp = (x * between(-1, 1) + y * between(-1, 1)) * 6 * (1 + hard)
    background = torch.stack([between(20, 235) + between(-1, 1) * 18 + ramp for _ in range(3)], 1)
    background = 0.35 * background + 0.65 * background.mean(1, keepdim=True)
    jitter = 6 + 10 * hard
    fill = torch.tensor(_RGB, dtype=torch.float32)[color].unsqueeze(-1)
    fill = fill + torch.stack([between(-jitter, jitter) for _ in range(3)], 1) + between(-12, 12).unsqueeze(1)
    light = fill.mean(1, keepdim=True) > 125
    tone = torch.where(light, 20.0, 235.0) + between(-20, 20).unsqueeze(1)
    tone = fill + (tone - fill) * (1 - 0.2 * hard * next(draws)).unsqueeze(1)
    image = background + (fill - background) * inside.unsqueeze(1)
    image += (tone - image) * (ink * inside).unsqueeze(1)
    sigma = 2 + 24 * hard
    image.view(n, -1).add_(noise, alpha=sigma)
    return image.round_().clamp_(0, 255).to(torch.uint8).view(n, 3, size, size)


def _coverage(distance: Tensor) -> Tensor:
    """Share of a pixel that lies inside an edge at this signed distance in pixels (negative is inside)."""
    return (0.5 - distance).clamp_(0, 1)


def _shape_distance(x: Tensor, y: Tensor, shape: Tensor, rotation: Tensor) -> Tensor:
    """Signed distance to each image's outline, in radii: fold the plane into one sector, then two half-planes."""
    table = torch.tensor([(o.fold, *o.normal_1, o.offset_1, *o.normal_2, o.offset_2) for o in _OUTLINES])
    fold, ax, ay, a, bx, by, b = table[shape].T.unsqueeze(-1)
    sector = 2 * math.pi / fold
    tilt = torch.where(shape == SHAPES.index("square"), math.pi / 4, math.pi / 2).unsqueeze(-1)
    rho, theta = torch.hypot(x, y), torch.atan2(y, x) - rotation + tilt  # corners and arms point up, a square lies flat
    theta -= sector * torch.round(theta / sector)
    # Stars and crosses have an arm on the axis; regular polygons there have a corner, and an edge half a sector on.
    corner_first = shape.unsqueeze(-1) < SHAPES.index("star")
    theta = theta.abs_()
    theta = torch.where(corner_first, sector / 2 - theta, theta)
    u, v = rho * torch.cos(theta), rho * torch.sin(theta)
    return torch.maximum(ax * u + ay * v - a, bx * u + by * v - b)


def _digit_distance(
    x: Tensor, y: Tensor, digit: Tensor, hand: Tensor, height: Tensor, rotation: Tensor, slant: Tensor
) -> Tensor:
    """Distance to each image's digit strokes, in half-heights of the digit, sampled from the glyphs' distance maps."""
    n, pixels = x.shape
    size = math.isqrt(pixels)
    cos, sin = torch.cos(rotation) / height, torch.sin(rotation) / height
    u, v = cos * x + sin * y, cos * y - sin * x
    grid = torch.stack([u + slant * v, v], -1).view(n, size, size, 2) / _GLYPH_EXTENT
    maps = _glyphs()[hand, digit].unsqueeze(1)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return sampled.view(n, pixels)
