"""The training loop of both recipes: a generator of step reports that knows nothing of who listens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .config import InputError, ModelConfig, TrainingConfig
from .devices import choose_precision
from .frames import (
    BRIGHTEST,
    augment,
    draw_augmentation,
    fill_outside,
    grey_mapping,
    luminance,
    resample,
    size_at_grain,
)
from .loss import disjoint_loss, published_loss
from .network import LatticePair, build
from .perturbation import estimate_grain, lattice_views, published_views
from .simulation import SimulationConfig, simulate

FAST_GRAIN = (0.75, 1.7)  # pixels, as `estimate_grain` measures it: what the simulated frames span
SIMULATED_GRAIN = (0.85, 2.6)  # the same span, and a margin, as the simulator counts it


@dataclass(frozen=True)
class Cine:
    """One recording as training sees it."""

    frames: torch.Tensor  # (N, 1, H, W) at the model's grain, float32 about [0, 1], or uint8 as recorded
    grain: tuple[float, float] = (1.0, 1.0)  # (axial, lateral) pixels, as `estimate_grain` measures it
    truth: torch.Tensor | None = None  # (N, 1, H, W) for simulated frames


@dataclass(frozen=True)
class Report:
    """One optimiser step."""

    step: int  # from 1
    steps: int
    terms: dict[str, float]  # the loss by name; the sum is minimised
    seconds_left: float


def prepare_cine(frames: np.ndarray, region: np.ndarray | None, model: ModelConfig) -> Cine:
    """A recording (N, H, W[, C]) cut to its region's bounding box and brought to the model's grain.

    Raises InputError where it is smaller than 32 pixels or constant.
    """
    if region is not None and region.any():
        rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        frames, region = frames[:, box[0], box[1]], region[box]
    else:
        region = np.ones(frames.shape[1:3], bool)
    low, high = grey_mapping(frames, region)
    if high <= low or min(frames.shape[1:3]) < 32:
        raise InputError("Nothing can be learnt from frames that are constant or smaller than 32 pixels.")
    if model.grain is None:
        eight_bit = frames.dtype == np.uint8 and frames.ndim == 3
        return Cine(torch.from_numpy(frames.copy() if eight_bit else luminance(frames))[:, None])
    grain = estimate_grain(luminance(frames[:: max(1, len(frames) // 8)]), region)
    size = size_at_grain(frames.shape[1:3], grain, model.grain)
    prepared = []
    for frame in frames:
        frame = np.nan_to_num(luminance(frame[None]), nan=low, posinf=high, neginf=low)
        frame = torch.from_numpy((fill_outside(frame, region) - low) / (high - low))
        prepared.append(resample(frame[:, None], size))
    scales = [new / old for new, old in zip(size, frames.shape[1:3], strict=True)]
    return Cine(torch.cat(prepared), (grain[0] * scales[0], grain[1] * scales[1]))


def simulate_cines(count: int, crop: int, rng: np.random.Generator) -> Cine:
    """`count` anatomies of crop x crop pixels with their truth, half of them in 8 bits, mapped as recordings are."""
    frames, truths = np.empty((2, count, 1, crop, crop), np.float32)
    for i in range(count):
        grain = tuple(np.exp(rng.uniform(*np.log(SIMULATED_GRAIN), 2)))
        simulated = simulate(SimulationConfig((crop, crop), grain=grain), rng)
        frame = simulated.frames[0]
        if rng.random() < 0.5:
            frame = np.round(frame * 255) / 255
        low, high = grey_mapping(frame[None], None)
        span = max(high - low, 1e-3)
        frames[i, 0] = np.minimum((frame - low) / span, BRIGHTEST)
        truths[i, 0] = (simulated.truth - low) / span
    return Cine(torch.from_numpy(frames), truth=torch.from_numpy(truths))


class Training:
    """A run over `cines`. Iterate over `run()`; `network` is then the trained one, averaged over the last steps.

    Args: cines, recorded ones (may be empty if the config simulates); network, where to start from, else random.
    Deterministic on the CPU for a given config. Raises InputError where there is nothing to train on.
    """

    def __init__(self, cines: list[Cine], config: TrainingConfig, model: ModelConfig, network=None, device="cpu"):
        torch.manual_seed(config.seed)
        self.config, self.device = config, torch.device(device)
        self.rng = np.random.default_rng(config.seed)
        self.recorded = cines
        self.simulated = None
        if config.simulated:
            self.simulated = simulate_cines(config.simulated, config.crop, self.rng)
        if not cines and not config.simulated:
            raise InputError("There is nothing to train on: give recordings, or simulate some.")
        network = (network or build(model)).to(self.device)
        if config.recipe == "published":
            self.model, self.views, self.loss = network, self._published_views, published_loss
        else:
            self.model, self.views, self.loss = (
                LatticePair(network).to(self.device),
                self._lattice_views,
                disjoint_loss,
            )
        if self.device.type == "cpu":
            self.model = self.model.to(memory_format=torch.channels_last)
        self.network = network
        if config.averaging:
            averaging = get_ema_multi_avg_fn(config.averaging)
            self.network = AveragedModel(network, multi_avg_fn=averaging).module
            self._average = lambda: averaging(list(self.network.parameters()), list(network.parameters()), None)

    def run(self) -> Iterator[Report]:
        """Trains; yields a report after every step."""
        config = self.config
        published = config.recipe == "published"
        betas = (0.5, 0.999) if published else (0.9, 0.99)
        optimiser = torch.optim.Adam(self.model.parameters(), config.learning_rate, betas)
        half = not published and choose_precision(self.device) == torch.bfloat16
        started = time.monotonic()
        for step in range(config.steps):
            if not published:
                warm = min(1, (step + 1) / 50)
                falling = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / config.steps))
                optimiser.param_groups[0]["lr"] = config.learning_rate * warm * falling
            frames, truth, grain = self._draw()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                views = self.views(frames, truth, grain)
                predictions = self.model(views)
                terms = self.loss(predictions, views)
            total = sum(terms.values())
            if not torch.isfinite(total):
                raise InputError(f"The loss is no longer a number at step {step + 1}: lower the learning rate.")
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            optimiser.step()
            if config.averaging:
                self._average()
            left = (time.monotonic() - started) / (step + 1) * (config.steps - step - 1)
            yield Report(step + 1, config.steps, {name: term.item() for name, term in terms.items()}, left)
        self.network.eval()

    def _draw(self):
        """A batch of crops (B, 1, h, w) of one cine, their truth or None, and their grain."""
        take_simulated = self.simulated is not None and (not self.recorded or self.rng.random() < self.config.share)
        cine = self.simulated if take_simulated else self.recorded[int(self.rng.integers(len(self.recorded)))]
        chosen = self.rng.integers(len(cine.frames), size=self.config.batch)
        multiple = 16 if self.config.recipe == "published" else 8
        height, width = (min(self.config.crop, n // multiple * multiple) for n in cine.frames.shape[-2:])
        crops, truths = [], []
        for index in chosen:
            top, left = (
                int(self.rng.integers(n - m + 1)) for n, m in zip(cine.frames.shape[-2:], (height, width), strict=True)
            )
            window = slice(top, top + height), slice(left, left + width)
            crops.append(cine.frames[index][:, *window])
            if cine.truth is not None:
                truths.append(cine.truth[index][:, *window])
        truth = torch.stack(truths).to(self.device) if truths else None
        return torch.stack(crops).to(self.device), truth, cine.grain

    def _published_views(self, frames, truth, grain):
        drawn = draw_augmentation(self.rng, len(frames), "published")
        return tuple(augment(view, drawn) for view in published_views(frames))

    def _lattice_views(self, frames, truth, grain):
        drawn = draw_augmentation(self.rng, len(frames), "disjoint")
        truth = None if truth is None else augment(truth, drawn)
        return lattice_views(augment(frames, drawn), self.rng, grain, truth)
