"""Whatever else SimpleITK reads: PNG, JPEG, BMP, TIFF, NIfTI, Analyze, GIPL, VTK."""

from __future__ import annotations

import math
import re
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..system import InputError
from .base import DEFLATE_LIMIT, Format, Recording, check_dimensions, has_suffix, lengths


class Images(Format):
    name = "image"
    suffixes = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".nii", ".nii.gz", ".hdr", ".gipl", ".vtk")

    def read(self, path: Path, key: str) -> Recording:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
            check_dimensions(reader.GetDimension(), path)
            claimed = math.prod(reader.GetSize()) * reader.GetNumberOfComponents()
            parts = _pair(path)
            size = sum(part.stat().st_size for part in parts)
            if claimed > 8 * size * DEFLATE_LIMIT:  # 8 values of one bit in a byte
                raise InputError(f"{path} is damaged: it promises {claimed} values in {size} bytes.")
            image = reader.Execute()
        except RuntimeError as error:
            raise InputError(f"{path} is not an image that can be read.") from error
        array = sitk.GetArrayFromImage(image)
        single = image.GetDimension() == 2
        geometry = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
        metadata = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
        spacing = (*lengths(image.GetSpacing()), 1.0)[:3][::-1]
        source = {"geometry": geometry, "metadata": metadata}
        frames = array[None] if single else array
        return Recording(frames, path, self.name, single=single, spacing=spacing, source=source, parts=parts)

    def check(self, path: Path, recording: Recording) -> None:
        if has_suffix(path, (".jpg", ".jpeg")):
            raise InputError(f"{path.name} cannot be written: JPEG loses detail; choose .png, .tif, .mha or .npy.")
        if has_suffix(path, (".png", ".bmp")) and len(recording.frames) > 1:
            raise InputError(f"{path.name} cannot be written: it holds one frame only; choose .tif, .mha or .npy.")
        check_image(path, recording)

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        write_image(path, frames, recording)


def check_image(path: Path, recording: Recording) -> None:
    """InputError where the format that `path` names does not hold the frames; for all formats that ITK writes."""
    try:
        with tempfile.TemporaryDirectory(prefix=".speckle2self-", dir=path.parent) as folder:
            write_image(Path(folder) / path.name, recording.frames[:2, :2, :2], recording)
    except (OSError, RuntimeError, TypeError) as error:
        kind = f"{'colour ' if recording.frames.ndim == 4 else ''}frames of type {recording.frames.dtype}"
        reason = getattr(error, "strerror", None) or f"its format does not hold {kind}, or the disk is full"
        raise InputError(f"{path.name} cannot be written: {reason}; choose .npy.") from error


def write_image(path: Path, frames: np.ndarray, recording: Recording) -> None:
    image = sitk.GetImageFromArray(frames[0] if recording.single else frames, isVector=frames.ndim == 4)
    geometry = recording.source.get("geometry")
    if geometry:
        image.SetSpacing(geometry["spacing"])
        image.SetOrigin(geometry["origin"])
        image.SetDirection(geometry["direction"])
    else:
        image.SetSpacing(recording.spacing[::-1][: image.GetDimension()])
    for key, value in recording.source.get("metadata", {}).items():
        image.SetMetaData(_as_text(key), _as_text(value))
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.SetUseCompression(True)
    writer.Execute(image)
    image = sitk.ReadImage(str(path))  # ITK tells neither of every full disk nor of all that a format does not hold
    again = sitk.GetArrayViewFromImage(image)
    if again.size % frames.size or not all(map(_equal, again.reshape(*frames.shape, -1), frames)):
        raise RuntimeError("not what was written")


def _equal(read: np.ndarray, written: np.ndarray) -> bool:
    """Whether a frame is as it was written; grey values may come back as equal colours, on a last axis of `read`."""
    written = np.broadcast_to(written[..., None], read.shape)
    return np.array_equal(read, written, equal_nan=written.dtype.kind == "f")


def _as_text(read: str) -> str:
    """Text that ITK read; bytes that are no UTF-8 are taken for Latin-1, since ITK refuses to take them back."""
    try:
        read.encode()
        return read
    except UnicodeEncodeError:
        return read.encode("utf-8", "surrogateescape").decode("latin-1")


def _pair(path: Path) -> tuple[Path, ...]:
    """The file, and what belongs to it if it is one of an Analyze or NIfTI pair."""
    stem = re.sub(r"\.(hdr|img)(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    if stem == path.name:
        return (path,)
    pair = {path, *(path.with_name(stem + end) for end in (".hdr", ".hdr.gz", ".img", ".img.gz"))}
    return tuple(part for part in pair if part.is_file())
