"""Find and keep the hue of tinted B-mode (chroma maps, sepia, blue): all its colors lie near one curve, one color for
each luminance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .grey import HUE_NOISE, HUE_TOLERANCE, evenly_spaced, luminance

BINS = 64  # number of bins of luminance, whose median colors make the curve
HUED = 0.06  # fraction of the brightest channel: a curve closer to grey is not a tint
DARK = 0.1  # fraction of the range; below, hue is hardly visible, and lost in rounding
EVERYWHERE = 0.8  # fraction of light pixels at luminances that the curve tints; Doppler color is on grey tissue
NEAR = 0.7  # fraction of light pixels near the curve; the others may be Doppler color, or text


@dataclass(frozen=True, eq=False)
class Tint:
    """The color of each luminance."""

    levels: np.ndarray  # (K,) float32, ascending luminance
    colors: np.ndarray  # (K, 3) float32

    def add_to(self, grey: np.ndarray) -> list[np.ndarray]:
        """Return the values that the tint adds to grey values (N, H, W) in each of the three channels."""
        limit = np.clip(grey, self.levels[0], self.levels[-1])
        return [np.interp(limit, self.levels, channel).astype(np.float32) - limit for channel in self.colors.T]

    def remove(self, frames: np.ndarray) -> np.ndarray:
        """Return frames (N, H, W, 3 or 4) as float32 (N, H, W, 3) with tinted pixels grey, and others in some color."""
        return frames[..., :3] - np.stack(self.add_to(luminance(frames)), -1)


def find_tint(frames: np.ndarray) -> Tint | None:
    """Return the tint of a recording (N, H, W[, C]), or None if it is grey, or colored in more than one way."""
    if frames.ndim == 3:
        return None
    pixels = frames[evenly_spaced(len(frames), 8), ::2, ::2, :3]
    grey = luminance(pixels).ravel()
    top = float(grey.max(initial=0, where=np.isfinite(grey)))
    scale = 255.0 if frames.dtype == np.uint8 else top
    lit = np.isfinite(grey) & (grey > DARK * scale)
    if lit.sum() < 64:
        return None
    colors, grey = pixels.reshape(-1, 3)[lit].astype(np.float32), grey[lit]
    if (np.ptp(colors, axis=1) > HUED * colors.max(1)).mean() < NEAR:
        return None  # most recordings in color are grey: return early for them
    bins = np.minimum((grey / top * BINS).astype(int), BINS - 1)
    filled = np.flatnonzero(np.bincount(bins, minlength=BINS) >= 8)
    curve = np.array([np.median(colors[bins == number], axis=0) for number in filled]).reshape(-1, 3)
    levels = luminance(curve[None, None])[0, 0]
    order = np.argsort(levels)
    levels, curve = levels[order], curve[order]
    hued = np.ptp(curve, axis=1) > HUED * curve.max(1) + 0.01 * scale
    nearest = np.interp(grey, levels, hued.astype(float)) > 0.5 if len(levels) else np.zeros(1, bool)
    if nearest.mean() < EVERYWHERE:
        return None
    levels, curve = np.append(0, levels), np.concatenate([np.zeros((1, 3)), curve])
    last = curve[-1] * scale / max(float(curve[-1].max()), 1e-9)  # the brightest color with this hue
    if float(luminance(last[None, None, None]).item()) > levels[-1]:
        levels, curve = np.append(levels, luminance(last[None, None, None]).item()), np.concatenate([curve, last[None]])
    tint = Tint(levels.astype(np.float32), curve.astype(np.float32))
    away = np.abs(colors - np.stack([np.interp(grey, levels, channel) for channel in curve.T], -1)).max(1)
    return tint if (away <= HUE_TOLERANCE * colors.max(1) + HUE_NOISE * scale).mean() >= NEAR else None
