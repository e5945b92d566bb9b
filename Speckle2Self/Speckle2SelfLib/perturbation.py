"""One frame -> its views: the published scales (the paper's section 3.2) and our disjoint lattices.

Documentation/method.md, sections 1 and 2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

PUBLISHED_SCALES = (1.0, 0.5, 0.25)
LONG = 2.0  # pixels; longer grains are measured in halved frames


def min_max(x: torch.Tensor) -> torch.Tensor:
    """Each image of (B, 1, H, W) mapped to [0, 1] on its own; a constant image becomes zeros."""
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    return (x - low) / torch.where(high > low, high - low, torch.ones_like(high))


def _linear_weights(size: int, to: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each of `to` pixels along an axis: its two neighbours among `size`, and the second one's share in 1/2048."""
    at = (torch.arange(to, dtype=torch.float64) + 0.5) * size / to - 0.5
    below = torch.floor(at)
    share = torch.round((at - below) * 2048).long()
    below = below.long()
    return below.clamp(0, size - 1), (below + 1).clamp(0, size - 1), share


def resize_8_bit(frames: torch.Tensor, to: tuple[int, int]) -> torch.Tensor:
    """Bilinear resizing of whole numbers as OpenCV does it, down to its fixed-point rounding.

    Args: frames (B, 1, H, W) int64 in [0, 255]; to, the new (H, W). The published views were made this way, and a
    difference of one grey level would show in their min-max normalisation.
    """
    left, right, share = (t.to(frames.device) for t in _linear_weights(frames.shape[-1], to[1]))
    rows = (frames[..., left] * (2048 - share) + frames[..., right] * share) >> 4  # (B, 1, H, w)
    above, below, share = (t.to(frames.device) for t in _linear_weights(frames.shape[-2], to[0]))
    share = share[:, None]
    return ((((2048 - share) * rows[..., above, :]) >> 16) + ((share * rows[..., below, :]) >> 16) + 2) >> 2


def published_views(frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The paper's multi-scale perturbation: down to 1, 1/2, 1/4 and back up, each normalised on its own.

    Both resizings are bilinear without antialiasing, in 8-bit arithmetic for 8-bit frames as in the authors' code.

    Args: frames (B, 1, H, W), uint8 or floating point of any range; H, W >= 4.
    Returns three float32 tensors of that shape in [0, 1], full scale first.
    """
    size = frames.shape[-2:]
    views = [min_max(frames.float())]
    for scale in PUBLISHED_SCALES[1:]:
        small = tuple(int(n * scale) for n in size)
        if torch.is_floating_point(frames):
            view = F.interpolate(frames.float(), size=small, mode="bilinear", align_corners=False)
            view = F.interpolate(view, size=size, mode="bilinear", align_corners=False)
        else:
            view = resize_8_bit(resize_8_bit(frames.long(), small), size).float()
        views.append(min_max(view))
    return tuple(views)


class LatticeViews(NamedTuple):
    """One frame and one of its lattices; see `lattice_views`. A simulated frame has its truth instead of a lattice."""

    frame: torch.Tensor  # (B, 1, H, W)
    lattice: torch.Tensor | None = None  # (B, 5, h, w): every sy-th row and sx-th column, then sy, sx, where sites lie
    sites: tuple[slice, slice] = ()  # the rows and columns of `frame` that `lattice` is to predict, h x w of them
    truth: torch.Tensor | None = None  # (B, 1, H, W)


def lattice_views(frame, rng, grain=(1.0, 1.0)) -> LatticeViews:
    """Two disjoint lattices of each frame whose speckle is independent (Documentation/method.md, section 2).

    The first is every sy-th row and sx-th column from a random phase. The second, the sites to predict, lies between
    its points, at least two grains from the nearest row and column, where speckle no longer correlates. The steps and
    the distance are drawn anew for each call: with one step alone, the full-resolution network learns a comb of that
    period, which shows as a ripple.

    Args: frame (B, 1, H, W); rng, a numpy Generator; grain (axial, lateral) as `estimate_grain` measures it, pixels.
    """
    taken, sites, lie = [], [], []
    for size, length in zip(frame.shape[-2:], grain, strict=True):
        reach = max(1, round(2 * length))
        step = 2 * reach + int(rng.integers(3))
        first = int(rng.integers(step))
        shift = int(rng.integers(reach, step - reach + 1))
        count = (size - 1 - first - shift) // step + 1
        taken.append(slice(first, first + (count - 1) * step + 1, step))
        sites.append(slice(first + shift, first + shift + (count - 1) * step + 1, step))
        lie += [step / 8, shift / step]
    lattice = frame[..., taken[0], taken[1]]  # (B, 1, h, w)
    lie = torch.tensor(lie, dtype=frame.dtype, device=frame.device)[None, :, None, None]
    lattice = torch.cat([lattice, lie.expand(len(frame), 4, *lattice.shape[-2:])], 1)  # (B, 5, h, w)
    return LatticeViews(frame, lattice, tuple(sites))


def evenly(count: int, most: int) -> np.ndarray:
    """Numbers of at most `most` of `count` frames, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, most).astype(int))


def speckle_correlation(frames, region=None) -> tuple[np.ndarray, np.ndarray] | None:
    """The speckle's autocorrelation (axial, lateral) at lags of 0, 1, ... pixels; None where it cannot be measured.

    Measured in small patches inside the region, of at most eight frames. A quadratic trend is taken off each patch;
    patches that are mostly clipped are left out; of the others, those with the least peaked values (edges and layers
    make peaks, speckle does not) vote, and the lower third of their correlations counts, since structure only adds.
    Small patches shorten long grains (5 pixels measure as 3), but large ones take anatomy for speckle.

    Args: frames (N, H, W) of any range; region (H, W) bool, or None for everything.
    """
    frames = np.asarray(frames)
    height, width = frames.shape[-2:]
    size = min(24, height, width)
    if size < 16:
        return None
    chosen = frames[evenly(len(frames), 8)]
    grid = np.linspace(-1, 1, size)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    trend, _ = np.linalg.qr(np.stack([y**0, y, x, y * x, y * y, x * x], -1).reshape(size * size, 6))
    lags = size // 2
    corners = [(i, j) for i in range(0, height - size + 1, size // 2) for j in range(0, width - size + 1, size // 2)]
    windows = [(slice(i, i + size), slice(j, j + size)) for i, j in corners]
    windows = [window for window in windows if region is None or region[window].all()]
    votes = []
    for frame in chosen.astype(np.float32):
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


def estimate_grain(frames, region=None) -> tuple[float, float]:
    """The speckle's grain (axial, lateral) in pixels: where `speckle_correlation` has fallen to one half.

    Its patches shorten long grains. So along an axis where the grain is longer than `LONG`, pairs of pixels are
    averaged, and it is measured anew.

    Args: frames (N, H, W) of any range; region (H, W) bool, or None for everything.
    Returns lengths between 0.5 and 16; (1, 1) where nothing can be measured (constant or tiny frames).
    """
    frames = np.asarray(frames)
    frames = frames[evenly(len(frames), 8)].astype(np.float32)
    region = np.ones(frames.shape[1:], bool) if region is None else np.asarray(region, bool)
    found, scale, last, axes = np.ones(2), np.ones(2), np.full(2, np.inf), [0, 1]
    while axes and (correlation := speckle_correlation(frames, region)) is not None:
        lengths = [_half(falling) for falling in correlation]
        axes = [axis for axis in axes if lengths[axis] < last[axis]]  # it grows only where anatomy is taken for speckle
        for axis in axes:
            last[axis] = lengths[axis]
            found[axis] = np.clip(lengths[axis] * scale[axis], 0.5, 16)
        axes = [axis for axis in axes if lengths[axis] > LONG and scale[axis] < 4]
        for axis in axes:
            frames, region = _in_pairs(frames, axis + 1).mean(axis + 2), _in_pairs(region, axis).all(axis + 1)
            scale[axis] *= 2
    return float(found[0]), float(found[1])


def _half(falling: np.ndarray) -> float:
    """Where a correlation, given at lags of 0, 1, ..., has fallen to one half; the last lag if nowhere."""
    below = np.flatnonzero(falling < 0.5)
    if len(below) == 0:
        return len(falling) - 1.0
    last = below[0]
    return last - (0.5 - falling[last]) / max(falling[last - 1] - falling[last], 1e-6)


def _in_pairs(x: np.ndarray, axis: int) -> np.ndarray:
    """An axis of n as two, of n // 2 and of 2."""
    x = x.take(range(x.shape[axis] // 2 * 2), axis)
    return x.reshape(*x.shape[:axis], -1, 2, *x.shape[axis + 1 :])
