"""What all formats share: the recording, the protocol of a format, raw pixels in and out."""

from __future__ import annotations

import logging
import math
import mmap
import os
import tempfile
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..system import InputError

HEAD = 512  # bytes, by which formats are told apart
SEQUENCES = tuple(f".{kind}{suffix}" for kind in ("seq", "igs") for suffix in (".mha", ".mhd", ".nrrd", ".nhdr"))
LARGE = 2**28  # bytes; larger recordings stay on the disk while they are worked on
SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "msec": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0}  # in one of a unit
DEFLATE_LIMIT = 1040  # no deflated stream can be longer than this many times its file


@dataclass
class Recording:
    """The frames of one file and what `write` needs to make an equal one."""

    frames: np.ndarray  # (N, H, W) or (N, H, W, 3 or 4), the file's own type
    path: Path
    format: str  # the name of the format that read it, or of the one that it is written as if it came from
    region: np.ndarray | None = None  # (H, W) bool: where the file says its image is (DICOM)
    single: bool = False  # the file held one two-dimensional image
    sequence: bool = False  # the file says that its frames follow each other in time
    volumes: int = 1  # of as many slices each, one after the other, that `frames` are
    times: np.ndarray | None = None  # (N,) s: when each frame (or volume) was, from the first on
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)  # (between frames, axial, lateral), mm
    source: dict = field(default_factory=dict, repr=False)  # headers, as their format keeps them
    run: str = ""  # what its frames are made with: slices of one series that share it stay one series
    parts: tuple[Path, ...] = ()  # the files that it was read from, where `path` is not the only one


class Format:
    """A family of files: what it reads, and what of a recording it can write without losing anything.

    A new format is a file with a subclass and its line in `formats.FORMATS`.
    """

    name = ""
    suffixes: tuple[str, ...] = ()  # lower case, with the dot
    geometric = False  # its files say whether they hold a volume
    fields = False  # holds fields for each frame that no other format holds
    takes_all = False  # takes the frames of every recording, without such fields
    unnamed = False  # its files may have no suffix

    def recognizes(self, head: bytes, path: Path) -> bool:
        """Whether the content of a file, which begins with `head`, says that it is of this format, whatever its name.

        head: the first `HEAD` bytes.
        """
        return False

    def read(self, path: Path, key: str) -> Recording:
        """The recording in a file that is there and not empty; InputError for what cannot be read as frames.

        key: of several arrays in a file, the one to take, if it is there.
        """
        raise NotImplementedError

    def holds_image(self, path: Path) -> bool:
        """Whether a file of this format holds frames at all, as far as can be seen without reading it."""
        return True

    def keeps_times(self, path: Path) -> bool:
        """Whether a file of this name, made of a recording of another format, holds the times of frames."""
        return False

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
    """InputError for more than volumes in time."""
    if count > 4:
        raise InputError(f"{path} has {count} dimensions; save frames, a volume or volumes in time, of 4 at most.")


def frame_times(values, count: int) -> np.ndarray | None:
    """Times in seconds, from that of the first of `count` frames on; None where they are none, or do not rise."""
    try:
        times = np.asarray([float(value) for value in values])
    except (TypeError, ValueError):
        return None
    if (
        len(times) != count
        or count < 2
        or not np.isfinite(times).all()
        or np.diff(times).min() < 0
        or not np.ptp(times)
    ):
        return None
    return times - times[0]


def steady_times(step, count: int) -> np.ndarray | None:
    """The times of `count` frames that are `step` seconds apart; None where that is no time."""
    try:
        step = float(step)
    except (TypeError, ValueError):
        return None
    return np.arange(count) * step if 0 < step < math.inf and count > 1 else None


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


def roomy(shape: tuple[int, ...], dtype) -> np.ndarray:
    """A new array, on the disk if it is large; it is gone with the last that refers to it."""
    if math.prod(shape) * np.dtype(dtype).itemsize < LARGE:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(prefix="speckle2self-") as file:
        file.truncate(math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "r+", shape=shape)


def not_held(path: Path, name: str, recording: Recording) -> InputError:
    """The error of a format, of `name`, that does not hold the type of the frames."""
    kind = recording.frames.dtype
    return InputError(f"{path.name} cannot be written: {name} does not hold frames of type {kind}; choose .npy.")


@contextmanager
def quiet(name: str):
    """What a library, whose logger is of that name, says of odd files is no message of ours: warnings, too, and what
    libraries in C write to the standard error."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), _no_standard_error():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _no_standard_error():
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextmanager
def reading(path: Path, what: str, library: str, own: tuple[type[Exception], ...] = (OSError,)):
    """Turns what a library raises on damaged files, which is of many kinds, into an InputError, and keeps it quiet.

    what: what the file should be. own: errors that say more by themselves.
    """
    try:
        with quiet(library):
            yield
    except (InputError, MemoryError, *own):
        raise
    except Exception as error:
        raise InputError(f"{path} is not {what} that can be read, or it is damaged.") from error


def release(array: np.ndarray) -> None:
    """Lets go of the memory that an array on the disk has taken up; nothing for others, and for those of the mode "c",
    whose changes are in memory alone."""
    while isinstance(array, np.ndarray) and getattr(array, "mode", "") != "c":
        if isinstance(array.base, mmap.mmap) and hasattr(array.base, "madvise"):  # not on Windows
            array.base.madvise(mmap.MADV_DONTNEED)
        array = array.base


def write_with_header(path: Path, header: bytes, array: np.ndarray, packed: bytes, beside: str) -> None:
    """Writes a header and an array, or what it was packed to; beside: the name of a file of its own for that."""
    if beside:
        path.write_bytes(header)
        path, header = path.parent / beside, b""
    if packed:
        path.write_bytes(header + packed)
    else:
        write_raw(path, header, array)


def write_raw(path: Path, header: bytes, array: np.ndarray) -> None:
    """Writes a header and an array, part by part."""
    with path.open("wb") as file:
        file.write(header)
        for part in array if array.ndim > 2 else [array]:
            file.write(np.ascontiguousarray(part).data)
            release(array)


def sequence_times(recording: Recording, count: int) -> tuple[list[str], bool]:
    """The times of `count` frames or volumes as text, in seconds, and True; their numbers and False where there are
    none."""
    if recording.times is None:
        return [str(number) for number in range(count)], False
    return [f"{time:.9g}" for time in recording.times], True


def axes_of_sequence(recording: Recording) -> tuple[np.ndarray, tuple[float, ...], np.ndarray]:
    """The directions (3, 3), one a column, the spacings and the origin (mm) of the frames or volumes of a sequence, all
    fastest first and in LPS."""
    geometry = recording.source.get("geometry", {})
    direction = np.asarray(geometry.get("direction", np.eye(3)), float)
    size = math.isqrt(direction.size)
    placed = np.eye(3)
    if size >= 3:
        placed = direction.reshape(size, size)[:3, :3]
    origin = (*geometry.get("origin", ()), 0.0, 0.0, 0.0)[:3] if size >= 3 else (0.0, 0.0, 0.0)
    return placed, recording.spacing[::-1], np.asarray(origin)
