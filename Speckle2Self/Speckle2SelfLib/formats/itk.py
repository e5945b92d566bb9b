"""Everything else that SimpleITK reads (BMP, Analyze, GIPL, VTK), and volumes in the formats that ITK writes."""

from __future__ import annotations

import gzip
import locale
import math
import os
import re
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

from ..system import InputError
from .base import (
    DEFLATE_LIMIT,
    HEAD,
    SEQUENCES,
    Format,
    Recording,
    check_dimensions,
    check_promise,
    has_suffix,
    lengths,
    quiet,
    reading,
    unsupported_type,
)

VTK_HEADER = re.compile(rb"\n(?:LOOKUP_TABLE|COLOR_SCALARS|VECTORS|TENSORS)[^\n]*\n")  # the end of the header
GIPL_HEADER = 256  # bytes
FRAME_FORMATS = (".png", ".bmp", ".jpg", ".jpeg")  # formats that hold one frame


class Images(Format):
    """All images that no other format handles."""

    name = "image"
    suffixes = (".bmp", ".hdr", ".img", ".img.gz", ".gipl", ".gipl.gz", ".vtk")
    geometric = True

    def recognizes(self, head: bytes, path: Path) -> bool:
        return head.startswith((b"BM", b"# vtk DataFile")) and has_suffix(path, self.suffixes)

    def read(self, path: Path, key: str) -> Recording:
        if path.open("rb").read(2) == b"BM":  # a damaged BMP file ends the whole process in ITK
            with reading(path, "an image", "PIL"), Image.open(path) as image:
                image.load()
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            with _quiet():
                reader.ReadImageInformation()
                check_dimensions(reader.GetDimension(), path)
                count, parts = math.prod(reader.GetSize()) * reader.GetNumberOfComponents(), _pair(path)
                size = sum(part.stat().st_size for part in parts)
                check_promise(count, size, path, 8 * DEFLATE_LIMIT)  # 8 values of one bit in a byte
                image = reader.Execute()
            for part in parts:
                _check_whole(part, sitk.GetArrayViewFromImage(image).nbytes)
        except RuntimeError as error:
            raise InputError(f"{path} is not an image that can be read.") from error
        array = sitk.GetArrayFromImage(image)
        dimension = image.GetDimension()
        metadata = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
        source = {"geometry": _geometry(image), "metadata": metadata, "shape": array.shape[:dimension]}
        volumes, flat = (array.shape[0] if dimension == 4 else 1), dimension == 4 and array.shape[1] == 1
        return Recording(
            array[None] if dimension == 2 else array.reshape(-1, *array.shape[dimension - 2 :]),
            path,
            self.name,
            single=dimension == 2,
            sequence=flat,
            volumes=1 if flat else volumes,
            spacing=(*lengths(image.GetSpacing()), 1.0)[:3][::-1],
            source=source,
            parts=parts,
        )

    def check(self, path: Path, recording: Recording) -> None:
        if has_suffix(path, FRAME_FORMATS) and len(recording.frames) > 1:
            raise InputError(f"{path.name} cannot be written: it holds only one frame; choose .tif, .mha or .npy.")
        check_image(path, recording)

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        write_image(path, frames, recording)


@contextmanager
def _quiet():
    """Silence ITK, and restore the locale of the process, which ITK changes when it reads or writes VTK files."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        with quiet("SimpleITK"):
            yield
    finally:
        with suppress(locale.Error):
            locale.setlocale(locale.LC_ALL, before)


def _check_whole(path: Path, size: int) -> None:
    """Raise InputError if a file with `size` bytes of pixels is cut short; ITK would read beyond its end."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".vtk", ".gipl", ".img")):
        try:
            with gzip.open(path) if has_suffix(path, (".gz",)) else path.open("rb") as file:
                head, length = file.read(2**16), file.seek(0, os.SEEK_END)
        except (EOFError, zlib.error):
            head, length = b"", 0
        found = VTK_HEADER.search(head) if name.endswith(".vtk") else None
        start = found.end() if found else GIPL_HEADER if name.endswith(".gipl") else 0
        if length < start + size and b"\nASCII" not in head[:HEAD]:
            raise InputError(f"{path} is cut short: {size} bytes of pixels were expected.")


def geometry(path: Path) -> dict:
    """Return the spacing, origin and directions in the header of a file, as ITK reads them; empty if it cannot."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with _quiet():
            reader.ReadImageInformation()
    except RuntimeError:
        return {}
    return _geometry(reader)


def _geometry(image) -> dict:
    return {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}


def check_image(path: Path, recording: Recording) -> None:
    """Raise InputError if the format of `path`, one that ITK writes, cannot hold the frames."""
    if recording.source.get("geometry", {}).get("sheared"):
        raise InputError(f"{path.name} cannot be written: its axes would not be at right angles; choose .nii.gz.")
    try:
        with tempfile.TemporaryDirectory(prefix=".speckle2self-", dir=path.parent) as folder:
            array = _reshape(recording.frames, recording)
            small = array[(slice(2),) * (array.ndim - (recording.frames.ndim == 4))]
            _write(Path(folder) / path.name, np.ascontiguousarray(small), recording)
    except (OSError, RuntimeError, TypeError) as error:
        kind = f"{'color ' if recording.frames.ndim == 4 else ''}frames of type {recording.frames.dtype}"
        reason = getattr(error, "strerror", None) or f"its format does not hold {kind}, or the disk is full"
        raise InputError(f"{path.name} cannot be written: {reason}; choose .npy.") from error


def write_image(path: Path, frames: np.ndarray, recording: Recording) -> None:
    """Write frames, a volume or volumes in time by ITK, with geometry and metadata, and read them back as a check."""
    _write(path, _reshape(frames, recording), recording)


def _reshape(frames: np.ndarray, recording: Recording) -> np.ndarray:
    """Return the frames in the dimensions that their file has."""
    if recording.single:
        return frames[0]
    if recording.sequence and len(recording.source.get("shape", ())) == 4:
        return frames[:, None]
    return frames if recording.volumes == 1 else frames.reshape(recording.volumes, -1, *frames.shape[1:])


@_quiet()  # ITK warns of every text that a format does not hold, and of odd spacings
def _write(path: Path, array: np.ndarray, recording: Recording) -> None:
    colour = recording.frames.ndim == 4
    image = sitk.GetImageFromArray(array, isVector=colour)
    dimension, geometry = image.GetDimension(), recording.source.get("geometry")
    if geometry and dimension == 4 and len(geometry["spacing"]) == 3:  # geometry of volumes in time
        turned = np.eye(4)
        turned[:3, :3] = np.reshape(geometry["direction"], (3, 3))
        step = 1.0 if recording.times is None else float(np.mean(np.diff(recording.times))) or 1.0
        image.SetSpacing((*geometry["spacing"], step))
        image.SetOrigin((*geometry["origin"], 0.0))
        image.SetDirection(turned.ravel())
    elif geometry and len(geometry["spacing"]) == dimension:
        image.SetSpacing(geometry["spacing"])
        image.SetOrigin(geometry["origin"])
        image.SetDirection(geometry["direction"])
    else:
        image.SetSpacing((*recording.spacing[::-1], 1.0)[:dimension])
    for key, value in recording.source.get("metadata", {}).items():
        if not value.startswith("[UNKNOWN_PRINT_CHARACTERISTICS]"):
            image.SetMetaData(_as_text(key), _as_text(value))
    for key, value in _times(path, recording).items():
        image.SetMetaData(key, value)
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.SetUseCompression(True)
    writer.Execute(image)
    # Read back, because ITK does not report every full disk, nor everything that a format cannot hold.
    image = sitk.ReadImage(str(path))
    again = sitk.GetArrayViewFromImage(image)
    if again.size % array.size or not all(map(_equal, again.reshape(*array.shape, -1), array)):
        raise RuntimeError("not the written frames")
    if again.dtype != array.dtype:
        raise RuntimeError(f"written as {again.dtype}")


def _times(path: Path, recording: Recording) -> dict[str, str]:
    """Return the times of frames as PLUS writes them, for files with fields of any name."""
    if recording.times is None or not has_suffix(path, (".mha", ".mhd", ".nrrd", ".nhdr")):
        return {}
    return {f"Seq_Frame{number:04}_Timestamp": f"{time:.9g}" for number, time in enumerate(recording.times)}


def _equal(read: np.ndarray, written: np.ndarray) -> bool:
    """Return whether a frame was read as written; grey values may be read as equal colors, on a last axis of `read`."""
    written = np.broadcast_to(written[..., None], read.shape)
    return np.array_equal(read, written, equal_nan=written.dtype.kind == "f")


def _as_text(read: str) -> str:
    """Return text that ITK read; bytes that are not UTF-8 count as Latin-1, since ITK refuses to write them."""
    try:
        read.encode()
        return read
    except UnicodeEncodeError:
        return read.encode("utf-8", "surrogateescape").decode("latin-1")


def _pair(path: Path) -> tuple[Path, ...]:
    """Return the file, and its other half if it belongs to an Analyze or NIfTI pair."""
    stem = re.sub(r"\.(hdr|img)(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    if stem == path.name:
        return (path,)
    pair = {path, *(path.with_name(stem + end) for end in (".hdr", ".hdr.gz", ".img", ".img.gz"))}
    return tuple(part for part in pair if part.is_file())


class SequenceFormat(Format):
    """A format whose headers we write for recordings with times; single images and volumes are left to ITK."""

    written: Mapping[str, str] = {}  # numpy's type, without byte order -> its name in a header

    def keeps_times(self, path: Path, recording: Recording) -> bool:
        return True

    def check(self, path: Path, recording: Recording) -> None:
        if self.verbatim(path, recording):
            return
        if not has_suffix(path, SEQUENCES):
            check_image(path, recording)
        elif recording.frames.dtype.str[1:] not in self.written:
            raise unsupported_type(path, self.name, recording)

    def verbatim(self, path: Path, recording: Recording) -> bool:
        """Return whether the input's own header is written."""
        made = recording.sequence or recording.single or recording.volumes > 1
        return recording.format == self.name and (made or not has_suffix(path, SEQUENCES))
