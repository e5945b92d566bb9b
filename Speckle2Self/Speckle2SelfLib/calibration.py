"""Calibrate a recording: once for all its frames, so that nothing flickers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .files import release
from .grain import measure_grain
from .grey import grey_mapping, luminance
from .region import box_of, detect
from .system import InputError, _
from .tint import Tint, find_tint

SMALLEST = 8  # pixels, of either side of a frame
SCREEN = 128  # pixels; frames with a smaller side are slices of a volume rather than a scanner's screen


@dataclass(frozen=True, eq=False)
class Calibration:
    """The region, grey values and speckle of a recording."""

    region: np.ndarray  # (H, W) bool, the pixels to despeckle
    mapping: tuple[float, float]  # the grey values that a model sees as 0 and 1; equal if there is nothing to do
    grain: tuple[float, float] | None = None  # speckle size, (axial, lateral) pixels; None: not measured
    bounds: tuple[float, float] | None = None  # the smallest and largest finite value; None: those of the frames given
    tint: Tint | None = None  # colors of tinted B-mode; None: grey
    graphics: np.ndarray | bool = False  # (H, W) bool, on all frames; True: to be searched for in each frame

    def __post_init__(self) -> None:
        if self.grain is not None and not all(0 < length < np.inf for length in self.grain):
            raise InputError(f"The grain must be two lengths in pixels, not {self.grain}.")
        if not np.isfinite(self.mapping).all():
            raise InputError(f"The mapping must be two grey values, not {self.mapping}.")


def calibrate(
    frames: np.ndarray,
    region: np.ndarray | str | None = "auto",
    with_grain: bool = True,
    within: np.ndarray | None = None,
) -> Calibration:
    """Find the region, the grey mapping and the speckle's grain of a recording.

    Args:
        frames: (H, W), (N, H, W) or in color (N, H, W, 3 or 4); any integer or floating-point type.
        region: (H, W) bool; "auto" detects the imaged part; None: whole frames.
        with_grain: whether to measure the grain, which only models with a grain of their own need.
        within: (H, W) bool: "auto" searches only there, for example where the file says that the image is.

    Raises InputError for frames that cannot be despeckled, and for a region that does not fit them.
    """
    stack = as_stack(frames)
    bounds = value_range(stack)
    moving = isinstance(region, str) and len(stack) > 1 and is_screen(stack)
    region = find_region(stack, region, within)
    mapping = grey_mapping(stack, region)
    grain = grain_in(stack, region) if with_grain and region.any() and mapping[0] < mapping[1] else None
    return Calibration(region, mapping, grain, bounds, find_tint(stack), moving)


def as_stack(frames: np.ndarray) -> np.ndarray:
    """Return frames as (N, H, W[, C]). Raises InputError for a type, shape or content that cannot be despeckled."""
    frames = np.asarray(frames)
    if frames.dtype.kind not in "uif":
        raise InputError(f"Frames of type {frames.dtype} cannot be despeckled; use integers or floating point.")
    stack = frames[None] if frames.ndim == 2 else frames
    if stack.ndim not in (3, 4) or (stack.ndim == 4 and stack.shape[-1] not in (3, 4)):
        raise InputError(f"Frames of shape {frames.shape} are not (H, W), (N, H, W) or (N, H, W, 3 or 4).")
    if len(stack) == 0 or min(stack.shape[1:3]) < SMALLEST:
        message = _("Frames of shape {shape} are too small; they need at least {smallest} x {smallest} pixels.")
        raise InputError(message.format(shape=frames.shape, smallest=SMALLEST))
    if frames.dtype.kind == "f" and not any(np.isfinite(frame).any() for frame in stack):
        raise InputError(_("The frames contain no finite values."))
    return stack


def is_screen(stack: np.ndarray) -> bool:
    """Return whether frames (N, H, W[, C]) are large enough to be a scanner's screen, on which graphics can move."""
    return min(stack.shape[1:3]) >= SCREEN


def find_region(stack: np.ndarray, region: np.ndarray | str | None, within: np.ndarray | None = None) -> np.ndarray:
    """Return the region (H, W) bool of frames (N, H, W[, C]): detected ("auto", only `within` if given), everything
    (None), or the given mask."""
    if isinstance(region, str):
        if region != "auto":
            raise InputError(f"The region must be 'auto', None or a mask, not '{region}'.")
        region = detect(stack, within)
    if region is None:
        region = np.ones(stack.shape[1:3], bool)
    region = np.asarray(region).astype(bool, copy=False)
    if region.shape != stack.shape[1:3]:
        message = _("A region of {region} does not fit frames of {frames} pixels.")
        raise InputError(message.format(region=region.shape, frames=stack.shape[1:3]))
    return region


def grain_in(stack: np.ndarray, region: np.ndarray) -> tuple[float, float]:
    """Return the grain (axial, lateral) in pixels of the speckle inside a region, from about eight frames."""
    box = box_of(region)
    return measure_grain(luminance(stack[:: max(1, len(stack) // 8), box[0], box[1]]), region[box])


def value_range(stack: np.ndarray) -> tuple[float, float]:
    """Return the smallest and largest finite grey or color value. Raises InputError if they are the same."""
    stack = stack[..., :3] if stack.ndim == 4 else stack
    lows, highs = [], []
    for frame in stack:  # one by one, to spare memory
        values = frame[np.isfinite(frame)] if stack.dtype.kind == "f" else frame
        if values.size:
            lows.append(values.min())
            highs.append(values.max())
        release(stack)
    if min(lows) == max(highs):
        message = _("The frames are constant ({value}): there is nothing to despeckle.")
        raise InputError(message.format(value=min(lows)))
    return min(lows), max(highs)
