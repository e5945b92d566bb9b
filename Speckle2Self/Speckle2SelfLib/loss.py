"""Define the losses as named terms: the published one (the paper's section 3.4) and ours; Documentation/method.md, 1
and 2.

The training minimizes the sum of the terms of any loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from itertools import combinations
from operator import add

import torch
import torch.nn.functional as F

TRUTH = 10.0  # scale that keeps the numbers readable; Adam's steps do not depend on it
SLOPES = 2.0  # weight of errors in the differences of neighboring pixels, relative to errors of grey values
LIKELIHOOD = 0.01  # also keeps the numbers readable; the head has its own gradient


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


def truth_loss(grey: torch.Tensor, log_deviation: torch.Tensor | None, truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the terms of frames whose truth is known.

    truth: the mean squared error of the grey values. Its optimum is the expected truth, which changes gradually where
    the input is ambiguous.
    slopes: the same error for the differences between neighboring pixels: residual ripple, and strokes along rows of
    bright grains, have small errors but steep sides.
    uncertainty, if the network estimates it: the negative log-likelihood of the errors under a Gaussian; the grey value
    gets no gradient from it.

    Args, all (B, 1, H, W): grey, predicted; log_deviation, the natural logarithm of the errors' estimated standard
    deviation, or None; truth.
    """
    grey = grey.float()
    errors = grey - truth
    slopes = total(errors.diff(dim=axis).square().mean() for axis in (-1, -2))
    terms = {"truth": TRUTH * errors.square().mean(), "slopes": TRUTH * SLOPES * slopes}
    if log_deviation is not None:
        errors, log_deviation = errors.detach(), log_deviation.float()
        likelihood = log_deviation + errors.square() * torch.exp(-2 * log_deviation) / 2
        terms["uncertainty"] = LIKELIHOOD * likelihood.mean()
    return terms
