"""Recordings as anatomies: despeckled, and speckled again over a known echogenicity.

Related: SAR2SAR (Dalsasso, Denis, Tupin, IEEE JSTARS 2021), noise as clean (Xu et al., IEEE TIP 2020), Noisier2Noise
(Moran et al., CVPR 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from .anatomy import Anatomy
from .dataset import Cine, simulate_cines
from .grey import BRIGHTEST, evenly
from .inference import through_mirrored, through_network
from .resampling import resample
from .simulation import Draw
from .system import Progress

FRAMES = 24  # of all recordings together that are despeckled, at least one of each
SPANS = (35.0, 75.0)  # decibels from black to white
AT_ONCE = 16  # simulated frames that are despeckled at a time
SCALES = (0.75, 1.5)  # by which an anatomy is magnified
SHARPENED = 1.0  # of the difference to a blurred image, at most: despeckled images are smoother than what they show
TRIALS = 300  # scanners that are tried
KEPT = 30  # of them
STUDIED = 8  # frames of all recordings together that tell of their scanner, at least one of each
LEVELS = 10  # grey levels at which speckle is described
FEWEST = 150  # pixels of a level
LAGS = ((1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (0, 3), (1, 1))  # pixels (axial, lateral)
FINE = 0.2  # of the anatomies get strokes, and as many points


@torch.no_grad()
def despeckled(cines: Sequence[Cine], network: nn.Module) -> list[list[np.ndarray]]:
    """Return, for each recording at the network's grain, some of its frames despeckled: (H, W) about [0, 1]."""
    most = max(1, FRAMES // max(1, len(cines)))
    device = next(network.parameters()).device
    images = []
    for cine in cines:
        chosen = [cine.frames[number : number + 1].to(device) for number in evenly(len(cine.frames), most)]
        clean = [through_mirrored(network, frame).float().clamp(0, BRIGHTEST) for frame in chosen]  # (1, 1, H, W) each
        images.append([image[0, 0].cpu().numpy() for image in clean])
    return images


@torch.no_grad()
def distilled(cine: Cine, network: nn.Module, weight: float) -> Cine:
    """Mix what the network makes of simulated frames, averaged over their mirror images, into their truth.

    A network that is trained towards the mean of its own results comes near that mean in a single pass (Hinton,
    Vinyals, Dean, "Distilling the knowledge in a neural network", 2015).
    """
    if not weight or cine.truth is None:
        return cine
    device = next(network.parameters()).device
    truths = [
        truth.lerp(through_mirrored(network, frames.to(device)).float().clamp(0, BRIGHTEST).cpu(), weight)
        for frames, truth in zip(cine.frames.split(AT_ONCE), cine.truth.split(AT_ONCE), strict=True)
    ]
    return replace(cine, truth=torch.cat(truths))


def draw_recorded(
    images: Sequence[np.ndarray], size: tuple[int, int], rng: np.random.Generator, scanner: np.random.Generator
) -> Anatomy:
    """Draw a piece of one of the images as an anatomy of `size`: magnified, flipped, sharpened, in decibels."""
    anatomy = Anatomy(size, rng)
    image = images[int(rng.integers(len(images)))]
    scale = float(np.exp(rng.uniform(*np.log(SCALES))))
    taken = [max(8, min(n, round(wanted / scale))) for n, wanted in zip(image.shape, size, strict=True)]
    y, x = (int(rng.integers(n - m + 1)) for n, m in zip(image.shape, taken, strict=True))
    image = image + np.float32(rng.uniform(0, SHARPENED)) * (image - gaussian_filter(image, 1.5))
    piece = image[y : y + taken[0], x : x + taken[1]]
    for axis in (0, 1):
        piece = np.flip(piece, axis) if rng.random() < 0.5 else piece
    piece = resample(torch.from_numpy(np.ascontiguousarray(piece))[None, None], size)[0, 0].numpy()
    span = scanner.spawn(1)[0].uniform(*SPANS)  # apart, as the scanner draws on alike over other anatomies
    anatomy.decibels += np.float32(span) * piece
    if rng.random() < FINE:
        anatomy.strokes(int(rng.integers(1, 9)))
    if rng.random() < FINE:
        anatomy.points(int(rng.integers(1, 9)))
    return anatomy


def respeckle(
    cines: Sequence[Cine], images: Sequence[Sequence[np.ndarray]], count: int, crop: int, rng: np.random.Generator,
    progress: Progress = lambda *_: None, draws: int = 1, scanners: Sequence[Sequence[int]] = (),
) -> Cine:  # fmt: skip
    """Simulate `count` anatomies of recordings, with their grain and a known truth; see `dataset.simulate_cines`.

    Args: images, of each of the recordings, as `despeckled` gives them; scanners, as `find_scanners` does.
    """
    anatomies: list[Draw] = [partial(draw_recorded, some) for some in images]
    grains = [cine.grain for cine in cines]
    made = simulate_cines(count, crop, rng, grains, progress, anatomies, draws, scanners)
    return replace(made, draws=draws)


def find_scanners(
    cines: Sequence[Cine], images: Sequence[Sequence[np.ndarray]], crop: int, network: nn.Module,
    rng: np.random.Generator, progress: Progress = lambda *_: None, trials: int = TRIALS, kept: int = KEPT,
) -> list[list[int]]:  # fmt: skip
    """Return, for each recording, the seeds of those simulated scanners whose frames resemble its frames most.

    Approximate Bayesian computation: scanners are drawn at random, each images a piece of a recording, and those are
    kept whose speckle, by `speckle_statistics`, is the most like the recording's.
    """
    seeds = [int(seed) for seed in rng.integers(2**63, size=trials)]
    tried = respeckle(cines, images, trials, crop, rng, progress, scanners=[seeds] * len(cines))
    device = next(network.parameters()).device
    found = np.ma.masked_invalid([speckle_statistics(frame.to(device), network) for frame in tried.frames.split(1)])
    scale = found.std(0) + 1e-3
    few, scanners = max(1, STUDIED // len(cines)), []
    for cine in cines:
        frames = cine.frames[evenly(len(cine.frames), few)]
        away = (found - np.ma.masked_invalid(speckle_statistics(frames.to(device), network))) / scale
        nearest = np.argsort((away**2).mean(1).filled(np.inf), kind="stable")[:kept]
        scanners.append([seeds[number] for number in nearest])
    return scanners


@torch.no_grad()
def speckle_statistics(frames: torch.Tensor, network: nn.Module) -> np.ndarray:
    """Return what identifies a scanner by its frames (N, 1, H, W): for each of LEVELS grey levels how widely and how
    skewed the speckle is spread, and its correlation at a few lags. NaN where too few pixels have a level.

    The speckle is what the network takes away.
    """
    clean = torch.cat([through_network(network, frame).clamp(0, BRIGHTEST) for frame in frames.split(1)])
    speckle, levels = ((x[:, 0].float().cpu().numpy()) for x in (frames - clean, clean * LEVELS))
    found: list[float] = []
    for level in range(LEVELS):
        chosen = speckle[(levels >= level) & (levels < level + 1)]
        if len(chosen) < FEWEST:
            found += [np.nan] * 3
            continue
        deviation = chosen.std() + 1e-6
        found += [np.log(deviation + 0.003), *(np.quantile(chosen, (0.05, 0.95)) / deviation)]
    even = speckle / (np.sqrt(gaussian_filter(speckle**2, (0, 4, 4))) + 0.01)
    height, width = even.shape[1:]
    for down, across in LAGS:
        overlap = even[:, down:, across:] * even[:, : height - down, : width - across]
        found.append(3 * float(overlap.mean() / (np.mean(even**2) + 1e-9)))
    return np.array(found)
