"""MetaImage (.mha, .mhd). It is read and written here because ITK drops the fields that PLUS stores for every frame
(transforms, statuses, time stamps), which volume reconstruction needs."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from ..system import InputError
from . import base
from .base import SEQUENCES, Recording
from .itk import SequenceFormat, write_image

META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i8", "MET_ULONG": "u8", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
WRITTEN = {
    "i1": "MET_CHAR", "u1": "MET_UCHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT", "u4": "MET_UINT",
    "i8": "MET_LONG_LONG", "u8": "MET_ULONG_LONG", "f4": "MET_FLOAT", "f8": "MET_DOUBLE",
}  # fmt: skip


class MetaImage(SequenceFormat):
    name = "MetaImage"
    written = WRITTEN
    suffixes = (".mha", ".mhd")
    geometric = True
    fields = True

    def recognizes(self, head: bytes, path: Path) -> bool:
        return head.startswith((b"ObjectType", b"NDims")) and b"NDims" in head

    def read(self, path: Path, key: str) -> Recording:
        with path.open("rb") as file:
            lines = base.header_lines(file, path, lambda line: line.split("=")[0].strip() == "ElementDataFile")
            end = file.tell()
        entries = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
        sizes = base.numbers(entries.get("DimSize", ""), int, path, "DimSize")
        channels = base.numbers(entries.get("ElementNumberOfChannels", "1"), int, path, "ElementNumberOfChannels")
        flat = len(sizes) == 4 and sizes[2] == 1  # PLUS can give flat frames a third axis
        sizes = [*sizes[:2], sizes[3]] if flat else sizes
        base.check_dimensions(len(sizes), path)
        volumes = sizes.pop() if len(sizes) == 4 else 1
        if entries.get("ElementType") not in META_TYPES or len(channels) != 1 or len(sizes) < 2:
            raise InputError(f"{path} is not an image or a sequence of images of a known type.")
        if not _is_true(entries.get("BinaryData", "True")):
            raise InputError(f"{path} holds its pixels as text; save it with BinaryData = True.")
        order = entries.get("BinaryDataByteOrderMSB", entries.get("ElementByteOrderMSB", ""))
        dtype = np.dtype((">" if _is_true(order) else "<") + META_TYPES[entries["ElementType"]])
        count = base.count_values([*channels, *sizes, volumes], path)
        packed = "zlib" if _is_true(entries.get("CompressedData", "")) else ""
        skip = base.bytes_before_pixels(entries.get("HeaderSize", "0"), packed, path, "HeaderSize")
        name = entries["ElementDataFile"]
        data, end = (path, end) if name == "LOCAL" else (base.data_file(path, name), 0)
        values = base.pixels(data, skip or end, count, dtype, packed, path)
        count = volumes * sizes[2] if len(sizes) == 3 else 1
        shape = [count, *sizes[1::-1], *(channels if channels[0] > 1 else [])]
        spacing = entries.get("ElementSpacing", entries.get("ElementSize", "1 1 1"))
        spacing = base.numbers(spacing, float, path, "ElementSpacing")
        spacing = (*base.lengths(spacing), 1.0)[:3][::-1] if len(spacing) >= 2 else (1.0, 1.0, 1.0)
        return Recording(
            values.astype(dtype.newbyteorder("="), copy=False).reshape(shape),
            path,
            self.name,
            single=len(sizes) == 2,
            sequence=flat or any(line.startswith("Seq_Frame") for line in lines),
            volumes=volumes,
            times=_times(entries, volumes if volumes > 1 else count),
            spacing=spacing,
            source={"lines": lines, "packed": packed},
            parts=(data,),
        )

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        if self.verbatim(path, recording):
            lines, packed = recording.source["lines"], recording.source["packed"]
        elif base.has_suffix(path, SEQUENCES):
            packed = frames.nbytes < base.LARGE  # larger ones part by part
            lines = _sequence_lines(frames, recording, packed)
        else:
            write_image(path, frames, recording)
            return
        local = path.suffix.lower() == ".mha"
        array = frames.astype(frames.dtype.newbyteorder("<"), copy=False)
        data = zlib.compress(np.ascontiguousarray(array), 3) if packed else b""
        name = "LOCAL" if local else path.stem + (".zraw" if packed else ".raw")
        changed = {
            "CompressedDataSize": str(len(data)) if packed else str(array.nbytes),
            "BinaryDataByteOrderMSB": "False",
            "ElementByteOrderMSB": "False",
            "ElementDataFile": name,
        }
        written, kind = [], array.dtype.str[1:]
        for line in lines:
            key = line.partition("=")[0].strip()
            if key == "ElementType" and META_TYPES.get(line.partition("=")[2].strip()) != kind:  # of decibels
                line = f"ElementType = {WRITTEN[kind]}"
            if key != "HeaderSize":
                written.append(f"{key} = {changed[key]}" if key in changed else line)
        header = "".join(line + "\n" for line in written).encode("utf-8", "surrogateescape")
        base.write_with_header(path, header, array, data, "" if local else name)


def _is_true(text: str) -> bool:
    """Return whether MetaIO reads a text as true."""
    return text[:1] in ("T", "t", "1")


def _times(entries: dict[str, str], count: int) -> np.ndarray | None:
    """Return the time stamps of PLUS in seconds, one for each of `count` frames."""
    return base.frame_times([entries.get(f"Seq_Frame{number:04}_Timestamp") for number in range(count)], count)


def _sequence_lines(frames: np.ndarray, recording: Recording, packed: bool) -> list[str]:
    """Return the header of a sequence as PLUS and SlicerIGSIO read it; the size of the data is inserted on writing."""
    volumes = recording.volumes
    count, (directions, spacing, origin) = len(frames) // volumes, base.axes_of_sequence(recording)
    axes = 4 if volumes > 1 else 3
    sizes = [frames.shape[2], frames.shape[1], *([count] if volumes > 1 else []), volumes if volumes > 1 else count]
    placed = np.eye(axes)
    placed[:3, :3] = directions.T  # one row per axis
    origin = [*origin, 0.0][:axes]
    spacing = [*spacing[: axes - 1], 1.0]
    times, _ = base.sequence_times(recording, sizes[-1])
    orientation = "MFA" if volumes > 1 else "MF"
    kind = "RGB_COLOR" if frames.ndim == 4 else "BRIGHTNESS"
    return [
        "ObjectType = Image", f"NDims = {axes}", "BinaryData = True", "BinaryDataByteOrderMSB = False",
        f"CompressedData = {packed}", *(["CompressedDataSize = 0"] if packed else []), f"DimSize = {_words(sizes)}",
        f"Kinds = {'domain ' * (axes - 1)}list",
        f"ElementNumberOfChannels = {frames.shape[3] if frames.ndim == 4 else 1}",
        f"ElementSpacing = {_words(spacing)}", f"ElementType = {WRITTEN[frames.dtype.str[1:]]}",
        f"Offset = {_words(origin)}", f"TransformMatrix = {_words(placed.ravel())}",
        f"UltrasoundImageOrientation = {orientation}", f"UltrasoundImageType = {kind}",
        *(
            f"Seq_Frame{number:04}_{field}"
            for number, time in enumerate(times)
            for field in (f"Timestamp = {time}", "ImageStatus = OK")
        ),
        "ElementDataFile = LOCAL",
    ]  # fmt: skip


def _words(values) -> str:
    return " ".join(f"{value:.9g}" for value in values)
