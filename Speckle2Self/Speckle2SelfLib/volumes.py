"""Process three-dimensional volumes as stacks of frames along an axis; only numpy is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from .config import AXES as CHOICES
from .system import InputError, Progress

AXES = ("k", "j", "i")  # axes of an array (K, J, I), slowest first
COARSER = 1.5  # times the next spacing; from this ratio on, an axis is assumed to be the axis of acquisition
logger = logging.getLogger(__name__)


def slicing_axes(shape: Sequence[int], spacing: Sequence[float], axis: str = "auto") -> list[int]:
    """Return the axes of (K, J, I) along which frames follow each other: one, or all three for "average".

    axis: "k", "j", "i"; "auto": an axis of one voxel, else the one whose spacing (mm, as (k, j, i)) is at least 1.5
    times that of any other, as acquisition leaves it, else K; "average", for reconstructed volumes.
    """
    axis = axis.lower()
    if axis not in CHOICES:
        raise InputError(f"Unknown axis '{axis}'; choose one of {', '.join(CHOICES)}.")
    if axis == "average":
        if min(shape[:3]) < 8:
            raise InputError("Averaging over three orientations needs a volume of at least 8 voxels in each direction.")
        return [0, 1, 2]
    if axis in AXES:
        return [AXES.index(axis)]
    flat = [i for i in range(3) if shape[i] == 1]
    if flat:
        return flat[:1]
    coarsest, second = sorted(range(3), key=lambda i: -spacing[i])[:2]
    return [coarsest if spacing[coarsest] >= COARSER * spacing[second] else 0]


def process(
    volumes: np.ndarray, axes: list[int], despeckle: Callable[..., np.ndarray], progress: Progress | None = None
) -> np.ndarray:
    """Run `despeckle(frames, progress=...)`, which maps (N, H, W[, C]), on volumes (T, K, J, I[, C]).

    Volumes are cut across each of `axes`; the results of several are averaged, without those of orientations in which
    nothing changed, for example because no ultrasound region was found. progress: called with (done, total) over all
    of them.
    """
    results = []
    for number, axis in enumerate(axes):
        cut = np.moveaxis(volumes, 1 + axis, 1)  # (T, slices, H, W[, C])
        frames = cut.reshape(-1, *cut.shape[2:])  # (N, H, W[, C])

        def report(done: int, total: int, number: int = number) -> None:
            if progress:
                progress(number * total + done, len(axes) * total)

        result = despeckle(frames, progress=report)
        results.append(np.moveaxis(result.reshape(cut.shape), 1, 1 + axis))
    if len(axes) == 1:
        return results[0]
    changed = [not np.array_equal(result, volumes, equal_nan=volumes.dtype.kind == "f") for result in results]
    if any(changed) and not all(changed):
        logger.warning(f"Nothing was changed along {unchanged_axes(axes, changed)}; the result averages the others.")
        results = [result for result, did in zip(results, changed, strict=True) if did]
    return average(results)


def average_maps(maps: list[np.ndarray], shape: tuple[int, ...], axes: list[int]) -> np.ndarray:
    """Return the mean of maps (N, H, W), each cut across its one of `axes`, as volumes of `shape` (T, K, J, I).

    Maps that are zero everywhere, where nothing was changed, do not count. Errors of several orientations are strongly
    correlated: deviations are averaged, not variances divided.
    """
    whole = []
    for values, axis in zip(maps, axes, strict=True):
        cut = np.moveaxis(np.empty(shape, np.void), 1 + axis, 1).shape
        whole.append(np.moveaxis(values.reshape(cut), 1, 1 + axis))
    if len(whole) == 1:
        return whole[0]
    return average([values for values in whole if values.any()] or whole[:1])


def unchanged_axes(axes: list[int], changed: list[bool]) -> str:
    """Return the names of the axes across which nothing was changed."""
    return ", ".join(AXES[axis] for axis, did in zip(axes, changed, strict=True) if not did)


def average(results: list[np.ndarray]) -> np.ndarray:
    """Return the voxel-wise mean of arrays (T, K, ...) in their own type; exact where all are equal."""
    mean = np.empty_like(results[0])
    for index in np.ndindex(mean.shape[:2]):  # slice by slice: no floating-point copy of the volume
        first, *others = (result[index] for result in results)
        with np.errstate(invalid="ignore", over="ignore"):
            x = first + sum(other.astype(np.float64) - first for other in others) / len(results)
        x = np.rint(x) if np.issubdtype(mean.dtype, np.integer) else x
        same = np.logical_and.reduce([other == first for other in others]) | ~np.isfinite(x)
        mean[index] = np.where(same, first, np.where(same, 0, x).astype(mean.dtype))
    return mean
