"""Recordings as anatomies: despeckled, and covered again by speckle like their own, so that the truth is known.

Where neighboring frames show the same anatomy with independent speckle, each is also a target for the other, whose
mean over all speckle is the truth (Noise2Noise, Lehtinen et al., ICML 2018).

Related: SAR2SAR (Dalsasso, Denis, Tupin, IEEE JSTARS 2021), noise as clean (Xu et al., IEEE TIP 2020), Noisier2Noise
(Moran et al., CVPR 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from .dataset import Cine, side_by_side
from .grey import BRIGHTEST, evenly_spaced
from .inference import through_mirrored, through_network
from .recorded_speckle import RecordedSpeckle, measure
from .resampling import resample
from .system import Progress

FRAMES = 24  # frames of all recordings together that are despeckled, at least one of each
MEASURED = 8  # largest number of frames of a recording to measure its speckle on
SCALES = (0.75, 1.5)  # magnification of a piece of a frame
SHARPENED, BLUR = 1.0, 1.5  # largest share of the difference to a blurred piece that is added; sigma, pixels
CONTRASTS = (0.67, 1.5)  # factor on the contrast of half of the pieces
RELATED = 0.2  # correlation; from here on, the speckle of two frames counts as the same
FAINT = 0.25  # times the recording's speckle; frames with less are black or blank
CHANGED = 1.6  # times the difference of two draws, despeckled; the anatomy of frames that differ more has moved
BRIGHTNESS = 128  # frames to measure the brightness on
OFFSET = 1 / 255  # of the grey range; largest change of the truth's brightness


@dataclass(frozen=True)
class RecordedAnatomy:
    """Some frames of a recording at the network's grain, despeckled, and its speckle."""

    images: np.ndarray  # (N, H, W) about [0, 1]
    speckle: RecordedSpeckle


@torch.no_grad()
def despeckle_anatomies(cines: Sequence[Cine], network: nn.Module) -> list[RecordedAnatomy]:
    """Return the anatomy and speckle of each recording. The images are means over their mirror images."""
    most, device, anatomies = max(1, FRAMES // max(1, len(cines))), next(network.parameters()).device, []
    for cine in cines:
        frames = cine.frames[evenly_spaced(len(cine.frames), most)]  # (N, 1, H, W)
        images = [through_mirrored(network, frame.to(device)).float().cpu() for frame in frames.split(1)]
        clean = torch.cat(images)[:, 0].clamp(0, BRIGHTEST).numpy()  # (N, H, W)
        some = evenly_spaced(len(clean), MEASURED)
        anatomies.append(RecordedAnatomy(clean, measure(frames[some, 0].numpy(), clean[some], cine.inside)))
    return anatomies


@torch.no_grad()
def find_pairs(cine: Cine, speckle: RecordedSpeckle, network: nn.Module) -> list[int]:
    """Return the numbers n of the frames after which frame n + 1 shows the same anatomy below independent speckle.

    In such a pair, the speckle that the network removes is uncorrelated, and the despeckled frames differ about as much
    as for two draws of the recording's speckle over one of them.
    """
    device, inside = next(network.parameters()).device, cine.inside

    def despeckled(frame: torch.Tensor) -> np.ndarray:
        """Return a frame (1, 1, H, W) without speckle, (H, W)."""
        return through_network(network, frame.to(device)).float().cpu()[0, 0].numpy()

    clean = [despeckled(frame) for frame in cine.frames.split(1)]
    rng, lightest = np.random.default_rng(0), max(clean, key=np.mean)
    drawn = [speckle.draw(lightest, rng) for _ in range(2)]
    one, two = (despeckled(torch.from_numpy(frame)[None, None]) for frame in drawn)
    most, least = CHANGED * np.std((one - two)[inside]), FAINT * np.std((drawn[0] - lightest)[inside])
    found = []
    for number in range(len(clean) - 1):
        removed = [(cine.frames[n, 0].numpy() - clean[n])[inside] for n in (number, number + 1)]
        left = (clean[number] - clean[number + 1])[inside]
        if min(map(np.std, removed)) <= least or np.sqrt(np.mean(left**2)) > most:
            continue
        if np.corrcoef(removed)[0, 1] < RELATED:
            found.append(number)
    return found


def draw_pairs(pairs: Sequence[tuple[Cine, int]], count: int, crop: int, rng: np.random.Generator) -> Cine:
    """Return `count` pieces of frames, crop x crop pixels, and as their truth those of the other frame of their pair.

    Args: pairs, at least one: a cine of at least `crop` x `crop` pixels, and a number from `find_pairs`.
    """
    frames, truths = [], []
    for _ in range(count):
        cine, number = pairs[int(rng.integers(len(pairs)))]
        y, x = (int(rng.integers(n - crop + 1)) for n in cine.frames.shape[-2:])
        pieces = cine.frames[number : number + 2, :, y : y + crop, x : x + crop]
        order = rng.permutation(2)
        frames.append(pieces[order[:1]])
        truths.append(pieces[order[1:]])
    return Cine(torch.cat(frames), truth=torch.cat(truths))


def draw_piece(images: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw a piece of one of the images (N, H, W) in another `size`: magnified, flipped, sharpened, and some with
    another contrast. Grey values are within [0, BRIGHTEST]."""
    image = images[int(rng.integers(len(images)))]
    scale = float(np.exp(rng.uniform(*np.log(SCALES))))
    taken = [max(8, min(n, round(wanted / scale))) for n, wanted in zip(image.shape, size, strict=True)]
    y, x = (int(rng.integers(n - m + 1)) for n, m in zip(image.shape, taken, strict=True))
    piece = image[y : y + taken[0], x : x + taken[1]]
    piece = piece + np.float32(rng.uniform(0, SHARPENED)) * (piece - gaussian_filter(piece, BLUR))
    for axis in (0, 1):
        piece = np.flip(piece, axis) if rng.random() < 0.5 else piece
    piece = resample(torch.from_numpy(np.ascontiguousarray(piece))[None, None], size)[0, 0].numpy()
    if rng.random() < 0.5:
        piece = piece.mean() + (piece - piece.mean()) * np.float32(np.exp(rng.uniform(*np.log(CONTRASTS))))
    return piece.clip(0, BRIGHTEST)


def respeckle(
    anatomies: Sequence[RecordedAnatomy], count: int, crop: int, rng: np.random.Generator,
    progress: Progress = lambda *_: None, draws: int = 1,
) -> Cine:  # fmt: skip
    """Return `count` pieces of recorded anatomies, crop x crop pixels, as truth, and with their recording's speckle.

    Args: draws, frames of each piece, one after another, with different speckle; progress, see
    `dataset.simulate_cines`.
    """

    def make(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        anatomy = anatomies[int(rng.integers(len(anatomies)))]
        truth = draw_piece(anatomy.images, (crop, crop), rng)
        return np.minimum([anatomy.speckle.draw(truth, rng) for _ in range(draws)], BRIGHTEST), truth

    return side_by_side(make, count, crop, rng, progress, draws)


@torch.no_grad()
def as_bright(cine: Cine, network: nn.Module) -> Cine:
    """Return simulated frames with their truth raised or lowered to the brightness of the network's results, by at most
    OFFSET.

    So training does not change the brightness. Results of the bundled model are a little too bright, as its dark rims
    would otherwise be black.
    """
    if cine.truth is None:
        return cine
    device, some = next(network.parameters()).device, evenly_spaced(len(cine.frames), BRIGHTNESS)
    pairs = zip(cine.frames[some].split(1), cine.truth[some].split(1), strict=True)
    errors = [(through_network(network, frame.to(device)).cpu() - truth).mean().item() for frame, truth in pairs]
    return replace(cine, truth=cine.truth + float(np.clip(np.mean(errors), -OFFSET, OFFSET)))
