"""A fast speckle simulator with known truth: random anatomy -> scatterers -> echo -> envelope -> grey map.

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
from scipy.fft import fft2, ifft2, next_fast_len
from scipy.ndimage import gaussian_filter

from .anatomy import LAYOUTS, SHARES
from .anatomy import Anatomy as _Anatomy
from .anatomy import draw_anatomy as _draw_anatomy
from .resampling import resample
from .system import InputError

GEOMETRIES = ("linear", "sector", "piece")
DRAWN_AT = (0.7, 1.5)  # times a frame's size, before it is resampled
PIECE_OF = (1.5, 1.75)  # so many times as large is what a piece of a fan is cut out of
LEVELS = 384  # of the speckle's mean, at which the expected grey value is computed
SIGMA_PER_GRAIN = 1 / np.sqrt(2 * np.log(2))  # a Gaussian pulse of this sigma has a grain of 1 pixel
TAIL_WIDTH = 2.5  # times as wide as the pulse's middle
TAILS = 0.5  # of the pulse's area, at most
TAILED = 0.6  # of the recorded frames have tails; in-vivo speckle correlates further than a Gaussian pulse's
ENHANCED = 0.1  # of the recorded frames have their edges enhanced
MEASURED_IN = 6  # enhanced frames


@dataclass(frozen=True)
class SimulationConfig:
    """What to simulate; None: drawn at random."""

    size: tuple[int, int] = (256, 256)  # pixels, (axial, lateral)
    frames: int = 1  # of one static anatomy, each with speckle of its own
    grain: tuple[float, float] | None = None  # pixels (axial, lateral) where the intensity's correlation is 1/2
    layout: str | None = None  # one of LAYOUTS
    geometry: str = "linear"  # "sector": a fan, whose lateral grain grows with depth; "piece": of a large fan, turned
    roughness: float | None = None  # shape of the scatterers' strengths; inf: equally strong, fully developed speckle
    tails: float = 0.0  # of the pulse's area, in a second Gaussian that is `TAIL_WIDTH` times as wide

    def __post_init__(self):
        if len(self.size) != 2 or not all(32 <= n <= 4096 for n in self.size):
            raise InputError(f"A size of {self.size} is not two lengths between 32 and 4096 pixels.")
        if not 1 <= self.frames <= 100_000:
            raise InputError(f"{self.frames} frames cannot be simulated; ask for 1 to 100000.")
        if self.grain is not None and (len(self.grain) != 2 or not all(0.3 <= g <= 32 for g in self.grain)):
            raise InputError(f"A grain of {self.grain} is not two lengths between 0.3 and 32 pixels.")
        if not 0 <= self.tails <= 0.5:
            raise InputError(f"Tails of {self.tails} are not a share between 0 and 0.5.")
        if self.roughness is not None and not self.roughness > 0:
            raise InputError(f"A roughness of {self.roughness} is not above zero.")
        if self.layout not in (None, *LAYOUTS):
            raise InputError(f"Unknown layout '{self.layout}'; known are {', '.join(LAYOUTS)}.")
        if self.geometry not in GEOMETRIES:
            raise InputError(f"Unknown geometry '{self.geometry}'; known are {', '.join(GEOMETRIES)}.")


@dataclass(frozen=True)
class Simulated:
    """Simulated frames and all that is known of them."""

    frames: np.ndarray  # (N, H, W) float32 in [0, 1]
    truth: np.ndarray  # (H, W) float32 in [0, 1]: the expected value of every pixel over all speckle
    labels: np.ndarray  # (H, W) uint8: 0 background, 1 up: the objects in the order they were put in
    region: np.ndarray  # (H, W) bool: imaged
    grain: tuple[float, float]  # pixels (axial, lateral); of a fan, along and across its beams before they part


class _Pulse(NamedTuple):
    """The point-spread function: a Gaussian along each axis, and with `tails` of its area a wider one."""

    grain: tuple[float, float]  # pixels (axial, lateral) at which the intensity's correlation is 1/2
    tails: float = 0.0

    def sigma(self, axis: int) -> float:
        """Of its middle, pixels."""
        return max(self.grain[axis] / self._half(self.tails), 0.35)

    @staticmethod
    @lru_cache(maxsize=64)
    def _half(tails: float) -> float:
        """Where the intensity's correlation is 1/2, in sigmas of the pulse's middle."""
        widths, areas = _Pulse((1, 1), tails)._gaussians()
        both = widths[:, None] ** 2 + widths**2  # variances and weights of the four terms of its correlation
        lags = np.linspace(0, 4, 400)
        terms = np.exp(-(lags**2) / (2 * both[..., None])) / np.sqrt(both[..., None])
        correlation = np.einsum("i,j,ijl->l", areas, areas, terms)
        return float(np.interp(-np.sqrt(0.5), -correlation / correlation[0], lags))

    def reach(self, axis: int, sigmas: float) -> int:
        """So many sigmas of its widest part, pixels."""
        return int(np.ceil(sigmas * self.sigma(axis) * self._gaussians()[0][-1]))

    def taps(self, axis: int, wide: float = 1.0) -> np.ndarray:
        """Its values along an axis, `wide` times as wide; their squares sum up to 1."""
        widths, areas = self._gaussians()
        reach = self.reach(axis, 3.5 * wide)
        t = np.arange(-reach, reach + 1) / (wide * self.sigma(axis))
        taps = (areas / widths) @ np.exp(-((t / widths[:, None]) ** 2) / 2)
        return taps / np.sqrt(np.sum(taps**2))

    def _gaussians(self) -> tuple[np.ndarray, np.ndarray]:
        """Their widths, in those of the first, and areas."""
        if self.tails == 0:
            return np.ones(1), np.ones(1)
        return np.array([1, TAIL_WIDTH]), np.array([1 - self.tails, self.tails])


def _response(taps: np.ndarray, count: int, axis: int) -> np.ndarray:
    """What symmetric taps do to the `count` frequencies along an axis (0 or 1) of an image, real."""
    around = np.zeros(count)
    np.add.at(around, (np.arange(len(taps)) - len(taps) // 2) % count, taps)
    return np.fft.fft(around).real.astype(np.float32).reshape((-1, 1) if axis == 0 else (1, -1))


def _echo(field: np.ndarray, pulse: _Pulse, spread: float, power: bool) -> np.ndarray:
    """`field` (H, W), real or complex, through the pulse, whose lateral width grows by `spread` from top to bottom.

    power: through its square, which carries the expected intensity. Unit white input keeps unit power. Ends meet, so
    what reaches over them is the caller's to cut off.
    """
    rows, columns = field.shape
    along = fft2(field, overwrite_x=field.dtype.kind == "c")
    along *= _response(pulse.taps(0) ** (1 + power), rows, 0)
    narrow, wide = (pulse.taps(1, 1 + sign * spread / 2) for sign in (-1, 1))
    near = ifft2(along * _response(narrow ** (1 + power), columns, 1), overwrite_x=True)
    if spread:
        far = ifft2(along * _response(wide ** (1 + power), columns, 1), overwrite_x=True)
        share = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
        near += share * (far - near)
        if not power:
            more = (len(wide) - len(narrow)) // 2
            overlap = float(narrow @ wide[more : more + len(narrow)])  # correlation of the two widths' echoes
            near *= 1 / np.sqrt((1 - share) ** 2 + share**2 + np.float32(2 * overlap) * share * (1 - share))
    return near if field.dtype.kind == "c" else near.real


def _draw_grey_map(level: float, rng: np.random.Generator):
    """A scanner's map from envelope to grey in [0, 1]; `level` is the envelope of the brightest tissue."""
    if rng.random() < 0.55:  # logarithmic compression, then a grey curve
        span, top = rng.uniform(35, 75), 20 * np.log10(level) + rng.uniform(2, 14)
        curve = rng.uniform(0.7, 2.2)
        return lambda e: np.clip((20 * np.log10(np.maximum(e, 1e-9)) - top + span) / span, 0, 1) ** curve
    power, top = rng.uniform(0.3, 1), level * rng.uniform(1.5, 3)
    cut = rng.uniform(0, 0.12) if rng.random() < 0.6 else 0.0
    return lambda e: np.clip(((e / top) ** power - cut) / (1 - cut), 0, 1)


def _magnitudes(roughness: float, pulse: _Pulse, rng: np.random.Generator, count: int = 48) -> np.ndarray:
    """`count` magnitudes of speckle of unit power that stand for equal shares of its distribution.

    Many equally strong scatterers in each pulse give Rayleigh's; others' magnitudes are those of an echo.
    """
    shares = (np.arange(count) + 0.5) / count
    if np.isinf(roughness):
        return np.sqrt(-np.log(1 - shares)).astype(np.float32)
    echo = np.abs(_echo(_scatterers((96, 96), roughness, rng), pulse, 0, power=False))
    return (np.quantile(echo, shares) / np.sqrt(np.mean(echo**2))).astype(np.float32)


def _expected_grey(power: np.ndarray, specular: np.ndarray, grey, magnitudes: np.ndarray) -> np.ndarray:
    """The mean of grey(envelope) over speckle of the given mean power beside a coherent amplitude, (H, W)."""
    amplitude = np.sqrt(power)
    levels = np.geomspace(amplitude.min(), amplitude.max() * 1.01, LEVELS).astype(np.float32)  # nearly straight between
    expected = np.interp(np.log(amplitude), np.log(levels), grey(levels[:, None] * magnitudes).mean(1))
    coherent = specular > 0.1 * amplitude
    if coherent.any():
        a, s = amplitude[coherent], specular[coherent]
        few, total = magnitudes.reshape(-1, 3).mean(1), 0.0
        for turn in np.cos(np.pi / 4 * (np.arange(4) + 0.5)).astype(np.float32):  # the other half circle is alike
            total = total + sum(grey(np.sqrt((a * r) ** 2 + s * (s + 2 * turn * a * r))) for r in few)
        expected[coherent] = total / (4 * len(few))
    return expected


def _scatterers(size, roughness: float, rng: np.random.Generator) -> np.ndarray:
    """Complex scatterers (H, W) of unit mean power: equally strong ones, or of gamma-distributed strength.

    Few strong scatterers in a pulse give speckle with more bright grains than Rayleigh's (K distribution; Shankar
    1993), as tissue does whose speckle is not fully developed.
    """
    field = rng.standard_normal((*size, 2), dtype=np.float32).view(np.complex64)[..., 0]
    field *= np.float32(np.sqrt(0.5))
    if np.isfinite(roughness):
        field *= np.sqrt(rng.standard_gamma(roughness, size, dtype=np.float32) / np.float32(roughness))
    return field


def _padded(image: np.ndarray, pulse: _Pulse, spread: float) -> tuple[np.ndarray, tuple[slice, slice]]:
    """The image, mirrored as far beyond its edges as an echo reaches, and where it lies in that.

    The scatterers there take part too; were they mirrored with it, they would add up coherently.
    """
    pads = []
    for axis, n in enumerate(image.shape):
        edge = min(pulse.reach(axis, 3.5 * (1 + axis * spread / 2)), n - 1)
        pads.append((edge, min(next_fast_len(n + 2 * edge) - n - edge, n - 1)))
    inner = tuple(slice(pad[0], pad[0] + n) for pad, n in zip(pads, image.shape, strict=True))
    return np.pad(image, pads, mode="reflect"), inner


def simulate(config: SimulationConfig, rng: np.random.Generator) -> Simulated:
    """Frames of one drawn anatomy with independent speckle, and their truth.

    The truth is the expected grey value of each pixel over all speckle, on the frames' own grey map and at the
    resolution of the pulse: the mean of ever more frames tends to it, and nothing sharper than it can be known.
    Outside a sector, frames and truth are zero. Deterministic for a given config and state of `rng`.
    """
    larger = PIECE_OF if config.geometry == "piece" else (1, 1)
    size = tuple(round(n * times) for n, times in zip(config.size, larger, strict=True))
    grain = config.grain or (rng.uniform(0.8, 2.5), rng.uniform(1.0, 5.0))
    layout = config.layout or str(rng.choice(LAYOUTS, p=SHARES))
    anatomy = _draw_anatomy(layout, size, rng)
    frames, truth = _image(anatomy, _Pulse(grain, config.tails), config, rng)
    labels, region = anatomy.labels, np.ones(config.size, bool)
    if config.geometry != "linear":
        rows, columns, region = (_fan if config.geometry == "sector" else _piece)(config.size, rng)
        grid = torch.from_numpy(np.stack([columns, rows], -1).astype(np.float32))[None]  # (1, H, W, 2)
        frames, truth = (_scan_convert(images, grid, "bilinear") * region for images in (frames, truth[None]))
        labels = (_scan_convert(labels[None], grid, "nearest")[0] * region).astype(np.uint8)
        truth = truth[0]
    return Simulated(frames, truth, labels, region, (float(grain[0]), float(grain[1])))


def _image(anatomy: _Anatomy, pulse: _Pulse, config: SimulationConfig, rng: np.random.Generator):
    """Frames (N, H, W) of an anatomy by a scanner that is drawn, and their expected value (H, W), float32."""
    spread, roughness = rng.uniform(0, 0.8), config.roughness
    if roughness is None:
        roughness = float(np.exp(rng.uniform(np.log(0.08), 0))) if rng.random() < 0.33 else np.inf
    amplitude = np.float32(10) ** (anatomy.decibels / np.float32(20))
    scale = np.sqrt(np.mean(amplitude**2))
    wide, inner = _padded((amplitude / scale).astype(np.float32), pulse, spread)
    down, across = pulse.taps(0), pulse.taps(1)  # layers keep their level, points their peak
    level, peak = down.sum() * across.sum(), down.max() * across.max()
    coherent = ((10 ** (anatomy.specular / 20) / level + anatomy.echoes / peak) / scale).astype(np.float32)
    specular = np.zeros(amplitude.shape, np.float32)
    if coherent.max() > 1e-6:
        mirrored, place = _padded(coherent, pulse, 0)
        specular = np.maximum(_echo(mirrored, pulse, 0, power=False)[place], 0)
    floor = np.float32(10 ** (rng.uniform(-60, -25) / 20))  # electronic noise
    power = np.maximum(_echo(wide**2, pulse, spread, power=True)[inner], 0)
    grey = _draw_grey_map(float(np.sqrt(np.quantile(power, 0.995))), rng)
    magnitudes = _magnitudes(roughness, pulse, rng)
    truth = _expected_grey(power + floor**2, specular, grey, magnitudes).astype(np.float32)
    narrow = _Pulse(tuple(g * 0.7 for g in pulse.grain))
    frames = np.empty((config.frames, *amplitude.shape), np.float32)
    for frame in frames:
        echo = _echo(_scatterers(wide.shape, roughness, rng) * wide, pulse, spread, power=False)[inner]
        noise = _echo(_scatterers(frame.shape, np.inf, rng), narrow, 0, power=False)
        frame[:] = grey(np.abs(echo + floor * noise + specular))
    return frames, truth


def simulate_recorded(
    size: tuple[int, int], grain: tuple[float, float], geometry: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A frame as scanners process and recorders store it, and its truth, both (H, W) float32 in [0, 1].

    Some are drawn at another size and resampled, some are the mean of two or three frames (persistence), of some the
    edges are enhanced: all linear, so that the expected value goes through the same and stays what the mean of ever
    more such frames tends to. What enhanced frames lose where they are cut at black and white is measured in more of
    them. The pulses of some have tails. Last, some are rounded to 8 bits, and some compressed (JPEG).

    Args: size, (H, W); grain, pixels (axial, lateral) there; geometry, one of GEOMETRIES.
    """
    factors = np.exp(rng.uniform(*np.log(DRAWN_AT), 2)) if rng.random() < 0.5 else np.ones(2)
    looks = int(rng.integers(2, 4)) if rng.random() < 0.3 else 1
    tails = float(rng.uniform(0, TAILS)) if rng.random() < TAILED else 0.0
    enhanced = rng.random() < ENHANCED
    drawn = tuple(max(32, round(n * factor)) for n, factor in zip(size, factors, strict=True))
    scaled = tuple(float(g * factor) for g, factor in zip(grain, factors, strict=True))
    frames = looks * (MEASURED_IN if enhanced else 1)
    made = simulate(SimulationConfig(drawn, frames, scaled, geometry=geometry, tails=tails), rng)
    means = made.frames.reshape(-1, looks, *drawn).mean(1)
    images = resample(torch.from_numpy(np.concatenate([means, made.truth[None]]))[:, None], size)[:, 0].numpy()
    frames, truth = images[:-1], images[-1]
    if enhanced:
        sigma, amount = rng.uniform(0.6, 2.5, 2) * grain, rng.uniform(0.2, 1.2)
        frames, truth = (x + amount * (x - gaussian_filter(x, sigma, axes=(-2, -1))) for x in (frames, truth))
        truth = truth + gaussian_filter((np.clip(frames, 0, 1) - frames).mean(0), 1)
    frame, truth = np.clip(frames[0], 0, 1), np.clip(truth, 0, 1)
    stored = rng.random()
    if stored < 0.55:
        frame = np.round(frame * 255)
        if stored < 0.15:
            jpeg = imwrite("<bytes>", frame.astype(np.uint8), extension=".jpg", quality=int(rng.integers(60, 96)))
            frame = imread(jpeg, extension=".jpg").astype(np.float32)
        frame /= 255
    return frame.astype(np.float32), truth.astype(np.float32)


def _scan_convert(images, grid, mode) -> np.ndarray:
    """Images (N, h, w) whose rows are depths and columns angles, taken at the points of the grid: (N, H, W)."""
    images = torch.from_numpy(np.ascontiguousarray(images, np.float32))[:, None]
    grid = grid.expand(len(images), -1, -1, -1)
    return F.grid_sample(images, grid, mode=mode, padding_mode="reflection", align_corners=True)[:, 0].numpy()


def _piece(size, rng):
    """Where a piece of a large fan, on any side of it, takes its pixels from, -1 to 1 along rows and columns."""
    y, x = (offset - n / 2 for offset, n in zip(np.mgrid[: size[0], : size[1]], size, strict=True))
    radius, turn = np.exp(rng.uniform(*np.log((1.2, 5)))) * max(size), rng.uniform(-1, 1)  # pixels, radians
    y, x = y + radius * np.cos(turn), x + radius * np.sin(turn)
    depth, across = np.hypot(y, x) - radius, (np.arctan2(x, y) - turn) * radius
    half = [n * share / 2 for n, share in zip(size, PIECE_OF, strict=True)]
    return depth / half[0], across / half[1], np.ones(size, bool)


def _fan(size, rng):
    """Where a fan takes its pixels from, -1 to 1 along rows and columns, and which are in it; as large as fits."""
    half, apex = rng.uniform(0.45, 0.75), rng.uniform(0.05, 0.5)  # half opening in radians; probe radius / image depth
    top, width = apex * np.cos(half), 2 * (1 + apex) * np.sin(half)  # in depths of the image
    pixel = max((1 + apex - top) / (size[0] - 1), width / (size[1] - 1))
    y, x = (offset - (n - 1) / 2 for offset, n in zip(np.mgrid[: size[0], : size[1]], size, strict=True))
    y, x = y * pixel + (1 + apex + top) / 2, x * pixel
    depth, angle = np.hypot(x, y) - apex, np.arctan2(x, y) / half
    return depth * 2 - 1, angle, (depth >= 0) & (depth <= 1) & (np.abs(angle) <= 1)
