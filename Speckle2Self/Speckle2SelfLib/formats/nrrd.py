"""NRRD (.nrrd, .nhdr), read and written here rather than by ITK, which reads no axis of a list before the image's axes
and drops fields that it does not know."""

from __future__ import annotations

import gzip
import math
import re
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

NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
COLOUR_KINDS = {"vector", "rgb-color", "rgba-color", "3-color", "4-color", "3-vector", "4-vector"}


class Nrrd(Format):
    name = "NRRD"
    suffixes = (".nrrd", ".nhdr")
    fields = True

    def read(self, path: Path, key: str) -> Recording:
        with path.open("rb") as file:
            lines = header_lines(file, path, lambda line: line == "", detached=True)
            end = file.tell()
        if not lines[0].startswith("NRRD"):
            raise InputError(f"{path} is not a NRRD file.")
        fields = {}
        for line in lines[1:]:
            if not line.startswith("#") and ": " in line and ":=" not in line.split(": ")[0]:
                key, _, value = line.partition(": ")
                fields[key.strip().lower()] = value.strip()
        sizes = numbers(fields.get("sizes", ""), int, path, "sizes")
        encoding = fields.get("encoding", "raw").lower()
        if fields.get("type", "").lower() not in NRRD_TYPES or encoding not in ("raw", "gz", "gzip"):
            raise InputError(f"{path} has a pixel type or encoding that is not supported.")
        order = ">" if fields.get("endian", "little").lower() == "big" else "<"
        dtype = np.dtype(order + NRRD_TYPES[fields["type"].lower()])
        count = count_values(sizes, path)
        packed = "" if encoding == "raw" else "gzip"
        if bytes_before_pixels(fields.get("line skip", fields.get("lineskip", "0")), packed, path, "line skip"):
            raise InputError(f"{path} has a line skip, which is not supported; use a byte skip.")
        skip = bytes_before_pixels(fields.get("byte skip", fields.get("byteskip", "0")), packed, path, "byte skip")
        name = fields.get("data file", fields.get("datafile"))
        data, end = (path, end) if name is None else (data_file(path, name), 0)
        values = pixels(data, skip if skip < 0 else end + skip, count, dtype, packed, path)
        array = values.astype(dtype.newbyteorder("="), copy=False).reshape(sizes[::-1])
        kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(sizes)
        kinds = kinds if len(kinds) == len(sizes) else ["domain"] * len(sizes)
        # Axes in array order, slowest first: the frames' axis, then rows and columns, then colour.
        axes = list(range(len(sizes)))
        colour = [len(sizes) - 1] if kinds[0] in COLOUR_KINDS and sizes[0] in (3, 4) else []
        listed = [len(sizes) - 1 - i for i, kind in enumerate(kinds) if kind == "list"][:1]
        image = [axis for axis in axes if axis not in colour + listed]
        frames = array.transpose(listed + image + colour)
        single = not listed and len(image) == 2
        if single:
            frames = frames[None]
        elif listed and len(image) == 3 and array.shape[image[0]] == 1:
            frames = frames[:, 0]
        else:
            check_dimensions(len(listed + image), path)
        source = {"lines": lines, "axes": listed + image + colour, "shape": array.shape}
        along = _lengths_of_axes(fields, len(sizes))
        spacing = (1.0, *(along[len(sizes) - 1 - axis] for axis in image))[-3:]
        return Recording(
            frames, path, self.name, single=single, sequence=bool(listed), spacing=spacing, source=source, parts=(data,)
        )

    def check(self, path: Path, recording: Recording) -> None:
        if recording.format != self.name:
            check_image(path, recording)

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        if recording.format != self.name:
            write_image(path, frames, recording)
            return
        axes, shape = recording.source["axes"], recording.source["shape"]
        array = frames.reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        lines, packed = [], False
        for line in recording.source["lines"]:
            key = line.partition(":")[0].strip().lower()
            if not line or key in ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip"):
                continue
            if key == "encoding":
                packed = "raw" not in line
            lines.append("endian: little" if key == "endian" else line)
        name = path.stem + (".raw.gz" if packed else ".raw")
        detached = path.suffix.lower() == ".nhdr"
        lines += [f"data file: {name}", ""] if detached else [""]
        header = "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
        if detached:
            path.write_bytes(header)
            path, header = path.parent / name, b""
        if packed:
            path.write_bytes(header + gzip.compress(np.ascontiguousarray(array), 3, mtime=0))
        else:
            write_raw(path, header, array)


def _lengths_of_axes(fields, count: int) -> tuple[float, ...]:
    """The spacings of the axes, fastest first; 1 where the header does not say."""
    try:
        if "space directions" in fields:
            vectors = re.findall(r"none|\(([^()]*)\)", fields["space directions"])  # "" for none
            found = [math.hypot(*(float(x) for x in vector.split(",") if vector)) for vector in vectors]
        else:
            found = [float(word) for word in fields.get("spacings", "").split()]
    except ValueError:
        found = []
    return (*lengths(found), *[1.0] * count)[:count]
