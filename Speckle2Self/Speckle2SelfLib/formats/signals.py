"""Convert ultrasound before log compression to decibels: in-phase and quadrature values, radio-frequency lines and
linear envelopes, recognized by their types and values."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from ..system import InputError
from .base import Recording, allocate

DYNAMIC_RANGE = 60.0  # dB below the largest value; the default range that is kept
BLOCK = 8  # pixels; speckle is measured in blocks of this size
# In a linear envelope, the standard deviation of speckle is about half of its mean and grows with it, few values are
# large, and the smallest is not a floor. Log-compressed images (60 simulated ones, and the real ones of the tests)
# exceed at least one of these limits. If only the peak exceeds its limit, the user is asked.
CONTRAST, SLOPE, FLOOR, PEAK, SUSPECT = 0.4, 0.7, 0.01, 40.0, 12.0
LAGS = 12  # samples within which radio-frequency lines change their sign
OPPOSITE = -0.3  # largest correlation at such a lag
NAMES = {"IQ": "in-phase and quadrature values", "RF": "radio-frequency lines", "envelope": "a linear envelope"}
logger = logging.getLogger(__name__)


def to_decibels(recording: Recording, dynamic_range: float | None, generic: str) -> Recording:
    """Convert a recording of signals to decibels, with a warning; return any other recording unchanged.

    dynamic_range: dB below the largest value; None: 60, and only if the values are recognized as not log-compressed.
    generic: the name of the format whose rules apply to the result, if the input's own has no fields for each frame.
    """
    if dynamic_range is not None and not 1 <= dynamic_range <= 200:
        raise InputError(f"The dynamic range {dynamic_range} is outside 1 to 200 dB.")
    frames = recording.frames
    with np.errstate(all="ignore"):  # values beyond all limits are not signals
        kind = kind_of(frames)
        suspect = kind is None and dynamic_range is None and may_be_envelope(frames)
    if kind is None and dynamic_range is not None:
        if frames.ndim != 3 or frames.min() < 0:
            raise InputError(f"{recording.path} is not a linear envelope; leave out the dynamic range.")
        kind = "envelope"
    if kind is None:
        if suspect:
            logger.warning("The file may hold a linear envelope; if so, set its dynamic range: --dynamic-range 60.")
        return recording
    dynamic_range = dynamic_range or DYNAMIC_RANGE
    logger.warning(
        "The file holds %s: converted to decibels, %g dB below the largest (--dynamic-range).",
        NAMES[kind],
        dynamic_range,
    )
    return replace(recording, frames=_log_compress(frames, kind, dynamic_range), format=generic)


def kind_of(frames: np.ndarray) -> str | None:
    """Return "IQ" or "RF" for values (N, H, W), complex or real, or pairs (N, H, W, 2); "envelope"; None for images."""
    if frames.dtype.kind == "c" or (frames.ndim == 4 and frames.shape[-1] == 2):
        return "IQ"
    if frames.ndim != 3 or frames.dtype.itemsize < 2 or min(frames.shape[1:]) < 2 * BLOCK:
        return None
    some = frames[:: max(1, len(frames) // 4)].astype(np.float64)
    if not np.isfinite(some).all():
        return None
    if some.min() < 0:
        return "RF" if _axis_of_lines(some) is not None else None
    return "envelope" if _peak_of_envelope(some) >= PEAK else None


def may_be_envelope(frames: np.ndarray) -> bool:
    """Return whether frames that look like grey values may be a linear envelope."""
    if frames.ndim != 3 or frames.dtype.itemsize < 2 or min(frames.shape[1:]) < 2 * BLOCK:
        return False
    some = frames[:: max(1, len(frames) // 4)].astype(np.float64)
    return bool(np.isfinite(some).all() and some.min() >= 0 and _peak_of_envelope(some) >= SUSPECT)


def _axis_of_lines(frames: np.ndarray) -> int | None:
    """Return the axis, 1 or 2, along which values (N, H, W) oscillate around zero; None if they do not."""
    deviation = frames.std()
    if not deviation or abs(frames.mean()) > 0.1 * deviation:
        return None
    swings = {}
    for axis in (1, 2):
        lines = np.moveaxis(frames, axis, -1)
        power = (lines**2).mean()
        lags = range(1, min(LAGS, lines.shape[-1] // 2) + 1)
        swings[axis] = min((lines[..., lag:] * lines[..., :-lag]).mean() / power for lag in lags)
    axis = min(swings, key=swings.__getitem__)
    return axis if swings[axis] < OPPOSITE else None


def _peak_of_envelope(frames: np.ndarray) -> float:
    """Return the ratio of the largest of nonnegative values (N, H, W) to their median; 0 if their other statistics are
    not those of a linear envelope."""
    count, height, width = frames.shape[0], frames.shape[1] // BLOCK, frames.shape[2] // BLOCK
    blocks = frames[:, : height * BLOCK, : width * BLOCK].reshape(count, height, BLOCK, width, BLOCK).swapaxes(2, 3)
    means, deviations = blocks.mean((3, 4)).ravel(), blocks.std((3, 4)).ravel()
    seen = (means > 0) & (deviations > 0)
    means, deviations = means[seen], deviations[seen]
    if len(means) < 32:
        return 0.0
    bright, brightest = means >= np.median(means), means >= np.percentile(means, 90)
    if np.ptp(means[bright]) == 0:
        return 0.0
    slope = np.polyfit(np.log(means[bright]), np.log(deviations[bright]), 1)[0]
    contrast = np.median(deviations[brightest] / means[brightest])
    alike = contrast >= CONTRAST and slope >= SLOPE and (frames == frames.min()).mean() <= FLOOR
    return float(frames.max() / np.median(frames[frames > 0])) if alike else 0.0


def _log_compress(frames: np.ndarray, kind: str, dynamic_range: float) -> np.ndarray:
    """Return decibels (N, H, W) float32, from -dynamic_range to 0, the largest value."""
    axis = _axis_of_lines(frames[:1].astype(np.float64)) if kind == "RF" else None
    result = allocate(frames.shape[:3], np.float32)
    largest = 0.0
    for number, frame in enumerate(frames):
        with np.errstate(over="ignore"):
            result[number] = _envelope(frame, kind, axis)
        largest = max(largest, float(np.nan_to_num(result[number]).max()))
    if not 0 < largest < np.inf:
        raise InputError("The signals are all zero, or too large; scale them.")
    floor = largest * 10 ** (-dynamic_range / 20)
    for frame in result:
        np.log10(np.maximum(frame, floor) / largest, out=frame)
        np.maximum(20 * frame, -dynamic_range, out=frame)
    return result


def _envelope(frame: np.ndarray, kind: str, axis: int | None) -> np.ndarray:
    if kind == "envelope":
        return frame
    if kind == "IQ":
        return np.abs(frame) if frame.ndim == 2 else np.hypot(frame[..., 0], frame[..., 1])
    from scipy.signal import hilbert

    return np.abs(hilbert(frame.astype(np.float64), axis=(axis or 1) - 1))
