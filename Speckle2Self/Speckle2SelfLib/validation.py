"""Compute figures on held-out frames, a picture of one of them, and the score that selects a run's best model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from . import metrics
from .dataset import Batch, Cine
from .grey import BRIGHTEST, evenly_spaced
from .inference import through_network
from .metrics import TRUE_ERRORS
from .network import MOST
from .recipes import Recipe

FRAMES = 4  # frames used of each recording, evenly spread
SIDE = 512  # pixels of a frame that the loss is measured on, at most


@torch.no_grad()
def validate(
    recipe: Recipe, network: nn.Module, cines: Sequence[Cine], device: torch.device
) -> tuple[dict[str, float], np.ndarray | None]:
    """Return figures on held-out cines, and a picture of one of their frames next to its result.

    The figures are the loss terms, `held-out <term>`; those of
    `metrics.evaluate` for recorded frames at the model's grain; for simulated ones the error to the truth (the cine's
    `figure`, such as rms) and repeat, the difference between two draws of speckle over one anatomy.
    Figures that cannot be measured (the structure of a black frame) are left out; there are none where nothing is held
    out. The picture is (H, 2 W) uint8, or None without recorded frames; with a head for the uncertainty it is
    (H, 3 W), and its last part white where the uncertainty is `network.MOST`.

    Args: network, the averaged one, in evaluation mode, on the device.
    """
    learner, picture = recipe.wrap(network), None
    terms: dict[str, list[float]] = {}
    figures: dict[str, list[float]] = {}
    for cine in cines:
        count, outputs = len(cine.frames), []
        for number in evenly_spaced(count, FRAMES) if cine.truth is None else range(count):
            window = slice(number, number + 1)
            frame = cine.frames[window].to(device)  # (1, 1, H, W)
            truth = None if cine.truth is None else cine.truth[window].to(device)
            if truth is not None or recipe.learns_recorded:
                views = recipe.views(_corner(frame, truth))
                for name, term in recipe.loss(learner(views), views).items():
                    terms.setdefault(f"held-out {name}", []).append(term.item())
            before = recipe.normalize(frame)
            after = through_network(network, before).clamp(0, BRIGHTEST)
            if truth is not None:
                figures.setdefault(cine.figure, []).append((after - truth).square().mean().sqrt().item())
                outputs.append(after)
                continue
            if picture is None:
                parts = [before, after]
                if getattr(network, "uncertainty", None) is not None:
                    parts.append(through_network(_Deviations(network), before) / MOST)
                picture = np.hstack([to_8_bit(cine.as_recorded(x)) for x in parts])
            for name, value in metrics.evaluate(to_8_bit(before)[None], to_8_bit(after)[None]).items():
                figures.setdefault(name, []).append(value)
        if cine.draws > 1:
            pairs = zip(outputs[:: cine.draws], outputs[1 :: cine.draws], strict=True)
            figures["repeat"] = [((one - two).square().mean() / 2).sqrt().item() for one, two in pairs]
    return {name: float(np.mean(values)) for name, values in (terms | figures).items()}, picture


class _Deviations(nn.Module):
    """The standard deviations of the errors that a network with a head for them estimates, as a network."""

    def __init__(self, network: Any):
        super().__init__()
        self.network, self.multiple, self.margin = network, network.multiple, network.margin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.maps(x)[1].exp()


def score(figures: dict[str, float]) -> float:
    """Return the score that selects the best model (lower is better): the mean of its errors to known truths, of the
    recordings' anatomy and of the simulator's; without a known truth, the held-out loss."""
    errors = [figures[name] for name in TRUE_ERRORS if name in figures]
    if errors:
        return float(np.mean(errors))
    return sum(value for name, value in figures.items() if name.startswith("held-out"))


@torch.no_grad()
def fit_uncertainty(network: Any, cines: Sequence[Cine]) -> float:
    """Return the factor that makes the estimated deviations true on held-out simulated frames: the median over the
    frames of the ratio of the true error's rms to the estimated one's; 1 without such frames.

    Args: network, with a head for the uncertainty, in evaluation mode, on the CPU.
    """
    ratios = []
    for cine in cines:
        for frame, truth in zip(cine.frames.split(1), () if cine.truth is None else cine.truth.split(1), strict=False):
            batch = _corner(frame.cpu(), truth.cpu())
            grey, log_deviation = network.maps(batch.frames)
            errors = grey.clamp(0, BRIGHTEST) - batch.truth
            expected = log_deviation.exp().square().mean()
            ratios.append((errors.square().mean() / expected).sqrt().item())
    return float(np.clip(np.median(ratios), 1e-3, 1e3)) if ratios else 1.0


def _corner(frame: torch.Tensor, truth: torch.Tensor | None) -> Batch:
    """Return the top left part of a frame (1, 1, H, W) and its truth, of a size that every network accepts."""
    height, width = (min(n // 16 * 16, SIDE) for n in frame.shape[-2:])
    return Batch(frame[..., :height, :width], None if truth is None else truth[..., :height, :width])


def to_8_bit(x: torch.Tensor) -> np.ndarray:
    """Return an image (1, 1, H, W) of values about [0, 1] as (H, W) uint8."""
    return (x[0, 0].float().clamp(0, 1) * 255).round().byte().cpu().numpy()
