"""Classical speckle filters with the network's interface: (N, H, W) float32 in [0, 1] -> the same, frame by frame.

SciPy, scikit-image and SimpleITK supply most of them; Lee and SRAD, which they lack, are written out. BM3D is missing:
the only packaged implementation may not be used commercially, which an Apache-licensed extension cannot require of its
users.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import median_filter, uniform_filter
from skimage.restoration import denoise_nl_means

from .config import FILTER_NAMES


def _mean_and_variance(frames: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and variance of size x size pixels around each."""
    mean = uniform_filter(frames, (0, size, size))
    return mean, np.maximum(uniform_filter(frames**2, (0, size, size)) - mean**2, 0)


def speckle_level(frame: np.ndarray) -> float:
    """Return the standard deviation of the speckle in (H, W): the median over 7 x 7 neighborhoods."""
    return float(np.sqrt(np.median(_mean_and_variance(frame[None], 7)[1])))


def median(frames: np.ndarray, size: int = 5) -> np.ndarray:
    """Replace each pixel with the median of size x size pixels."""
    return median_filter(frames, size=(1, size, size))


def lee(frames: np.ndarray, size: int = 7) -> np.ndarray:
    """Apply the local linear minimum mean-square error filter of J.-S. Lee, IEEE PAMI 1980, with measured noise."""
    mean, variance = _mean_and_variance(frames, size)
    noise = np.median(variance, axis=(1, 2), keepdims=True)
    gain = np.maximum(variance - noise, 0) / np.maximum(variance, 1e-12)
    return (mean + gain * (frames - mean)).astype(np.float32)


def srad(frames: np.ndarray, steps: int = 100, step: float = 0.1) -> np.ndarray:
    """Apply speckle reducing anisotropic diffusion (Yu and Acton, IEEE TIP 2002) to the exponential of grey values.

    The speckle scale falls as exp(-rho t) with rho = 1/6 from the coefficient of variation of homogeneous blocks.
    """
    image = np.exp(frames.astype(np.float32) * 3)  # undo the compression, roughly
    mean, variance = _mean_and_variance(image, 15)
    scale = np.median(np.sqrt(variance) / mean, axis=(1, 2), keepdims=True)
    scale = np.maximum(scale, 1e-3)
    for number in range(steps):
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
        north, south = padded[:, :-2, 1:-1] - image, padded[:, 2:, 1:-1] - image
        west, east = padded[:, 1:-1, :-2] - image, padded[:, 1:-1, 2:] - image
        gradient = (north**2 + south**2 + west**2 + east**2) / image**2
        laplacian = (north + south + west + east) / image
        variation = np.maximum(0.5 * gradient - laplacian**2 / 16, 0) / (1 + 0.25 * laplacian) ** 2
        level = (scale * np.exp(-number * step / 6)) ** 2
        conduct = 1 / (1 + np.clip((variation - level) / (level * (1 + level)), -0.5, 1e6))
        conduct = np.clip(conduct, 0, 1)
        padded = np.pad(conduct, ((0, 0), (0, 1), (0, 1)), mode="edge")
        flow = padded[:, 1:, :-1] * south + conduct * north + padded[:, :-1, 1:] * east + conduct * west
        image = image + step / 4 * flow
    return (np.log(np.maximum(image, 1e-6)) / 3).astype(np.float32)


def nlm(frames: np.ndarray, strength: float = 0.7) -> np.ndarray:
    """Apply non-local means (Buades et al. 2005) of scikit-image; `strength` in each frame's measured speckle level."""
    out = np.empty_like(frames, np.float32)
    for frame, result in zip(frames, out, strict=True):
        h = max(strength * speckle_level(frame), 1e-4)
        result[:] = denoise_nl_means(frame, patch_size=7, patch_distance=11, h=h)
    return out


def curvature(frames: np.ndarray, steps: int = 40) -> np.ndarray:
    """Apply ITK's curvature anisotropic diffusion."""
    smoothed = [
        sitk.GetArrayFromImage(
            sitk.CurvatureAnisotropicDiffusion(
                sitk.GetImageFromArray(frame.astype(np.float32)),
                timeStep=0.0625,
                conductanceParameter=3.0,
                numberOfIterations=steps,
            )
        )
        for frame in frames
    ]
    return np.stack(smoothed)


FILTERS = {name: globals()[name] for name in FILTER_NAMES}
