"""Draw anatomies with the statistics of nature, for the simulated scanner to image: echogenicity in decibels.

They consist of dead leaves: overlapping, occluding shapes of all sizes with textures inside. The statistics of their
edges and scales match those of photographs and tissue (Lee, Mumford, Huang, "Occlusion models for natural images", IJCV
2001). A network trained only on textbook anatomies invents their shapes in other images.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, exp, log, sin

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d, uniform_filter1d

SMALL = 8  # pixels; leaves of a smaller radius are drawn all at once, larger ones one by one
ANGLES = 64  # number of angles at which an outline is sampled
FRAME = 128  # pixels; side of the square frame for which the numbers of leaves, strokes and cells are meant
TEXTURES = ("cloud", "grain", "fibres", "cells", "labyrinth", "ridges", "patches")


def _soft_step(distance: np.ndarray, soft: float) -> np.ndarray:
    """Return 1 where the distance in pixels is far below 0, 0 far above, with an edge about `soft` pixels wide."""
    return 1 / (1 + np.exp(np.clip(distance * (2 / soft), -40, 40)))


def _rotate(y: np.ndarray, x: np.ndarray, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates along and across a direction, radians."""
    return x * cos(turn) + y * sin(turn), y * cos(turn) - x * sin(turn)


def _outlines(radius: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return radii (N, ANGLES) of star-shaped outlines: discs, ellipses and boxes, most of them uneven."""
    count = len(radius)
    angle = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False, dtype=np.float32)
    turned = angle - rng.uniform(0, np.pi, (count, 1)).astype(np.float32)
    stretch = np.exp(rng.normal(0, 0.35, (count, 1))).astype(np.float32)
    cosine, sine = np.cos(turned) / stretch, np.sin(turned) * stretch
    shape = 1 / np.hypot(cosine, sine)
    boxes = rng.random(count) < 0.12
    shape[boxes] = 0.9 / np.maximum(np.abs(cosine[boxes]), np.abs(sine[boxes]))
    orders = np.arange(2, 9, dtype=np.float32)
    strength = rng.uniform(0, 0.3, (count, 1)) * (rng.random((count, 1)) < 0.85) / orders * 1.5
    strength[boxes] *= 0.2
    waves = np.exp(1j * rng.uniform(0, 2 * np.pi, strength.shape)) * strength * rng.standard_normal(strength.shape)
    wobble = (waves.astype(np.complex64) @ np.exp(1j * orders[:, None] * angle)).real
    return radius[:, None].astype(np.float32) * shape * np.maximum(1 + wobble, 0.2)


def _within(outlines: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return how far places (y, x) lie within outlines (..., ANGLES) around the origin, in pixels; negative outside."""
    direction = np.arctan2(y, x, dtype=np.float32) * np.float32(ANGLES / (2 * np.pi)) + ANGLES
    first = direction.astype(np.intp)
    share, first, second = direction - first, first % ANGLES, (first + 1) % ANGLES
    return outlines[..., first] * (1 - share) + outlines[..., second] * share - np.hypot(y, x)


def draw_radii(count: int, low: float, high: float, rng: np.random.Generator, power: float = 3.0) -> np.ndarray:
    """Draw `count` radii between `low` and `high` pixels with a density that falls as r ** -power."""
    ends = np.array([low, high]) ** (1 - power)
    return (ends[0] + rng.random(count) * (ends[1] - ends[0])) ** (1 / (1 - power))


class Textures:
    """Random fields (H, W) with zero mean and unit standard deviation, on a grid of pixels."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator):
        self.size, self.rng = size, rng
        self.fy = np.fft.fftfreq(size[0]).astype(np.float32)[:, None]
        self.fx = np.fft.rfftfreq(size[1]).astype(np.float32)
        self.y, self.x = np.mgrid[: size[0], : size[1]].astype(np.float32)

    def draw(self, kind: str | None = None) -> np.ndarray:
        """Return a field of this kind, one of TEXTURES; None: of a random kind."""
        field = getattr(self, kind or str(self.rng.choice(TEXTURES, p=(0.32, 0.06, 0.18, 0.14, 0.1, 0.08, 0.12))))()
        field = field - field.mean()
        return np.clip(field / max(float(field.std()), 1e-6), -4, 4)

    def noise(self, exponent: float, ratio: float = 1.0, turn: float = 0.0, longest: float = np.inf) -> np.ndarray:
        """Return a Gaussian field with amplitudes as 1 / f ** exponent, stretched `ratio` times along `turn`.

        longest: pixels; larger structures are left out.
        """
        fy, fx = self.fy, self.fx
        if ratio != 1:
            along, across = _rotate(fy, fx, turn)
            fy, fx = across / ratio**0.5, along * ratio**0.5
        lowest = max(1 / longest, 1 / max(self.size))
        filtered = (fy * fy + fx * fx + np.float32(lowest**2)) ** np.float32(-exponent / 2)
        white = self.rng.standard_normal((2, *filtered.shape), dtype=np.float32)
        field = np.fft.irfft2((white[0] + 1j * white[1]) * filtered, s=self.size).astype(np.float32)
        field -= field.mean()
        return field / max(float(field.std()), 1e-9)

    def _band(self, period: float) -> np.ndarray:
        """Return a Gaussian field that has about one spatial period (pixels) in all directions."""
        f = np.hypot(self.fy, self.fx) * np.float32(period)
        white = self.rng.standard_normal((2, *f.shape), dtype=np.float32)
        filtered = np.exp(-((f - 1) ** 2) / np.float32(2 * 0.3**2))
        field = np.fft.irfft2((white[0] + 1j * white[1]) * filtered, s=self.size).astype(np.float32)
        return field / max(float(field.std()), 1e-9)

    def _period(self, low: float, high: float) -> float:
        return exp(self.rng.uniform(log(low), log(high)))

    def _sign(self) -> int:
        return 1 if self.rng.random() < 0.5 else -1

    def cloud(self) -> np.ndarray:
        """Return structure of all sizes, stretched up to sixfold."""
        rng = self.rng
        ratio = exp(rng.uniform(0, log(6))) if rng.random() < 0.6 else 1.0
        return self.noise(rng.uniform(1, 2.2), ratio, rng.uniform(0, np.pi))

    def grain(self) -> np.ndarray:
        """Return fine, uneven parenchyma."""
        return self.noise(self.rng.uniform(0.3, 1.2), longest=self._period(8, 40))

    def fibres(self) -> np.ndarray:
        """Return bundles that bend, end and lie side by side, as in muscle or tendon."""
        rng, turn = self.rng, self.rng.normal(0, 0.5) if self.rng.random() < 0.7 else self.rng.uniform(0, np.pi)
        bend = self.noise(2.5) * self._period(1, 12)
        across = _rotate(self.y, self.x, turn)[1] + bend
        low, high = float(across.min()), float(across.max())
        line = gaussian_filter1d(rng.standard_normal(int(high - low) * 2 + 4), 2 * self._period(0.7, 4))
        line = (line / line.std()).astype(np.float32)
        at = (across - low) * 2
        first = at.astype(np.intp)
        streaks = line[first] + (at - first.astype(np.float32)) * (line[first + 1] - line[first])
        if rng.random() < 0.5:  # thin septa between broad bundles
            streaks = np.exp(-((streaks / np.float32(rng.uniform(0.15, 0.5))) ** 2))
        return streaks * (1 + np.tanh(self.noise(1.6, rng.uniform(2, 8), turn))) if rng.random() < 0.7 else streaks

    def cells(self) -> np.ndarray:
        """Return adjacent lobules or cells with walls between them."""
        rng, pitch = self.rng, self._period(5, 36)
        u, v = _rotate(self.y, self.x, rng.uniform(0, np.pi))
        u, v = u / (pitch * exp(rng.uniform(0, 0.9))), v / pitch
        if rng.random() < 0.5:
            v, u = v + self.noise(2.2) * rng.uniform(0, 0.4), u + self.noise(2.2) * rng.uniform(0, 0.4)
        row, column = np.floor(v), np.floor(u)
        v, u, row, column = (
            v - row,
            u - column,
            (row - row.min()).astype(np.intp),
            (column - column.min()).astype(np.intp),
        )  # position within the cell
        seeds = rng.random((3, int(row.max()) + 3, int(column.max()) + 3), dtype=np.float32)
        nearest, second, level = (np.full(self.size, start, np.float32) for start in (9, 9, 0))
        for i in range(3):
            for j in range(3):
                dy, dx, value = seeds[:, row + i, column + j]
                distance = np.hypot(dy + ((i - 1) - v), dx + ((j - 1) - u))
                level = np.where(distance < nearest, value, level)
                second = np.minimum(second, np.maximum(distance, nearest))
                nearest = np.minimum(nearest, distance)
        wall = np.exp(-(((second - nearest) * np.float32(pitch / self._period(0.8, 3))) ** 2))
        inside = level - 0.5 + np.float32(rng.uniform(0, 0.6)) * nearest
        return inside * np.float32(rng.uniform(0, 2)) + wall * np.float32(self._sign() * rng.uniform(0.3, 1.5))

    def labyrinth(self) -> np.ndarray:
        """Return folds of one width, as on a brain's surface or in a gland."""
        return np.tanh(self._band(self._period(5, 40)) * np.float32(self._period(0.7, 6)))

    def ridges(self) -> np.ndarray:
        """Return thin curved lines, such as membranes, contours or wrinkles."""
        field = self.noise(self.rng.uniform(1.6, 2.6), longest=self._period(12, 120))
        return np.exp(-((field / np.float32(self._period(0.04, 0.3))) ** 2))

    def patches(self) -> np.ndarray:
        """Return two or three tissues with ragged borders."""
        field = self.noise(self.rng.uniform(1.2, 2.2)) * np.float32(self._period(1, 12))
        return np.tanh(field + self.rng.normal(0, 1)) + np.tanh(field - self.rng.normal(0, 3))


class Echogenicity:
    """Echogenicity in decibels on an (H, W) grid, composed object by object; the base of all anatomies."""

    dtype: type[np.floating] = np.float32  # data type of the arrays

    def __init__(self, size: tuple[int, int], rng: np.random.Generator):
        self.rng = rng
        self.y, self.x = np.mgrid[: size[0], : size[1]].astype(self.dtype)
        self.size, self.unit = size, min(size)
        self.decibels = np.zeros(size, self.dtype)
        self.specular = np.full(size, -200.0, self.dtype)  # dB of the coherent echo, which has no speckle
        self.echoes = np.zeros(size, self.dtype)  # peak amplitude of the echoes of single points
        self.labels = np.zeros(size, np.uint8)

    def curve(self, wander: float, slope: float) -> np.ndarray:
        """Return a smooth depth for every column, pixels."""
        columns = self.size[1]
        bend = gaussian_filter1d(self.rng.standard_normal(columns), columns * self.rng.uniform(0.06, 0.3), mode="wrap")
        bend *= self.rng.uniform(0, wander) * self.unit / max(np.abs(bend).max(), 1e-9)
        tilt = self.rng.uniform(-slope, slope) * (np.arange(columns) - columns / 2)
        return (self.rng.uniform(0, self.size[0]) + bend + tilt).astype(self.dtype)

    def put(self, inside: np.ndarray, contrast: float) -> None:
        """Change the level by `contrast` dB where `inside` (0 to 1) is 1."""
        self.decibels += self.dtype(contrast) * inside
        self.labels[inside > 0.5] = min(int(self.labels.max()) + 1, 255)

    def layer(self, wander: float = 0.1, slope: float = 0.6) -> None:
        """Add a thin bright layer (fascia, vessel wall, bone), part speckle, part specular."""
        ends = np.abs(np.arange(self.size[1], dtype=self.dtype) - self.dtype(self.rng.uniform(0, self.size[1])))
        extent = _soft_step(ends - self.dtype(self.rng.uniform(0.05, 1) * self.size[1]), 8)
        away = (self.y - self.curve(wander, slope)) / self.dtype(self.rng.uniform(0.4, 2))
        profile = np.exp(-(away**2) / 2) * extent
        height = self.dtype(self.rng.uniform(5, 24))
        self.decibels += height * profile
        if self.rng.random() < 0.6:
            self.specular = np.maximum(self.specular, height + self.decibels - 40 * (1 - profile))

    def lower(self, decibels: np.ndarray) -> None:
        """Lower everything, including echoes, by `decibels` (H, W)."""
        self.decibels -= decibels
        self.specular -= decibels
        self.echoes *= 10 ** (decibels / -20)

    def points(self, count: int) -> None:
        """Add coherent point targets (needle tip, calcification) whose echo is 8 to 35 dB above the tissue's."""
        rows, columns = (self.rng.integers(0, n, count) for n in self.size)
        self._echo_at(rows, columns, self.rng.uniform(8, 35, count))

    def _echo_at(self, rows: np.ndarray, columns: np.ndarray, contrast: np.ndarray | float) -> None:
        level = self.decibels[rows, columns] + contrast
        np.maximum.at(self.echoes, (rows, columns), (10 ** (level / 20)).astype(self.echoes.dtype))

    def draw_strokes(
        self, count: int, spacing: float
    ) -> tuple[float, bool, list[tuple[float, np.ndarray, float, float]]]:
        """Draw straight echoes: return their width (sigma, pixels), whether they are coherent, and the direction
        (radians), middle (pixels), half length (pixels) and contrast (dB) of each."""
        angle = self.rng.normal(0, 0.3) if self.rng.random() < 0.6 else self.rng.uniform(0, np.pi)
        length = float(np.exp(self.rng.uniform(np.log(0.12), np.log(0.8)))) * min(self.size)
        level, sigma = self.rng.uniform(7, 24), self.rng.uniform(0.3, 1.2)
        coherent = self.rng.random() < 0.6
        center = np.array([self.rng.uniform(0.1, 0.9) * n for n in self.size])
        strokes = []
        for number in range(count):
            turn, middle, half, contrast = angle, center, length / 2, level
            if spacing:
                middle = center + (number - (count - 1) / 2) * spacing * np.array([np.cos(turn), -np.sin(turn)])
            else:
                turn += self.rng.normal(0, 0.12)
                middle = np.array([self.rng.uniform(0, n) for n in self.size])
                half, contrast = half * self.rng.uniform(0.3, 1.5), level * self.rng.uniform(0.8, 1.2)
            strokes.append((turn, middle, half, contrast))
        return sigma, coherent, strokes

    def row(self, count: int, spacing: float) -> None:
        """Add equal point targets in a row, as in a resolution phantom."""
        turn, middle = self.rng.uniform(0, np.pi), [self.rng.uniform(0.1, 0.9) * n for n in self.size]
        at = (np.arange(count) - count // 2) * spacing
        rows, columns = (np.round(m + at * f(turn)).astype(int) for m, f in zip(middle, (np.sin, np.cos), strict=True))
        inside = (rows >= 0) & (rows < self.size[0]) & (columns >= 0) & (columns < self.size[1])
        self._echo_at(rows[inside], columns[inside], self.rng.uniform(8, 28))

    def strokes(self, count: int, spacing: float = 0.0) -> None:
        """Add thin straight echoes (wires, needles, fibers) with hard ends, 7 to 24 dB above the tissue's.

        spacing: distance between parallel strokes in pixels, as in a grating; 0: random places, in about one direction.
        """
        raise NotImplementedError

    def fine_structure(self) -> None:
        """Add strokes or points that a smoother would mistake for speckle."""
        kind = self.rng.random()
        if kind < 0.35:
            self.strokes(int(self.rng.integers(1, 9)), self.rng.uniform(3, 24))
        elif kind < 0.8:
            self.strokes(int(self.rng.integers(1, 40)))
        else:
            self.row(int(self.rng.integers(2, 12)), self.rng.uniform(4, 24))


class Anatomy(Echogenicity):
    """An anatomy with the statistics of nature."""

    @property
    def frames(self) -> float:
        """Return the number of frames of the usual size that would cover this one."""
        return self.size[0] * self.size[1] / FRAME**2

    def shadow(self) -> None:
        """Add a dark column below some depth, as behind bone or at a vessel's edge."""
        across = np.abs(self.x[0] - self.rng.uniform(0, self.size[1])) - self.rng.uniform(0.02, 0.2) * self.size[1]
        above = self.rng.uniform(0, 0.8) * self.size[0] - self.y[:, 0]
        inside = _soft_step(across, 6) * _soft_step(above, 4)[:, None]
        self.lower(np.float32(self.rng.uniform(3, 35)) * inside.astype(np.float32))

    def _window(self, center: Sequence[float] | np.ndarray, reach: float) -> tuple[slice, ...]:
        """Return rows and columns within `reach` pixels of a place; empty slices if that is outside."""
        bounds = [(max(0, int(c - reach)), min(n, int(c + reach) + 2)) for c, n in zip(center, self.size, strict=True)]
        return tuple(slice(low, max(low, high)) for low, high in bounds)

    def strokes(self, count: int, spacing: float = 0.0) -> None:
        """Add thin straight echoes (wires, needles, fibers) with hard ends, 7 to 24 dB above the tissue's.

        spacing: distance between parallel strokes in pixels, as in a grating; 0: random places, in about one direction.
        """
        sigma, coherent, strokes = self.draw_strokes(count, spacing)
        for turn, middle, half, contrast in strokes:
            window = self._window(middle, half + 5)
            y, x = self.y[window] - np.float32(middle[0]), self.x[window] - np.float32(middle[1])
            along, across = _rotate(y, x, turn)
            profile = np.exp(-((across / np.float32(sigma)) ** 2) / 2) * _soft_step(np.abs(along) - half, 0.5)
            if coherent:
                bright = np.float32(contrast) + self.decibels[window] - 40 * (1 - profile)
                self.specular[window] = np.maximum(self.specular[window], bright)
            else:
                self.decibels[window] += np.float32(contrast) * profile

    def leaves(self, count: int, spread: float, textures: list[np.ndarray], smallest: float = 1.5) -> None:
        """Add dead leaves: `count` overlapping shapes of all sizes whose levels deviate by `spread` dB.

        The density of their radii falls as r ** -3, from `smallest` pixels to half the frame; half have a texture.
        """
        radius = draw_radii(count, smallest, max(self.unit / 2, 2 * smallest), self.rng)
        groups = np.array_split(radius, int(self.rng.integers(1, 4)))
        for group in groups:
            large = group[group > SMALL * 0.7]
            texture = textures[int(self.rng.integers(len(textures)))]
            strength = self.rng.uniform(0, 4) if self.rng.random() < 0.5 else 0.0
            for one in large:
                self._leaf(float(one), self.rng.normal(0, spread), strength * self.rng.uniform(0.3, 1.5), texture)
            self._small_leaves(group[group <= SMALL * 0.7], spread, strength, texture)

    def _leaf(self, radius: float, level: float, strength: float, texture: np.ndarray) -> None:
        outline = _outlines(np.array([radius]), self.rng)[0]
        center = [self.rng.uniform(-0.1, 1.1) * n for n in self.size]
        soft = exp(self.rng.uniform(log(0.6), log(5)))
        if self.rng.random() < 0.1:
            soft = radius * self.rng.uniform(0.3, 1)  # a gradual border
        window = self._window(center, float(outline.max()) + 2 * soft)
        y, x = self.y[window] - np.float32(center[0]), self.x[window] - np.float32(center[1])
        if y.size == 0:
            return
        depth = _within(outline, y, x)
        inside = _soft_step(-depth, soft)
        value: np.ndarray | np.float32 = np.float32(level)
        if strength:
            value = value + np.float32(strength) * texture[window]
        if self.rng.random() < 0.3:  # a shade from one side to the other
            turn, fall = self.rng.uniform(0, 2 * np.pi), self.rng.uniform(0, 8) / radius
            value = value + fall * _rotate(y, x, turn)[0]
        self.decibels[window] += inside * (value - self.decibels[window])
        self.labels[window][inside > 0.5] = min(int(self.labels.max()) + 1, 255)
        if self.rng.random() < 0.12:  # a wall
            width, height = np.float32(self.rng.uniform(0.5, 2)), np.float32(self.rng.normal(0, 8))
            self.decibels[window] += height * np.exp(-((depth / width) ** 2) / 2)

    def _small_leaves(self, radius: np.ndarray, spread: float, strength: float, texture: np.ndarray) -> None:
        """Draw small leaves all at once; the later ones lie on top."""
        if len(radius) == 0:
            return
        offset = np.arange(-SMALL, SMALL + 1)
        around = offset[:, None].astype(np.float32), offset.astype(np.float32)
        leaf, dy, dx = np.nonzero(_within(_outlines(radius, self.rng), *around) > 0)  # indices of (N, rows, columns)
        centers = [self.rng.integers(-2, n + 2, len(radius)) for n in self.size]
        row, column = centers[0][leaf] + offset[dy], centers[1][leaf] + offset[dx]
        seen = (row >= 0) & (row < self.size[0]) & (column >= 0) & (column < self.size[1])
        owner = np.full(self.size, -1, np.intp)
        owner[row[seen], column[seen]] = leaf[seen]
        levels = np.append(self.rng.normal(0, spread, len(radius)), 0).astype(np.float32)
        there = (owner >= 0).astype(np.float32)
        value = (levels[owner] + np.float32(strength) * texture) * there
        soft = self.rng.uniform(0.3, 1.3)
        there, value = (gaussian_filter(image, soft, truncate=3) for image in (there, value))
        self.decibels += value - there * self.decibels

    def tree(self, contrast: float) -> None:
        """Add branching vessels whose level differs by `contrast` dB, some with walls."""
        inside = np.zeros(self.size, np.float32)
        wall = np.zeros(self.size, np.float32) if self.rng.random() < 0.4 else None
        edge = self.rng.integers(4)
        start = np.array([self.rng.uniform(0, 1), 0.0 if edge % 2 else 1.0])[:: 1 if edge < 2 else -1] * self.size
        toward = np.array([self.rng.uniform(0.2, 0.8) * n for n in self.size]) - start
        width = exp(self.rng.uniform(log(0.8), log(6)))
        branches = [(start, float(np.arctan2(*toward)), width)]
        for _ in range(int(self.rng.integers(12, 60))):
            if not branches:
                break
            place, turn, width = branches.pop(0)
            length = min(width * self.rng.uniform(2, 8) + 3, 0.3 * self.unit)
            place = self._vessel(inside, wall, place, turn, length, width)
            narrow = width * self.rng.uniform(0.75, 0.98)
            if narrow > 0.4:
                branches.append((place, turn + self.rng.normal(0, 0.3), narrow))
                if self.rng.random() < 0.45:
                    side = self.rng.uniform(0.4, 1.2) * (1 if self.rng.random() < 0.5 else -1)
                    branches.append((place, turn + side, narrow * self.rng.uniform(0.5, 0.95)))
        self.put(inside, contrast)
        if wall is not None:
            self.decibels += np.float32(self.rng.uniform(3, 12)) * np.clip(wall - inside, 0, 1)

    def _vessel(
        self,
        inside: np.ndarray,
        wall: np.ndarray | None,
        place: np.ndarray,
        turn: float,
        length: float,
        width: float,
    ) -> np.ndarray:
        """Draw a straight piece of a vessel; return its end."""
        direction = np.array([sin(turn), cos(turn)])
        middle = place + direction * length / 2
        window = self._window(middle, length / 2 + width + 5)
        y, x = self.y[window] - np.float32(middle[0]), self.x[window] - np.float32(middle[1])
        along, across = _rotate(y, x, turn)
        away = np.hypot(np.maximum(np.abs(along) - length / 2, 0), across)
        inside[window] = np.maximum(inside[window], _soft_step(away - width, 0.8))
        if wall is not None:
            wall[window] = np.maximum(wall[window], _soft_step(away - (width + 1.5), 0.8))
        return place + direction * length

    def reverberate(self) -> None:
        """Repeat everything twice, deeper and weaker."""
        down = int(self.rng.uniform(0.08, 0.5) * self.size[0])
        weaker = np.float32(self.rng.uniform(10, 30))
        power = 10 ** (self.decibels / 10)
        for _ in range(2):
            power[down:] += power[:-down] * 10 ** (-weaker / 10)
            echoes = self.echoes[:-down] * 10 ** (-weaker / 20)
            self.echoes[down:] = np.maximum(self.echoes[down:], echoes)
            self.specular[down:] = np.maximum(self.specular[down:], self.specular[:-down] - weaker)
        self.decibels = 10 * np.log10(np.maximum(power, 1e-20))

    def side_lobes(self) -> None:
        """Add side lobes: bright echoes shine weakly to their left and right."""
        reach = int(self.rng.uniform(0.05, 0.25) * self.size[1]) * 2 + 1
        power = 10 ** (self.decibels / 10)
        power += np.float32(10 ** self.rng.uniform(-3.5, -2)) * uniform_filter1d(power, reach, axis=1, mode="mirror")
        self.decibels = 10 * np.log10(np.maximum(power, 1e-20))


def _between(values: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Return values along an axis at fractional positions, interpolated linearly."""
    first = np.minimum(at.astype(np.intp), values.shape[axis] - 2)
    share = (at - first).reshape([-1 if n == axis else 1 for n in range(values.ndim)])
    low, high = values.take(first, axis), values.take(first + 1, axis)
    return low + share * (high - low)


def _draw_natural(anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Draw dead leaves over a texture, or only a texture; some with vessels, a fine texture over everything, or dark
    surroundings."""
    textures = Textures(anatomy.size, rng)
    fields = [textures.draw() for _ in range(int(rng.integers(1, 4)))]
    spread = rng.uniform(4, 12)
    bare = rng.random() < 0.12
    strength = rng.uniform(0, 2) if rng.random() < 0.6 else spread * rng.uniform(0, 0.8)
    anatomy.decibels += np.float32(strength) * fields[0]
    count = exp(rng.uniform(log(50), log(2000))) * anatomy.frames
    smallest = 1.5 if rng.random() < 0.4 else exp(rng.uniform(log(1.2), log(10)))
    if not bare:
        anatomy.leaves(int(np.ceil(count * (1.5 / smallest) ** 2)), spread, fields, smallest)
    if rng.random() < 0.25:
        anatomy.tree(rng.uniform(3, 20) * (1 if rng.random() < 0.3 else -1))
    if rng.random() < 0.2:
        anatomy.decibels += np.float32(rng.uniform(0.5, 2.5)) * textures.draw()
    if rng.random() < 0.1:  # one body in the dark
        kept, anatomy.decibels = anatomy.decibels, np.full(anatomy.size, -rng.uniform(10, 45), np.float32)
        outline = _outlines(np.array([anatomy.unit * rng.uniform(0.3, 0.8)]), rng)[0]
        center = [rng.uniform(0, 1) * n for n in anatomy.size]
        depth = _within(outline, anatomy.y - np.float32(center[0]), anatomy.x - np.float32(center[1]))
        inside = _soft_step(-depth, exp(rng.uniform(-0.5, 1.5)))
        anatomy.decibels += inside * (kept - anatomy.decibels)
    for _ in range(int(rng.integers(0, 4)) if rng.random() < 0.3 else 0):
        anatomy.layer()


def draw_anatomy(size: tuple[int, int], rng: np.random.Generator) -> Anatomy:
    """Draw an anatomy of (H, W) pixels, with what a scanner adds to it: shadows, attenuation, reverberation."""
    anatomy = Anatomy(size, rng)
    _draw_natural(anatomy, rng)
    for _ in range(rng.integers(0, 3)):
        if rng.random() < 0.2:
            anatomy.shadow()
    if rng.random() < 0.25:
        anatomy.fine_structure()
    if rng.random() < 0.25:
        anatomy.points(int(rng.integers(1, 16)))
    if rng.random() < 0.06:
        anatomy.reverberate()
    if rng.random() < 0.06:
        anatomy.side_lobes()
    if rng.random() < 0.5:  # attenuation that the gain does not compensate
        fall = rng.uniform(0, 30) * anatomy.y[:, :1] / size[0]
        if rng.random() < 0.4:  # a gain that was set by hand
            fall = fall + _between(rng.normal(0, 4, 8).astype(np.float32), anatomy.y[:, 0] * (7 / size[0]), 0)[:, None]
        anatomy.lower(fall.astype(np.float32))
    return anatomy
