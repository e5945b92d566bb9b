"""What all formats share: the recording, the protocol of a format, raw pixels in and out."""

from __future__ import annotations

import math
import mmap
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..system import InputError

LARGE = 2**28  # bytes; larger recordings stay on the disk while they are worked on
DEFLATE_LIMIT = 1040  # no deflated stream can be longer than this many times its file


@dataclass
class Recording:
    """The frames of one file and what `write` needs to make an equal one."""

    frames: np.ndarray  # (N, H, W) or (N, H, W, 3 or 4), the file's own type
    path: Path
    format: str  # the name of the format that read it
    region: np.ndarray | None = None  # (H, W) bool: where the file says its image is (DICOM)
    single: bool = False  # the file held one two-dimensional image
    sequence: bool = False  # the file says that its frames follow each other in time
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)  # (between frames, axial, lateral), mm
    source: dict = field(default_factory=dict, repr=False)  # headers, as their format keeps them
    parts: tuple[Path, ...] = ()  # the files that it was read from, where `path` is not the only one


class Format:
    """A family of files: what it reads, and what of a recording it can write without losing anything.

    A new format is a file with a subclass and its line in `formats.FORMATS`.
    """

    name = ""
    suffixes: tuple[str, ...] = ()  # lower case, with the dot
    fields = False  # holds fields for each frame that no other format holds
    takes_all = False  # takes the frames of every recording, without such fields
    unnamed = False  # its files may have no suffix

    def recognizes(self, path: Path) -> bool:
        """Whether the content of a file says that it is of this format, whatever its name."""
        return False

    def read(self, path: Path, key: str) -> Recording:
        """The recording in a file that is there and not empty; InputError for what cannot be read as frames.

        key: of several arrays in a file, the one to take, if it is there.
        """
        raise NotImplementedError

    def check(self, path: Path, recording: Recording) -> None:
        """Raises InputError where `recording` cannot be written to `path` without losing what it held."""
        raise NotImplementedError

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        """Writes `frames`, of the shape and type of `recording.frames`, into an empty folder."""
        raise NotImplementedError


def has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a file's name ends in one of `suffixes`."""
    return path.name.lower().endswith(suffixes)


def numbers(text: str, kind, path, name: str) -> list:
    """The words of a header's field as numbers; InputError where one is none."""
    try:
        return [kind(word) for word in text.split()]
    except ValueError as error:
        raise InputError(f"{path} is damaged: its {name} is '{text[:40]}'.") from error


def pixels(data: Path, start: int, count: int, dtype: np.dtype, packed: str, path) -> np.ndarray:
    """`count` values of `dtype`, raw or deflated, from byte `start` of a file; -1: those at its end."""
    wanted = count * dtype.itemsize
    with data.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        start = max(end - wanted, 0) if start < 0 else min(start, end)
        size = end - start
        if wanted > size * (DEFLATE_LIMIT if packed else 1):
            raise InputError(f"{path} is damaged: it promises {wanted} bytes of pixels and holds {size}.")
        stream.seek(start)
        if packed:
            try:
                decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # zlib or gzip
                values = bytearray()
                while len(values) < wanted and (piece := stream.read(2**20)):
                    values += decoder.decompress(piece, wanted - len(values))
                    while decoder.unconsumed_tail and len(values) < wanted:
                        values += decoder.decompress(decoder.unconsumed_tail, wanted - len(values))
            except zlib.error as error:
                raise InputError(f"{path} is damaged: its pixels cannot be decompressed.") from error
        elif wanted >= LARGE:
            return np.memmap(stream, dtype, "r", start, (count,))
        else:
            values = bytearray(stream.read(wanted))
    if len(values) < wanted:
        raise InputError(f"{path} is cut short: {wanted} bytes of pixels were expected, {len(values)} are there.")
    return np.frombuffer(values, dtype, count)


def bytes_before_pixels(text: str, packed: str, path, name: str) -> int:
    """The number of bytes before the pixels; -1: the pixels are at the end of their file."""
    given = numbers(text, int, path, name)
    if len(given) != 1 or given[0] < -1:
        raise InputError(f"{path} is damaged: its {name} is '{text[:40]}'.")
    if packed and given[0]:
        raise InputError(f"{path} has compressed pixels and a {name}, which is not supported; save it without.")
    return given[0]


def lengths(values) -> tuple[float, ...]:
    """Spacings as lengths in mm; 1 for what is none."""
    return tuple(abs(float(v)) if v and math.isfinite(v) else 1.0 for v in values)


def count_values(sizes: list[int], path) -> int:
    """The number of values; InputError where a size is no size."""
    if not sizes or min(sizes) < 1:
        raise InputError(f"{path} is damaged: its size is {sizes}.")
    count = 1
    for size in sizes:
        count *= size
    return count


def check_dimensions(count: int, path) -> None:
    """InputError for a sequence of volumes."""
    if count > 3:
        raise InputError(f"{path} has {count} dimensions; a sequence of volumes opens in Slicer alone.")


def data_file(path: Path, name: str):
    """The data file that a header names, beside the header."""
    if "%" in name or name == "LIST" or Path(name).name != name:
        raise InputError(f"{path} keeps its pixels in {name}; only one file in the same folder is supported.")
    data = path.parent / name
    if not data.is_file():
        raise InputError(f"{path} keeps its pixels in {name}, which is not there.")
    return data


def header_lines(file, path, is_last, detached: bool = False) -> list[str]:
    """Text lines up to the one for which `is_last` holds; InputError where none comes, unless a header is detached."""
    lines = []
    while line := file.readline(2**20):
        if b"\0" in line:
            break
        lines.append(line.decode("utf-8", "surrogateescape").rstrip("\r\n"))
        if is_last(lines[-1]):
            return lines
    if detached and not line:
        return lines
    raise InputError(f"{path} is not what its name says: its header does not end.")


def release(array: np.ndarray) -> None:
    """Lets go of the memory that an array on the disk has taken up; nothing for others, and for those of the mode "c",
    whose changes are in memory alone."""
    while isinstance(array, np.ndarray) and getattr(array, "mode", "") != "c":
        if isinstance(array.base, mmap.mmap) and hasattr(array.base, "madvise"):  # not on Windows
            array.base.madvise(mmap.MADV_DONTNEED)
        array = array.base


def write_raw(path: Path, header: bytes, array: np.ndarray) -> None:
    """Writes a header and an array, part by part."""
    with path.open("wb") as file:
        file.write(header)
        for part in array if array.ndim > 2 else [array]:
            file.write(np.ascontiguousarray(part).data)
            release(array)
