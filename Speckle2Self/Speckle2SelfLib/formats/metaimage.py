"""MetaImage (.mha, .mhd), read and written here rather than by ITK, which drops the fields that PLUS keeps for every
frame (transforms, statuses, time stamps): volume reconstruction needs them."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from ..system import InputError
from .base import (
    Format,
    Recording,
    bytes_before_pixels,
    check_dimensions,
    count_values,
    data_file,
    header_lines,
    lengths,
    numbers,
    pixels,
    write_raw,
)
from .itk import check_image, write_image

META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i8", "MET_ULONG": "u8", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip


class MetaImage(Format):
    name = "MetaImage"
    suffixes = (".mha", ".mhd")
    fields = True

    def read(self, path: Path, key: str) -> Recording:
        with path.open("rb") as file:
            lines = header_lines(file, path, lambda line: line.split("=")[0].strip() == "ElementDataFile")
            end = file.tell()
        entries = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
        sizes = numbers(entries.get("DimSize", ""), int, path, "DimSize")
        channels = numbers(entries.get("ElementNumberOfChannels", "1"), int, path, "ElementNumberOfChannels")
        flat = len(sizes) == 4 and sizes[2] == 1  # PLUS can give flat frames a third axis
        sizes = [*sizes[:2], sizes[3]] if flat else sizes
        check_dimensions(len(sizes), path)
        if entries.get("ElementType") not in META_TYPES or len(channels) != 1 or len(sizes) < 2:
            raise InputError(f"{path} is not an image or a sequence of images of a known type.")
        if not _is_true(entries.get("BinaryData", "True")):
            raise InputError(f"{path} holds its pixels as text; save it with BinaryData = True.")
        order = entries.get("BinaryDataByteOrderMSB", entries.get("ElementByteOrderMSB", ""))
        dtype = np.dtype((">" if _is_true(order) else "<") + META_TYPES[entries["ElementType"]])
        count = count_values([*channels, *sizes], path)
        packed = "zlib" if _is_true(entries.get("CompressedData", "")) else ""
        skip = bytes_before_pixels(entries.get("HeaderSize", "0"), packed, path, "HeaderSize")
        name = entries["ElementDataFile"]
        data, end = (path, end) if name == "LOCAL" else (data_file(path, name), 0)
        values = pixels(data, skip or end, count, dtype, packed, path)
        shape = [*([1] if len(sizes) == 2 else []), *sizes[::-1], *(channels if channels[0] > 1 else [])]
        spacing = entries.get("ElementSpacing", entries.get("ElementSize", "1 1 1"))
        spacing = numbers(spacing, float, path, "ElementSpacing")
        spacing = (*lengths(spacing), 1.0)[:3][::-1] if len(spacing) >= 2 else (1.0, 1.0, 1.0)
        return Recording(
            values.astype(dtype.newbyteorder("="), copy=False).reshape(shape),
            path,
            self.name,
            single=len(sizes) == 2,
            sequence=flat or any(line.startswith("Seq_Frame") for line in lines),
            spacing=spacing,
            source={"lines": lines, "packed": packed},
            parts=(data,),
        )

    def check(self, path: Path, recording: Recording) -> None:
        if recording.format != self.name:
            check_image(path, recording)

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        if recording.format != self.name:
            write_image(path, frames, recording)
            return
        local = path.suffix.lower() == ".mha"
        packed = recording.source["packed"]
        array = frames.astype(frames.dtype.newbyteorder("<"), copy=False)
        data = zlib.compress(np.ascontiguousarray(array), 3) if packed else b""
        name = "LOCAL" if local else path.stem + (".zraw" if packed else ".raw")
        changed = {
            "CompressedDataSize": str(len(data)) if packed else str(array.nbytes),
            "BinaryDataByteOrderMSB": "False",
            "ElementByteOrderMSB": "False",
            "ElementDataFile": name,
        }
        lines = []
        for line in recording.source["lines"]:
            key = line.partition("=")[0].strip()
            if key != "HeaderSize":
                lines.append(f"{key} = {changed[key]}" if key in changed else line)
        header = "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
        if not local:
            path.write_bytes(header)
            path, header = path.parent / name, b""
        if packed:
            path.write_bytes(header + data)
        else:
            write_raw(path, header, array)


def _is_true(text: str) -> bool:
    """A boolean of a MetaImage, as MetaIO takes it."""
    return text[:1] in ("T", "t", "1")
