"""Resample a recording's frames for a network: sectors along their beams, and all frames to a grain that the model
knows."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from .beams import beams_of, find_fan, sample_at

WIDEST = 1.25  # widest grain along a fan's columns, relative to a model's largest; at 1, valve leaflets are shortened


def size_at_grain(size: tuple[int, int], grain: tuple[float, float], bounds: tuple[float, float]) -> tuple[int, int]:
    """Return the (H, W) at which frames of `size`, with speckle of `grain` pixels, have a grain within `bounds`.

    Frames whose grain lies within them keep their size, since resampling costs detail; the others are resampled to the
    nearer bound. Factors lie between 1/8 and 2, sizes are at least 8 pixels; a factor within 5 % of 1 is 1.
    """
    factors = [float(np.clip(np.clip(g, *bounds) / g, 0.125, 2)) for g in grain]
    height, width = (n if abs(f - 1) <= 0.05 else max(8, round(n * f)) for n, f in zip(size, factors, strict=True))
    return height, width


def resample(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resample (B, C, H, W) to a new (H, W): antialiased and bilinear going down, Catmull-Rom cubic going up."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    for axis in (0, 1):
        shape = list(x.shape[-2:])
        if shape[axis] == size[axis]:
            continue
        down = size[axis] < shape[axis]
        shape[axis] = size[axis]
        # Antialiased going up as well: that is the separable code, ten times as fast as torch's other cubic one.
        x = F.interpolate(x, size=shape, mode="bilinear" if down else "bicubic", antialias=True, align_corners=False)
    return x


class Resampling:
    """A recording's frames as the network sees them.

    Fans are resampled along their beams: rows are depths, columns are angles, so that the grain lies along the axes.
    The columns are a pixel apart down to where the lateral grain is still within the model's, and spread with the beams
    from there.

    Args: region (H, W) bool; grain, as `measure_grain` returns it; bounds, the model's grain, pixels; device.
    Attributes: region; size, (h, w) for the network; grain, pixels there.
    """

    def __init__(
        self,
        region: np.ndarray,
        grain: tuple[float, float],
        bounds: tuple[float, float],
        device: torch.device | str = "cpu",
    ):
        self.region, self.shape, self._beams = region, region.shape, None
        size, fan = self.shape, find_fan(region)
        within = grain
        if fan is not None:
            half, far = fan.depths[1] / 2, fan.depths[1]
            even = min(WIDEST * bounds[1] * half / grain[1], far)
            grain = grain[0], grain[1] * even / half
            within = grain[0], min(grain[1], bounds[1])
            on = torch.device("cpu" if torch.device(device).type == "mps" else device)  # MPS has no cubic sampling
            self._beams = beams_of(fan, self.shape, even, on)
            size = self._beams.size
        self.size = size_at_grain(size, within, bounds)
        self.grain = tuple(g * new / old for g, new, old in zip(grain, self.size, size, strict=True))

    def to_network(self, frames: torch.Tensor) -> torch.Tensor:
        """Resample frames (N, 1, H, W) to (N, 1, h, w)."""
        return resample(frames if self._beams is None else sample_at(frames, self._beams.to_beams), self.size)

    def to_recording(self, frames: torch.Tensor) -> torch.Tensor:
        """Resample frames (N, 1, h, w) back to (N, 1, H, W); outside a fan, its outermost pixels are repeated."""
        if self._beams is None:
            return resample(frames, self.shape)
        return sample_at(resample(frames, self._beams.size), self._beams.to_image)
