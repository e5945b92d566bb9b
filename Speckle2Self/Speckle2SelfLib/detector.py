"""Find the graphics that a scanner drew, pixel by pixel, with a small network; Documentation/method.md, section 5.

The network sees frames at their recorded size: resampling for a despeckling model would erase strokes of one pixel.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from skimage.filters import apply_hysteresis_threshold

from . import checkpoint
from .devices import choose_precision
from .inference import fast_network, through_network
from .network import STEPS, windows

FILE = Path(__file__).resolve().parent.parent / "Resources" / "graphics.safetensors"  # this is not a despeckling model
LOGITS = 16.0  # factor on the network's output minus 1/2
ALONE = (-1.0, 4.5)  # logits on a single frame of a cine; pixels from the first on count if connected to the second
STATIC = (-1.75, 0.5)  # the same for mean logits, over frames or mirror images
CHANGE = 0.5  # of the tissue's; what changes by more over time is not static
STILL = 0.01  # fraction of the range of grey values; tissue that changes by less shows nothing about graphics
RUN = 6  # pixels in a row, a column or a diagonal; where tissue has one value over as many, it is dark or saturated
SINGLE = 4.6  # logit of such runs, if they are neither, and if the network finds them possible
POSSIBLE = -5.0  # logit from which the network finds graphics possible
DARK, SATURATED = 0.16, 0.995  # fraction of the range of grey values; quantile of the tissue
REPEATED = 0.15  # fraction of equal neighbors; from here on, runs prove nothing: few grey values, repeated pixels
DOUBT = 1.5  # subtracted from the logits of such frames, where equal neighbors mislead the network as well
SAMPLES = 64  # rows or columns, the fewer of both, in which that quantile is measured
CERTAIN = 4.0  # logit; from here on, bright pixels are not tissue; black cysts and their borders reach about 5
MARGIN = 1  # pixels around the graphics on each frame that also count as drawn; `region.AROUND`: around static ones


@lru_cache(maxsize=1)
def _detector() -> checkpoint.Model:
    return checkpoint.Model(*checkpoint.load(FILE))


@torch.inference_mode()
def _logits(values: torch.Tensor, bounds: tuple[float, float]) -> torch.Tensor:
    """Return the logits (N, H, W) of graphics at each pixel of frames (N, H, W)."""
    low, high = map(float, bounds)
    scaled = values.float().sub(low).mul_(1 / max(high - low, 1e-9)).nan_to_num_(0).clamp_(0, 1)  # (N, H, W)
    network = fast_network(_detector(), values.device, choose_precision(values.device))
    logits = through_network(network, scaled[:, None])[:, 0].sub(0.5).mul_(LOGITS)
    possible = (logits > POSSIBLE) & (scaled >= DARK) & runs_of_one_value(scaled, RUN)
    for frame, found, places in zip(scaled, logits, possible, strict=True):
        step = max(1, min(frame.shape) // SAMPLES)
        some = frame[::step, ::step]
        tissue = some[(some > 0) & (found[::step, ::step] < 0)]
        if not len(tissue):
            continue
        if _repeating(frame, step) < REPEATED:
            found[places & (frame < tissue.quantile(SATURATED))] = SINGLE
        else:
            found -= DOUBT
    return logits


def _repeating(frame: torch.Tensor, step: int) -> float:
    """Return the fraction of pixels (H, W), dark ones aside, that repeat the one before them, along rows or along
    columns, whichever is more; only every `step`-th row and column is counted."""
    fractions = []
    for lines in (frame[::step], frame.T[::step]):
        bright, same = lines[:, 1:] >= DARK, lines[:, 1:] == lines[:, :-1]
        fractions.append(((bright & same).sum() / bright.sum().clamp(min=1)).item())
    return max(fractions)


def runs_of_one_value(x: torch.Tensor, length: int) -> torch.Tensor:
    """Return where frames (N, H, W) have exactly one value over `length` pixels in a row, a column or a diagonal."""
    found = torch.zeros_like(x, dtype=torch.bool)
    for step in STEPS:
        first, second = windows(x, 2, step)
        equal = x[first] == x[second]
        starts, *others = (equal[window] for window in windows(equal, length - 1, step))
        starts = starts.clone()
        for other in others:
            starts &= other
        for window in windows(x, length, step):
            found[window] |= starts
    return found


def widen(mask: Any, reach: int) -> Any:
    """Dilate masks (..., H, W) bool, arrays or tensors, by `reach` rows and columns."""
    for axis in (-1, -2):  # shifts of bytes are ten times faster than a maximum filter
        mask = mask.swapaxes(axis, -1)
        grown = mask | False
        for shift in range(1, reach + 1):
            grown[..., shift:] |= mask[..., :-shift]
            grown[..., :-shift] |= mask[..., shift:]
        mask = grown.swapaxes(axis, -1)
    return mask


def find_graphics(values: torch.Tensor, bounds: tuple[float, float]) -> np.ndarray:
    """Return the graphics on each frame, bool (N, H, W).

    Args: values, grey values (N, H, W) on any device; bounds, the smallest and largest finite value of the recording.
    """
    return _on_each(_logits(values, bounds).cpu().numpy())


def _on_each(logits: np.ndarray) -> np.ndarray:
    """Return the graphics on each frame, bool (N, H, W), with a margin, from logits (N, H, W)."""
    found = np.zeros(logits.shape, bool)
    for mask, values in zip(found, logits, strict=True):
        if (values > ALONE[1]).any():
            mask[:] = apply_hysteresis_threshold(values, *ALONE)
    return widen(found, MARGIN)


@torch.inference_mode()
def graphics_over_time(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the graphics on frames (N, H, W) of any range: static ones, bool (H, W); those on each frame, with a
    margin, bool (N, H, W); and the static ones that are certain, bool (H, W).

    Static graphics are found in the mean of the logits over frames, whose speckle differs, or over the mirror images of
    a single frame.
    """
    finite = np.isfinite(frames)
    bounds = frames.min(where=finite, initial=np.inf), frames.max(where=finite, initial=-np.inf)
    total, each = torch.zeros(1, *frames.shape[1:]), np.zeros(frames.shape, bool)
    for number, frame in enumerate(torch.from_numpy(frames)):  # one by one, which spares memory
        logits = _logits(frame[None], bounds)
        each[number] = _on_each(logits.numpy())[0]
        total += logits
    if len(frames) == 1:
        turns = ([1], [2], [1, 2])
        total += sum(_logits(torch.from_numpy(frames).flip(axes), bounds).flip(axes) for axes in turns)
    average = total[0].numpy() / (len(frames) if len(frames) > 1 else 4)
    always, certain = apply_hysteresis_threshold(average, *STATIC), average > CERTAIN
    if len(frames) > 1:
        always &= ~_changing(always, certain, frames, (average < 0) & finite.all(0), STILL * (bounds[1] - bounds[0]))
    return always, each | always, certain


def _changing(
    found: np.ndarray, certain: np.ndarray, frames: np.ndarray, tissue: np.ndarray, least: float
) -> np.ndarray:
    """Return which parts of `found` change about as much as the tissue between frames (N, H, W), and are nowhere
    certain; masks (H, W) bool. None if the tissue itself changes by less than `least`."""
    change = np.abs(np.diff(frames.astype(np.float32), axis=0)).mean(0)
    tissue = tissue & (change > 0)
    usual = np.median(change[tissue]) if tissue.any() else 0
    if usual < least:
        return np.zeros_like(found)
    labels, count = ndimage.label(found, np.ones((3, 3)))
    parts = np.arange(count + 1)
    moved = ndimage.median(change, labels, parts) > CHANGE * usual
    return found & (moved & (ndimage.maximum(certain, labels, parts) == 0))[labels]
