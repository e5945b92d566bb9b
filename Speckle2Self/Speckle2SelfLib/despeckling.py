"""Despeckle arrays of frames: the one way for the panel, the console and the command line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from .calibration import Calibration, as_stack, calibrate, grain_in, value_range
from .checkpoint import Model
from .config import DespeckleOptions
from .detector import find_graphics, widen
from .devices import AT_ONCE_CUDA, choose_device, cores, each_in_order, preserve_cores
from .files import release
from .filters import FILTERS
from .grey import BRIGHTEST, luminance
from .inference import fast_network, through_network
from .library import cached_model
from .look import trust
from .region import box_of, fill_outside, grey
from .resampling import Resampling
from .system import Cancelled, FilePath, InputError, Progress
from .tint import Tint

BLOCK_PIXELS = 2**22  # pixels per pass through the network; limits the memory for cines of any length
BLOCK_PIXELS_CPU = 2**18  # no slower on a CPU, and a cancel is noticed sooner
AT_ONCE_PIXELS = 2**22  # pixels of all blocks that the CPU processes at a time
NEAR = 4  # pixels; graphics are filled from surroundings of this width
OPTIONS = {field.name for field in fields(DespeckleOptions)} - {"model", "region", "axis"}  # options of `despeckle`
logger = logging.getLogger(__name__)
Filter = Callable[[np.ndarray], np.ndarray]  # (N, H, W) float32 in [0, 1] -> the same
NOTHING_IMAGED = (
    "The frames are unchanged: no ultrasound region was found, or the region is empty. "
    "Use the region 'none' for whole frames, or a mask."
)


@preserve_cores()
def despeckle(
    frames: np.ndarray,
    model: FilePath | Model | Filter = "default",
    *,
    region: np.ndarray | str | None = "auto",
    within: np.ndarray | None = None,
    calibration: Calibration | None = None,
    output: np.ndarray | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
    precision: torch.dtype | None = None,
    uncertainty: np.ndarray | None = None,
    **options: Any,
) -> np.ndarray:
    """Remove the speckle of one recording.

    Args:
        frames: (H, W), (N, H, W) or in color (N, H, W, 3 or 4); any integer or floating-point type. Not changed.
        model: a name of a model or filter, a model file, a `Model`, or a `Filter`.
        region: (H, W) bool, what to despeckle; "auto" detects the imaged part and, in each frame, graphics, only in
            `within` (H, W) bool if given; None: whole frames.
        calibration: the recording's, instead of `region`; None: computed here.
        output: an array of the frames' shape and type to write into; complete as far as `progress` reported.
        progress: called with (frames done, frames); cancelled: called before each block, True raises Cancelled.
        uncertainty: float32 array (H, W) or (N, H, W) for one standard deviation of the output's error at each pixel,
            in its grey values; 0 where nothing is changed. For models that estimate it.
        options: strength, gamma, cautious, device, see `DespeckleOptions`; precision, see `inference.precision_of`.

    Returns an array of the same shape, type and value range. Pixels outside the region, colored ones, graphics and
    those that are not finite are kept bit for bit. One grey mapping and one grain serve all frames (the published
    model normalizes each on its own). Raises InputError in one sentence, Cancelled.
    """
    chosen = _check_options(options)
    model = find_model(model)
    if chosen.cautious or uncertainty is not None:
        check_uncertainty(model)
    device = choose_device(chosen.device) if isinstance(model, Model) else torch.device("cpu")
    if calibration is None:
        calibration = calibrate(frames, region, needs_grain(model), within)
    stack = as_stack(frames)
    pipeline = _Pipeline(stack, calibration, chosen, device, _uncertainty_like(frames, uncertainty))
    output = _output_like(frames, output)
    result = output.reshape(stack.shape)
    if pipeline.is_idle:
        np.copyto(result, stack)
        if progress:
            progress(len(stack), len(stack))
        return output
    pipeline.load(model, precision)
    blocks, at_once = _split_into_blocks(len(stack), pipeline.region.size, device, not isinstance(model, Model))
    with each_in_order(lambda block: pipeline.run(block, result), blocks, at_once, device) as ends:
        for _ in blocks:
            if cancelled and cancelled():
                raise Cancelled
            done = next(ends)
            release(stack)
            release(output)
            if progress:
                progress(done, len(stack))
    return output


def find_model(model: FilePath | Model | Filter) -> Model | Filter:
    """Return a model or filter by its name or file; models and functions are returned unchanged."""
    if isinstance(model, Model) or callable(model):
        return model
    return FILTERS.get(str(model)) or cached_model(model)


def needs_grain(model: Model | Filter) -> bool:
    """Return whether recordings are resampled for this model, so that their calibration needs the speckle's grain."""
    return isinstance(model, Model) and model.resamples


def check_uncertainty(model: Model | Filter) -> None:
    """Raise InputError for a model that does not estimate the uncertainty of its output."""
    if not isinstance(model, Model) or not model.config.uncertainty:
        raise InputError(
            "This model or filter does not estimate its uncertainty; choose another model, or leave out the "
            "uncertainty and 'cautious'."
        )


def _check_options(options: dict[str, Any]) -> DespeckleOptions:
    """Return the options of `despeckle`. Raises InputError for an unknown one, or a value outside its limits."""
    if unknown := sorted(set(options) - OPTIONS):
        raise InputError(f"Unknown option '{unknown[0]}'; choose from {', '.join(sorted(OPTIONS))}.")
    return DespeckleOptions(**options | ({"device": str(options["device"])} if "device" in options else {}))


def _output_like(frames: np.ndarray, output: np.ndarray | None) -> np.ndarray:
    """Return a contiguous array like `frames`, or `output` if it is one."""
    if output is None:
        return np.empty_like(frames, order="C", subok=False)
    if output.shape != frames.shape or output.dtype != frames.dtype or not output.flags.c_contiguous:
        raise InputError(f"The output is not a contiguous array of {frames.dtype} of shape {frames.shape}.")
    return output


def _uncertainty_like(frames: np.ndarray, uncertainty: np.ndarray | None) -> np.ndarray | None:
    """Return the array for the uncertainty as (N, H, W), filled with zeros. Raises InputError if it does not fit."""
    if uncertainty is None:
        return None
    shape = frames.shape[:3]  # without colors
    if uncertainty.shape != shape or uncertainty.dtype != np.float32 or not uncertainty.flags.c_contiguous:
        raise InputError(f"The array for the uncertainty is not a contiguous float32 array of shape {shape}.")
    uncertainty[...] = 0
    return uncertainty.reshape(-1, *shape[-2:])


def _split_into_blocks(count: int, size: int, device: torch.device, one_by_one: bool) -> tuple[Sequence[slice], int]:
    """Return the frames of each block, and how many blocks are processed at a time.

    Args: count, frames; size, pixels of each; one_by_one, one block at a time.
    """
    if device.type == "cpu":  # blocks of the same size, so that no core waits for the last one
        most = max(1, BLOCK_PIXELS_CPU // size)
        at_once = 1 if one_by_one else max(1, min(cores(), AT_ONCE_PIXELS // (most * size)))
        parts = np.array_split(np.arange(count), min(count, -(-count // (most * at_once)) * at_once))
    else:  # all but the last of the same size, so that one recorded graph serves them all
        most = max(1, BLOCK_PIXELS // size)
        at_once = AT_ONCE_CUDA if device.type == "cuda" else 1
        parts = np.split(np.arange(count), range(most, count, most))
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts], at_once


class _Pipeline:
    """The path of a recording's frames through a model: cut, fill, scale, predict, scale back, mix, write.

    Args: stack (N, H, W[, C]); calibration, of the recording; options; device, where the model runs; uncertainty
    (N, H, W) float32, to write the output's uncertainty into.
    """

    def __init__(
        self,
        stack: np.ndarray,
        calibration: Calibration,
        options: DespeckleOptions,
        device: torch.device,
        uncertainty: np.ndarray | None = None,
    ):
        self.stack, self.calibration, self.options, self.device = stack, calibration, options, device
        self.uncertainty = uncertainty
        self.bounds = calibration.bounds or value_range(stack)
        low, high = calibration.mapping
        if not calibration.region.any():
            logger.warning(NOTHING_IMAGED)
        self.is_idle = not calibration.region.any() or high <= low or options.strength == 0

    def load(self, model: Model | Filter, precision: torch.dtype | None) -> None:
        """Prepare the model and everything that depends on the region's bounding box."""
        region = self.calibration.region
        self.box = box_of(region)
        self.region = region[self.box]
        self.mapping: tuple[float, float] | None = self.calibration.mapping
        if isinstance(model, Model):
            grain = (self.calibration.grain or grain_in(self.stack, region)) if needs_grain(model) else None
            wanted = self.uncertainty is not None or self.options.cautious > 0
            self.predict = _predictor(model, self.region, grain, self.device, precision, wanted)
            self.brightest = BRIGHTEST
            if model.config.normalisation == "frame":
                self.mapping = None
        else:
            self.predict = lambda values: (torch.from_numpy(np.array(model(values.numpy()), np.float32)), None)
            self.brightest = 1.0  # filters see nothing brighter

    def run(self, block: slice, result: np.ndarray) -> int:
        """Despeckle a block of frames into `result`, an array like the stack; return the block's end."""
        np.copyto(result[block], self.stack[block])
        part = self.stack[block][:, *self.box]
        before = _grey_values(part, self.device)
        finite = before.isfinite().cpu().numpy() if part.dtype.kind == "f" else np.array(True)
        drawn = self.find_graphics(before)
        after, uncertainty, change = self.despeckle(before, finite, drawn)
        if part.ndim == 4:
            change = change & grey(part, float(self.bounds[1]), self.calibration.tint)
        if self.uncertainty is not None and uncertainty is not None:
            np.copyto(self.uncertainty[block][:, *self.box], _to_numpy(uncertainty), where=change)
        _write(result[block][:, *self.box], part, before, after, change, self.bounds, self.calibration.tint)
        return block.stop

    def find_graphics(self, before: torch.Tensor) -> np.ndarray | None:
        """Return the graphics within the region on each frame, bool (N, H, W); None: none. Graphics that never move
        are already outside the region."""
        graphics = self.calibration.graphics
        if isinstance(graphics, bool):
            drawn = find_graphics(before, self.bounds) if graphics else np.zeros(1, bool)
        else:
            drawn = np.broadcast_to(graphics[self.box], before.shape)
        drawn = drawn & self.region
        return drawn if drawn.any() else None

    @torch.inference_mode()
    def despeckle(
        self, before: torch.Tensor, finite: np.ndarray, drawn: np.ndarray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, np.ndarray]:
        """Return despeckled grey values (N, H, W) float32 on the device, their uncertainty if requested, and the pixels
        to replace, bool ([N, ]H, W). With a mapping and finite values, nothing here waits for the device."""
        filled = _fill_gaps(before, self.region, finite)
        change = self.region if finite.all() else self.region & finite
        if drawn is not None:
            filled, change = _fill_drawn(filled, drawn, change), change & ~drawn
        excess, options = None, self.options
        low: Any
        span: Any  # numbers, or tensors (N, 1, 1)
        if self.mapping is None:  # each frame's own smallest and largest value become 0 and 1
            low = filled.amin((1, 2), keepdim=True)
            span = filled.amax((1, 2), keepdim=True) - low
            change = change & (span > 0).cpu().numpy()
            after = (filled - low).div_(torch.where(span > 0, span, 1))
        else:
            low, span = self.mapping[0], self.mapping[1] - self.mapping[0]
            after = (filled - low).div_(span)
            if (self.bounds[1] - low) / span > self.brightest:
                excess = (after - self.brightest).clamp_(min=0)
        after, uncertainty = self.predict(after.clamp_(0, self.brightest))
        after.clamp_(min=0)
        trusted = trust(uncertainty, options.cautious) if options.cautious else None
        if excess is not None:
            after.add_(excess)
        if self.mapping is None:
            after.clamp_(max=1)
        if options.gamma != 1:
            if uncertainty is not None:  # scaled by the curve's slope, which for a gamma below 1 is unbounded near 0
                uncertainty = uncertainty * options.gamma * torch.maximum(after, uncertainty).pow_(options.gamma - 1)
            after.pow_(options.gamma)
        after.mul_(span).add_(low)
        if trusted is not None:
            after = torch.lerp(filled, after, trusted.mul_(options.strength))
        elif options.strength < 1:
            after.lerp_(filled, 1 - options.strength)
        return after, None if uncertainty is None else uncertainty * span * options.strength, change


def _predictor(
    model: Model,
    region: np.ndarray,
    grain: tuple[float, float] | None,
    device: torch.device,
    precision: torch.dtype | None,
    uncertainty: bool,
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]:
    """Return a model on a device as a function of (N, H, W) float32 there, at the model's grain in between.

    It returns the grey values, and their uncertainty if requested.
    """
    resampling = Resampling(region, grain, model.config.grain, device) if grain and model.config.grain else None
    network = fast_network(model, device, precision, uncertainty)

    def predict(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        values = values[:, None]  # (N, 1, H, W)
        maps = through_network(network, values if resampling is None else resampling.to_network(values))  # (N, C, h, w)
        if resampling is None:
            grey, *rest = maps.unbind(1)
        else:
            grey, *rest = (resampling.to_recording(each)[:, 0] for each in maps.split(1, 1))
        return grey, rest[0].clamp(min=0) * model.config.uncertainty_scale if rest else None

    return predict


def _grey_values(part: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return grey values (N, H, W) float32 on the device, in the range of `part` (N, H, W[, C])."""
    if part.ndim != 3 or part.dtype != np.uint8:  # bytes are converted below: fewer to copy, and on all cores
        part = luminance(part)
    if device.type != "cuda":
        shareable = part.flags.writeable and min(part.strides) > 0  # torch accepts no others
        return torch.from_numpy(part if shareable else part.copy()).to(device).float()
    pinned = torch.empty(part.shape, dtype=torch.uint8 if part.dtype == np.uint8 else torch.float32, pin_memory=True)
    np.copyto(pinned.numpy(), part)
    return pinned.to(device, non_blocking=True).float()


def _to_numpy(values: torch.Tensor) -> np.ndarray:
    """Return a tensor on any device as an array."""
    if not values.is_cuda:
        return values.cpu().numpy()
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values).numpy()


def _fill_gaps(values: torch.Tensor, region: np.ndarray, finite: np.ndarray) -> torch.Tensor:
    """Replace every pixel of (N, H, W) that is outside the region or not finite by the nearest one that is neither."""
    if finite.all():
        if region.all():
            return values
        outside, nearest = _nearest_inside(region.tobytes(), region.shape, values.device)
        flat = values.flatten(1).clone()  # (N, H W)
        flat[:, outside] = flat[:, nearest]
        return flat.view(values.shape)
    filled = [
        fill_outside(v[None], region & f) if (region & f).any() else np.zeros_like(v[None])
        for v, f in zip(values.cpu().numpy(), finite, strict=True)
    ]
    return torch.from_numpy(np.concatenate(filled)).to(values.device)


def _fill_drawn(values: torch.Tensor, drawn: np.ndarray, inside: np.ndarray) -> torch.Tensor:
    """Replace every pixel of (N, H, W) that is `drawn`, or near that and outside, by the nearest one that is neither.

    Args: drawn (N, H, W) bool; inside, bool (N or none, H, W).
    """
    filled = values.cpu().numpy().copy()
    for number, mask in enumerate(drawn):
        good = (inside if inside.ndim == 2 else inside[number]) & ~mask
        labels, _ = ndimage.label(widen(mask, NEAR))
        for box in ndimage.find_objects(labels):  # a clock is small
            part = filled[number][box]
            np.copyto(part, fill_outside(part[None], good[box])[0], where=~good[box])
    return torch.from_numpy(filled).to(values.device)


@lru_cache(maxsize=4)  # search once, not in each block of a cine or frame of a live image
def _nearest_inside(inside: bytes, shape: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the flat indices of the pixels outside a mask of `shape`, as bytes, and of the nearest pixels inside."""
    mask = np.frombuffer(inside, bool).reshape(shape)
    filled = fill_outside(np.arange(mask.size).reshape(1, *shape), mask)[0]
    return torch.from_numpy(np.flatnonzero(~mask)).to(device), torch.from_numpy(filled[~mask]).to(device)


@torch.inference_mode()
def _write(
    result: np.ndarray,
    part: np.ndarray,
    before: torch.Tensor,
    after: torch.Tensor,
    change: np.ndarray,
    bounds: tuple[float, float],
    tint: Tint | None,
) -> None:
    """Put `after`, which is overwritten, into `result` where `change` is True, in the type and range of `part`."""
    if part.ndim == 4:  # each channel changes as much as the luminance, or along the tint's curve, to keep the hue
        moved = [_to_numpy(after - before)] * 3
        if tint:
            hues = zip(tint.add_to(_to_numpy(after)), tint.add_to(_to_numpy(before)), strict=True)
            moved = [grey + new - old for grey, (new, old) in zip(moved, hues, strict=True)]
        for channel in range(3):
            with np.errstate(invalid="ignore"):  # infinite values, which are not changed
                values = part[..., channel] + moved[channel]
            _write_channel(result[..., channel], torch.from_numpy(values), change, bounds)
    else:
        _write_channel(result, after, change, bounds)


def _write_channel(result: np.ndarray, after: torch.Tensor, change: np.ndarray, bounds: tuple[float, float]) -> None:
    """Round and clip `after` (N, H, W) to the type of `result`, and store it there."""
    if result.dtype == np.uint8:  # nearly all recordings; torch uses all cores
        values = _to_numpy(after.round_().clamp_(*(float(bound) for bound in bounds)).to(torch.uint8))
    else:
        values = _to_numpy(after)
        values = np.clip(values if result.dtype.kind == "f" else np.rint(values), *bounds).astype(result.dtype)
    np.copyto(result, values, where=True if change.all() else change)
