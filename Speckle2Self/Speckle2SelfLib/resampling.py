"""A recording's frames as a network sees them: a sector along its beams, and all at the grain that the model knows."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from .beams import beams_of, find_fan, sampled

WIDEST = 1.25  # of a model's largest grain: how wide it gets along a fan's columns; at 1, leaflets of valves end short


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


class Resampling:
    """A recording's frames as the network sees them.

    Fans come as their beams: rows are depths, columns are angles, so that the grain lies along the axes. The columns
    are a pixel apart as far down as the lateral grain stays within the model's, and spread with the beams from there.

    Args: region (H, W) bool; grain, as `measure_grain` gives it; bounds, the model's grain, pixels; device.
    Attributes: region; size, (h, w) for the network; grain, pixels there.
    """

    def __init__(self, region: np.ndarray, grain: tuple[float, float], bounds: tuple[float, float], device="cpu"):
        self.region, self.shape, self._beams = region, region.shape, None
        size, fan = self.shape, find_fan(region)
        within = grain
        if fan is not None:
            half, far = fan.depths[1] / 2, fan.depths[1]
            even = min(WIDEST * bounds[1] * half / grain[1], far)
            grain = grain[0], grain[1] * even / half
            within = grain[0], min(grain[1], bounds[1])
            place = torch.device(device)
            self._beams = beams_of(fan, self.shape, even, torch.device("cpu") if place.type == "mps" else place)
            size = self._beams.size
        self.size = size_at_grain(size, within, bounds)
        self.grain = tuple(g * new / old for g, new, old in zip(grain, self.size, size, strict=True))

    def to_network(self, frames: torch.Tensor) -> torch.Tensor:
        """(N, 1, H, W) -> (N, 1, h, w)."""
        return resample(frames if self._beams is None else sampled(frames, self._beams.there), self.size)

    def to_recording(self, frames: torch.Tensor) -> torch.Tensor:
        """(N, 1, h, w) -> (N, 1, H, W); outside a fan, its outermost pixels are repeated."""
        if self._beams is None:
            return resample(frames, self.shape)
        return sampled(resample(frames, self._beams.size), self._beams.back)
