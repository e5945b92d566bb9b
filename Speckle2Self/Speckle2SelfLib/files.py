"""Read files into frames, and write frames back with everything else that the file held; `formats` has the details of
each format."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from .formats import FORMATS, base, by_content, by_name
from .formats.arrays import Arrays
from .formats.base import Format, Recording, allocate, release
from .formats.itk import geometry
from .formats.signals import to_decibels
from .system import FilePath, InputError

__all__ = [
    "Recording", "allocate", "array_like", "check_map", "check_output", "find", "is_readable", "read", "read_mask",
    "release", "write", "write_map",
]  # fmt: skip
FLOATING = (".npy", ".nrrd", ".mha")  # single files that hold floating point
logger = logging.getLogger(__name__)
BESIDE = {".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz"), ".hdr": (".img", ".img.gz")}  # of separate data


def find(inputs: Iterable[FilePath], other_files: list[Path] | None = None) -> list[Path]:
    """Return the readable files in `inputs`; folders are searched recursively. Raises InputError if there are none.

    other_files: receives the other files of folders, except hidden ones and those that hold a header's pixels.
    """
    paths: list[Path] = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            inside = [p for p in sorted(entry.rglob("*")) if p.is_file() and not p.name.startswith(".")]
            unreadable = [p for p in inside if not is_readable(p)]
            inside = [p for p in inside if p not in set(unreadable)]
            if other_files is not None:
                other_files += [p for p in unreadable if not _is_part(p)]
            if not inside:
                raise InputError(f"The folder {entry} holds no image file.")
            paths += inside
        elif entry.is_file():
            paths.append(entry)
        else:
            raise InputError(f"There is no file or folder {entry}.")
    return paths


def is_readable(path: Path) -> bool:
    """Return whether a file is accepted as a recording, by its first bytes, or by its name where they say nothing."""
    try:
        file_format = by_content(path)
    except OSError:
        file_format = None
    file_format = file_format or by_name(path)
    return file_format is not None and file_format.holds_image(path)


def _is_part(path: Path) -> bool:
    """Return whether a file holds the pixels of a header next to it."""
    return any(path.name.lower().endswith(ends) and path.with_name(path.name[: -len(end)] + header).exists()
               for header, ends in BESIDE.items() for end in ends if path.name.lower().endswith(end))  # fmt: skip


def read(path: FilePath, key: str = "frames", dynamic_range: float | None = None) -> Recording:
    """Return the recording in one file. Raises InputError, in one sentence, if it cannot be read as frames.

    key: the array to read if the file holds several. dynamic_range: see `to_decibels`, which converts data before log
    compression to decibels.
    """
    recording = _read(Path(path), "uifc", key)
    source = next(candidate for candidate in FORMATS if candidate.name == recording.format)
    recording = to_decibels(recording, dynamic_range, source.name if source.fields else Arrays.name)
    if recording.frames.ndim == 4 and recording.frames.shape[-1] not in (3, 4):
        raise _no_frames(path, recording.frames)
    return recording


def _read(path: Path, kinds: str, key: str = "frames") -> Recording:
    """Read a file without converting it to decibels; kinds: NumPy's kinds of types to accept."""
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty.")
    try:
        file_format = by_content(path) or by_name(path)
        if file_format is None:
            raise InputError(f"{path} is not an image that can be read.")
        recording = file_format.read(path, key)
    except MemoryError as error:
        raise InputError(f"{path} cannot be read: there is not enough memory.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    frames = recording.frames
    if frames.dtype.kind not in kinds:
        raise InputError(f"{path} holds values of type {frames.dtype}, not grey values.")
    if frames.ndim not in (3, 4) or (frames.ndim == 4 and frames.shape[-1] not in (2, 3, 4)) or 0 in frames.shape:
        raise _no_frames(path, frames)
    return recording


def _no_frames(path: FilePath, frames: np.ndarray) -> InputError:
    return InputError(f"{path} holds an array of shape {frames.shape}, which is not frames, color frames or a volume.")


def read_mask(path: FilePath, shape: tuple[int, int]) -> np.ndarray:
    """Return a mask file as (H, W) bool, true for values that are neither zero nor NaN.

    Raises InputError if no value is, or if the mask does not fit frames of `shape`.
    """
    frames = np.nan_to_num(_read(Path(path), "uifb").frames)
    mask = (frames if frames.ndim == 3 else frames[..., :3].max(-1)) != 0
    if mask.shape != (1, *shape):
        raise InputError(f"The mask {path} of {mask.shape} does not fit frames of {shape[0]} x {shape[1]} pixels.")
    if not mask.any():
        raise InputError(f"The mask {path} is empty: mark the imaged pixels with values other than zero.")
    return mask[0]


@contextmanager
def array_like(frames: np.ndarray, folder: FilePath) -> Iterator[np.ndarray | None]:
    """Return an array of the shape and type of `frames` to write into; a large one is on disk, in `folder`."""
    if frames.nbytes < base.LARGE:
        yield None
        return
    with tempfile.TemporaryFile(prefix=".speckle2self-", dir=folder) as file:
        file.truncate(frames.nbytes)
        yield np.memmap(file, frames.dtype, "r+", shape=frames.shape)


def _keep_input(targets: Iterable[Path], recording: Recording) -> None:
    """Raise InputError if one of the files to be written is one that the recording was read from."""
    for part in {recording.path, *recording.parts}:
        for target in targets:
            if target.exists() and part.exists() and target.samefile(part):
                raise InputError(f"{target} is the input; choose another output, the input is never overwritten.")


def check_output(path: FilePath, recording: Recording) -> None:
    """Raise InputError if writing `recording` to `path` would lose what its file held, and warn if times are lost. Call
    this before starting a long job as well."""
    target = _format_of(Path(path), recording)
    if (
        recording.times is not None
        and target.name != recording.format
        and not target.keeps_times(Path(path), recording)
    ):
        logger.warning("%s does not hold the times of the frames, as .seq.nrrd and .seq.mha do.", Path(path).name)


def check_map(path: Path, recording: Recording, output: Path) -> None:
    """Raise InputError if a floating-point map that belongs to a recording cannot be written to `path`.

    output: the file that the recording's frames are written to.
    """
    if not base.has_suffix(path, FLOATING):
        raise InputError(f"{path.name} cannot hold an uncertainty; use the suffix .npy, .nrrd or .mha.")
    if path.resolve() == output.resolve():
        raise InputError(f"{path} is the output already; choose another file for the uncertainty.")
    nothing = np.broadcast_to(np.float32(0), recording.frames.shape[:3])
    _format_of(path, _map_of(recording, path, nothing))


def write_map(path: Path, values: np.ndarray, recording: Recording) -> None:
    """Write a floating-point map with the geometry and times of a recording, whole or not at all.

    values: one for each pixel of the frames (N, H, W).
    """
    values = np.ascontiguousarray(values).reshape(recording.frames.shape[:3])
    write(path, values, _map_of(recording, path, values))


def _map_of(recording: Recording, path: Path, values: np.ndarray) -> Recording:
    """Return a recording of other values: with all header fields if `path` has its own format, else with its
    geometry."""
    found = by_name(path)
    if found is not None and found.name == recording.format and recording.frames.ndim == 3:
        return replace(recording, frames=values)
    known = recording.source.get("geometry")
    if known is None:
        geometric = next(one.geometric for one in FORMATS if one.name == recording.format)
        known = geometry(recording.path) if geometric else {}
    return replace(recording, frames=values, format=Arrays.name, source={"geometry": known})


def _format_of(path: Path, recording: Recording) -> Format:
    """Return the format in which `recording` can be written to `path`. Raises InputError if there is none."""
    _keep_input([path, *(path.with_suffix(suffix) for suffix in BESIDE.get(path.suffix.lower(), ()))], recording)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path} is a folder or in a folder that does not exist; choose another output file.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"The folder {path.parent} cannot be written to.")
    source = next(candidate for candidate in FORMATS if candidate.name == recording.format)
    target = source if base.has_suffix(path, source.suffixes) else by_name(path)
    if target is None and source.unnamed:
        target = source
    volume = source.geometric and not (recording.sequence or recording.single or recording.volumes > 1)
    if base.has_suffix(path, base.SEQUENCES) and volume:
        name, suffix = recording.path.name, recording.path.suffix
        raise InputError(f"{path.name} cannot be written: {name} is a volume, not a sequence; choose {suffix}.")
    if target is not source and np.min(recording.source.get("alpha", 255)) < 255:
        raise InputError(f"{path.name} cannot be written: transparency would be lost; choose .png.")
    if source.fields and target is not source and (target is None or not target.takes_all):
        suffix = recording.path.suffix
        raise InputError(
            f"A {suffix} recording cannot become {path.name}: that would lose its fields; choose {suffix} or .npy."
        )
    if target is None:
        raise InputError(f"{path.name} cannot be written: its format is not known; choose .mha, .nrrd, .tif or .npy.")
    target.check(path, recording)
    return target


def write(path: FilePath, frames: np.ndarray, recording: Recording) -> None:
    """Write `frames`, of the shape and type of `recording.frames`, as the file `path`, whole or not at all.

    A file of the input's family of formats keeps every header field, in order and verbatim. Other conversions are made
    where they lose nothing but such fields: arrays from everything, images from arrays, images and DICOM.
    Raises InputError: for the input itself as output, formats that cannot hold it, folders that cannot be written.
    """
    path = Path(path)
    target = _format_of(path, recording)
    if frames.shape != recording.frames.shape or frames.dtype != recording.frames.dtype:
        raise ValueError("The frames differ from the recording's in shape or type.")
    try:
        folder = Path(tempfile.mkdtemp(prefix=".speckle2self-", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path.parent} cannot be written to: {error.strerror or error}.") from error
    try:
        target.write(folder / path.name, frames, recording)
        _keep_input([path.parent / part.name for part in folder.iterdir()], recording)
        for part in sorted(folder.iterdir(), key=lambda p: p.name == path.name):  # the header last
            os.replace(part, path.parent / part.name)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "the disk is full, or the format does not hold such frames"
        raise InputError(f"{path} cannot be written: {reason}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
