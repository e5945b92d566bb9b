"""NRRD (.nrrd, .nhdr). It is read and written here because ITK does not read a list axis that precedes the image axes,
and drops fields that it does not know."""

from __future__ import annotations

import gzip
import math
import re
from pathlib import Path

import numpy as np

from ..system import InputError
from . import base
from .base import SECONDS, SEQUENCES, Recording
from .itk import SequenceFormat, write_image

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
WRITTEN = {
    **{f"i{size}": f"int{8 * size}" for size in (1, 2, 4, 8)},
    **{f"u{size}": f"uint{8 * size}" for size in (1, 2, 4, 8)},
    "f4": "float",
    "f8": "double",
}
NEAREST = 2e-3  # s; frames closer in time have index values in ms, because MRML treats values 0.001 apart as equal
COLOUR_KINDS = {"vector", "rgb-color", "rgba-color", "3-color", "4-color", "3-vector", "4-vector"}


class Nrrd(SequenceFormat):
    name = "NRRD"
    written = WRITTEN
    suffixes = (".nrrd", ".nhdr")
    geometric = True
    fields = True

    def recognizes(self, head: bytes, path: Path) -> bool:
        return head.startswith(b"NRRD0")

    def read(self, path: Path, key: str) -> Recording:
        with path.open("rb") as file:
            lines = base.header_lines(file, path, lambda line: line == "", detached=True)
            end = file.tell()
        if not lines[0].startswith("NRRD"):
            raise InputError(f"{path} is not a NRRD file.")
        fields = {}
        for line in lines[1:]:
            if not line.startswith("#") and ": " in line and ":=" not in line.split(": ")[0]:
                key, _, value = line.partition(": ")
                fields[key.strip().lower()] = value.strip()
        sizes = base.numbers(fields.get("sizes", ""), int, path, "sizes")
        encoding = fields.get("encoding", "raw").lower()
        if fields.get("type", "").lower() not in NRRD_TYPES or encoding not in ("raw", "gz", "gzip"):
            raise InputError(f"{path} has a pixel type or encoding that is not supported; save numbers, raw or gzip.")
        order = ">" if fields.get("endian", "little").lower() == "big" else "<"
        dtype = np.dtype(order + NRRD_TYPES[fields["type"].lower()])
        count = base.count_values(sizes, path)
        packed = "" if encoding == "raw" else "gzip"
        if base.bytes_before_pixels(fields.get("line skip", fields.get("lineskip", "0")), packed, path, "line skip"):
            raise InputError(f"{path} has a line skip, which is not supported; use a byte skip.")
        skip = base.bytes_before_pixels(fields.get("byte skip", fields.get("byteskip", "0")), packed, path, "byte skip")
        name = fields.get("data file", fields.get("datafile"))
        data, end = (path, end) if name is None else (base.data_file(path, name), 0)
        values = base.pixels(data, skip if skip < 0 else end + skip, count, dtype, packed, path)
        array = values.astype(dtype.newbyteorder("="), copy=False).reshape(sizes[::-1])
        kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(sizes)
        kinds = kinds if len(kinds) == len(sizes) else ["domain"] * len(sizes)
        # Axes in array order, slowest first: the frames' axis, then rows and columns, then color.
        axes = list(range(len(sizes)))
        colour = [len(sizes) - 1] if kinds[0] in COLOUR_KINDS and sizes[0] in (3, 4) else []
        listed = [len(sizes) - 1 - i for i, kind in enumerate(kinds) if kind == "list"][:1]
        image = [axis for axis in axes if axis not in colour + listed]
        frames = array.transpose(listed + image + colour)
        single, volumes = not listed and len(image) == 2, 1
        if single:
            frames = frames[None]
        elif len(listed + image) == 4:
            volumes = frames.shape[0] if frames.shape[1] > 1 else 1
            frames = frames.reshape(-1, *frames.shape[2:])
        base.check_dimensions(len(listed + image), path)
        source = {"lines": lines, "axes": listed + image + colour, "shape": array.shape}
        along = _lengths_of_axes(fields, len(sizes))
        spacing = (1.0, *(along[len(sizes) - 1 - axis] for axis in image))[-3:]
        return Recording(
            frames,
            path,
            self.name,
            single=single,
            sequence=bool(listed),
            volumes=volumes,
            times=_times(lines, fields, volumes if volumes > 1 else len(frames)),
            spacing=spacing,
            source=source,
            parts=(data,),
        )

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        if self.verbatim(path, recording):
            axes, shape = recording.source["axes"], recording.source["shape"]
            array = frames.reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))
            given = recording.source["lines"]
        elif base.has_suffix(path, SEQUENCES):
            array, given = frames, _sequence_lines(frames, recording, base.has_suffix(path, (".igs.nrrd", ".igs.nhdr")))
        else:
            write_image(path, frames, recording)
            return
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        lines, packed = [], False
        for line in given:
            key = line.partition(":")[0].strip().lower()
            if not line or key in ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip"):
                continue
            if key == "type" and NRRD_TYPES.get(line.partition(":")[2].strip().lower()) != array.dtype.str[1:]:
                line = f"type: {WRITTEN[array.dtype.str[1:]]}"  # decibels or a map have another type
            if key == "encoding":
                packed = "raw" not in line
            lines.append("endian: little" if key == "endian" else line)
        if array.itemsize > 1 and "endian: little" not in lines:  # the input had one byte per value
            lines.append("endian: little")
        name = path.stem + (".raw.gz" if packed else ".raw")
        detached = path.suffix.lower() == ".nhdr"
        lines += [f"data file: {name}", ""] if detached else [""]
        header = "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
        data = gzip.compress(np.ascontiguousarray(array), 3, mtime=0) if packed else b""
        base.write_with_header(path, header, array, data, name if detached else "")


def _lengths_of_axes(fields, count: int) -> tuple[float, ...]:
    """Return the spacings of the axes, fastest first; 1 if the header has none."""
    try:
        if "space directions" in fields:
            vectors = re.findall(r"none|\(([^()]*)\)", fields["space directions"])  # "" if missing
            found = [math.hypot(*(float(x) for x in vector.split(",") if vector)) for vector in vectors]
        else:
            found = [float(word) for word in fields.get("spacings", "").split()]
    except ValueError:
        found = []
    return (*base.lengths(found), *[1.0] * count)[:count]


def _times(lines: list[str], fields: dict[str, str], count: int) -> np.ndarray | None:
    """Return the times of `count` frames or volumes: those of Slicer's sequences, or the time stamps of PLUS."""
    pairs = dict(line.split(":=", 1) for line in lines if ":=" in line)
    for axis, place in ((0, 0), (3, -1)):
        if values := pairs.get(f"axis {axis} index values"):
            label, unit = (
                (re.findall('"([^"]*)"', fields.get(name, "")) or [""])[place] for name in ("labels", "units")
            )
            times = None if label == "frame" else base.frame_times(values.split(), count)  # otherwise frame numbers
            return None if times is None else times * SECONDS.get(unit, 1.0)
    return base.frame_times([pairs.get(f"Seq_Frame{number:04}_Timestamp") for number in range(count)], count)


def _sequence_lines(frames: np.ndarray, recording: Recording, plus: bool) -> list[str]:
    """Return the header of a sequence as Slicer writes it; plus: with the fields of PLUS, as SlicerIGSIO reads them."""
    volumes, (directions, spacing, origin) = recording.volumes, base.axes_of_sequence(recording)
    colour = [frames.shape[3]] if frames.ndim == 4 else []
    count = volumes if volumes > 1 else len(frames)
    sizes = [*colour, frames.shape[2], frames.shape[1], len(frames) // count, count]
    columns = [f"({','.join(f'{x:.9g}' for x in axis)})" for axis in (directions * spacing).T]
    times, timed = base.sequence_times(recording, count)
    unit, values = "s" if timed else "", times
    if timed and np.diff(recording.times).min() < NEAREST:
        unit, values = "ms", [f"{1000 * time:.9g}" for time in recording.times]
    none, unlabelled = ["none"] * len(colour), ['""'] * (len(sizes) - 1)
    return [
        "NRRD0004",
        f"type: {WRITTEN[frames.dtype.str[1:]]}",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {' '.join([*none, *columns, 'none'])}",
        f"kinds: {'vector ' * len(colour)}domain domain domain list",
        f'labels: {" ".join(unlabelled)} "{"time" if timed else "frame"}"',
        f'units: {" ".join(unlabelled)} "{unit}"',
        "endian: little",
        f"encoding: {'gzip' if frames.nbytes < base.LARGE else 'raw'}",
        f"space origin: ({','.join(f'{x:.9g}' for x in origin)})",
        f"DataNodeClassName:=vtkMRML{'Vector' if colour else 'Scalar'}VolumeNode",
        "axis 3 index type:=numeric",
        f"axis 3 index values:={' '.join(values)}",
        *(["ultrasound image orientation:=MFA"] if plus else []),
        *(["ultrasound image type:=" + ("RGB_COLOR" if colour else "BRIGHTNESS")] if plus else []),
        *(
            f"Seq_Frame{number:04}_{field}"
            for number, time in enumerate(times if plus else [])
            for field in (f"Timestamp:={time}", "ImageStatus:=OK")
        ),
    ]
