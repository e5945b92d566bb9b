"""The recipes: each way of training is a class that makes its decisions. The training loop never checks their names.

A new recipe is a class here, its name in RECIPES and `config.RECIPES`, and a preset in `config.PRESETS`. See
Documentation/method.md, sections 1 and 2, and adaptation.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from .augmentation import Augmentation, augment, draw_affine, draw_flip_and_gain
from .config import WHOLE_FRAMES, ModelConfig, TrainingConfig
from .dataset import Batch, Cine, join_cines, simulate_cines
from .loss import published_loss, truth_loss
from .network import FrameLearner
from .perturbation import min_max, published_views
from .respeckling import as_bright, despeckle_anatomies, draw_pairs, find_pairs, respeckle
from .system import InputError, Progress, _

FAST_GRAIN = (0.65, 1.8)  # pixels, as `estimate_grain` measures it; other recordings are resampled to it
HELD_OUT_ANATOMIES = (16, 64)  # smallest and largest number; in between, a hundredth of those trained on
MOST_FRAMES = 60  # limit for a recording whose anatomy is used
WARM_UP = 50  # steps while the learning rate rises
PAIRED = 0.5  # pieces of pairs of frames, relative to the anatomies
SHOWN = 3  # recordings whose speckle size is named in a message
MEASURED = _(
    "Speckle measured: {grains} pixels (down x across), of {dark}, {medium} and {bright} % of the grey range (rms) in "
    "dark, medium and bright tissue. In {count} of {most} pairs of neighboring frames the anatomy stands still while "
    "the speckle changes; each of these frames is also a training target for the other."
)
NEW = (
    "--width applies only to a new network of ours, --deep and --uncertainty also to one that lacks the deeper level "
    "or the uncertainty. Drop them, or drop --init."
)


class Recipe:
    """One way of training; the methods are in the order of their calls in a run.

    The three that carry the method are `views`, the learner that `wrap` returns, which is called with them, and `loss`.
    """

    model: ModelConfig  # config of a new network; networks to start from must agree with it in part
    betas = (0.9, 0.99)  # decay rates of Adam
    learns_truth = True  # whether the known truth of simulated frames is used
    learns_recorded = True  # whether the recorded frames themselves are trained on
    despeckles = False  # whether `simulate` needs a network that despeckles already
    most_frames: int | None = None  # frames used of a recording, evenly spread; None: all
    message = ""  # what `simulate` measured in the recordings, for the user
    memory_format = torch.channels_last  # layout of weights and activations

    def __init__(self, config: TrainingConfig):
        self.config = config

    @property
    def detects_region(self) -> bool:
        """Return whether the region "auto" detects the imaged part; else whole frames are used."""
        return self.config.recipe not in WHOLE_FRAMES

    def new_model(self, **shape: Any) -> ModelConfig:
        """Return the config of a new network. Raises InputError for a shape if the recipe's network has only one.

        Args: shape, fields of `ModelConfig`: width, deep, uncertainty.
        """
        return replace(self.model, **shape)

    def fits(self, model: ModelConfig) -> bool:
        """Return whether a network of this config can be trained."""
        return model.architecture == self.model.architecture and model.scales == self.model.scales

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return the learner, whose parameters are trained: the network itself, or one that holds it."""
        return network

    def simulate(
        self, cines: Sequence[Cine], network: nn.Module, rng: np.random.Generator,
        progress: Progress = lambda *_: None, held_out: Sequence[Cine] = (),
    ) -> tuple[Cine | None, list[Cine]]:  # fmt: skip
        """Make frames with known truth before the first step: those to train on, and those held out.

        This default simulates `config.simulated` anatomies with the recordings' grain. A recipe may use the recordings
        and the network that the run starts from.

        Args: cines, as `dataset.prepare_cine` makes them; network, in evaluation mode; progress, see `simulate_cines`;
        held_out, recordings like `cines` that are not trained on.
        """
        config, grains = self.config, [cine.grain for cine in cines]
        if not config.simulated:
            return None, []
        cine = simulate_cines(self.anatomies, config.crop, rng, grains, progress)
        apart = simulate_cines(self.anatomies_held_out, config.crop, np.random.default_rng([config.seed, 1]), grains)
        return cine, [apart]

    @property
    def anatomies(self) -> int:
        """Return the number of anatomies to simulate, at most the number that is used."""
        return min(self.config.simulated, self.config.steps * self.config.batch)

    @property
    def anatomies_held_out(self) -> int:
        """Return the number of further anatomies for validation."""
        return int(np.clip(self.config.simulated // 100, *HELD_OUT_ANATOMIES))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: it rises, then falls to 1 % along a cosine."""
        warm = min(1, (step + 1) / WARM_UP)
        return self.config.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / self.config.steps)))

    def draw_augmentation(self, rng: np.random.Generator, batch: int) -> Augmentation:
        """Draw the changes of a batch: flips and gain. Rotations would turn the grain too."""
        return draw_flip_and_gain(rng)

    def views(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the augmented views of a batch, always of the same shapes for crops of one size."""
        raise NotImplementedError

    def loss(self, predictions: Any, views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the terms of the loss by name, always the same ones."""
        raise NotImplementedError

    def normalize(self, frames: torch.Tensor) -> torch.Tensor:
        """Return frames (B, 1, H, W) of a cine as the network sees them when it despeckles."""
        return frames


class Published(Recipe):
    """Li, Navab, Jiang 2025: train three encoders and one decoder so that their predictions from three scales of a
    frame agree."""

    model = ModelConfig("published", normalisation="frame")
    betas = (0.5, 0.999)
    learns_truth = False
    memory_format = torch.contiguous_format  # instance normalization would convert channels-last back

    def new_model(self, **shape: Any) -> ModelConfig:
        if shape:
            raise InputError(NEW)
        return self.model

    def learning_rate(self, step: int) -> float:
        """Return the config's learning rate, which is constant."""
        return self.config.learning_rate

    def draw_augmentation(self, rng: np.random.Generator, batch: int) -> Augmentation:
        """Draw flips, shifts, scalings and rotations, as in the paper."""
        return draw_affine(rng, batch)

    def views(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        return tuple(augment(view, batch.augmentation) for view in published_views(batch.frames))

    def loss(self, predictions: Sequence[torch.Tensor], views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return published_loss(predictions, views)

    def normalize(self, frames: torch.Tensor) -> torch.Tensor:
        return min_max(frames.float())


class Respeckled(Recipe):
    """Our recipe: train on despeckled recordings with their own speckle drawn again, so that the truth is known, and on
    the simulator's anatomies. `share` is the fraction of the former."""

    model = ModelConfig("fast", grain=FAST_GRAIN)
    learns_recorded = False
    despeckles = True
    most_frames = MOST_FRAMES

    def wrap(self, network: nn.Module) -> FrameLearner:
        return FrameLearner(network)

    def views(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        return tuple(augment(view, batch.augmentation) for view in (batch.frames, batch.truth) if view is not None)

    def loss(self, predictions: Sequence[Any], views: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        grey, log_deviation = predictions
        return truth_loss(grey, log_deviation, views[1])

    def simulate(
        self, cines: Sequence[Cine], network: nn.Module, rng: np.random.Generator,
        progress: Progress = lambda *_: None, held_out: Sequence[Cine] = (),
    ) -> tuple[Cine | None, list[Cine]]:  # fmt: skip
        """Draw the recordings' own speckle over despeckled frames, and simulate anatomies of the simulator.

        Further frames of both kinds are held out: two draws of speckle over the anatomy of each held-out recording, if
        any, whose error is the figure `rms`; and anatomies of the simulator with the recordings' speckle, whose error
        is `world`.
        """
        config = self.config
        if not cines or not config.simulated:
            return super().simulate(cines, network, rng, progress, held_out)
        grains, count, few = [cine.grain for cine in cines], self.anatomies, self.anatomies_held_out
        own = max(1, round(config.share * count))
        recorded = despeckle_anatomies(cines, network)
        speckles = [anatomy.speckle for anatomy in recorded]
        pairs = [
            (cine, number) for cine, speckle in zip(cines, speckles, strict=True)
            if min(cine.frames.shape[-2:]) >= config.crop for number in find_pairs(cine, speckle, network)
        ]  # fmt: skip
        dark, medium, bright = (f"{100 * part:.0f}" for part in np.mean([s.spread for s in speckles], axis=0))
        self.message = MEASURED.format(
            grains=", ".join("{:.1f} x {:.1f}".format(*cine.recorded_grain) for cine in cines[:SHOWN]),
            dark=dark, medium=medium, bright=bright,
            count=len(pairs), most=sum(len(cine.frames) - 1 for cine in cines),
        )  # fmt: skip
        made = [respeckle(recorded, own, config.crop, rng, lambda n, _: progress(n, count))]
        if own < count:
            made.append(simulate_cines(count - own, config.crop, rng, grains, lambda n, _: progress(own + n, count)))
        if pairs:
            made.append(draw_pairs(pairs, max(1, round(PAIRED * count)), config.crop, rng))
        one, two = (np.random.default_rng([config.seed, number]) for number in (1, 2))
        world = simulate_cines(few, config.crop, one, grains, speckles=speckles)
        others = [cine for cine in held_out if all(cine is not known for known in cines)]
        apart = respeckle(despeckle_anatomies(others, network) or recorded, few, config.crop, two, draws=2)
        return as_bright(join_cines(made), network), [apart, replace(world, figure="world")]


RECIPES: dict[str, type[Recipe]] = {"respeckle": Respeckled, "published": Published}


def recipe_of(config: TrainingConfig) -> Recipe:
    """Return the recipe that a config names."""
    return RECIPES[config.recipe](config)
