"""Arrays in MATLAB's files and in HDF5 (zea and others): the one with the frames, and all else is kept."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..system import InputError
from .base import DEFLATE_LIMIT, Format, Recording, count_values, frame_times, quiet, reading, roomy

PREFERRED = ("frames", "input", "image", "images", "bmode", "image_sc", "envelope_data", "envelope", "beamformed_data",
             "iq", "rf")  # fmt: skip
SMALLEST = 8  # pixels of either side; smaller arrays are coordinates and the like
HDF5 = b"\x89HDF\r\n\x1a\n"
OURS = "frames", "times", "spacing"  # the arrays in files that are made of others


class Matlab(Format):
    """Files up to version 7, by scipy; those of version 7.3 are HDF5."""

    name = "MATLAB"
    suffixes = (".mat",)
    takes_all = True

    def recognizes(self, head: bytes, path: Path) -> bool:
        return head.startswith(b"MATLAB 5.0 MAT-file")

    def read(self, path: Path, key: str) -> Recording:
        from scipy.io import loadmat, whosmat

        with reading(path, "a file of MATLAB", "scipy"):
            shapes = {name: shape for name, shape, kind in whosmat(path) if kind in NUMBERS}
            name = chosen(path, {name: _turned(shape) for name, shape in shapes.items()}, key)
            claimed = count_values(list(shapes[name]), path)
            if claimed > path.stat().st_size * DEFLATE_LIMIT:
                raise InputError(f"{path} is damaged: it promises {claimed} values.")
            array = loadmat(path, variable_names=[name, *OURS[1:]])
        others = {other: array.get(other) for other in OURS[1:]}
        return _recording(path, self.name, turned(array[name]), {"key": name}, others)

    def check(self, path: Path, recording: Recording) -> None:
        if recording.format == self.name:
            self._saved(recording, np.zeros((1, 1)), None)

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        array = turned_back(frames[0] if recording.single else frames)
        if recording.format == self.name:
            self._saved(recording, array, path)
            return
        from scipy.io import savemat

        savemat(path, {OURS[0]: array, **_told(recording)}, do_compression=True)

    def _saved(self, recording: Recording, array: np.ndarray, into: Path | None) -> None:
        """Saves all variables of the input, the frames replaced; InputError where scipy does not write what it read."""
        from scipy.io import loadmat, savemat

        try:
            with quiet("scipy"):
                held = {name: value for name, value in loadmat(recording.path).items() if not name.startswith("__")}
                savemat(io.BytesIO(), held | {recording.source["key"]: array[:1]}, do_compression=True)
        except Exception as error:  # as above
            name = recording.path.name
            raise InputError(f"{name} holds variables that cannot be written again; choose .npy or .h5.") from error
        if into is not None:
            savemat(into, held | {recording.source["key"]: array}, do_compression=True)


NUMBERS = {"double", "single", "logical", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}


class Hdf5(Format):
    """HDF5 by h5py, and MATLAB's version 7.3, whose axes are the other way round."""

    name = "HDF5"
    suffixes = (".h5", ".hdf5", ".uff", ".mat")
    takes_all = True

    def recognizes(self, head: bytes, path: Path) -> bool:
        return head.startswith((HDF5, b"MATLAB 7.3 MAT-file"))

    def read(self, path: Path, key: str) -> Recording:
        h5py = _h5py()
        by_columns = path.open("rb").read(10) == b"MATLAB 7.3"
        turn: Callable = (lambda shape: _turned(shape[::-1])) if by_columns else tuple
        with reading(path, "a file of HDF5", "h5py", own=()), h5py.File(path, "r") as file:
            sets = _data_sets(file, h5py)
            name = chosen(path, {name: turn(one.shape) for name, one in sets.items()}, key)
            one = sets[name]
            claimed = math.prod(one.shape)
            if claimed < 1 or claimed > path.stat().st_size * DEFLATE_LIMIT:
                raise InputError(f"{path} is damaged: it promises {claimed} values.")
            array = _taken(one)
            others = {other: np.asarray(sets[other]) for other in OURS[1:] if other in sets}
        array = turned(array.transpose()) if by_columns else array
        return _recording(path, self.name, array, {"key": name, "by_columns": by_columns}, others)

    def check(self, path: Path, recording: Recording) -> None:
        _h5py()

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        h5py = _h5py()
        array = frames[0] if recording.single else frames
        if recording.format != self.name:
            with h5py.File(path, "w") as file:
                file.create_dataset(OURS[0], data=array, compression="gzip", compression_opts=3, chunks=True)
                for name, value in _told(recording).items():
                    file[name] = value
            return
        array = turned_back(array).transpose() if recording.source["by_columns"] else array
        shutil.copyfile(recording.path, path)
        with h5py.File(path, "r+") as file:
            held = file[recording.source["key"]]
            if held.dtype.names:  # complex values of MATLAB
                held[...] = _as_pairs(array, held.dtype)
            else:
                held[...] = array.reshape(held.shape)


def _h5py():
    try:
        import h5py
    except ImportError as error:
        raise InputError("Files of HDF5 need the package h5py; install it: python -m pip install h5py.") from error
    return h5py


def _data_sets(file, h5py) -> dict:
    """Path in the file -> data set of numbers."""
    found = {}

    def visit(name: str, one) -> None:
        if isinstance(one, h5py.Dataset) and (one.dtype.kind in "iufbc" or one.dtype.names in PAIRS):
            found[name] = one

    file.visititems(visit)
    return found


PAIRS = (("real", "imag"), ("r", "i"))


def _taken(one) -> np.ndarray:
    """The values of a data set, part by part, pairs as complex numbers."""
    kind = np.dtype(np.complex64) if one.dtype.names else one.dtype.newbyteorder("=")
    result = roomy(one.shape, kind)
    for number in range(len(one)):
        part = one[number]
        result[number] = part[part.dtype.names[0]] + 1j * part[part.dtype.names[1]] if one.dtype.names else part
    return result


def _as_pairs(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    pairs = np.zeros(array.shape, dtype)
    pairs[dtype.names[0]], pairs[dtype.names[1]] = array.real, array.imag
    return pairs


def chosen(path: Path, shapes: dict[str, tuple[int, ...]], key: str) -> str:
    """The name of the array with the frames: `key`, a usual one, or the only one that can be; or InputError."""
    fit = {name: shape for name, shape in shapes.items() if is_image(shape)}
    for wanted in (key, *PREFERRED):
        for name in fit:
            if wanted in (name, name.rpartition("/")[2]):
                return name
    if len(fit) == 1:
        return next(iter(fit))
    names = ", ".join(fit) or "no array of frames"
    raise InputError(f"{path} holds {names}; name one 'frames', of (rows, columns, frames) in MATLAB, else reversed.")


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape can be frames (N, H, W), (H, W), in colour, or pairs."""
    small = len(shape) == 4 and shape[-1] in (1, 2, 3, 4)
    sides = shape[1:3] if small else shape[-2:]
    return len(shape) in (2, 3, 4) and (len(shape) < 4 or small) and min(sides) >= SMALLEST


def _turned(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (N, H, W[, C]) of what is (H, W, N) or (H, W, C, N) in MATLAB."""
    return (*shape[3:], *shape[:3]) if len(shape) == 4 else (*shape[2:], *shape[:2])


def turned(array: np.ndarray) -> np.ndarray:
    """(N, H, W[, C]) of what is (H, W, N) or (H, W, C, N) in MATLAB."""
    return np.moveaxis(array, -1, 0) if array.ndim > 2 else array


def turned_back(array: np.ndarray) -> np.ndarray:
    """What MATLAB's users expect of (N, H, W[, C])."""
    return np.moveaxis(array, 0, -1) if array.ndim > 2 else array


def _told(recording: Recording) -> dict[str, np.ndarray]:
    """What is written beside frames of other formats."""
    told = {OURS[2]: np.asarray(recording.spacing)}
    return told if recording.times is None else told | {OURS[1]: recording.times}


def _recording(path: Path, name: str, array: np.ndarray, source: dict, others: dict) -> Recording:
    if array.dtype == bool:
        array = array.astype(np.uint8)
    source["shape of array"] = array.shape
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    single = array.ndim == 2
    frames = array[None] if single else array
    spacing, times = others.get("spacing"), others.get("times")
    lengths = (
        tuple(float(x) for x in np.ravel(spacing)) if spacing is not None and np.size(spacing) == 3 else (1.0,) * 3
    )
    stamps = None if times is None else frame_times(np.ravel(times), len(frames))
    return Recording(frames, path, name, single=single, sequence=stamps is not None, times=stamps,
                     spacing=lengths if min(lengths) > 0 else (1.0, 1.0, 1.0), source=source)  # fmt: skip
