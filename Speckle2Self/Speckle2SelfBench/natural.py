"""Frames with natural anatomy: photographs bundled with scikit-image, imaged by a separate scanner model.

It shares nothing with `Speckle2SelfLib.simulation`, and training never simulates this scanner: its pulse rises faster
than it falls and changes its phase, its beam has a focus and the side lobes of a rectangular aperture, noise increases
with depth, and the grey curve is S-shaped. The truth is the mean of `DRAWS` further draws of the speckle. None of these
photographs is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import skimage.data
from scipy.ndimage import convolve1d, gaussian_filter
from skimage.color import rgb2gray
from skimage.transform import resize

from .cases import Case

PHOTOGRAPHS = {  # name in scikit-image: the center and the side of the part, fractions of height, width, height
    "astronaut": (0.25, 0.43, 0.5),
    "retina": (0.5, 0.5, 1.0),
    "immunohistochemistry": (0.5, 0.5, 0.7),
    "gravel": (0.5, 0.5, 0.6),
    "chelsea": (0.5, 0.5, 1.0),
    "coffee": (0.5, 0.5, 1.0),
    "camera": (0.35, 0.45, 0.6),
    "hubble_deep_field": (0.5, 0.5, 0.5),
}
TISSUES = ("grass", "brick")  # textures around lesions
DRAWS = 30


@dataclass(frozen=True)
class Scanner:
    """A scanner that images anatomies."""

    pulse: float  # pixels, decay of the axial pulse
    beam: float  # pixels, lateral width at the focus, from the axis to the first zero
    span: float = 50.0  # decibels shown as grey values
    floor: float = -45.0  # decibels of the noise at the lower end

    def _taps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the axial pulse, complex, and the lateral beam at and away from the focus; each of unit power."""
        t = np.arange(int(8 * self.pulse) + 3) / self.pulse
        pulse = t * np.exp(-t) * np.exp(0.4j * t**2)
        x = np.arange(-int(3 * self.beam) - 2, int(3 * self.beam) + 3)
        taps = (pulse, np.sinc(x / self.beam) ** 2, np.sinc(x / (1.5 * self.beam)) ** 2)
        return tuple(tap / np.sqrt(np.sum(np.abs(tap) ** 2)) for tap in taps)

    def frames(self, decibels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return `count` independent draws (N, H, W) uint8 over an anatomy (H, W), whose brightest tissue has 0 dB."""
        pulse, narrow, wide = self._taps()
        depth = np.linspace(0, 1, len(decibels))[:, None]
        near = np.cos(np.pi * (depth - 0.45)) ** 2  # 1: at the focus
        amplitude, noise = 10 ** (decibels / 20), 10 ** (self.floor / 20) * depth**2
        drawn = np.empty((count, *decibels.shape), np.uint8)
        for frame in drawn:
            real, imaginary = rng.standard_normal((2, 2, *decibels.shape)) / np.sqrt(2)
            echo = convolve1d((real[0] + 1j * imaginary[0]) * amplitude, pulse, 0, mode="reflect")
            echo = near * convolve1d(echo, narrow, 1, mode="reflect") + (1 - near) * convolve1d(echo, wide, 1)
            echo += noise * (real[1] + 1j * imaginary[1])
            level = np.clip(1 + (20 * np.log10(np.abs(echo) + 1e-9) - 6) / self.span, 0, 1)
            frame[:] = np.round(255 * level * (0.5 + level * (1.5 - level)))
        return drawn


SCANNERS = (Scanner(0.55, 1.7), Scanner(0.8, 3.1, 60, -55), Scanner(1.1, 2.2, 45), Scanner(0.7, 4.4, 55, -40))


def photograph(name: str, size: int) -> np.ndarray:
    """Return part of a photograph (size, size) in [0, 1], with stretched contrast."""
    image = getattr(skimage.data, name)()
    image = rgb2gray(image) if image.ndim == 3 else image / 255
    row, column, side = PHOTOGRAPHS.get(name, (0.5, 0.5, 1.0))
    half = int(min(image.shape) * side / 2)
    top, left = (int(np.clip(n * at - half, 0, n - 2 * half)) for n, at in zip(image.shape, (row, column), strict=True))
    part = resize(image[top : top + 2 * half, left : left + 2 * half], (size, size), anti_aliasing=True)
    low, high = np.quantile(part, (0.005, 0.995))
    return np.clip((part - low) / (high - low), 0, 1)


def lesions(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return decibels (size, size) of a dark and a bright lesion, a lumen and a cyst with irregular outlines, and their
    masks (4, size, size)."""
    y, x = np.mgrid[:size, :size] / size
    decibels, masks = np.zeros((size, size)), []
    for contrast, radius, longer, *middle in (  # dB, radius, ratio of width to height
        (-11, 0.13, 1.2, 0.27, 0.27), (8, 0.11, 1.1, 0.27, 0.74),
        (-30, 0.12, 2.0, 0.75, 0.3), (-26, 0.1, 1.0, 0.74, 0.77),
    ):  # fmt: skip
        down, across = (y - middle[0]) * longer, x - middle[1]
        angle = np.arctan2(down, across)
        wobble = sum(rng.uniform(0, 0.12 / n) * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in range(2, 7))
        masks.append(np.hypot(down, across) < radius * (1 + wobble))
        decibels += contrast * gaussian_filter(masks[-1].astype(float), 1.0)
    return decibels, np.array(masks)


def natural_cases(size: int, quick: bool = False) -> list[Case]:
    """Return photographs, and lesions in the textures of others, each with two draws of speckle."""
    cases = []
    for number, name in enumerate([*list(PHOTOGRAPHS)[: 4 if quick else None], *TISSUES]):
        rng = np.random.default_rng([2507, 6829, number])
        image, objects, what = photograph(name, size), None, name.replace("_", " ")
        decibels = 38 * (image - 1)
        if name in TISSUES:
            shape, objects = lesions(size, rng)
            decibels, what = np.minimum(10 * (image - 0.5) - 14 + shape, 0), f"lesions in {name}"
            image = (decibels - decibels.min()) / np.ptp(decibels)
        drawn = SCANNERS[number % len(SCANNERS)].frames(decibels, 2 + DRAWS, rng) / np.float32(255)
        frames, truth = drawn[:2], drawn[2:].mean(0)
        noise = float(np.mean((frames - truth) ** 2)) / (DRAWS + 1)
        everywhere = np.ones(image.shape, bool)
        cases.append(Case(what, frames, everywhere, truth, image.astype(np.float32), noise, objects))
    return cases
