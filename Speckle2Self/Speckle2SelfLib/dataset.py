"""Prepare training data: recordings at the model's grain, simulated anatomies, and what is held out."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from . import files
from .augmentation import Augmentation
from .calibration import calibrate
from .config import ModelConfig
from .devices import each_in_order
from .grey import BRIGHTEST, evenly_spaced, grey_mapping, luminance
from .recorded_speckle import RecordedSpeckle
from .region import box_of, detect, fill_outside
from .resampling import Resampling
from .simulation import simulate_recorded
from .system import InputError, Progress, _

SIMULATED_GRAIN = (0.85, 2.6)  # pixels, as the simulator counts it: 0.8 to 2 as measured
COUNTED = (0.85, 1.2, 1.7, 2.2, 2.6, 3.2)  # pixels, grains of the simulator
MEASURED = (0.80, 1.15, 1.5, 1.8, 1.97, 2.75)  # pixels, as `estimate_grain` measures them
NEAR = (-0.15, 0.15)  # natural logarithm of simulated grains, relative to the recording's
NATURAL = 0.5  # fraction of simulated anatomies that are dead leaves with textures; the others are textbook ones
PIECES = 0.3  # fraction of the simulated frames spanning all grains that are pieces of sectors, with turned grain
SIDE_BY_SIDE = 4  # anatomies that are simulated at a time; Python itself uses a single thread
NOT_FOUND = _("No ultrasound region was found. Choose the region 'none' for whole frames, or a mask.")
NOTHING = _("Nothing can be learned from frames or regions that are constant or smaller than 32 pixels.")
UNCHANGED = Augmentation()


@dataclass(frozen=True)
class Cine:
    """A recording, or simulated frames, prepared for training."""

    frames: torch.Tensor  # (N, 1, H, W) at the model's grain, float32 about [0, 1], or uint8 as recorded
    grain: tuple[float, float] = (1.0, 1.0)  # (axial, lateral) pixels, as `estimate_grain` measures it
    truth: torch.Tensor | None = None  # (N, 1, H, W) for simulated frames
    resampling: Resampling | None = None  # the one applied to reach the model's grain
    recorded_grain: tuple[float, float] = (1.0, 1.0)  # (axial, lateral) pixels of the recording
    digest: int = 0  # checksum that identifies copies of the recording
    figure: str = "rms"  # the name of the error to the truth
    draws: int = 1  # simulated frames of each anatomy, one after another, that differ in their speckle

    def move_to(self, device: torch.device) -> Cine:
        """Move the frames to the device, unless they need more than a quarter of the free memory there."""
        size = self.frames.nbytes + (0 if self.truth is None else self.truth.nbytes)
        if device.type != "cuda" or 4 * size > torch.cuda.mem_get_info(device)[0]:
            return self
        truth = None if self.truth is None else self.truth.to(device)
        return replace(self, frames=self.frames.to(device), truth=truth)

    @property
    def inside(self) -> np.ndarray:
        """Return the imaged pixels, (H, W) bool."""
        if self.resampling is None:
            return np.ones(self.frames.shape[-2:], bool)
        region = torch.from_numpy(self.resampling.region.astype(np.float32))[None, None]
        return self.resampling.to_network(region)[0, 0].numpy() > 0.99

    def as_recorded(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` (1, 1, h, w), at the model's grain, as (1, 1, H, W) in the recording's region, black around it."""
        if self.resampling is None:
            return x
        return self.resampling.to_recording(x.cpu()) * torch.from_numpy(self.resampling.region)


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch."""

    frames: torch.Tensor  # (B, 1, h, w)
    truth: torch.Tensor | None = None  # (B, 1, h, w)
    augmentation: Augmentation = UNCHANGED


def read_cine(
    path: Path, region: str, model: ModelConfig, detects: bool = True, most_frames: int | None = None
) -> Cine:
    """Read a recording and prepare it for training.

    Args: region, "auto", "none", a mask file, or a folder of masks named like the recordings; detects, whether "auto"
    detects the imaged region or means whole frames; most_frames, the limit for frames, evenly spread; None: all.
    Raises InputError.
    """
    recording = files.read(path)
    frames, inside = recording.frames, None
    digest = zlib.crc32(frames[evenly_spaced(len(frames), 4)].tobytes(), len(frames))
    if most_frames is not None and len(frames) > most_frames:
        frames = frames[evenly_spaced(len(frames), most_frames)]
    if region not in ("auto", "none"):
        masks = Path(region)
        if masks.is_dir():
            masks = next((mask for mask in sorted(masks.iterdir()) if mask.stem == path.stem), masks / path.name)
        inside = files.read_mask(masks, frames.shape[1:3])
        frames = fill_outside(frames, inside)  # else frames that are kept as recorded would show their surroundings
        digest = zlib.crc32(np.packbits(inside).tobytes(), digest)
    elif region == "auto" and detects:
        inside = detect(frames, recording.region)
        if not inside.any():
            raise InputError(NOT_FOUND)
    return replace(prepare_cine(frames, inside, model), digest=digest)


def prepare_cine(frames: np.ndarray, region: np.ndarray | None, model: ModelConfig) -> Cine:
    """Cut a recording (N, H, W[, C]) to its region's bounding box and convert it to the model's grey values and grain.

    For a model that normalizes every frame on its own, the frames are kept as recorded, except for colors and values
    that are not finite. Raises InputError if it is smaller than 32 pixels, 16 at the model's grain, or constant.
    """
    if region is None or not region.any():
        region = np.ones(frames.shape[1:3], bool)
    rows, columns = box_of(region)
    frames, region = frames[:, rows, columns], region[rows, columns]
    if min(region.shape) < 32:
        raise InputError(NOTHING)
    try:
        calibration = calibrate(frames, region)
    except InputError as error:
        raise InputError(NOTHING) from error
    low, high = calibration.mapping
    if high <= low or calibration.grain is None:  # it is measured wherever there is speckle
        raise InputError(NOTHING)
    if model.normalisation == "frame" and model.grain is None:
        eight_bit = frames.dtype == np.uint8 and frames.ndim == 3
        frames = frames.copy() if eight_bit else np.nan_to_num(luminance(frames), False, low, high, low)
        return Cine(torch.from_numpy(frames)[:, None], recorded_grain=calibration.grain)  # (N, 1, H, W)
    resampling = Resampling(region, calibration.grain, model.grain) if model.grain else None
    if resampling is not None and min(resampling.size) < 16:
        raise InputError(_("Frames or regions are too small for their speckle size: nothing can be learned."))
    prepared = []
    for frame in frames:
        frame = np.nan_to_num(luminance(frame[None]), nan=low, posinf=high, neginf=low)
        frame = torch.from_numpy((fill_outside(frame, region) - low) / (high - low))[:, None]  # (1, 1, H, W)
        prepared.append(frame if resampling is None else resampling.to_network(frame))  # (1, 1, h, w)
    grain = calibration.grain if resampling is None else resampling.grain
    return Cine(torch.cat(prepared), grain, resampling=resampling, recorded_grain=calibration.grain)


def hold_out(cines: list[Cine]) -> tuple[list[Cine], list[Cine]]:
    """Split recordings into those to train on and those held out; with too few frames, none are held out.

    With ten recordings or more, a tenth of them is held out; with fewer, only the last frames of each, because every
    recording's anatomy is worth training on.
    """
    if count := len(cines) // 10:
        gap = len(cines) // 20 if all(len(cine.frames) == 1 for cine in cines) else 0  # they may come from one cine
        return cines[: -count - gap], cines[-count:]
    parts = [_split(cine) for cine in cines]
    return [part for part, _ in parts], [part for _, part in parts if part is not None]


def _split(cine: Cine) -> tuple[Cine, Cine | None]:
    """Split one recording: hold out the last sixth and discard the twelfth before it, which resembles both parts."""
    count = len(cine.frames)
    if count < 12:
        return cine, None
    tail, gap = count // 6, count // 12
    return replace(cine, frames=cine.frames[: count - tail - gap]), replace(cine, frames=cine.frames[count - tail :])


def simulate_cines(
    count: int,
    crop: int,
    rng: np.random.Generator,
    grains: Sequence[tuple[float, float]] = (),
    progress: Progress = lambda *_: None,
    speckles: Sequence[RecordedSpeckle] = (),
) -> Cine:
    """Simulate frames of `count` anatomies of crop x crop pixels, processed and mapped like recordings, with their
    truth.

    grains: measured in recordings; each anatomy has one of them, within 15 %. If empty, anatomies span all grains.
    speckles: for each grain, the speckle to draw over the expected grey values instead of the simulated one.
    progress: called after each with (anatomies simulated, anatomies); an exception that it raises ends the simulation.
    """

    def make(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        of = int(rng.integers(len(grains))) if grains else 0
        frames, truth = _anatomy(crop, grains[of] if grains else None, rng)
        return (np.minimum(speckles[of].draw(truth, rng), BRIGHTEST) if speckles else frames), truth

    return side_by_side(make, count, crop, rng, progress)


def side_by_side(
    make: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]], count: int, crop: int,
    rng: np.random.Generator, progress: Progress = lambda *_: None, draws: int = 1,
) -> Cine:  # fmt: skip
    """Simulate `count` anatomies in parallel, each with a seed of its own, and return them as a cine.

    Args: make, returns frames (draws, crop, crop) and their truth (crop, crop); progress, see `simulate_cines`.
    """
    frames, truths = np.empty((2, count, draws, 1, crop, crop), np.float32)
    seeds = rng.integers(2**63, size=count)

    def store(number: int) -> None:
        frames[number, :, 0], truths[number, :, 0] = make(np.random.default_rng(seeds[number]))

    with each_in_order(store, range(count), SIDE_BY_SIDE, torch.device("cpu")) as made:
        for number, _ in enumerate(made, 1):
            progress(number, count)
    frames, truths = frames.reshape(-1, 1, crop, crop), truths.reshape(-1, 1, crop, crop)
    return Cine(torch.from_numpy(frames), truth=torch.from_numpy(truths), draws=draws)


def join_cines(cines: Sequence[Cine]) -> Cine:
    """Join simulated cines of one size, with their truth, into one."""
    truths = [cine.truth for cine in cines if cine.truth is not None]
    return Cine(torch.cat([cine.frames for cine in cines]), truth=torch.cat(truths))


def _anatomy(
    crop: int, measured: tuple[float, float] | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a frame (1, crop, crop) of an anatomy and its truth (crop, crop); see `simulate_cines`."""
    if measured:
        grain = tuple(np.interp(measured, MEASURED, COUNTED) * np.exp(rng.uniform(*NEAR, 2)))
    else:
        smallest, largest = np.log(SIMULATED_GRAIN)
        grain = tuple(np.exp(rng.uniform(smallest, largest, 2)))
    geometry = "linear" if measured or rng.random() >= PIECES else "piece"
    layout = "natural" if rng.random() < NATURAL else None
    frames, truth = simulate_recorded((crop, crop), grain, geometry, rng, layout)
    low, high = grey_mapping(frames, None)
    span = max(high - low, 1e-3)
    return np.minimum((frames - low) / span, BRIGHTEST), (truth - low) / span
