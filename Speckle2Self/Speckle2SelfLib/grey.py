"""Map colors to luminance, and find the grey values that a model sees as 0 and 1. No torch here."""

from __future__ import annotations

import numpy as np

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601
BRIGHTEST = 1.5  # on the networks' scale; the excess of brighter values is cut off, and added to the result again
HUE_TOLERANCE = 0.12  # fraction of the brightest channel, plus HUE_NOISE; JPEG leaves grey tissue slightly colored
HUE_NOISE = 0.04  # fraction of the type's range
DISPLAY = 60.0  # dB below the brightest echo that scanners usually show; lower values are assumed to be decibels


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Return the numbers of at most `most` of `count` frames, evenly spread, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, most).astype(int))


def luminance(frames: np.ndarray) -> np.ndarray:
    """Return grey values (N, H, W) float32 in the range of the input, (N, H, W) or color (N, H, W, 3 or 4)."""
    if frames.ndim == 4:
        return frames[..., :3].astype(np.float32) @ LUMINANCE
    return frames.astype(np.float32)


def grey_mapping(frames: np.ndarray, region: np.ndarray | None) -> tuple[float, float]:
    """Return the grey values that become 0 and 1: one pair for a whole cine, so that brightness does not flicker.

    They are the 0.1 and 99.9 percentiles of the finite pixels inside the region, in at most 16 frames, so a few overlay
    pixels do not shift them. The upper one is raised if needed to map the 99.99 percentile below 1.25, unless that is
    more than twice as bright. Images in decibels may use any value for "no signal", far below all others: the lowest
    value does not count, and the lower one is DISPLAY below the upper one, unless the other values reach further.

    Args: frames (N, H, W[, C]); region (H, W) bool or None. Returns low <= high; equal for constant frames.
    """
    chosen = frames[evenly_spaced(len(frames), 16)]
    values = luminance(chosen)
    values = values[:, region] if region is not None else values
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 0.0
    low, high, top = (float(v) for v in np.percentile(values, (0.1, 99.9, 99.99)))
    high = max(high, low + 0.8 * (min(top, low + 2 * (high - low)) - low))
    if frames.dtype.kind == "f" and low < min(-DISPLAY, high):
        low = max(low, min(float(np.percentile(values[values > values.min()], 0.1)), high - DISPLAY))
    return (low, high) if high > low else (float(values.min()), float(values.max()))
