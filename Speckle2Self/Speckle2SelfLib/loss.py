"""The losses as named terms: the published one (the paper's section 3.4) and ours; Documentation/method.md, 1 to 3."""

from __future__ import annotations

from itertools import combinations

import torch
import torch.nn.functional as F

ABSOLUTE = 0.005  # grey values from 0 to 1; errors above it count by their size, those below by their square
SLOPES = 14.0  # weight of errors in the differences of neighbouring pixels


def published_loss(predictions, views) -> dict[str, torch.Tensor]:
    """Reconstruction: MSE of each scale's prediction to its view. Consistency: L1 of each pair of predictions.

    Args: predictions and views, equally many tensors (B, 1, H, W). The training loss is the sum of the terms.
    """
    return {
        "reconstruction": sum(F.mse_loss(p, v) for p, v in zip(predictions, views, strict=True)),
        "consistency": sum(F.l1_loss(p, q) for p, q in combinations(predictions, 2)),
    }


def disjoint_loss(predictions, views, detail: float = 3.0) -> dict[str, torch.Tensor]:
    """The terms of Documentation/method.md, sections 2 and 3, by name.

    lattice: the lattice's prediction against the sites, whose speckle is independent of it (Noise2Noise in one frame).
    consistency: the full-resolution network against that prediction, whose gradient is stopped. Where a simulated
    frame brings its known truth, the network is held to it instead (`truth`), by absolute errors: what is doubtful is
    then left out rather than painted faintly. Points, thin layers and edges, which fill few pixels, count more: where
    the truth differs from its surroundings by 0.15 or more, 1 + `detail` times as much, by 0.05 or less, no more.
    slopes: the same of the differences of neighbouring pixels: what remains of speckle's ripple, and strokes along
    rows of bright grains, have small errors but steep sides.
    """
    high = predictions.frame.float()
    if views.truth is not None:
        around = F.avg_pool2d(F.pad(views.truth, (4, 4, 4, 4), mode="replicate"), 9, 1)
        weight = 1 + detail * (((views.truth - around).abs() - 0.05) / 0.1).clamp(0, 1)
        errors, slopes = high - views.truth, 0
        for axis in (-1, -2):
            steep = _absolute(errors.diff(dim=axis), ABSOLUTE / 2.5)
            slopes = slopes + (weight.narrow(axis, 0, steep.shape[axis]) * steep).mean()
        return {"truth": (weight * _absolute(errors, ABSOLUTE)).mean(), "slopes": SLOPES * slopes}
    low, (rows, columns) = predictions.lattice.float(), views.sites
    return {
        "lattice": F.mse_loss(low, views.frame[..., rows, columns]),
        "consistency": F.mse_loss(high[..., rows, columns], low.detach()),
    }


def _absolute(errors: torch.Tensor, small: float) -> torch.Tensor:
    """Their size, but for those below `small`, which count by their square."""
    return F.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none", beta=small)
