"""Make the bundled model from the one before: a larger network learns to return in one pass what several passes of the
smaller one return.

    make_model.py START OUTPUT

The mean of a network's results for mirrored and shifted copies of a frame has a smaller error than a single result
(Timofte, Rothe, Van Gool, "Seven ways to improve example-based single image super resolution", CVPR 2016), but takes
eight passes. Here a copy of the network, with further blocks that at first change nothing, is trained on that mean
(distillation; Hinton, Vinyals, Dean, 2015) and on the expected grey value, which is known for simulated frames. After
the first round, its weights are averaged with the initial ones, which works better than either on other kinds of data
(Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022). In the second round, the mean is that of the
first round's result, and errors count more in even tissue, where ripples are seen most. In the third, mean and expected
grey value are made crisper: natural anatomy has more fine detail than simulated anatomy, so that the network otherwise
keeps too little of it. The card gets figures from anatomies that no network was trained on.
"""

import sys
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from Speckle2SelfLib import checkpoint
from Speckle2SelfLib.checkpoint import Model
from Speckle2SelfLib.config import TrainingConfig, to_dict
from Speckle2SelfLib.dataset import Cine, simulate_cines
from Speckle2SelfLib.grey import BRIGHTEST
from Speckle2SelfLib.loss import SLOPES, TRUTH, truth_loss
from Speckle2SelfLib.network import grow
from Speckle2SelfLib.recipes import FAST_GRAIN, RECIPES, Respeckled
from Speckle2SelfLib.training import Training
from Speckle2SelfLib.validation import fit_uncertainty

CONFIG = TrainingConfig(batch=16, learning_rate=5e-4, simulated=10_000, averaging=0.999, seed=1)
ROUNDS = (  # steps, share of the weights before the round, whether errors count more in even tissue, added detail
    (28_000, 0.5, False, 0.0),
    (22_000, 0.0, True, 0.0),
    (10_000, 0.0, True, 0.15),
)
BLOCKS = 2  # blocks in a row of the new network
MIRRORS = ((), (2,), (3,), (2, 3))  # axes
SHIFTS = ((0, 0), (3, 5))  # rows and columns; odd ones fall between the network's cells
LIKE_MEAN = 10  # weight of the difference from the mean, relative to the true error, which is larger
EVEN = 0.012  # grey range; half weight where neighbors differ by as much
LEAST = 0.25  # weight at steep slopes, added everywhere
FINE, COARSE = 0.8, 2.5  # pixels; the standard deviations of the two Gaussians between which detail is added
DARKEST = 0.9  # of its grey value that a pixel keeps where detail is added: none becomes a hole
ANATOMIES, SEED = 240, (0, 2)  # for fitting the uncertainty and for the figures
SHOWN = 500  # steps between two printed lines


class Distilled(Respeckled):
    """Train on simulated frames; their `truth` has three channels: the expected grey value, the same made crisper, and
    the mean to learn, made crisper too."""

    even = False  # whether differences from the mean count more in even tissue
    detail = 0.0  # see `crisper`

    def simulate(self, cines, network, rng, progress=lambda *_: None, held_out=()):
        cine = simulate_cines(self.anatomies, self.config.crop, rng, progress=progress)
        means = torch.cat([mean_of_passes(network, frames) for frames in cine.frames.split(16)])
        targets = [crisper(frames, self.detail) for frames in (cine.truth, means)]
        return replace(cine, truth=torch.cat([cine.truth, *targets], 1)), []

    def loss(self, predictions, views):
        grey, log_deviation = predictions
        truth, crisp, mean = views[1].split(1, 1)
        weights = evenness(mean) if self.even else torch.ones_like(mean)
        terms = truth_loss(grey, log_deviation, truth) | truth_loss(grey, None, crisp)  # of the first, the uncertainty
        return terms | {"mean": LIKE_MEAN * weighted_loss(grey.float() - mean, weights)}


def crisper(frames: torch.Tensor, detail: float) -> torch.Tensor:
    """Return frames (N, 1, H, W) with `detail` times as much added of their structure between FINE and COARSE."""
    fine, coarse = (torch.from_numpy(gaussian_filter(frames.numpy(), sigma, axes=(-2, -1))) for sigma in (FINE, COARSE))
    return torch.maximum(frames + detail * (fine - coarse), DARKEST * frames)


def evenness(frames: torch.Tensor) -> torch.Tensor:
    """Return weights (B, 1, H, W) with mean 1 that are larger where the 3 x 3 pixels around differ little."""
    steps = F.pad(frames.diff(dim=-1).abs(), (0, 1)) + F.pad(frames.diff(dim=-2).abs(), (0, 0, 0, 1))
    around = F.avg_pool2d(F.pad(steps, (1, 1, 1, 1), mode="replicate"), 3, 1)
    weights = 1 / (1 + (around / EVEN).square()) + LEAST
    return weights / weights.mean()


def weighted_loss(errors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum of the terms of `truth_loss`, with a weight for each pixel."""
    squares = (errors.square() * weights).mean()
    right = (errors.diff(dim=-1).square() * weights[..., 1:]).mean()
    down = (errors.diff(dim=-2).square() * weights[..., 1:, :]).mean()
    return TRUTH * (squares + SLOPES * (right + down))


@torch.inference_mode()
def mean_of_passes(network, frames: torch.Tensor) -> torch.Tensor:
    """Return the mean of a network's results for mirrored and shifted copies of frames (B, 1, H, W)."""
    height, width = frames.shape[-2:]
    total, room = torch.zeros_like(frames), network.multiple
    for axes in MIRRORS:
        for down, right in SHIFTS:
            padded = F.pad(frames.flip(axes), (right, room - right, down, room - down), mode="reflect")
            total += network(padded)[..., down : down + height, right : right + width].flip(axes)
    return total / (len(MIRRORS) * len(SHIFTS))


@torch.inference_mode()
def rms(network, cine: Cine) -> float:
    """Return the mean over the frames of the error's rms."""
    errors = [
        (network(frame).clamp(0, BRIGHTEST) - truth).square().mean().sqrt().item()
        for frame, truth in zip(cine.frames.split(1), cine.truth.split(1), strict=True)
    ]
    return float(np.mean(errors))


def describe(start: Model, model: Model) -> Model:
    """Return the model with its uncertainty fitted and with its card."""
    cine = simulate_cines(ANATOMIES, CONFIG.crop, np.random.default_rng(SEED))
    card = {
        "description": "Trained on simulated frames of natural and of textbook anatomies.",
        "start": "default", "training": to_dict(CONFIG) | {"rounds": ROUNDS}, "finished": True,
        "figures_are_of": "frames held out",
        "figures": {"rms": rms(model.network, cine)}, "figures_at_start": {"rms": rms(start.network, cine)},
    }  # fmt: skip
    return Model(replace(model.config, uncertainty_scale=fit_uncertainty(model.network, [cine])), model.network, card)


def main(start: str, output: str) -> None:
    before = Model(*checkpoint.load(start))
    larger = replace(before.config, grain=FAST_GRAIN, blocks=BLOCKS)
    made = Model(larger, grow(before.network, larger, CONFIG.seed))
    RECIPES[CONFIG.recipe] = Distilled
    for steps, share, even, detail in ROUNDS:
        Distilled.even, Distilled.detail = even, detail
        config = replace(CONFIG, steps=steps, start_share=share)
        training = Training([], config, made.config, made.network)
        for report in training.run():
            if report.step % SHOWN == 0:
                print(report, flush=True)
        made = Model(made.config, training.network)
    made = describe(before, made)
    checkpoint.save(output, made.config, made.network, made.card)
    print(made.card["figures"], made.card["figures_at_start"])


if __name__ == "__main__":
    main(*sys.argv[1:])
