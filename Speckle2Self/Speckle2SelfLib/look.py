"""The look of a despeckled image, strength and gamma, changed without the network. No torch here."""

from __future__ import annotations

import numpy as np

from .grey import luminance


def look(
    before: np.ndarray,
    after: np.ndarray,
    region: np.ndarray,
    mapping: tuple[float, float],
    strength: float,
    gamma: float,
) -> np.ndarray:
    """Return what `despeckle` gives with this strength and gamma, from its result with both 1, up to rounding.

    Args: before, after (N, H, W[, C]), input and result; region (H, W) bool; mapping, the grey values that the model
    took for 0 and 1. Returns the type of `before`; pixels outside the region, and pixels that the result left
    unchanged because they are colored or not finite, are those of `before`.
    """
    if strength == 0:
        return before.copy()  # bit for bit: float32, below, holds neither large integers nor float64
    color = before.ndim == 4
    old, new = luminance(before), luminance(after)
    low, high = mapping
    span = max(high - low, 1e-9)
    if gamma != 1:
        new = low + span * np.maximum((new - low) / span, 0) ** gamma
    new = strength * new + (1 - strength) * np.where(np.isfinite(old), old, 0)
    change = region & np.isfinite(old)
    if color:
        change &= ~((before == after).all(-1) & (before[..., :3].max(-1) != before[..., :3].min(-1)))
        new = before[..., :3] + (new - old)[..., None]
        change = np.broadcast_to(change[..., None], new.shape)
    if before.dtype.kind != "f":
        limits = np.iinfo(before.dtype)
        new = np.clip(np.rint(new), limits.min, limits.max)
    result = before.copy()
    np.copyto(result[..., :3] if color else result, new.astype(before.dtype), where=change)
    return result
