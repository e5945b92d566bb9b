"""A simulated test phantom with everything at known positions, and the figures measured on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import convolve1d, maximum_filter, minimum_filter

from Speckle2SelfLib import metrics
from Speckle2SelfLib.simulation import SIGMA_PER_GRAIN

DECIBELS = (0.0, -30.0, 8.0, -12.0, 5.0)  # echogenicity by label: background, cyst, disc, box, triangle
BOX = (0.44, 0.74, 0.08, 0.46)  # top, bottom, left, right, shares of the size


@dataclass(frozen=True)
class Chart:
    """The paper's kind of phantom: a cyst, a bright disc, a dark box with straight edges, a triangle; and thin
    layers one pixel wide and single points. Its side is the size of the arrays."""

    frames: np.ndarray  # (looks, size, size) float32 in [0, 1], with independent speckle
    truth: np.ndarray  # (size, size) float32 in [0, 1]: the expected grey value at the resolution of the pulse
    labels: np.ndarray  # (size, size) uint8, index of DECIBELS
    grain: tuple[float, float]  # pixels (axial, lateral)
    points: list  # (row, column) of each point, pixels
    lines: list  # (size, size) bool for each layer

    def measure(self, output: np.ndarray) -> dict[str, float]:
        """Return figures of a despeckled frame (size, size): the ratio of the width of the box's edges to the truth's,
        gCNR of cyst and background, and the fractions of the contrast of points and thin layers that are kept (1: all;
        noise adds nothing on average).

        For these fractions, grey values are mapped to the truth's by the straight line through the means of the five
        tissues, so that no curved mapping can stretch them.
        """
        size = len(self.truth)
        calm = maximum_filter(self.labels, 9) == minimum_filter(self.labels, 9)
        calm[round(0.82 * size) :], calm[:, round(0.82 * size) :] = False, False  # exclude points and layers
        tissues = [calm & (self.labels == n) for n in range(len(DECIBELS))]
        slope, shift = np.polyfit(*([image[t].mean() for t in tissues] for image in (output, self.truth)), 1)
        ends, lines = [end for end, _ in self.edges()], size // 4
        width, best = (np.nanmean([metrics.edge_width(x, *end, lines) for end in ends]) for x in (output, self.truth))
        found = {"edge": float(width / best), "gcnr": metrics.gcnr(output[tissues[1]], output[tissues[0]])}
        for name, places in (("points", self.points), ("layers", self.lines)):
            found[name] = float(np.mean([self._kept(output * slope + shift, place) for place in places]))
        return found

    def edges(self) -> list:
        """Return, for the box's four edges, a line from `size // 16` pixels before to as many behind, ((row, column),
        (row, column)), and the grain along it."""
        size = len(self.truth)
        top, bottom, left, right = (round(size * share) for share in BOX)
        reach, middle = size // 16, ((top + bottom) / 2, (left + right) / 2)
        ends = [(((row - reach, middle[1]), (row + reach, middle[1])), self.grain[0]) for row in (top, bottom)]
        for column in (left, right):
            ends.append((((middle[0], column - reach), (middle[0], column + reach)), self.grain[1]))
        return ends

    def _kept(self, image: np.ndarray, place) -> float:
        """Return the fraction of the truth's contrast that is kept at a place, weighted by the truth's contrast."""
        mask = np.zeros(self.truth.shape, bool)
        mask[place] = True
        near, around = maximum_filter(mask, 11), maximum_filter(mask, 21)
        height, seen = (x - np.median(x[around & ~near]) for x in (self.truth, image))
        weight = np.where(near, np.maximum(height, 0), 0)
        return float(np.sum(weight * seen) / np.sum(weight * height))


def draw(size: int, grain: tuple[float, float], rng: np.random.Generator, looks: int = 1) -> Chart:
    """Draw a chart of (size, size) pixels, 96 or more, imaged by a scanner whose speckle has this grain (axial,
    lateral).

    The echo model is separate (a Hann pulse, a 50 dB logarithmic map), so that models trained on `simulate` have no
    advantage. The expected grey value is computed over 24 x 8 points of the speckle's distribution.
    """
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    labels = np.zeros((size, size), np.uint8)
    labels[np.hypot(y - 0.23, x - 0.23) < 0.13] = 1
    labels[np.hypot(y - 0.23, x - 0.65) < 0.12] = 2
    labels[(y > BOX[0]) & (y < BOX[1]) & (x > BOX[2]) & (x < BOX[3])] = 3
    labels[(y > 0.48) & (y < 0.74) & (np.abs(x - 0.74) < 0.6 * (y - 0.48))] = 4
    amplitude = 10 ** (np.array(DECIBELS)[labels] / 20)
    pulses = []
    for length in grain:
        half = length * SIGMA_PER_GRAIN / 0.3615  # such a Hann pulse has the Gaussian's standard deviation
        t = np.arange(-int(half), int(half) + 1)
        pulse = np.cos(np.pi * t / (2 * half)) ** 2
        pulses.append(pulse / np.sqrt(np.sum(pulse**2)))

    def echo(image, power=1):
        for axis, pulse in enumerate(pulses):
            image = convolve1d(image, pulse**power, axis, mode="wrap")
        return image

    points = [(round(size * row), round(size * column)) for row in (0.85, 0.93) for column in (0.56, 0.66, 0.76, 0.86)]
    at = np.arange(size)
    lines = []
    for share in (0.86, 0.935):
        across, down = (at > 0.05 * size) & (at < 0.48 * size), (at > 0.06 * size) & (at < 0.42 * size)
        lines.append((at == round(size * share))[:, None] & across)
        lines.append(down[:, None] & (at == round(size * share)))
    levels = (12, 18, 8, 14)  # dB above the background, of points and of layers
    coherent = np.zeros((size, size))
    for number, place in enumerate([*points, *lines]):
        single = np.zeros((size, size))
        single[place] = 1
        single = echo(single)
        coherent += 10 ** (levels[number % 2 + 2 * (number >= len(points))] / 20) * single / single.max()

    def grey(envelope):
        return np.clip((20 * np.log10(np.maximum(envelope, 1e-6)) + 30) / 50, 0, 1) ** 1.5

    deviation = np.sqrt(np.maximum(echo(amplitude**2, power=2), 1e-12))
    sizes = np.sqrt(-np.log(1 - (np.arange(24) + 0.5) / 24))  # equal shares of a Rayleigh distribution
    turns = np.exp(2j * np.pi * (np.arange(8) + 0.5) / 8)
    truth = np.mean([grey(np.abs(deviation * r * turn + coherent)) for r in sizes for turn in turns], axis=0)
    frames = []
    for _ in range(looks):
        real, imaginary = (echo(rng.standard_normal((size, size)) * amplitude) / np.sqrt(2) for _ in range(2))
        frames.append(grey(np.hypot(real + coherent, imaginary)).astype(np.float32))
    return Chart(np.stack(frames), truth.astype(np.float32), labels, grain, points, lines)
