"""Find the beams of a sector image, and resample the image along its beams and back.

In a sector image the speckle's grain turns with the beam and widens with depth; along the beams it does neither.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


class Fan(NamedTuple):
    """The position of a sector's beams in an image; an angle of 0 points down, larger ones to the right."""

    apex: tuple[float, float]  # pixels, (row, column) where the beams meet; it may lie outside the image
    depths: tuple[float, float]  # pixels; the range of distances from the apex
    angles: tuple[float, float]  # radians; the range of angles


def find_fan(region: np.ndarray) -> Fan | None:
    """Return the fan that a region (H, W) bool has the shape of; None for any other shape.

    The sides of a fan are straight and diverge downwards at 12 to 75 degrees, until they may be cut off. Its end is an
    arc around the point where the sides meet.
    """
    if region.all():
        return None
    return _find_fan(np.ascontiguousarray(region, bool).tobytes(), region.shape)


@lru_cache(maxsize=16)  # search once, not in each frame of a live image
def _find_fan(inside: bytes, shape: tuple[int, int]) -> Fan | None:
    region = np.frombuffer(inside, bool).reshape(shape)
    rows = np.flatnonzero(region.any(1))
    if len(rows) < 32:
        return None
    left = region[rows].argmax(1).astype(float)
    right = shape[1] - 1 - region[rows, ::-1].argmax(1).astype(float)
    width = right - left
    widest = int(np.argmax(width >= 0.99 * width.max()))
    straight = slice(int(0.2 * widest), int(0.95 * widest))
    if widest < 0.25 * len(rows):
        return None
    sides = []
    for edge, end in ((left, left.min()), (right, right.max())):
        free = edge[straight] != end  # where the image is cut off, its side is not a beam
        if free.sum() < max(16, 0.3 * len(free)):
            return None
        sides.append(_fit_line(rows[straight][free].astype(float), edge[straight][free]))
    turns = [np.arctan(sign * slope) for sign, (slope, _, _) in zip((-1, 1), sides, strict=True)]
    residual = max(distance for _, _, distance in sides)
    if min(turns) < np.deg2rad(12) or max(turns) > np.deg2rad(75) or residual > max(1.5, 0.01 * width.max()):
        return None
    y = (sides[0][1] - sides[1][1]) / (sides[1][0] - sides[0][0])
    x = sides[0][0] * y + sides[0][1]
    columns = np.arange(*np.round(np.quantile((left[widest], right[widest]), (0.2, 0.8))).astype(int))
    ends = shape[0] - 1 - region[::-1, columns].argmax(0)
    radii = np.hypot(ends - y, columns - x)
    bend = float(ends.std())  # an arc bends; the end of another shape, or of an image that is cut off, is flat
    if y > rows[0] + 0.05 * len(rows) or radii.std() > min(max(1.0, 0.02 * radii.mean()), 0.4 * bend):
        return None
    ys, xs = np.nonzero(region)
    depth, angle = np.hypot(ys - y, xs - x), np.arctan2(xs - x, np.maximum(ys - y, 1e-6))
    return Fan((float(y), float(x)), (float(depth.min()), float(depth.max())), (float(angle.min()), float(angle.max())))


def _fit_line(at: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Fit a line through most of the values; return its slope, its height at 0 and their median distance from it."""
    near = np.ones(len(at), bool)
    for _ in range(4):
        slope, height = np.polyfit(at[near], values[near], 1)
        distances = np.abs(values - slope * at - height)
        near = distances <= max(1.0, 2 * float(np.median(distances)))
    return float(slope), float(height), float(np.median(distances))


class Beams:
    """The sampling grids from the image of a fan, of (H, W) pixels, to its beams, and back.

    even: depth from the apex, in pixels, up to which columns are one pixel apart; deeper, they spread with the beams.
    """

    def __init__(self, fan: Fan, shape: tuple[int, int], even: float, device: torch.device | str = "cpu"):
        (near, far), (leftmost, rightmost) = fan.depths, fan.angles
        self.size = int(np.ceil(far - near)) + 1, max(8, int(np.ceil((rightmost - leftmost) * even)) + 1)
        rows, columns = (torch.arange(n, dtype=torch.float64) for n in self.size)
        depth = (near + rows)[:, None]
        angle = (leftmost * even + columns) / depth.clamp(1e-3, even)  # (h, w)
        wide = rightmost - leftmost  # above, where the image is narrower than `w` columns, it is mirrored at its sides
        angle = leftmost + wide - ((angle - leftmost) % (2 * wide) - wide).abs()
        self.to_beams = _grid(fan.apex[0] + depth * angle.cos(), fan.apex[1] + depth * angle.sin(), shape).to(device)
        self._arguments = fan, shape, even

    @cached_property
    def to_image(self) -> torch.Tensor:
        """Return the grid from the beams to the image; not needed to measure a grain."""
        fan, shape, even = self._arguments
        y, x = (torch.arange(n, dtype=torch.float64) - at for n, at in zip(shape, fan.apex, strict=True))
        y, x = torch.meshgrid(y, x, indexing="ij")  # (H, W)
        depth = torch.hypot(y, x)
        across = torch.atan2(x, y.clamp(min=1e-6)) * depth.clamp(max=even)
        return _grid(depth - fan.depths[0], across - fan.angles[0] * even, self.size).to(self.to_beams.device)


beams_of = lru_cache(maxsize=4)(Beams)  # made once, not for each frame of a live image


def _grid(y: torch.Tensor, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return positions in pixels as `grid_sample` counts them, (1, h, w, 2) float32."""
    at = [(2 * v + 1) / n - 1 for v, n in ((x, size[1]), (y, size[0]))]
    return torch.stack(torch.broadcast_tensors(*at), -1).float()[None]


def sample_at(frames: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Sample (N, 1, H, W) at the grid's positions, (N, 1, h, w).

    Frames are passed as channels, so that weights are computed once for all, on the grid's device: it is the CPU for
    torch's MPS, which has no cubic sampling.
    """
    device, frames = frames.device, frames.to(grid.device).transpose(0, 1)
    frames = F.grid_sample(frames, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return frames.transpose(0, 1).to(device)
