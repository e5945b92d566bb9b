"""Recordings as anatomies: despeckled, and then speckled anew over an echogenicity that is known.

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
from .inference import through_network
from .resampling import resample
from .simulation import Draw
from .system import Progress

FRAMES = 24  # of all recordings together that are despeckled, at least one of each
SPANS = (35.0, 75.0)  # decibels from black to white
SCALES = (0.75, 1.5)  # by which an anatomy is magnified
SHARPENED = 1.0  # of the difference to a blurred image, at most: despeckled images are smoother than what they show
FINE = 0.2  # of the anatomies get strokes, and as many points


@torch.no_grad()
def despeckled(cines: Sequence[Cine], network: nn.Module) -> list[list[np.ndarray]]:
    """Return, for each recording at the network's grain, some of its frames despeckled: (H, W) about [0, 1].

    Each is the mean of what the network makes of the frame and its mirror images, whose errors differ in part.
    """
    most = max(1, FRAMES // max(1, len(cines)))
    device = next(network.parameters()).device
    images = []
    for cine in cines:
        chosen = [cine.frames[number : number + 1].to(device) for number in evenly(len(cine.frames), most)]
        images.append([_despeckled(network, frame)[0, 0].cpu().numpy() for frame in chosen])
    return images


def _despeckled(network: nn.Module, frame: torch.Tensor) -> torch.Tensor:
    """(1, 1, H, W) -> (1, 1, H, W)."""
    mirrored = [through_network(network, frame.flip(axes)).flip(axes) for axes in ((), (-1,), (-2,), (-1, -2))]
    return torch.stack(mirrored).mean(0).float().clamp(0, BRIGHTEST)


def draw_recorded(images: Sequence[np.ndarray], size: tuple[int, int], rng: np.random.Generator) -> Anatomy:
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
    anatomy.decibels += np.float32(rng.uniform(*SPANS)) * piece
    if rng.random() < FINE:
        anatomy.strokes(int(rng.integers(1, 9)))
    if rng.random() < FINE:
        anatomy.points(int(rng.integers(1, 9)))
    return anatomy


def respeckle(
    cines: Sequence[Cine], images: Sequence[Sequence[np.ndarray]], count: int, crop: int, rng: np.random.Generator,
    progress: Progress = lambda *_: None, draws: int = 1,
) -> Cine:  # fmt: skip
    """Simulate `count` anatomies of recordings, with their grain and a known truth; see `dataset.simulate_cines`.

    Args: images, of each of the recordings, as `despeckled` gives them.
    """
    anatomies: list[Draw] = [partial(draw_recorded, some) for some in images]
    made = simulate_cines(count, crop, rng, [cine.grain for cine in cines], progress, anatomies, draws)
    return replace(made, draws=draws)
