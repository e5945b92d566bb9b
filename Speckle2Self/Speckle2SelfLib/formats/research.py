"""Arrays in MATLAB and HDF5 files (of zea and others): the frames are replaced and everything else is kept."""

from __future__ import annotations

import io
import math
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..system import InputError
from .base import Format, Recording, allocate, check_promise, frame_times, quiet, reading

PREFERRED = ("frames", "input", "image", "images", "bmode", "image_sc", "envelope_data", "envelope", "beamformed_data",
             "iq", "rf")  # fmt: skip
SMALLEST = 8  # pixels of either side; smaller arrays are coordinates or similar
HDF5 = b"\x89HDF\r\n\x1a\n"
OURS = "frames", "times", "spacing"  # the arrays in files written from other formats


class Matlab(Format):
    """MATLAB files of versions 5 to 7, by scipy; those of version 7.3 are HDF5."""

    name = "MATLAB"
    suffixes = (".mat",)
    takes_all = True

    def recognizes(self, head: bytes, path: Path) -> bool:
        return head.startswith(b"MATLAB 5.0 MAT-file")

    def read(self, path: Path, key: str) -> Recording:
        from scipy.io import loadmat, whosmat

        with reading(path, "a MATLAB file", "scipy"):
            _check_elements_of_file(path)
            shapes = {name: shape for name, shape, kind in whosmat(path) if kind in NUMBERS}
            name = choose_array(path, {name: _shape_from_matlab(shape) for name, shape in shapes.items()}, key)
            check_promise(math.prod(shapes[name]), path.stat().st_size, path)
            array = loadmat(path, variable_names=[name, *(one for one in OURS[1:] if one in shapes)])
        others = {other: array.get(other) for other in OURS[1:]}
        return _recording(path, self.name, from_matlab(array[name]), {"key": name}, others)

    def keeps_times(self, path: Path, recording: Recording) -> bool:
        return True

    def check(self, path: Path, recording: Recording) -> None:
        if recording.format == self.name:
            self._save(recording, np.zeros((1, 1)), None)

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        array = to_matlab(frames[0] if recording.single else frames)
        if recording.format == self.name:
            self._save(recording, array, path)
            return
        from scipy.io import savemat

        savemat(path, {OURS[0]: array, **_metadata(recording)}, do_compression=True)

    def _save(self, recording: Recording, array: np.ndarray, into: Path | None) -> None:
        """Save all variables of the input with new frames. Raises InputError if scipy cannot write them."""
        from scipy.io import loadmat, savemat

        try:
            with quiet("scipy"):
                variables = {
                    name: value for name, value in loadmat(recording.path).items() if not name.startswith("__")
                }
                savemat(io.BytesIO(), variables | {recording.source["key"]: array[:1]}, do_compression=True)
        except Exception as error:  # as above
            name = recording.path.name
            raise InputError(f"{name} holds variables that cannot be written again; choose .npy or .h5.") from error
        if into is not None:
            savemat(into, variables | {recording.source["key"]: array}, do_compression=True)


NUMBERS = {"double", "single", "logical", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}


MATRIX, PACKED = 14, 15  # kinds of elements in a MATLAB file
VALUES = {*range(1, 8), 9, 12, 13, 16, 17, 18}  # the kinds that hold values of one type
NESTING = (1, 2, 3, 16, 17)  # classes of arrays that hold others
DEEPEST = 50  # arrays in arrays


def _check_elements_of_file(path: Path) -> None:
    """Raise ValueError for elements of undefined kinds: scipy ends the whole process with them."""
    with path.open("rb") as file:
        order = "<" if file.read(128)[126:] == b"IM" else ">"
        while len(tag := file.read(8)) == 8:
            kind, length = np.frombuffer(tag, f"{order}u4").tolist()
            start = file.tell()
            if kind == PACKED:
                stream = _InflatedStream(file, length)
                kind, inner = np.frombuffer(stream.read(8), f"{order}u4").tolist()
                _check_matrix(stream, kind, inner, order)
            else:
                _check_matrix(file, kind, length, order)
            file.seek(start + length)


def _check_matrix(stream, kind: int, size: int, order: str, depth: int = 0) -> None:
    """Raise ValueError if a matrix of `size` bytes has elements that its class does not allow."""
    if kind != MATRIX or depth > DEEPEST:
        raise ValueError("its elements are damaged")
    if size == 0:
        return
    head = np.frombuffer(stream.read(16), f"{order}u4").tolist()
    size, nesting = size - 16, head[2] & 0xFF in NESTING
    while size >= 8:
        kind, length = np.frombuffer(stream.read(8), f"{order}u4").tolist()
        small = kind >> 16
        kind, length = (kind & 0xFFFF, 0) if small else (kind, length)
        size -= 8 + length + -length % 8
        if kind == MATRIX and nesting and not small:
            _check_matrix(stream, kind, length, order, depth + 1)
        elif kind not in VALUES or small > 4 or size < -7:
            raise ValueError("its elements are damaged")
        else:
            stream.read(length + -length % 8)


class _InflatedStream:
    """The content of a deflated part of a file, as a stream."""

    def __init__(self, file, size: int):
        self._file, self._left, self._decoder = file, size, zlib.decompressobj()

    def read(self, count: int) -> bytes:
        parts = []
        while count > 0 and not self._decoder.eof:
            packed = self._decoder.unconsumed_tail or self._file.read(min(self._left, 2**16))
            if not self._decoder.unconsumed_tail:
                self._left -= len(packed)
            part = self._decoder.decompress(packed, count)
            if not part and not packed:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


class Hdf5(Format):
    """HDF5 files, by h5py, and MATLAB files of version 7.3, whose axes are reversed."""

    name = "HDF5"
    suffixes = (".h5", ".hdf5", ".uff", ".mat")
    takes_all = True

    def recognizes(self, head: bytes, path: Path) -> bool:
        return head.startswith((HDF5, b"MATLAB 7.3 MAT-file"))

    def read(self, path: Path, key: str) -> Recording:
        h5py = _h5py()
        by_columns = path.open("rb").read(10) == b"MATLAB 7.3"
        shape_of: Callable = (lambda shape: _shape_from_matlab(shape[::-1])) if by_columns else tuple
        with reading(path, "an HDF5 file", "h5py", own=()), h5py.File(path, "r") as file:
            sets = _data_sets(file, h5py)
            if ustb := _read_ustb(path, sets):
                return ustb
            name = choose_array(path, {name: shape_of(data.shape) for name, data in sets.items()}, key)
            check_promise(sets[name].size, path.stat().st_size, path)
            array = _read_values(sets[name])
            others = {other: np.asarray(sets[other]) for other in OURS[1:] if other in sets}
        array = from_matlab(array.transpose()) if by_columns else array
        return _recording(path, self.name, array, {"key": name, "by_columns": by_columns}, others)

    def keeps_times(self, path: Path, recording: Recording) -> bool:
        return True

    def check(self, path: Path, recording: Recording) -> None:
        _h5py()

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        h5py = _h5py()
        array = frames[0] if recording.single else frames
        if recording.format != self.name:
            with h5py.File(path, "w") as file:
                file.create_dataset(OURS[0], data=array, compression="gzip", compression_opts=3, chunks=True)
                for name, value in _metadata(recording).items():
                    file[name] = value
            return
        array = to_matlab(array).transpose() if recording.source["by_columns"] else array
        array = array.swapaxes(1, 2) if recording.source.get("by_lines") else array
        shutil.copyfile(recording.path, path)
        with h5py.File(path, "r+") as file:
            data = file[recording.source["key"]]
            if data.dtype.names:  # MATLAB's complex values
                data[...] = _as_pairs(array, data.dtype)
            else:
                data[...] = array.reshape(data.shape)


def _h5py():
    try:
        import h5py
    except ImportError as error:
        raise InputError("HDF5 files need the package h5py; install it: python -m pip install h5py.") from error
    return h5py


def _data_sets(file, h5py) -> dict:
    """Return the data sets of numbers by their paths in the file."""
    found = {}

    def visit(name: str, data) -> None:
        if isinstance(data, h5py.Dataset) and (data.dtype.kind in "iufbc" or data.dtype.names in PAIRS):
            found[name] = data

    file.visititems(visit)
    return found


AXES = (("x_axis", "z_axis"), ("azimuth_axis", "depth_axis"))  # names in USTB's scans: across the lines, along them


def _read_ustb(path: Path, sets: dict) -> Recording | None:
    """Return the beamformed data in a file of the USTB toolbox: (..., pixels), line by line; None if there are none."""
    for across, along in AXES:
        for group in [name.removesuffix(f"/scan/{across}") for name in sets if name.endswith(f"/scan/{across}")]:
            axes = sets[f"{group}/scan/{across}"], sets.get(f"{group}/scan/{along}")
            names = [f"{group}/{name}" for name in ("data", "data/real", "data/imag")]
            parts = [sets[name] for name in names if name in sets]
            if axes[1] is None or not parts:
                continue
            lines, samples = (axis.size for axis in axes)
            if not is_image((lines, samples)) or any(part.shape[-1:] != (lines * samples,) for part in parts):
                continue
            for one in (*parts, *axes):
                check_promise(one.size, path.stat().st_size, path)
            values = parts[0][()] if len(parts) == 1 else parts[0][()] + np.complex64(1j) * parts[1][()]
            frames = values.reshape(-1, lines, samples).swapaxes(1, 2)
            metres = across == "x_axis"  # otherwise angles
            steps = [1000 * np.diff(np.ravel(axis)).mean() if metres else 1.0 for axis in axes]
            source = {"key": f"{group}/data", "by_columns": False, "by_lines": True}
            return _recording(path, Hdf5.name, frames, source, {"spacing": np.array([1.0, *steps[::-1]])})
    return None


PAIRS = (("real", "imag"), ("r", "i"))


def _read_values(data) -> np.ndarray:
    """Return the values of a data set, part by part, pairs as complex numbers."""
    kind = np.dtype(np.complex64) if data.dtype.names else data.dtype.newbyteorder("=")
    result = allocate(data.shape, kind)
    for number in range(len(data)):
        part = data[number]
        result[number] = part[part.dtype.names[0]] + 1j * part[part.dtype.names[1]] if data.dtype.names else part
    return result


def _as_pairs(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    pairs = np.zeros(array.shape, dtype)
    pairs[dtype.names[0]], pairs[dtype.names[1]] = array.real, array.imag
    return pairs


def choose_array(path: Path, shapes: dict[str, tuple[int, ...]], key: str) -> str:
    """Return the name of the array with the frames: `key`, a usual name, or the only candidate. Raises InputError if
    there is none, or several."""
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
    """Return whether an array of this shape can hold frames (N, H, W) or (H, W), in grey, color or pairs."""
    small = len(shape) == 4 and shape[-1] in (1, 2, 3, 4)
    sides = shape[1:3] if small else shape[-2:]
    return len(shape) in (2, 3, 4) and (len(shape) < 4 or small) and min(sides) >= SMALLEST


def _shape_from_matlab(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape (N, H, W[, C]) of an array that is (H, W, N) or (H, W, C, N) in MATLAB."""
    return (*shape[3:], *shape[:3]) if len(shape) == 4 else (*shape[2:], *shape[:2])


def from_matlab(array: np.ndarray) -> np.ndarray:
    """Return an array (H, W, N) or (H, W, C, N), as in MATLAB, as (N, H, W[, C])."""
    return np.moveaxis(array, -1, 0) if array.ndim > 2 else array


def to_matlab(array: np.ndarray) -> np.ndarray:
    """Return an array (N, H, W[, C]) with MATLAB's order of axes, (H, W, N) or (H, W, C, N)."""
    return np.moveaxis(array, 0, -1) if array.ndim > 2 else array


def _metadata(recording: Recording) -> dict[str, np.ndarray]:
    """Return the arrays that are written with frames from other formats."""
    arrays = {OURS[2]: np.asarray(recording.spacing)}
    return arrays if recording.times is None else arrays | {OURS[1]: recording.times}


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
