"""NIfTI (.nii, .nii.gz). ITK rewrites the codes and matrices of the header, removes the scaling and refuses shears;
here the header and its extensions are written unchanged."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from ..system import InputError
from .base import (
    Format,
    Recording,
    check_dimensions,
    count_values,
    has_suffix,
    lengths,
    pixels,
    steady_times,
    write_raw,
)
from .itk import check_image, write_image

TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
TYPES |= {32: "c8", 1792: "c16", 128: "u1", 2304: "u1"}
CHANNELS = {128: 3, 2304: 4}
MILLIMETRES, SECONDS = {1: 1000.0, 3: 0.001}, {16: 1e-3, 24: 1e-6}  # factors by code; other codes mean mm and s
MOST = 2**24  # bytes before the pixels: extensions are small


def _header_type(size: int, order: str) -> np.dtype:
    """Return the type of a NIfTI-1 (348 bytes) or NIfTI-2 (540 bytes) header, with the fields that are used."""
    fields = {
        348: {"dim": ("8i2", 40), "datatype": ("i2", 70), "pixdim": ("8f4", 76), "vox_offset": ("f4", 108),
              "scl_slope": ("f4", 112), "scl_inter": ("f4", 116), "xyzt_units": ("u1", 123), "descrip": ("S80", 148),
              "qform_code": ("i2", 252), "sform_code": ("i2", 254), "quatern": ("6f4", 256), "srow": ("12f4", 280)},
        540: {"dim": ("8i8", 16), "datatype": ("i2", 12), "pixdim": ("8f8", 104), "vox_offset": ("i8", 168),
              "scl_slope": ("f8", 176), "scl_inter": ("f8", 184), "xyzt_units": ("i4", 500), "descrip": ("S80", 240),
              "qform_code": ("i4", 344), "sform_code": ("i4", 348), "quatern": ("6f8", 352), "srow": ("12f8", 400)},
    }[size]  # fmt: skip
    types, offsets = zip(*fields.values(), strict=True)
    spec = {"names": list(fields), "formats": list(types), "offsets": list(offsets), "itemsize": size}
    return np.dtype(spec).newbyteorder(order)


class Nifti(Format):
    name = "NIfTI"
    suffixes = (".nii", ".nii.gz")
    geometric = True

    def recognizes(self, head: bytes, path: Path) -> bool:
        return head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0"

    def read(self, path: Path, key: str) -> Recording:
        packed = "gzip" if path.open("rb").read(2) == b"\x1f\x8b" else ""
        head, header, order = _header(path, packed)
        sizes = [int(size) for size in header["dim"][1 : 1 + max(0, int(header["dim"][0]))]]
        code = int(header["datatype"])
        if code not in TYPES or not 1 < len(sizes) < 8:
            raise InputError(f"{path} has a pixel type or number of dimensions that is not supported.")
        channels = CHANNELS.get(code, 1)
        count = count_values([*sizes, channels], path)
        while len(sizes) > 2 and sizes[-1] == 1 and len(sizes) > 3:
            sizes.pop()
        vector = sizes.pop() if len(sizes) == 5 and sizes[3] == 1 and sizes[4] in (3, 4) else 0
        check_dimensions(len(sizes), path)
        dtype = np.dtype(order + TYPES[code])
        values = pixels(path, 0, len(head) + count * dtype.itemsize, np.dtype("u1"), packed, path)
        values = np.frombuffer(values, dtype, count, len(head)) if packed else values[len(head) :].view(dtype)
        shape = [*([vector] if vector else []), *sizes[::-1], *([channels] if channels > 1 else [])]
        array = values.astype(dtype.newbyteorder("="), copy=False).reshape(shape)
        array = np.moveaxis(array, 0, -1) if vector else array
        slope, inter = _scaling(header)
        if (slope, inter) != (1, 0):
            exact = array.dtype.itemsize > 2
            array = array * (np.float64 if exact else np.float32)(slope) + (np.float64 if exact else np.float32)(inter)
        source = {"head": head, "type": dtype, "vector": bool(vector), "scaling": (slope, inter)}
        source["metadata"] = {"descrip": bytes(header["descrip"]).split(b"\0")[0].decode("latin-1")}
        return self._recording(path, array, sizes, header, source)

    def _recording(self, path: Path, array: np.ndarray, sizes, header, source: dict) -> Recording:
        """Return the recording of an array (H, W), (K, H, W) or (T, K, H, W), or any of them with colors."""
        flat, single = len(sizes) == 4 and sizes[2] == 1, len(sizes) == 2
        count = sizes[3] if len(sizes) == 4 else 1
        units, steps = int(header["xyzt_units"]), [float(step) for step in header["pixdim"][1:5]]
        unit = MILLIMETRES.get(units & 7, 1.0)
        spacing = lengths(step * unit for step in steps[:3])
        if not single:
            source["geometry"] = _geometry(header, spacing, unit)
        return Recording(
            array[None] if single else array.reshape(-1, *array.shape[max(0, len(sizes) - 2) :]),
            path,
            self.name,
            single=single,
            sequence=flat,
            volumes=1 if flat else count,
            times=steady_times(steps[3] * SECONDS.get(units & 56, 1), count),
            spacing=(1.0, *spacing[1::-1]) if flat or single else spacing[::-1],
            source=source,
        )

    def check(self, path: Path, recording: Recording) -> None:
        if recording.format != self.name:
            check_image(path, recording)

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        if recording.format != self.name:
            write_image(path, frames, recording)
            return
        source = recording.source
        (slope, inter), dtype = source["scaling"], source["type"]
        if (slope, inter) != (1, 0):
            frames = (frames.astype(np.float64) - inter) / slope
            if dtype.kind in "iu":
                frames = np.clip(np.rint(frames), np.iinfo(dtype).min, np.iinfo(dtype).max)
        array = np.moveaxis(frames, -1, 0) if source["vector"] else frames
        array = array.astype(dtype, copy=False)
        if has_suffix(path, (".gz",)):
            with gzip.GzipFile(path, "wb", 3, mtime=0) as file:
                file.write(source["head"])
                for part in array:
                    file.write(np.ascontiguousarray(part).data)
        else:
            write_raw(path, source["head"], array)


def _header(path: Path, packed: str):
    """Return the bytes before the pixels, the header, and its byte order."""
    with path.open("rb") as file:
        start = file.read(2**16)
    if packed:
        try:
            start = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(start, 2**16)
        except zlib.error as error:
            raise InputError(f"{path} is damaged: it cannot be decompressed.") from error
    for order in "<>":
        size = int(np.frombuffer(start[:4].ljust(4, b"\0"), order + "i4")[0])
        if size in (348, 540) and len(start) >= size:
            header = np.frombuffer(start, _header_type(size, order), 1)[0]
            break
    else:
        raise InputError(f"{path} is not a NIfTI file, or it is damaged.")
    before = float(header["vox_offset"])
    if not size <= before <= MOST or before != int(before):
        raise InputError(f"{path} is damaged: its pixels begin at byte {before}.")
    head = pixels(path, 0, int(before), np.dtype("u1"), packed, path).tobytes()
    return head, header, order


def _scaling(header) -> tuple[float, float]:
    """Return slope and intercept of the values; (1, 0) without a scaling."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    used = slope != 0 and math.isfinite(slope) and math.isfinite(inter) and int(header["datatype"]) not in CHANNELS
    return (slope, inter) if used else (1.0, 0.0)


def _geometry(header, spacing, unit: float) -> dict:
    """Return spacing, origin and directions in LPS as ITK, and therefore Slicer, reads them: from the sform, else the
    qform, else along the axes, reversed where a spacing is negative. Without directions if the axes are not at right
    angles."""
    matrix = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])[:3]
    if header["sform_code"] > 0:
        with np.errstate(invalid="ignore"):
            matrix = np.asarray(header["srow"].astype(float)).reshape(3, 4) * unit
    elif header["qform_code"] > 0:
        b, c, d, *offset = (float(x) for x in header["quatern"])
        a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
        rotation = np.array([
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ])  # fmt: skip
        rotation[:, 2] *= -1 if header["pixdim"][0] < 0 else 1
        matrix = np.column_stack([rotation * spacing[:3], np.asarray(offset) * unit])
    if not np.isfinite(matrix).all():
        return {}
    matrix[:, :3] *= np.where(header["pixdim"][1:4] < 0, -1, 1)
    matrix = np.diag([-1.0, -1.0, 1.0]) @ matrix
    norms = np.linalg.norm(matrix[:, :3], axis=0)
    directions = matrix[:, :3] / np.where(norms > 0, norms, 1)
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-3):
        return {"sheared": True}
    return {"spacing": tuple(norms), "origin": tuple(matrix[:, 3]), "direction": tuple(directions.ravel())}
