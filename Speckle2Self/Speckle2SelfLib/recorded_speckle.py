"""Measure the speckle of a recording where a network removes it, and draw it again over any image.

What is measured is the distribution of its grey values around each grey level, and its correlation. To draw it, the
power of a complex Gaussian field with that correlation, like the echoes of many scatterers (Goodman, "Some fundamental
properties of speckle", JOSA 1976), is mapped to the distribution by its quantiles. No grey map, pulse or noise of the
scanner has to be known.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.special import ndtri

LEVELS = 24  # grey levels between the darkest and the brightest of the recording
FEWEST = 400  # smallest number of pixels of a level
EVEN = 0.5  # fraction of a level's pixels to measure, those with the smallest slope; at edges, levels mix
EDGE = 4  # pixels at the sides of a frame that are not measured
QUANTILES = (np.arange(64) + 0.5) / 64
REACH = 10  # pixels; largest lag of the correlation
FADE = 6.0  # pixels, sigma of a window over the correlation
FIELD, DRAWS, ROUNDS = 128, 12, 4  # pixels, fields and rounds for fitting the field's correlation
LEAST = 0.03  # smallest correlation to fit
OUTERMOST = 1e-4  # probability of the outermost quantiles


@dataclass(frozen=True)
class RecordedSpeckle:
    """Speckle as `measure` finds it. Grey values are those of the network, about [0, 1]."""

    levels: np.ndarray  # (L,) rising, grey values of the despeckled image
    quantiles: np.ndarray  # (L, Q) differences of the recorded to the despeckled values, whose mean is 0
    correlation: np.ndarray  # (2 REACH + 1, 2 REACH + 1) of the complex field, lag 0 in the center

    @property
    def spread(self) -> np.ndarray:
        """Return the standard deviation of the speckle at the darkest, the middle and the brightest level, (3,)."""
        return self.quantiles[[0, len(self.quantiles) // 2, -1]].std(1)

    def draw(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return an image (H, W) with speckle over it, float32; the mean over many draws tends to the image."""
        size = [n + 2 * REACH for n in image.shape]  # the field is periodic
        uniform = _field(_spectrum(self.correlation, size), rng)[: image.shape[0], : image.shape[1]]
        places = self._positions(image), uniform * len(QUANTILES) - 0.5
        return (image + map_coordinates(self.quantiles, places, order=1, mode="nearest")).astype(np.float32)

    def gaussian(self, recorded: np.ndarray, clean: np.ndarray) -> np.ndarray:
        """Return the speckle of frames (N, H, W) as values with a standard normal distribution at each level."""
        positions, probabilities = self._positions(clean), np.zeros(clean.shape)
        for level, quantiles in enumerate(self.quantiles):
            near = np.abs(positions - level) < 1
            weights = 1 - np.abs(positions[near] - level)
            probabilities[near] += weights * np.interp(recorded[near] - clean[near], quantiles, QUANTILES)
        return ndtri(probabilities)

    def _positions(self, image: np.ndarray) -> np.ndarray:
        """Return the position of an image's grey values among the levels: 0.5 is halfway between the first two."""
        return np.interp(image, self.levels, np.arange(len(self.levels)))


def measure(recorded: np.ndarray, clean: np.ndarray, inside: np.ndarray) -> RecordedSpeckle:
    """Measure the speckle of frames (N, H, W) whose despeckled ones are `clean`; inside, (H, W) bool, imaged pixels."""
    usable = np.zeros(recorded.shape, bool)
    usable[:, EDGE:-EDGE, EDGE:-EDGE] = inside[EDGE:-EDGE, EDGE:-EDGE]
    if usable.sum() < FEWEST:
        usable[:] = True
    slopes = np.hypot(*np.gradient(gaussian_filter(clean, (0, 1, 1)), axis=(1, 2)))
    darkest, brightest = np.quantile(clean[usable], (0.002, 0.998))
    edges = np.linspace(darkest, brightest, LEVELS + 1)
    bins = [usable & (clean >= low) & (clean < high) for low, high in itertools.pairwise(edges)]
    bins = [chosen for chosen in bins if np.count_nonzero(chosen) >= FEWEST] or [usable]
    even, levels, quantiles = np.zeros_like(usable), [], []
    for chosen in bins:
        chosen = chosen & (slopes <= np.quantile(slopes[chosen], EVEN))
        differences = np.quantile(recorded[chosen] - clean[chosen], QUANTILES)
        levels.append(clean[chosen].mean())
        quantiles.append(differences - differences.mean())
        even |= chosen
    found = RecordedSpeckle(np.array(levels), np.array(quantiles), np.zeros(()))
    return replace(found, correlation=_fit_decreasing(_correlation(found.gaussian(recorded, clean), even)))


def _lags(size: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Return the rows and columns of a periodic field for the lags -REACH to REACH."""
    rows, columns = (np.arange(-REACH, REACH + 1) % n for n in size)
    return np.ix_(rows, columns)


def _window() -> np.ndarray:
    lags = np.arange(-REACH, REACH + 1)
    return np.exp(-(lags[:, None] ** 2 + lags**2) / (2 * FADE**2))


def _correlation(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the mean product of the chosen pixels of frames (N, H, W) at each lag, in units of that at lag 0."""
    size = [n + REACH for n in values.shape[1:]]
    products, counts = (
        np.fft.irfft2((np.abs(np.fft.rfft2(x, size)) ** 2).sum(0), size)[_lags(size)]
        for x in (np.where(chosen, values, 0), chosen.astype(float))
    )
    means = products / np.maximum(counts, 1)
    return means / means[REACH, REACH]


def _fit_decreasing(correlation: np.ndarray) -> np.ndarray:
    """Return the correlation of the complex field whose power, made normally distributed, correlates as measured."""
    target = np.clip(correlation, 0, 1)
    fitted, rng = np.sqrt(target) * _window(), np.random.default_rng(0)
    target = target * np.sqrt(_window())
    fit = target > LEAST
    for _ in range(ROUNDS):
        power, spectrum = np.zeros((FIELD, FIELD)), _spectrum(fitted, (FIELD, FIELD))
        for _ in range(DRAWS):
            field = ndtri(np.clip(_field(spectrum, rng), OUTERMOST, 1 - OUTERMOST))
            power += np.abs(np.fft.fft2(field)) ** 2
        found = np.fft.ifft2(power).real[_lags(power.shape)]
        found /= found[REACH, REACH]
        fitted[fit] *= np.sqrt(target[fit] / np.maximum(found[fit], LEAST))
        fitted = np.minimum(fitted, 1)
        fitted[REACH, REACH] = 1
    return fitted


def _spectrum(correlation: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return the amplitudes (H, W) of a periodic field of `size` with a correlation at the lags -REACH to REACH."""
    lags = np.zeros(size)
    lags[_lags(size)] = correlation
    return np.sqrt(np.maximum(np.fft.fft2(lags).real, 0))


def _field(spectrum: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the power of a complex Gaussian field with these amplitudes as probabilities, uniform in [0, 1]."""
    white = rng.standard_normal(spectrum.shape) + 1j * rng.standard_normal(spectrum.shape)
    field = np.fft.ifft2(np.fft.fft2(white) * spectrum)
    return 1 - np.exp(-(np.abs(field) ** 2) / (2 * np.mean(spectrum**2)))
