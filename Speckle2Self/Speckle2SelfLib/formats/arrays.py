"""NumPy arrays (.npy, .npz), which can hold any frames but nothing else."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from ..system import InputError
from . import base
from .base import DEFLATE_LIMIT, Format, Recording, has_suffix, reading, write_raw


class Arrays(Format):
    name = "NumPy"
    suffixes = (".npy", ".npz")
    takes_all = True

    def recognizes(self, head: bytes, path: Path) -> bool:
        return head.startswith(b"\x93NUMPY") or (head.startswith(b"PK") and has_suffix(path, self.suffixes))

    def read(self, path: Path, key: str) -> Recording:
        name, size = None, path.stat().st_size
        with reading(path, "an array of numbers", "numpy"):
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    names = [entry.removesuffix(".npy") for entry in archive.namelist()]
                    name = next((one for one in (key, "frames", "input") if one in names), None)
                    if name is None and len(names) == 1:
                        name = names[0]
                    if name is None:
                        raise InputError(f"{path} holds {', '.join(names) or 'nothing'}; name one of them 'frames'.")
                    entry = archive.getinfo(f"{name}.npy")
                    with archive.open(entry) as file:
                        array = _array(file, min(entry.file_size, size * DEFLATE_LIMIT), path)
            else:
                with path.open("rb") as file:
                    array = _array(file, size, path)
        colour = array.ndim == 3 and array.shape[-1] in (3, 4) and array.dtype == np.uint8
        single = array.ndim == 2 or colour
        return Recording(array[None] if single else array, path, self.name, single=single, source={"key": name})

    def check(self, path: Path, recording: Recording) -> None:
        """Accept every recording: all can be stored as arrays."""

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        array = frames[0] if recording.single else frames
        if path.suffix.lower() == ".npz":
            np.savez_compressed(path, **{recording.source.get("key") or "frames": array})
            return
        header = io.BytesIO()  # not np.save: it would load a long cine from disk into memory
        np.lib.format.write_array_header_1_0(
            header, {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
        )
        write_raw(path, header.getvalue(), array)


def _array(file, size: int, path) -> np.ndarray:
    """Return the array in an NPY stream of `size` bytes, without allocating more memory than that."""
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, by_columns, dtype = read_header(file)
    count = math.prod(shape)
    if min(shape, default=1) < 0 or dtype.hasobject or count * dtype.itemsize > size:
        raise InputError(f"{path} is damaged: its header states {count} values of type {dtype} in {size} bytes.")
    if count * dtype.itemsize >= base.LARGE and isinstance(file, io.BufferedReader):
        values = np.memmap(file, dtype, "r", file.tell(), (count,))
    else:
        values = np.frombuffer(bytearray(file.read(count * dtype.itemsize)), dtype, count)
    return values.reshape(shape[::-1]).transpose() if by_columns else values.reshape(shape)
