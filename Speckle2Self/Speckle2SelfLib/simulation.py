"""Simulate speckle fast, with known truth: random anatomy -> scatterers -> echo -> envelope -> grey map.

Sources: scatterers convolved with a point-spread function as in Bamber and Dickinson (1980); fully developed speckle
and its Rayleigh envelope after Burckhardt (1978); a coherent part for specular layers (Rice).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from imageio.v3 import imread, imwrite
from scipy.ndimage import convolve1d, fourier_gaussian, gaussian_filter

from .anatomy import Echogenicity, draw_anatomy
from .resampling import resample
from .system import InputError

TEXTBOOK = ("phantom", "vessel", "layers", "organ", "flat")  # anatomies; one is drawn at random if none is named
LAYOUTS = (*TEXTBOOK, "natural")
GEOMETRIES = ("linear", "sector", "piece")
DRAWN_AT = (0.7, 1.5)  # range of sizes before resampling, relative to the frame's
PIECE_OF = (1.5, 1.75)  # size of the sector image that a piece is cut out of, relative to the piece
LEVELS = 1024  # number of means of the speckle for which the expected grey value is computed
SIGMA_PER_GRAIN = 1 / np.sqrt(2 * np.log(2))  # a Gaussian pulse of this sigma has a grain of 1 pixel
TAIL_WIDTH = 2.5  # width of the tails, relative to the pulse's center
TAILS = 0.5  # largest fraction of the pulse's area in the tails
TAILED = 0.6  # fraction of the recorded frames with tails; in-vivo speckle correlates further than a Gaussian pulse's
ENHANCED = 0.1  # fraction of the recorded frames whose edges are enhanced
MEASURED_IN = 8  # number of enhanced frames to measure clipping in


@dataclass(frozen=True)
class SimulationConfig:
    """The settings of a simulation; None: chosen at random."""

    size: tuple[int, int] = (256, 256)  # pixels, (axial, lateral)
    frames: int = 1  # number of frames of one static anatomy, each with independent speckle
    grain: tuple[float, float] | None = None  # pixels (axial, lateral) where the intensity's correlation is 1/2
    layout: str | None = None  # one of LAYOUTS
    geometry: str = "linear"  # "sector": a fan, whose lateral grain grows with depth; "piece": of a large fan, turned
    roughness: float | None = None  # shape of the scatterers' strengths; inf: equally strong, fully developed speckle
    tails: float = 0.0  # fraction of the pulse's area, in a second Gaussian that is `TAIL_WIDTH` times as wide

    def __post_init__(self):
        if len(self.size) != 2 or not all(32 <= n <= 4096 for n in self.size):
            raise InputError(f"The size must be two lengths between 32 and 4096 pixels, not {self.size}.")
        if not 1 <= self.frames <= 100_000:
            raise InputError(f"The number of frames must be between 1 and 100,000, not {self.frames}.")
        if self.grain is not None and (len(self.grain) != 2 or not all(0.3 <= g <= 32 for g in self.grain)):
            raise InputError(f"The grain must be two lengths between 0.3 and 32 pixels, not {self.grain}.")
        if not 0 <= self.tails <= 0.5:
            raise InputError(f"The fraction of tails must be between 0 and 0.5, not {self.tails}.")
        if self.roughness is not None and not self.roughness > 0:
            raise InputError(f"The roughness must be above 0, not {self.roughness}.")
        if self.layout not in (None, *LAYOUTS):
            raise InputError(f"Unknown layout '{self.layout}'; choose one of {', '.join(LAYOUTS)}.")
        if self.geometry not in GEOMETRIES:
            raise InputError(f"Unknown geometry '{self.geometry}'; choose one of {', '.join(GEOMETRIES)}.")


@dataclass(frozen=True)
class Simulated:
    """Simulated frames with everything that is known about them."""

    frames: np.ndarray  # (N, H, W) float32 in [0, 1]
    truth: np.ndarray  # (H, W) float32 in [0, 1]: the expected value of every pixel over all speckle
    labels: np.ndarray  # (H, W) uint8: 0 background, from 1 on: objects in the order of their addition
    region: np.ndarray  # (H, W) bool: imaged
    grain: tuple[float, float]  # pixels (axial, lateral); of a fan, along and across its beams before they part


class Textbook(Echogenicity):
    """A textbook anatomy, one of LAYOUTS."""

    dtype = np.float64

    def background(self, level: float):
        """Add tissue whose level drifts slowly, standard deviation `level` dB."""
        sigma = self.unit * self.rng.uniform(0.1, 0.3)
        noise = np.fft.rfft2(self.rng.standard_normal(self.size))
        drift = np.fft.irfft2(fourier_gaussian(noise, sigma, self.size[1]), s=self.size)
        self.decibels += level * drift / drift.std()

    def boundary(self, wander: float = 0.1, slope: float = 0.4):
        """Add a tissue interface: another level below it."""
        below = 1 / (1 + np.exp(-np.clip((self.y - self.curve(wander, slope)) / self.rng.uniform(0.2, 1.5), -40, 40)))
        self.put(below, self.rng.normal(0, 8))

    def blob(self, contrast: float, shape: str, radius: tuple[float, float], soft: float = 0.3, wall: float = 0.0):
        """Add a disc, box or triangle, half axes `radius` pixels, edges `soft` pixels wide, wall `wall` dB."""
        cy, cx = (self.rng.uniform(0.05, 0.95) * n for n in self.size)
        turn = self.rng.uniform(0, np.pi)
        u = ((self.x - cx) * np.cos(turn) + (self.y - cy) * np.sin(turn)) / radius[0]
        v = ((self.y - cy) * np.cos(turn) - (self.x - cx) * np.sin(turn)) / radius[1]
        distance = {
            "disc": np.hypot(u, v),
            "box": np.maximum(np.abs(u), np.abs(v)),
            "triangle": np.maximum(v, 0.87 * np.abs(u) - 0.5 * v) * 1.6,
        }[shape]
        outside = (distance - 1) * min(radius)
        self.put(1 / (1 + np.exp(np.clip(outside / soft * 2, -40, 40))), contrast)
        if wall:
            self.decibels += wall * np.exp(-((outside / self.rng.uniform(0.6, 2)) ** 2) / 2)
        return cx, cy

    def shadow(self):
        """Add a dark column below some depth, as behind bone or at a vessel's edge."""
        across = (np.abs(self.x - self.rng.uniform(0, self.size[1])) - self.rng.uniform(0.02, 0.2) * self.size[1]) / 3
        depth = (self.y - self.rng.uniform(0, 0.8) * self.size[0]) / 2
        inside = 1 / (1 + np.exp(np.clip(across, -40, 40))) / (1 + np.exp(-np.clip(depth, -40, 40)))
        self.lower(self.rng.uniform(3, 35) * inside)

    def strokes(self, count: int, spacing: float = 0.0) -> None:
        sigma, coherent, strokes = self.draw_strokes(count, spacing)
        for turn, middle, half, contrast in strokes:
            y, x = self.y - middle[0], self.x - middle[1]
            along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
            ends = 1 / (1 + np.exp(np.clip(4 * (np.abs(along) - half), -40, 40)))
            profile = np.exp(-((across / sigma) ** 2) / 2) * ends
            if coherent:
                self.specular = np.maximum(self.specular, contrast + self.decibels - 40 * (1 - profile))
            else:
                self.decibels += contrast * profile

    def radius(self, smallest: float, largest: float) -> tuple[float, float]:
        """Return two radii, pixels, from shares of the smaller side."""
        return tuple(np.exp(self.rng.uniform(np.log(smallest * self.unit), np.log(largest * self.unit), 2)))

    def soft(self) -> float:
        """Return the width of an edge, pixels."""
        return float(np.exp(self.rng.uniform(np.log(0.2), np.log(3))))

    def phantom(self) -> None:
        """Draw discs, boxes and triangles."""
        for _ in range(self.rng.integers(2, 7)):
            contrast = self.rng.uniform(-30, -3) if self.rng.random() < 0.5 else self.rng.uniform(2, 14)
            self.blob(contrast, str(self.rng.choice(["disc", "box", "triangle"])), self.radius(0.03, 0.25))

    def vessel(self) -> None:
        """Draw vessels with walls between layers."""
        self.background(self.rng.uniform(0, 3))
        for _ in range(self.rng.integers(0, 3)):
            self.boundary()
        for _ in range(self.rng.integers(1, 4)):
            depth = -self.rng.uniform(15, 45)
            self.blob(depth, "disc", self.radius(0.04, 0.25), self.soft(), self.rng.uniform(0, 14))
        for _ in range(self.rng.integers(0, 5)):
            self.layer()

    def layers(self) -> None:
        """Draw tissues and fasciae, one below the other."""
        self.background(self.rng.uniform(0, 3))
        for _ in range(self.rng.integers(1, 5)):
            self.boundary(slope=0.25)
        for _ in range(self.rng.integers(1, 8)):
            self.layer(slope=0.3)

    def organ(self) -> None:
        """Draw lesions in an organ."""
        self.background(self.rng.uniform(1, 5))
        for _ in range(self.rng.integers(0, 3)):
            self.boundary()
        for _ in range(self.rng.integers(1, 6)):
            self.blob(self.rng.normal(0, 9), "disc", self.radius(0.03, 0.35), self.soft())

    def flat(self) -> None:
        """Draw one or two even tissues."""
        self.background(self.rng.uniform(0, 3))
        if self.rng.random() < 0.4:
            self.boundary()


def _draw_anatomy(layout: str, size: tuple[int, int], rng: np.random.Generator) -> Echogenicity:
    if layout == "natural":
        return draw_anatomy(size, rng)
    anatomy = Textbook(size, rng)
    getattr(anatomy, layout)()
    if layout != "flat":
        for _ in range(rng.integers(0, 3)):
            if rng.random() < 0.4:
                anatomy.shadow()
    if layout != "flat" and rng.random() < 0.5:
        anatomy.fine_structure()
    if rng.random() < 0.5:
        anatomy.points(int(rng.integers(1, 16)))
    if rng.random() < 0.5:  # attenuation that the gain does not compensate
        anatomy.lower(rng.uniform(0, 30) * anatomy.y / size[0])
    return anatomy


class _Pulse(NamedTuple):
    """The point-spread function: a Gaussian along each axis, and with `tails` of its area a wider one."""

    grain: tuple[float, float]  # pixels (axial, lateral) at which the intensity's correlation is 1/2
    tails: float = 0.0

    @lru_cache(64)  # noqa: B019
    def sigma(self, axis: int) -> float:
        """Return the sigma of the central Gaussian, in pixels."""
        widths, areas = self._gaussians()
        both = widths[:, None] ** 2 + widths**2  # variances and weights of the four terms of its correlation
        lags = np.linspace(0, 4, 400)
        terms = np.exp(-(lags**2) / (2 * both[..., None])) / np.sqrt(both[..., None])
        correlation = np.einsum("i,j,ijl->l", areas, areas, terms)
        half = np.interp(-np.sqrt(0.5), -correlation / correlation[0], lags)
        return max(self.grain[axis] / half, 0.35)

    def reach(self, axis: int, sigmas: float) -> int:
        """Return `sigmas` standard deviations of the widest Gaussian, in pixels."""
        return int(np.ceil(sigmas * self.sigma(axis) * self._gaussians()[0][-1]))

    @lru_cache(64)  # noqa: B019
    def taps(self, axis: int, wide: float = 1.0) -> np.ndarray:
        """Return the pulse's values along an axis, `wide` times as wide; their squares sum to 1."""
        widths, areas = self._gaussians()
        reach = self.reach(axis, 3.5 * wide)
        t = np.arange(-reach, reach + 1) / (wide * self.sigma(axis))
        taps = (areas / widths) @ np.exp(-((t / widths[:, None]) ** 2) / 2)
        return taps / np.sqrt(np.sum(taps**2))

    def _gaussians(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the widths of the Gaussians, relative to the first, and their areas."""
        if self.tails == 0:
            return np.ones(1), np.ones(1)
        return np.array([1, TAIL_WIDTH]), np.array([1 - self.tails, self.tails])


def _convolve(images: np.ndarray, taps: np.ndarray, axis: int) -> np.ndarray:
    """Convolve images (N, H, W) along an axis; ends are reflected."""
    return convolve1d(images, taps, axis, mode="mirror")


def _echo(fields: np.ndarray, pulse: _Pulse, spread: float, power: bool) -> np.ndarray:
    """Convolve `fields` (N, H, W) with the pulse, whose lateral width grows by `spread` from top to bottom.

    power: convolve with its square, which gives the expected intensity. Unit white input keeps unit power.
    """
    along = _convolve(fields, pulse.taps(0) ** (1 + power), 1)
    if spread == 0:
        return _convolve(along, pulse.taps(1) ** (1 + power), 2)
    share = np.linspace(0, 1, fields.shape[1], dtype=np.float32)[:, None]
    narrow, wide = pulse.taps(1, 1 - spread / 2), pulse.taps(1, 1 + spread / 2)
    near, far = (_convolve(along, taps ** (1 + power), 2) for taps in (narrow, wide))
    mixed = near * (1 - share) + far * share
    if power:
        return mixed
    more = (len(wide) - len(narrow)) // 2
    overlap = float(narrow @ wide[more : more + len(narrow)])  # correlation of the echoes of both widths
    return mixed / np.sqrt((1 - share) ** 2 + share**2 + 2 * share * (1 - share) * overlap)


def _draw_grey_map(level: float, rng: np.random.Generator):
    """Return a scanner's map from envelope to grey in [0, 1]; `level` is the envelope of the brightest tissue."""
    if rng.random() < 0.55:  # logarithmic compression, then a grey curve
        span, top = rng.uniform(35, 75), 20 * np.log10(level) + rng.uniform(2, 14)
        curve = rng.uniform(0.7, 2.2)
        return lambda e: np.clip((20 * np.log10(np.maximum(e, 1e-9)) - top + span) / span, 0, 1) ** curve
    power, top = rng.uniform(0.3, 1), level * rng.uniform(1.5, 3)
    cut = rng.uniform(0, 0.12) if rng.random() < 0.6 else 0.0
    return lambda e: np.clip(((e / top) ** power - cut) / (1 - cut), 0, 1)


def _magnitudes(roughness: float, pulse: _Pulse, rng: np.random.Generator, count: int = 24) -> np.ndarray:
    """Return `count` magnitudes of speckle of unit power that represent equal shares of its distribution.

    Many equally strong scatterers in each pulse give a Rayleigh distribution; else an echo is simulated.
    """
    shares = (np.arange(count) + 0.5) / count
    if np.isinf(roughness):
        return np.sqrt(-np.log(1 - shares))
    echo = np.hypot(*_echo(_scatterers((96, 96), roughness, rng), pulse, 0, power=False))
    return np.quantile(echo, shares) / np.sqrt(np.mean(echo**2))


def _expected_grey(power: np.ndarray, specular: np.ndarray, grey, magnitudes: np.ndarray) -> np.ndarray:
    """Return the mean of grey(envelope) over speckle of a given mean power plus a coherent amplitude, (H, W)."""
    amplitude = np.sqrt(power)
    levels = np.geomspace(amplitude.min(), amplitude.max() * 1.01, LEVELS)  # the curve is nearly straight between them
    expected = np.interp(np.log(amplitude), np.log(levels), grey(levels[:, None] * magnitudes).mean(1))
    coherent = specular > 0.1 * amplitude
    if coherent.any():
        a, s = amplitude[coherent], specular[coherent]
        turns = np.exp(0.5j * np.pi * (np.arange(4) + 0.5))
        few = (magnitudes[::2] + magnitudes[1::2]) / 2
        expected[coherent] = np.mean([grey(np.abs(a * r * turn + s)) for r in few for turn in turns], axis=0)
    return expected


def _scatterers(size, roughness: float, rng: np.random.Generator) -> np.ndarray:
    """Return complex scatterers of unit mean power as (2, H, W): equally strong, or with gamma-distributed strength.

    Few strong scatterers in a pulse give speckle with more bright grains than Rayleigh's (K distribution; Shankar
    1993), like tissue whose speckle is not fully developed.
    """
    field = rng.standard_normal((2, *size), dtype=np.float32) / np.float32(np.sqrt(2))
    if np.isfinite(roughness):
        field *= np.sqrt(rng.standard_gamma(roughness, size, dtype=np.float32) / np.float32(roughness))
    return field


def simulate(config: SimulationConfig, rng: np.random.Generator) -> Simulated:
    """Simulate frames of one random anatomy with independent speckle, and their truth.

    The truth is the expected grey value of each pixel over all speckle, on the frames' own grey map and at the
    resolution of the pulse: the mean of ever more frames tends to it, and nothing sharper than it can be known.
    Outside a sector, frames and truth are zero. Deterministic for a given config and state of `rng`.
    """
    larger = PIECE_OF if config.geometry == "piece" else (1, 1)
    size = tuple(round(n * times) for n, times in zip(config.size, larger, strict=True))
    grain = config.grain or (rng.uniform(0.8, 2.5), rng.uniform(1.0, 5.0))
    pulse = _Pulse(tuple(grain), config.tails)
    layout = config.layout or str(rng.choice(TEXTBOOK, p=[0.13, 0.22, 0.22, 0.18, 0.25]))
    anatomy = _draw_anatomy(layout, size, rng)
    spread = rng.uniform(0, 0.8)
    roughness = config.roughness
    if roughness is None:
        roughness = float(np.exp(rng.uniform(np.log(0.08), 0))) if rng.random() < 0.33 else np.inf

    amplitude = 10 ** (anatomy.decibels / 20)
    scale = np.sqrt(np.mean(amplitude**2))
    amplitude = (amplitude / scale).astype(np.float32)
    down, across = pulse.taps(0), pulse.taps(1)  # layers keep their level, points their peak
    level, peak = down.sum() * across.sum(), down.max() * across.max()
    coherent = ((10 ** (anatomy.specular / 20) / level + anatomy.echoes / peak) / scale).astype(np.float32)
    specular = _convolve(_convolve(coherent, down, 0), across, 1)
    floor = 10 ** (rng.uniform(-60, -25) / 20)  # electronic noise
    power = np.maximum(_echo(amplitude[None] ** 2, pulse, spread, power=True)[0], 0)
    grey = _draw_grey_map(float(np.sqrt(np.quantile(power, 0.995))), rng)
    magnitudes = _magnitudes(roughness, pulse, rng)
    truth = _expected_grey(power + floor**2, specular, grey, magnitudes).astype(np.float32)

    # Scatterers beyond the image's edges contribute as well: mirrored ones would add up coherently there.
    edge = tuple(min(pulse.reach(axis, 5), n - 1) for axis, n in enumerate(size))
    wide = np.pad(amplitude, [(e, e) for e in edge], mode="reflect")
    inner = (..., slice(edge[0], -edge[0]), slice(edge[1], -edge[1]))
    narrow = _Pulse(tuple(g * 0.7 for g in grain))
    frames = np.empty((config.frames, *size), np.float32)
    for frame in frames:
        echo = _echo(_scatterers(wide.shape, roughness, rng) * wide, pulse, spread, power=False)[inner]
        noise = floor * _echo(_scatterers(wide.shape, np.inf, rng), narrow, 0, power=False)[inner]
        frame[:] = grey(np.hypot(echo[0] + noise[0] + specular, echo[1] + noise[1]))
    labels, region = anatomy.labels, np.ones(config.size, bool)
    if config.geometry != "linear":
        rows, columns, region = (_fan if config.geometry == "sector" else _piece)(config.size, rng)
        grid = torch.from_numpy(np.stack([columns, rows], -1).astype(np.float32))[None]  # (1, H, W, 2)
        frames, truth = (_scan_convert(images, grid, "bilinear") * region for images in (frames, truth[None]))
        labels = (_scan_convert(labels[None], grid, "nearest")[0] * region).astype(np.uint8)
        truth = truth[0]
    return Simulated(frames, truth, labels, region, (float(grain[0]), float(grain[1])))


def simulate_recorded(
    size: tuple[int, int],
    grain: tuple[float, float],
    geometry: str,
    rng: np.random.Generator,
    layout: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a frame as scanners process and recorders store it, (1, H, W), and its truth (H, W), in [0, 1].

    Some frames are drawn at another size and resampled, some are the mean of two or three frames (persistence), and
    some have enhanced edges. These operations are linear, so applying them to the expected value gives the limit of the
    mean of many such frames; the clipping of enhanced frames at black and white is measured in further frames. Some
    pulses have tails. Finally, some frames are rounded to 8 bits, and some are compressed (JPEG).

    Args: size, (H, W); grain, pixels (axial, lateral) there; geometry, one of GEOMETRIES; layout, one of LAYOUTS, or
    drawn.
    """
    factors = np.exp(rng.uniform(*np.log(DRAWN_AT), 2)) if rng.random() < 0.5 else np.ones(2)
    looks = int(rng.integers(2, 4)) if rng.random() < 0.3 else 1
    tails = float(rng.uniform(0, TAILS)) if rng.random() < TAILED else 0.0
    enhanced = rng.random() < ENHANCED
    drawn = tuple(max(32, round(n * factor)) for n, factor in zip(size, factors, strict=True))
    scaled = tuple(float(g * factor) for g, factor in zip(grain, factors, strict=True))
    frames = looks * (MEASURED_IN if enhanced else 1)
    made = simulate(SimulationConfig(drawn, frames, scaled, layout, geometry, tails=tails), rng)
    means = made.frames.reshape(-1, looks, *drawn).mean(1)
    images = resample(torch.from_numpy(np.concatenate([means, made.truth[None]]))[:, None], size)[:, 0].numpy()
    frames, truth = images[:-1], images[-1]
    if enhanced:
        sigma, amount = rng.uniform(0.6, 2.5, 2) * grain, rng.uniform(0.2, 1.2)
        frames, truth = (x + amount * (x - gaussian_filter(x, sigma, axes=(-2, -1))) for x in (frames, truth))
        truth = truth + gaussian_filter((np.clip(frames, 0, 1) - frames).mean(0), 1)
    frames, truth = np.clip(frames[:1], 0, 1), np.clip(truth, 0, 1)
    stored = rng.random()
    if stored < 0.55:
        frames = np.round(frames * 255)
        if stored < 0.15:
            quality = int(rng.integers(60, 96))
            pictures = [imwrite("<bytes>", x.astype(np.uint8), extension=".jpg", quality=quality) for x in frames]
            frames = np.stack([imread(jpeg, extension=".jpg").astype(np.float32) for jpeg in pictures])
        frames /= 255
    return frames.astype(np.float32), truth.astype(np.float32)


def _scan_convert(images, grid, mode) -> np.ndarray:
    """Sample images (N, h, w), whose rows are depths and columns angles, at the points of the grid: (N, H, W)."""
    images = torch.from_numpy(np.ascontiguousarray(images, np.float32))[:, None]
    grid = grid.expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode=mode, padding_mode="reflection", align_corners=True)[:, 0].numpy()


def _piece(size, rng):
    """Return the sampling positions of a piece on any side of a large fan, -1 to 1 along rows and columns."""
    y, x = (offset - n / 2 for offset, n in zip(np.mgrid[: size[0], : size[1]], size, strict=True))
    radius, turn = np.exp(rng.uniform(*np.log((1.2, 5)))) * max(size), rng.uniform(-1, 1)  # pixels, radians
    y, x = y + radius * np.cos(turn), x + radius * np.sin(turn)
    depth, across = np.hypot(y, x) - radius, (np.arctan2(x, y) - turn) * radius
    half = [n * share / 2 for n, share in zip(size, PIECE_OF, strict=True)]
    return depth / half[0], across / half[1], np.ones(size, bool)


def _fan(size, rng):
    """Return the sampling positions of the largest fan that fits, -1 to 1 along rows and columns, and its mask."""
    half, apex = rng.uniform(0.45, 0.75), rng.uniform(0.05, 0.5)  # half opening in radians; probe radius / image depth
    top, width = apex * np.cos(half), 2 * (1 + apex) * np.sin(half)  # relative to the depth of the image
    pixel = max((1 + apex - top) / (size[0] - 1), width / (size[1] - 1))
    y, x = (offset - (n - 1) / 2 for offset, n in zip(np.mgrid[: size[0], : size[1]], size, strict=True))
    y, x = y * pixel + (1 + apex + top) / 2, x * pixel
    depth, angle = np.hypot(x, y) - apex, np.arctan2(x, y) / half
    return depth * 2 - 1, angle, (depth >= 0) & (depth <= 1) & (np.abs(angle) <= 1)
