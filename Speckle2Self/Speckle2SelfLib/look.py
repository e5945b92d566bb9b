"""Change strength, gamma and caution of a despeckled image without running the network. No torch here."""

from __future__ import annotations

from typing import Any

import numpy as np

from .grey import luminance
from .tint import find_tint

DOUBTFUL, UNKNOWN = 0.04, 0.06  # fractions of the grey range where caution begins, and is complete


def trust(uncertainty: Any, cautious: float) -> Any:
    """Return the weight of the despeckled image: 1 where the uncertainty is below DOUBTFUL, falling to 1 - `cautious`
    at UNKNOWN and above.

    Args: uncertainty, array or tensor, as a fraction of the grey range that a model sees as 0 to 1.
    """
    return 1 - cautious * ((uncertainty - DOUBTFUL) / (UNKNOWN - DOUBTFUL)).clip(0, 1)


def look(
    before: np.ndarray,
    after: np.ndarray,
    region: np.ndarray,
    mapping: tuple[float, float],
    strength: float,
    gamma: float,
    cautious: float = 0.0,
    uncertainty: np.ndarray | None = None,
) -> np.ndarray:
    """Return the result of `despeckle` with this look, up to rounding, from its result with strength and gamma 1 and
    without caution.

    Args: before, after (N, H, W[, C]), input and result; region (H, W) bool; mapping, the grey values that the model
    saw as 0 and 1; uncertainty (N, H, W), that of `after`, which caution needs. Returns the type of `before`; pixels
    outside the region, and pixels that the result left unchanged because they are drawn, colored or not finite, are
    those of `before`.
    """
    if strength == 0:
        return before.copy()  # bit for bit: float32, below, holds neither large integers nor float64
    color = before.ndim == 4
    old, new = luminance(before), luminance(after)
    low, high = mapping
    span = max(high - low, 1e-9)
    if gamma != 1:
        new = low + span * np.maximum((new - low) / span, 0) ** gamma
    share: Any = strength
    if cautious and uncertainty is not None:
        share = strength * trust(uncertainty / span, cautious)
    new = share * new + (1 - share) * np.where(np.isfinite(old), old, 0)
    same = (before == after).all(-1) if color else before == after
    change = region & np.isfinite(old) & ~_find_drawn(same & region)
    if color:
        change &= ~(same & (before[..., :3].max(-1) != before[..., :3].min(-1)))
        moved, tint = (new - old)[..., None], find_tint(before)
        if tint:
            moved = moved + np.stack(tint.add_to(new), -1) - np.stack(tint.add_to(old), -1)
        new = before[..., :3] + moved
        change = np.broadcast_to(change[..., None], new.shape)
    if before.dtype.kind != "f":
        limits = np.iinfo(before.dtype)
        new = np.clip(np.rint(new), limits.min, limits.max)
    result = before.copy()
    np.copyto(result[..., :3] if color else result, new.astype(before.dtype), where=change)
    return result


def _find_drawn(same: np.ndarray) -> np.ndarray:
    """Return the pixels, (N, H, W) bool, where the result equals the input because something is drawn there. Such areas
    have a margin; single pixels can be equal by chance."""
    from scipy import ndimage  # Slicer bundles none

    return np.stack([ndimage.binary_opening(frame, np.ones((3, 3))) for frame in same])


def uncertainty_of_look(
    uncertainty: np.ndarray, after: np.ndarray, mapping: tuple[float, float], strength: float, gamma: float
) -> np.ndarray:
    """Return the uncertainty that `despeckle` returns with this strength and gamma, (N, H, W) float32.

    Args: uncertainty, after, as `despeckle` returns them with both 1; mapping, see `look`.
    """
    if gamma != 1:
        span = max(mapping[1] - mapping[0], 1e-9)
        values = np.maximum(luminance(after) - mapping[0], uncertainty) / span
        uncertainty = uncertainty * gamma * np.where(uncertainty > 0, values, 1) ** (gamma - 1)
    return (strength * uncertainty).astype(np.float32)
