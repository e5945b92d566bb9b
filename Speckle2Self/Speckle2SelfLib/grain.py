"""Measure the speckle's grain: the lengths at which its autocorrelation falls to one half."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .beams import Beams, find_fan, sample_at
from .grey import evenly_spaced

LONG = 2.0  # pixels; longer grains are measured in halved frames


def speckle_correlation(frames: np.ndarray, region: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the speckle's autocorrelation (axial, lateral) at lags of 0, 1, ... pixels; None if not measurable.

    It is measured in small patches inside the region, of at most eight frames. A quadratic trend is subtracted from
    each patch, and patches that are mostly clipped are left out. The half of the others with the least peaked values
    (edges and layers make peaks, speckle does not) vote, and the lower third of their correlations counts, since
    structure only adds.
    Small patches shorten long grains (5 pixels measure as 3), but large ones mistake anatomy for speckle.

    Args: frames (N, H, W) of any range; region (H, W) bool, or None for everything.
    """
    frames = np.asarray(frames)
    height, width = frames.shape[-2:]
    size = min(24, height, width)
    if size < 16:
        return None
    sample = frames[evenly_spaced(len(frames), 8)]
    grid = np.linspace(-1, 1, size)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    trend, _ = np.linalg.qr(np.stack([y**0, y, x, y * x, y * y, x * x], -1).reshape(size * size, 6))
    lags = size // 2
    corners = [(i, j) for i in range(0, height - size + 1, size // 2) for j in range(0, width - size + 1, size // 2)]
    windows = [(slice(i, i + size), slice(j, j + size)) for i, j in corners]
    windows = [window for window in windows if region is None or region[window].all()]
    votes = []
    for frame in sample.astype(np.float32):
        darkest = frame.min(where=np.isfinite(frame), initial=np.inf)
        for window in windows[:: max(1, len(windows) // 60)]:
            patch = frame[window].ravel()
            if not np.isfinite(patch).all():
                continue
            clipped = np.mean(patch == patch.min()) + np.mean(patch == patch.max())
            rest = patch - trend @ (trend.T @ patch)
            variance = np.mean(rest**2)
            if clipped > 0.3 or variance <= 1e-6 * np.mean((patch - darkest) ** 2):
                continue
            rest = rest.reshape(size, size)
            rows = [np.mean(rest[lag:] * rest[:-lag]) / variance for lag in range(1, lags)]
            columns = [np.mean(rest[:, lag:] * rest[:, :-lag]) / variance for lag in range(1, lags)]
            votes.append([np.mean(rest**4) / variance**2, rows, columns])
    if not votes:
        return None
    peaks = np.array([vote[0] for vote in votes])
    calm = peaks <= np.median(peaks)
    axial, lateral = (np.quantile(np.array([vote[axis] for vote in votes])[calm], 0.35, axis=0) for axis in (1, 2))
    return np.concatenate([[1], axial]), np.concatenate([[1], lateral])


def estimate_grain(frames: np.ndarray, region: np.ndarray | None = None) -> tuple[float, float]:
    """Return the speckle's grain (axial, lateral) in pixels: where `speckle_correlation` has fallen to one half.

    The patches shorten long grains. Along an axis where the grain is longer than `LONG`, pairs of pixels are therefore
    averaged, and it is measured again.

    Args: frames (N, H, W) of any range; region (H, W) bool, or None for everything.
    Returns lengths between 0.5 and 16; (1, 1) where nothing can be measured (constant or tiny frames).
    """
    frames = np.asarray(frames)
    frames = frames[evenly_spaced(len(frames), 8)].astype(np.float32)
    inside: Any = np.ones(frames.shape[1:], bool) if region is None else np.asarray(region, bool)
    grain, scale, last, axes = np.ones(2), np.ones(2), np.full(2, np.inf), [0, 1]
    while axes and (correlation := speckle_correlation(frames, inside)) is not None:
        lengths = [_half_length(falling) for falling in correlation]
        axes = [axis for axis in axes if lengths[axis] < last[axis]]  # a longer grain than before is due to anatomy
        for axis in axes:
            last[axis] = lengths[axis]
            grain[axis] = np.clip(lengths[axis] * scale[axis], 0.5, 16)
        axes = [axis for axis in axes if lengths[axis] > LONG and scale[axis] < 4]
        for axis in axes:
            frames = _split_into_pairs(frames, axis + 1).mean(axis + 2)
            inside = _split_into_pairs(inside, axis).all(axis + 1)
            scale[axis] *= 2
    return float(grain[0]), float(grain[1])


def measure_grain(frames: np.ndarray, region: np.ndarray) -> tuple[float, float]:
    """Return the speckle's grain (axial, lateral) in pixels, as `estimate_grain` does; in a fan along its beams, and
    across them at half of its largest depth.

    Args: frames (N, H, W) of any range; region (H, W) bool.
    """
    fan = find_fan(region)
    if fan is None:
        return estimate_grain(frames, region)
    beams, frames = Beams(fan, region.shape, fan.depths[1] / 2), frames[evenly_spaced(len(frames), 8)]
    images = [torch.from_numpy(np.ascontiguousarray(x, np.float32))[:, None] for x in (frames, region[None])]
    along, inside = (sample_at(x, beams.to_beams)[:, 0].numpy() for x in images)
    return estimate_grain(along, inside[0] > 0.99)


def _half_length(falling: np.ndarray) -> float:
    """Return the lag at which a correlation at lags of 0, 1, ... falls to one half; the last lag if it does not."""
    below = np.flatnonzero(falling < 0.5)
    if len(below) == 0:
        return len(falling) - 1.0
    last = below[0]
    return last - (0.5 - falling[last]) / max(falling[last - 1] - falling[last], 1e-6)


def _split_into_pairs(x: np.ndarray, axis: int) -> np.ndarray:
    """Split an axis of n pixels into two axes, of n // 2 and of 2."""
    x = x.take(range(x.shape[axis] // 2 * 2), axis)
    return x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
