"""Frames in, frames out: one way to despeckle for the panel, the console and the command line."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from . import checkpoint
from .calibration import Calibration, as_stack, calibrate, grain_in, value_range
from .config import FILTER_NAMES, DespeckleOptions, ModelConfig
from .devices import Replayed, choose_device, choose_precision, cores, cores_kept
from .files import release
from .filters import FILTERS
from .grey import BRIGHTEST, luminance
from .library import models, path_of
from .region import box_of, fill_outside, grey
from .resampling import Resampling
from .system import Cancelled, InputError

BLOCK_PIXELS = 2**22  # pixels through the network at once: bounds the memory, whatever the cine's length
BLOCK_PIXELS_CPU = 2**18  # no slower there, and a cancel is heard four times sooner
AT_ONCE_PIXELS = 2**22  # pixels of all blocks that the processor works on at a time
AT_ONCE_CUDA = 3  # blocks: while one is in the network, others come from and go to the computer's memory
REPLAYED = 2**23  # pixels whose recorded operations, and the memory that they take, are kept on a GPU
EDGE = 4  # pixels around a frame, which keep the network's zero padding away from it
TILE = 1152  # pixels; larger images go through a network without normalisation layers in tiles
SAME = 0.03  # of the grey range: about four times what rounding to bfloat16 makes of noise
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)  # one is another than its copy, whose weights may differ
class Model:
    """A network with what belongs to it."""

    config: ModelConfig
    network: torch.nn.Module
    card: dict = field(default_factory=dict)


def load_model(name_or_path) -> Model:
    """A model by name, bundled or the user's own, or a file: ours (.safetensors, any suffix) or the authors' (.pth).

    Raises InputError for an unknown name, and for a file that is no model (see `checkpoint.load`).
    """
    path = path_of(name_or_path)
    if not path.exists():
        names = ", ".join(models()) or "none"
        raise InputError(
            f"There is no model '{name_or_path}': neither a file nor a known model ({names}); to despeckle, "
            f"a filter serves too ({', '.join(FILTER_NAMES)})."
        )
    return Model(*checkpoint.load(path))


def kept_model(name_or_path) -> Model:
    """As `load_model`, but a file is read anew only if it has changed: for inference alone, as all share what it is."""
    path = path_of(name_or_path)
    try:
        status = path.stat()
    except OSError:
        return load_model(name_or_path)  # says what is wrong
    return _kept(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _kept(path: Path, *version: int) -> Model:
    return load_model(path)


@cores_kept()
def despeckle(
    frames: np.ndarray,
    model="default",
    *,
    region="auto",
    strength: float = 1.0,
    gamma: float = 1.0,
    device: str | torch.device = "auto",
    precision: torch.dtype | None = None,
    calibration: Calibration | None = None,
    output: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> np.ndarray:
    """Removes the speckle of one recording.

    Args:
        frames: (H, W), (N, H, W) or in colour (N, H, W, 3 or 4); any integer or floating type. Not changed.
        model: the name of a model or of a filter, a model file, a `Model`, or a function that maps (N, H, W) float32
            in [0, 1] to the same.
        region: (H, W) bool, what to despeckle; "auto" finds the imaged part; None takes whole frames.
        strength: 0 (the input) to 1 (the despeckled image).
        gamma: exponent on the despeckled grey values, 0.2 to 5; above 1 darkens.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", or a torch device.
        precision: torch.float32, bfloat16 or (CUDA) float16; None: see `precision_of`.
        calibration: what was found in the recording that these frames are of, in place of `region`; None: found here,
            once for all frames.
        output: an array of the frames' shape and type to write into, complete as far as `progress` told; None: a new
            one.
        progress: called with (frames done, frames).
        cancelled: asked before each block of frames; True raises Cancelled.

    Returns an array of the same shape, type and value range. Pixels outside the region, coloured ones and those that
    are not finite come back bit for bit. One grey mapping and one grain serve all frames, so nothing flickers (the
    published model alone normalises every frame by itself, as published).
    Raises InputError with one clear sentence, Cancelled.
    """
    DespeckleOptions(strength=strength, gamma=gamma, device=str(device))  # its checks
    if not callable(model) and not isinstance(model, Model):
        model = FILTERS.get(model) or kept_model(model)
    place = torch.device("cpu") if callable(model) else choose_device(device)
    resamples = isinstance(model, Model) and model.config.grain is not None
    if calibration is None:
        calibration = calibrate(frames, region, with_grain=resamples)
    stack, region = as_stack(frames), calibration.region
    bounds = calibration.bounds or value_range(stack)
    output, (low, high) = _made(frames, output), calibration.mapping
    if not region.any():
        logger.warning("The frames stay as they are: no part looks like ultrasound, or the region is empty. "
                       "The region 'none' takes whole frames, a mask any part of them.")  # fmt: skip
    if not region.any() or high <= low or strength == 0:
        np.copyto(output, frames)
        if progress:
            progress(len(stack), len(stack))
        return output

    box = (slice(None), *box_of(region))
    cut, result = stack[box], output.reshape(stack.shape)[box]
    grain = (calibration.grain or grain_in(stack, region)) if resamples else None
    region = region[box[1:]]
    resampling = Resampling(region, grain, model.config.grain, place) if resamples else None
    engine = _FilterEngine(model) if callable(model) else _NetworkEngine(model, place, precision, resampling)
    each = isinstance(model, Model) and model.config.normalisation == "frame"
    blocks, at_once = _blocks(len(cut), region.size, place, alone=callable(model))

    def work(whole: slice) -> int:
        """Despeckles a block of frames; returns where the next one starts."""
        part = cut[whole]
        np.copyto(output.reshape(stack.shape)[whole], stack[whole])
        before = _greys(part, place)
        finite = before.isfinite().cpu().numpy() if part.dtype.kind == "f" else np.True_
        greys = None if each else (low, high)
        after, change = _despeckled(before, finite, region, engine, greys, bounds, gamma, strength)
        if cut.ndim == 4:
            change = change & grey(part, float(bounds[1]))
        _write(result[whole], part, before, after, change, bounds)
        return whole.stop

    with each_in_order(work, blocks, at_once, place) as worked:
        for _ in blocks:
            if cancelled and cancelled():
                raise Cancelled
            done = next(worked)
            release(stack)
            release(output)
            if progress:
                progress(done, len(cut))
    return output


def _blocks(count: int, size: int, place: torch.device, alone: bool) -> tuple[list[slice], int]:
    """The frames of each block, and how many blocks are worked on at a time.

    Args: count, frames; size, pixels of each; alone, one block at a time.
    """
    if place.type == "cpu":  # blocks alike, so that no core waits for the last one
        most = max(1, BLOCK_PIXELS_CPU // size)
        at_once = 1 if alone else max(1, min(cores(), AT_ONCE_PIXELS // (most * size)))
        parts = np.array_split(np.arange(count), min(count, -(-count // (most * at_once)) * at_once))
    else:  # all but the last of one size, so that what is recorded serves them all
        most = max(1, BLOCK_PIXELS // size)
        at_once = AT_ONCE_CUDA if place.type == "cuda" else 1
        parts = np.split(np.arange(count), range(most, count, most))
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts], at_once


@contextmanager
def each_in_order(work: Callable, parts: Sequence, at_once: int, place: torch.device):
    """An iterator over the results of `work(part)`, of which at most `at_once` run at a time: on the processor each on
    cores of its own, with its memory near them, and without waiting for one another after each operation; on a CUDA
    device each in a stream of its own, so that copies to and from it and the network overlap."""
    threads, cuda = cores(), place.type == "cuda"
    workers = min(len(parts), at_once, at_once if cuda else threads)
    # OpenMP alone has a number of threads for each thread; it is asked for last, as a live image has one block.
    if workers < 2 or not (cuda or "backend: OpenMP" in torch.__config__.parallel_info()):
        yield map(work, parts)
        return
    # Or the first one's work keeps Python from starting the others for a while.
    all_there = threading.Barrier(workers, timeout=1)  # s
    streams, ready = (iter(_streams(place)), torch.cuda.current_stream(place)) if cuda else (None, None)

    def begin() -> None:
        torch.set_num_threads(max(1, threads // workers))
        if cuda:
            stream = next(streams)
            stream.wait_stream(ready)
            torch.cuda.set_stream(stream)
        with suppress(threading.BrokenBarrierError):
            all_there.wait()

    pool = ThreadPoolExecutor(workers, initializer=begin)
    try:
        yield pool.map(work, parts)
    finally:
        all_there.abort()  # no worker waits for one that could not be started
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # which threads that come later start with


@lru_cache(maxsize=8)  # torch keeps memory for each stream that was ever used
def _streams(place: torch.device) -> tuple:
    return tuple(torch.cuda.Stream(place) for _ in range(AT_ONCE_CUDA))


def _made(frames: np.ndarray, output: np.ndarray | None) -> np.ndarray:
    """A contiguous array like `frames`, or `output` if it is one."""
    if output is None:
        return np.empty_like(frames, order="C", subok=False)
    if output.shape != frames.shape or output.dtype != frames.dtype or not output.flags.c_contiguous:
        raise InputError(f"The output is no contiguous array of {frames.dtype} of shape {frames.shape}.")
    return output


def _greys(part: np.ndarray, place: torch.device) -> torch.Tensor:
    """Grey values (N, H, W) float32 on the device, in the range of `part`."""
    if part.ndim != 3 or part.dtype != np.uint8:  # else a quarter of the bytes to a GPU, and converted on all cores
        part = luminance(part)
    if place.type != "cuda":
        taken = part.flags.writeable and min(part.strides) > 0  # as torch wants it
        return torch.from_numpy(part if taken else part.copy()).to(place).float()
    pinned = torch.empty(part.shape, dtype=torch.uint8 if part.dtype == np.uint8 else torch.float32, pin_memory=True)
    np.copyto(pinned.numpy(), part)
    return pinned.to(place, non_blocking=True).float()


def _fetched(values: torch.Tensor) -> np.ndarray:
    """The values in the computer's memory."""
    if not values.is_cuda:
        return values.cpu().numpy()
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values).numpy()


def _without_gaps(values: torch.Tensor, region: np.ndarray, finite: np.ndarray) -> torch.Tensor:
    """(N, H, W) with all that is outside the region or not finite replaced by the nearest pixel that is neither."""
    if finite.all():
        if region.all():
            return values
        outside, nearest = _nearest(region.tobytes(), region.shape, values.device)
        flat = values.flatten(1).clone()
        flat[:, outside] = flat[:, nearest]
        return flat.view(values.shape)
    filled = [
        fill_outside(v[None], region & f) if (region & f).any() else np.zeros_like(v[None])
        for v, f in zip(values.cpu().numpy(), finite, strict=True)
    ]
    return torch.from_numpy(np.concatenate(filled)).to(values.device)


@lru_cache(maxsize=4)  # looked for once, not in each block of a cine and each frame of a live image
def _nearest(inside: bytes, shape: tuple[int, int], place: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The flat indices of the pixels outside a mask of `shape`, as bytes, and of the nearest pixels inside."""
    mask = np.frombuffer(inside, bool).reshape(shape)
    filled = fill_outside(np.arange(mask.size).reshape(1, *shape), mask)[0]
    return torch.from_numpy(np.flatnonzero(~mask)).to(place), torch.from_numpy(filled[~mask]).to(place)


@torch.inference_mode()
def _despeckled(before, finite, region, engine, mapping, bounds, gamma, strength):
    """A block's grey values (N, H, W) float32 after despeckling, on the device, and where they hold, bool (N or none,
    H, W). With a mapping, and finite values, nothing here waits for the device.

    mapping: the grey values that become 0 and 1; None: each frame's own smallest and largest. bounds: the smallest and
    largest value of the recording.
    """
    seen, excess = _without_gaps(before, region, finite), None
    change = region if finite.all() else region & finite
    if mapping is None:
        lows = seen.amin((1, 2), keepdim=True)
        spans = seen.amax((1, 2), keepdim=True) - lows
        change = change & (spans > 0).cpu().numpy()
        after = (seen - lows).div_(torch.where(spans > 0, spans, 1))
    else:
        lows, spans = mapping[0], mapping[1] - mapping[0]
        after = (seen - lows).div_(spans)
        if (bounds[1] - lows) / spans > engine.brightest:
            excess = (after - engine.brightest).clamp_(min=0)
    after = engine(after.clamp_(0, engine.brightest)).clamp_(min=0)
    if excess is not None:
        after.add_(excess)
    if mapping is None:
        after.clamp_(max=1)
    if gamma != 1:
        after.pow_(gamma)
    after.mul_(spans).add_(lows)
    if strength < 1:
        after.lerp_(seen, 1 - strength)
    return after, change


@torch.inference_mode()
def _write(result, part, before, after, change, bounds) -> None:
    """Puts `after`, which is overwritten, into `result` where `change` is True, in the type and range of `part`."""
    if part.ndim == 4:  # each channel moves by what the luminance moves: hue stays
        moved = _fetched(after - before)
        for channel in range(3):
            with np.errstate(invalid="ignore"):  # infinite ones, which do not change
                values = part[..., channel] + moved
            _put(result[..., channel], torch.from_numpy(values), change, bounds)
    else:
        _put(result, after, change, bounds)


def _put(result: np.ndarray, after: torch.Tensor, change, bounds) -> None:
    if result.dtype == np.uint8:  # nearly all that arrives; torch takes all cores
        values = _fetched(after.round_().clamp_(*(float(bound) for bound in bounds)).to(torch.uint8))
    else:
        values = _fetched(after)
        values = np.clip(values if result.dtype.kind == "f" else np.rint(values), *bounds).astype(result.dtype)
    np.copyto(result, values, where=True if change.all() else change)


@lru_cache(maxsize=8)
def precision_of(model: Model, device: torch.device) -> torch.dtype:
    """What this device does faster, if the model's output is the same there; but 32 bits for the published network,
    whose normalisation carries every rounding of 16 bits on: with the authors' reference weights its output is then off
    by 0.05 (rms, of 1). There are graphics cards whose 16 bits give no numbers, and weights that do not fit in them."""
    precision = choose_precision(device)
    if model.config.architecture == "published" or precision == torch.float32:
        return torch.float32
    noise = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        exact, fast = (through_network(placed(model, device, p), noise) for p in (torch.float32, precision))
    if (fast - exact).abs().max() < SAME:  # not if it is no number
        return precision
    logger.warning("In 16 bits this model gives other results on %s: it runs in 32.", device)
    return torch.float32


def placed(model: Model, device: torch.device, precision: torch.dtype) -> torch.nn.Module:
    """A copy of the model's network for inference on a device, its weights in the precision; another one once training
    has changed them."""
    weights = model.network.parameters()
    return _placed(model, device, precision, sum(0 if w.is_inference() else w._version for w in weights))


@lru_cache(maxsize=4)
def _placed(model: Model, device: torch.device, precision: torch.dtype, version: int) -> torch.nn.Module:
    network = copy.deepcopy(model.network).to(device).eval().to_precision(precision)
    if device.type == "cuda":
        network.forward = Replayed(network.forward, REPLAYED)
    return network


class _FilterEngine:
    """A filter, called as a network is: (N, H, W) float32 -> the same shape."""

    brightest = 1.0  # on its scale it sees nothing brighter

    def __init__(self, function: Callable):
        self.function = function

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.array(self.function(frames.numpy()), np.float32))


class _NetworkEngine:
    """A model on a device: (N, H, W) float32 there -> the same shape."""

    brightest = BRIGHTEST

    def __init__(
        self, model: Model, device: torch.device, precision: torch.dtype | None, resampling: Resampling | None
    ):
        self.network, self.resampling = placed(model, device, precision or precision_of(model, device)), resampling

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        frames = frames[:, None]  # (N, 1, H, W)
        if self.resampling is None:
            return through_network(self.network, frames)[:, 0]
        return self.resampling.to_recording(through_network(self.network, self.resampling.to_network(frames)))[:, 0]


def through_network(network, x: torch.Tensor, tile: int = TILE) -> torch.Tensor:
    """(N, 1, H, W) of any size through a network, by reflection padding and, where it may, in tiles.

    A tile takes its surroundings of `network.margin` pixels along, so that tiles and whole frames give the same.
    """
    height, width = x.shape[-2:]
    edge = EDGE if network.margin else 0
    pads = []
    for size in (width, height):
        whole = max(size + 2 * edge, 2 * network.multiple)
        pads += [edge, whole + -whole % network.multiple - size - edge]
    reflect = max(pads[:2]) < width and max(pads[2:]) < height
    x = F.pad(x, pads, mode="reflect" if reflect else "replicate")
    if network.margin == 0 or max(x.shape[-2:]) <= tile + 2 * network.margin:
        y = network(x)
    else:
        y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        for top in range(0, x.shape[-2], tile):
            for left in range(0, x.shape[-1], tile):
                outer, core = [], []
                for start, size in ((top, x.shape[-2]), (left, x.shape[-1])):
                    first, last = max(0, start - network.margin), min(size, start + tile + network.margin)
                    outer.append(slice(first, last))
                    core.append(slice(start - first, min(start + tile, size) - first))
                done = network(x[..., outer[0], outer[1]])
                y[..., top : top + tile, left : left + tile] = done[..., core[0], core[1]]
    return y[..., edge : edge + height, edge : edge + width]
