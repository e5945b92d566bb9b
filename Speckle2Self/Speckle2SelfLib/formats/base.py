"""The common parts of all formats: the recording, the protocol of a format, reading and writing of raw pixels."""

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

HEAD = 512  # bytes at the start of a file that identify its format
SEQUENCES = tuple(f".{kind}{suffix}" for kind in ("seq", "igs") for suffix in (".mha", ".mhd", ".nrrd", ".nhdr"))
LARGE = 2**28  # bytes; larger recordings are kept on the disk while they are processed
SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "msec": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0}  # seconds per unit
NEAR = 0.05  # fraction of the interval between frames; smaller errors of a time are accepted
DEFLATE_LIMIT = 1040  # largest possible ratio of inflated to deflated size


@dataclass
class Recording:
    """The frames of one file, with everything that `write` needs to reproduce the file."""

    frames: np.ndarray  # (N, H, W) or (N, H, W, 3 or 4), the file's own type
    path: Path
    format: str  # the name of the format that read it, or of the one whose rules apply when it is written
    region: np.ndarray | None = None  # (H, W) bool: the imaged part according to the file (DICOM)
    single: bool = False  # the file held one two-dimensional image
    sequence: bool = False  # the file says that its frames follow each other in time
    volumes: int = 1  # number of volumes in `frames`, one after the other, with equal numbers of slices
    times: np.ndarray | None = None  # (N,) s: time of each frame (or volume) after the first
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)  # (between frames, axial, lateral), mm
    source: dict = field(default_factory=dict, repr=False)  # headers, in the form of their format
    run: str = ""  # identifies how its frames were made; slices of one series with the same value remain one series
    parts: tuple[Path, ...] = ()  # the files that it was read from, if `path` is not the only one


class Format:
    """A family of files: reads recordings, and checks what it can write of a recording without loss.

    A new format is a file with a subclass and its line in `formats.FORMATS`.
    """

    name = ""
    suffixes: tuple[str, ...] = ()  # lower case, with the dot
    geometric = False  # whether its files say that they hold a volume
    fields = False  # whether it holds fields for each frame that no other format has
    takes_all = False  # whether it accepts the frames of every recording, without such fields
    unnamed = False  # whether its files may lack a suffix

    def recognizes(self, head: bytes, path: Path) -> bool:
        """Return whether a file has this format, by its content, whatever its name.

        Args: head, the first `HEAD` bytes of the file.
        """
        return False

    def read(self, path: Path, key: str) -> Recording:
        """Return the recording in an existing file that is not empty. Raises InputError if it cannot be read as frames.

        Args: key, the array to read if the file holds several.
        """
        raise NotImplementedError

    def holds_image(self, path: Path) -> bool:
        """Return whether a file of this format holds frames at all, as far as is known without reading it."""
        return True

    def keeps_times(self, path: Path, recording: Recording) -> bool:
        """Return whether a file of this name can store the frame times of a recording of another format."""
        return False

    def check(self, path: Path, recording: Recording) -> None:
        """Raise InputError if `recording` cannot be written to `path` without loss."""
        raise NotImplementedError

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        """Write `frames`, of the shape and type of `recording.frames`, into an empty folder."""
        raise NotImplementedError


def has_suffix(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Return whether a file's name ends in one of `suffixes`."""
    return path.name.lower().endswith(suffixes)


def numbers(text: str, kind, path, name: str) -> list:
    """Return the words of a header's field as numbers. Raises InputError if one is not a number."""
    try:
        return [kind(word) for word in text.split()]
    except ValueError as error:
        raise InputError(f"{path} is damaged: its {name} is '{text[:40]}'.") from error


def pixels(data: Path, start: int, count: int, dtype: np.dtype, packed: str, path) -> np.ndarray:
    """Return `count` values of `dtype`, raw or deflated, from byte `start` of a file; -1: the last ones in the file."""
    wanted = count * dtype.itemsize
    with data.open("rb") as stream:
        end = stream.seek(0, os.SEEK_END)
        start = max(end - wanted, 0) if start < 0 else min(start, end)
        size = end - start
        if wanted > size * (DEFLATE_LIMIT if packed else 1):
            raise InputError(f"{path} is damaged: its header states {wanted} bytes of pixels, but it holds {size}.")
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
        raise InputError(f"{path} is cut short: {wanted} bytes of pixels were expected, {len(values)} were found.")
    return np.frombuffer(values, dtype, count)


def bytes_before_pixels(text: str, packed: str, path, name: str) -> int:
    """Return the number of bytes before the pixels; -1: the pixels are at the end of their file."""
    given = numbers(text, int, path, name)
    if len(given) != 1 or given[0] < -1:
        raise InputError(f"{path} is damaged: its {name} is '{text[:40]}'.")
    if packed and given[0]:
        raise InputError(f"{path} has compressed pixels and a {name}, which is not supported; save it without.")
    return given[0]


def lengths(values) -> tuple[float, ...]:
    """Return spacings as lengths in mm; 1 for values that are not lengths."""
    return tuple(abs(float(v)) if v and math.isfinite(v) else 1.0 for v in values)


def count_values(sizes: list[int], path) -> int:
    """Return the number of values. Raises InputError if a size is not positive."""
    if not sizes or min(sizes) < 1:
        raise InputError(f"{path} is damaged: its size is {sizes}.")
    return math.prod(sizes)


def check_promise(count: int, size: int, path, packed: int = DEFLATE_LIMIT) -> None:
    """Raise InputError if a header promises no values, or more than `size` bytes can hold.

    packed: the largest possible number of values in a byte.
    """
    if not 0 < count <= size * packed:
        raise InputError(f"{path} is damaged: its header states {count} values in {size} bytes.")


def check_dimensions(count: int, path) -> None:
    """Raise InputError for more dimensions than volumes in time have."""
    if count > 4:
        raise InputError(f"{path} has {count} dimensions; save frames, a volume or volumes in time, of 4 at most.")


def frame_times(values, count: int) -> np.ndarray | None:
    """Return the times of `count` frames after the first, in seconds; None if they are not times or do not increase."""
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
    """Return the times of `count` frames that are `step` seconds apart; None if `step` is not a duration."""
    try:
        step = float(step)
    except (TypeError, ValueError):
        return None
    return np.arange(count) * step if 0 < step < math.inf and count > 1 else None


def is_steady(times: np.ndarray) -> bool:
    """Return whether frames are at equal intervals, or nearly."""
    even = np.linspace(times[0], times[-1], len(times))
    return bool(np.abs(times - even).max() <= NEAR * (times[-1] - times[0]) / (len(times) - 1))


def orient(frames: np.ndarray, orientation: int, back: bool = False) -> np.ndarray:
    """Return frames (N, H, W[, C]) as displayed, for an orientation of EXIF or TIFF (1 to 8); back: as stored."""
    turned = orientation in (5, 6, 7, 8)
    flipped = [axis for axis, kinds in ((1, (3, 4, 7, 8)), (2, (2, 3, 6, 7))) if orientation in kinds]
    if turned and not back:
        frames = frames.swapaxes(1, 2)
    frames = np.flip(frames, flipped) if flipped else frames
    return frames.swapaxes(1, 2) if turned and back else frames


def data_file(path: Path, name: str):
    """Return the data file that a header names, in the header's folder."""
    if "%" in name or name == "LIST" or Path(name).name != name:
        raise InputError(f"{path} keeps its pixels in {name}; only one file in the same folder is supported.")
    data = path.parent / name
    if not data.is_file():
        raise InputError(f"{path} keeps its pixels in {name}, which is missing.")
    return data


def header_lines(file, path, is_last, detached: bool = False) -> list[str]:
    """Return text lines up to the one for which `is_last` holds. Raises InputError without one, unless `detached`."""
    lines = []
    while line := file.readline(2**20):
        if b"\0" in line:
            break
        lines.append(line.decode("utf-8", "surrogateescape").rstrip("\r\n"))
        if is_last(lines[-1]):
            return lines
    if detached and not line:
        return lines
    raise InputError(f"{path} is damaged: its header does not end.")


def allocate(shape: tuple[int, ...], dtype) -> np.ndarray:
    """Return a new array, on disk if it is large; it is freed with the last reference to it."""
    if math.prod(shape) * np.dtype(dtype).itemsize < LARGE:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(prefix="speckle2self-") as file:
        file.truncate(math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "r+", shape=shape)


def unsupported_type(path: Path, name: str, recording: Recording) -> InputError:
    """Return the error for a format `name` that cannot hold frames of this type."""
    kind = recording.frames.dtype
    return InputError(f"{path.name} cannot be written: {name} does not hold frames of type {kind}; choose .npy.")


@contextmanager
def quiet(name: str):
    """Silence a library while it reads odd files: its logger `name`, warnings, and what C libraries write to stderr."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), _without_standard_error():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _without_standard_error():
    try:
        kept = os.dup(2)
    except OSError:  # there is no such descriptor
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
    """Convert the many exceptions that a library raises for damaged files to InputError, and silence the library.

    what: the expected kind of file. own: exceptions that are informative enough to pass on.
    """
    try:
        with quiet(library):
            yield
    except (InputError, MemoryError, *own):
        raise
    except Exception as error:
        raise InputError(f"{path} is not {what} that can be read, or it is damaged.") from error


def release(array: np.ndarray) -> None:
    """Free the memory that caches an array on disk. Do nothing for other arrays, or for those of mode "c", whose
    changes exist only in memory."""
    while isinstance(array, np.ndarray) and getattr(array, "mode", "") != "c":
        if isinstance(array.base, mmap.mmap) and hasattr(array.base, "madvise"):  # Windows has none
            array.base.madvise(mmap.MADV_DONTNEED)
        array = array.base


def write_with_header(path: Path, header: bytes, array: np.ndarray, packed: bytes, beside: str) -> None:
    """Write a header and an array, or its packed bytes; beside: name of a separate file for the array."""
    if beside:
        path.write_bytes(header)
        path, header = path.parent / beside, b""
    if packed:
        path.write_bytes(header + packed)
    else:
        write_raw(path, header, array)


def write_raw(path: Path, header: bytes, array: np.ndarray) -> None:
    """Write a header and an array, part by part."""
    with path.open("wb") as file:
        file.write(header)
        for part in array if array.ndim > 2 else [array]:
            file.write(np.ascontiguousarray(part).data)
            release(array)


def sequence_times(recording: Recording, count: int) -> tuple[list[str], bool]:
    """Return the times of `count` frames or volumes as text, in seconds, and True; without times, their numbers and
    False."""
    if recording.times is None:
        return [str(number) for number in range(count)], False
    return [f"{time:.9g}" for time in recording.times], True


def axes_of_sequence(recording: Recording) -> tuple[np.ndarray, tuple[float, ...], np.ndarray]:
    """Return the directions (3, 3), one per column, the spacings and the origin (mm) of the frames or volumes of a
    sequence, fastest axis first, in LPS."""
    geometry = recording.source.get("geometry", {})
    direction = np.asarray(geometry.get("direction", np.eye(3)), float)
    size = math.isqrt(direction.size)
    directions = direction.reshape(size, size)[:3, :3] if size >= 3 else np.eye(3)
    origin = (*geometry.get("origin", ()), 0.0, 0.0, 0.0)[:3] if size >= 3 else (0.0, 0.0, 0.0)
    return directions, recording.spacing[::-1], np.asarray(origin)
