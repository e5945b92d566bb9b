"""Frames before the network: luminance, grey mapping, resampling to the model's grain, augmentation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt

from .look import luminance
from .perturbation import evenly

BRIGHTEST = 1.5  # on the networks' scale; they see nothing brighter, and what is above is added again afterwards
DISPLAY = 60.0  # dB below the brightest echo that scanners usually show; lower values are taken for decibels


def grey_mapping(frames: np.ndarray, region: np.ndarray | None) -> tuple[float, float]:
    """The values that become 0 and 1: one pair for a whole cine, so that brightness does not flicker.

    They are the 0.1 and 99.9 per cent points of the finite pixels inside the region, of at most 16 frames, so that a
    few overlay pixels do not shift them; but 99.99 per cent stay below 1.25, unless they are more than twice as bright.
    Of decibels, what stands for nothing received may lie far below all else: the lowest value does not count, and low
    is DISPLAY below high, unless the others reach further.

    Args: frames (N, H, W[, C]); region (H, W) bool or None. Returns low <= high; equal for constant frames.
    """
    chosen = frames[evenly(len(frames), 16)]
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


def box_of(region: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that a region (H, W) bool, with a pixel at least, lies in."""
    filled = (np.flatnonzero(region.any(axis)) for axis in (1, 0))  # of a live image, too, so nothing slower
    rows, columns = (slice(int(lines[0]), int(lines[-1]) + 1) for lines in filled)
    return rows, columns


def fill_outside(frames: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """`frames` (N, H, W) with every pixel outside `inside` (H, W) bool replaced by the nearest one inside."""
    if inside.all() or not inside.any():
        return frames
    rows, columns = distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return frames[:, rows, columns]


def size_at_grain(size, grain, bounds) -> tuple[int, int]:
    """The (H, W) at which frames of `size` and speckle of `grain` pixels have a grain within `bounds` on either axis.

    Frames whose grain lies within them stay as they are, since resampling costs detail; the others go to the nearer
    bound. Factors stay between 1/8 and 2, sizes at least 8 pixels; a factor within 5 per cent of 1 is 1.
    """
    factors = [float(np.clip(np.clip(g, *bounds) / g, 0.125, 2)) for g in grain]
    return tuple(n if abs(f - 1) <= 0.05 else max(8, round(n * f)) for n, f in zip(size, factors, strict=True))


def resample(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(B, C, H, W) to the new (H, W): antialiased and bilinear going down, cubic (Catmull and Rom's) going up."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    for axis in (0, 1):
        now = list(x.shape[-2:])
        if now[axis] == size[axis]:
            continue
        down = size[axis] < now[axis]
        now[axis] = size[axis]
        # Antialiased going up, too: that is the separable code, ten times as fast as torch's other cubic one.
        x = F.interpolate(x, size=now, mode="bilinear" if down else "bicubic", antialias=True, align_corners=False)
    return x


@dataclass(frozen=True)
class Augmentation:
    """What to do with a batch; drawn once, applied to every view alike."""

    matrices: torch.Tensor | None  # (B, 2, 3) of `affine_grid`; None: leave as it is
    flips: tuple[int, ...] = ()  # axes
    gain: float = 1.0

    def share(self, part: slice) -> Augmentation:
        """What concerns this part of the batch."""
        return self if self.matrices is None else replace(self, matrices=self.matrices[part])


def draw_augmentation(rng: np.random.Generator, batch: int, recipe: str) -> Augmentation:
    """For "published": each frame flipped in either direction (p = 0.3 each) and, with p = 0.3, shifted up to 10 %,
    scaled up to 20 % and turned up to 30 degrees, as in the paper. For "disjoint": the batch flipped (p = 0.5 each)
    and its gain changed by up to 20 %; turning would turn the grain with it.
    """
    if recipe == "disjoint":
        flips = tuple(axis for axis in (-1, -2) if rng.random() < 0.5)
        return Augmentation(None, flips, float(rng.uniform(0.8, 1.2)))
    matrices = np.zeros((batch, 2, 3), np.float32)
    for matrix in matrices:
        flip = np.diag(np.where(rng.random(2) < 0.3, -1.0, 1.0))
        matrix[:, :2] = flip
        if rng.random() < 0.3:
            angle, scale = np.deg2rad(rng.uniform(-30, 30)), 1 + rng.uniform(-0.2, 0.2)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            matrix[:, :2] = turn @ flip / scale
            matrix[:, 2] = 2 * rng.uniform(-0.1, 0.1, 2)
    return Augmentation(torch.from_numpy(matrices))


def augment(x: torch.Tensor, drawn: Augmentation) -> torch.Tensor:
    """(B, C, H, W) -> the same shape."""
    if drawn.matrices is not None:
        matrices, (height, width) = drawn.matrices.to(x, copy=True), x.shape[-2:]
        matrices[:, 0, 1] *= height / width  # positions count from -1 to 1 along either side
        matrices[:, 1, 0] *= width / height
        grid = F.affine_grid(matrices, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    if drawn.flips:
        x = x.flip(drawn.flips)
    return x if drawn.gain == 1 else x * drawn.gain
