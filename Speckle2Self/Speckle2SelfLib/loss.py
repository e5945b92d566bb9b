"""The losses as named terms: the published one (the paper's section 3.4) and ours; Documentation/method.md, 1 to 3.

Whatever the loss, the training minimizes the sum of its terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import combinations
from operator import add
from typing import Any

import torch
import torch.nn.functional as F

ABSOLUTE = 0.005  # grey values from 0 to 1; errors are quadratic below and linear above
SLOPES = 14.0  # weight of errors in the differences of neighboring pixels
SQUARED = 10.0  # weight of squared errors, so that they weigh about as much as the lattice's
SQUARED_SLOPES = 2.0  # weight of squared errors in the differences of neighboring pixels, relative to SQUARED
LIKELIHOOD = 0.01  # keeps the sum of terms readable: Adam's steps are the same whatever it is, as the head is apart


def total(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the sum of at least one term."""
    return reduce(add, terms)


def published_loss(predictions: Sequence[torch.Tensor], views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the paper's two terms.

    reconstruction: the mean squared error of each scale's prediction to its view.
    consistency: the mean absolute difference of each pair of predictions.

    Args: predictions and views, equally many tensors (B, 1, H, W).
    """
    return {
        "reconstruction": total(F.mse_loss(p, v) for p, v in zip(predictions, views, strict=True)),
        "consistency": total(F.l1_loss(p, q) for p, q in combinations(predictions, 2)),
    }


def disjoint_loss(
    predictions: Any, views: Any, detail: float = 3.0, truth_error: str = "absolute"
) -> dict[str, torch.Tensor]:
    """Return the terms of `lattice_loss` for recorded frames; for simulated ones those of `truth_loss` and, where the
    network estimates its uncertainty, of `uncertainty_loss`.

    Args: predictions, `network.LatticePredictions`; views, `perturbation.LatticeViews`; detail and truth_error, as
    `config.TrainingConfig` explains them.
    """
    high = predictions.frame.float()  # (B, 1, H, W)
    if views.truth is not None:
        squared = truth_error == "squared"
        terms = squared_truth_loss(high, views.truth) if squared else truth_loss(high, views.truth, detail)
        if predictions.log_deviation is not None:
            terms |= uncertainty_loss(predictions.log_deviation, high, views.truth)
        return terms
    rows, columns = views.sites
    return lattice_loss(high[..., rows, columns], predictions.lattice.float(), views.frame[..., rows, columns])


def lattice_loss(high: torch.Tensor, low: torch.Tensor, sites: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the terms of recorded frames (Documentation/method.md, section 2).

    lattice: the lattice's prediction against the sites, whose speckle is independent of it (Noise2Noise in one frame).
    consistency: the full-resolution network against that prediction, whose gradient is stopped.

    Args, all (B, 1, h, w) at the sites: high, predicted from the frame; low, predicted from the lattice; sites, the
    frame itself.
    """
    return {"lattice": F.mse_loss(low, sites), "consistency": F.mse_loss(high, low.detach())}


def truth_loss(high: torch.Tensor, truth: torch.Tensor, detail: float) -> dict[str, torch.Tensor]:
    """Return the terms of simulated frames, whose truth is known (Documentation/method.md, section 3).

    truth: absolute errors, so that doubtful structure is left out rather than painted faintly. Points, thin layers and
    edges, which fill few pixels, count more: 1 + `detail` times as much where the truth differs from its surroundings
    by 0.15 or more, once where it does by 0.05 or less.
    slopes: the same errors of the differences of neighboring pixels: residual ripple, and strokes along rows of bright
    grains, have small errors but steep sides.

    Args: high and truth (B, 1, H, W).
    """
    around = F.avg_pool2d(F.pad(truth, (4, 4, 4, 4), mode="replicate"), 9, 1)  # (B, 1, H, W)
    weight = 1 + detail * (((truth - around).abs() - 0.05) / 0.1).clamp(0, 1)
    errors, slopes = high - truth, []
    for axis in (-1, -2):
        steep = _absolute(errors.diff(dim=axis), ABSOLUTE / 2.5)  # (B, 1, H, W - 1), (B, 1, H - 1, W)
        slopes.append((weight.narrow(axis, 0, steep.shape[axis]) * steep).mean())
    return {"truth": (weight * _absolute(errors, ABSOLUTE)).mean(), "slopes": SLOPES * total(slopes)}


def squared_truth_loss(high: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the terms of simulated frames as squared errors: of the grey values, and of their slopes.

    The optimum of both is the expected truth, which is gradual where the input leaves doubt. Absolute errors, and a
    larger weight of small structures, make crisp decisions there.

    Args: high and truth (B, 1, H, W).
    """
    errors = high - truth
    slopes = total(errors.diff(dim=axis).square().mean() for axis in (-1, -2))
    return {"truth": SQUARED * errors.square().mean(), "slopes": SQUARED * SQUARED_SLOPES * slopes}


def uncertainty_loss(log_deviation: torch.Tensor, high: torch.Tensor, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the negative log-likelihood of the errors under a Gaussian; the grey value gets no gradient from it.

    Args, all (B, 1, H, W): log_deviation, the natural logarithm of the errors' standard deviation; high; truth.
    """
    errors, log_deviation = (high - truth).detach(), log_deviation.float()
    likelihood = log_deviation + errors.square() * torch.exp(-2 * log_deviation) / 2
    return {"uncertainty": LIKELIHOOD * likelihood.mean()}


def _absolute(errors: torch.Tensor, small: float) -> torch.Tensor:
    """Return the smooth L1 norm: absolute error, quadratic below `small`."""
    return F.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none", beta=small)
