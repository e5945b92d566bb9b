"""Reading files into frames and writing frames back with everything else the file held.

MetaImage and NRRD are read and written here rather than by ITK, because ITK drops the fields that PLUS keeps for
every frame (transforms, statuses, time stamps), and volume reconstruction needs them. pydicom reads DICOM, SimpleITK
all else.
"""

from __future__ import annotations

import copy
import gzip
import io
import math
import mmap
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from .system import InputError

META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i8", "MET_ULONG": "u8", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
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
IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".tif",
    ".tiff",
    ".nii",
    ".nii.gz",
    ".hdr",
    ".gipl",
    ".vtk",
)
LARGE = 2**28  # bytes; larger recordings stay on the disk while they are worked on
BESIDE = {".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz"), ".hdr": (".img", ".img.gz")}  # data of headers
DEFLATE_LIMIT = 1040  # no deflated stream can be longer than this many times its file


@dataclass
class Recording:
    """The frames of one file and what `write` needs to make an equal one."""

    frames: np.ndarray  # (N, H, W) or (N, H, W, 3 or 4), the file's own type
    path: Path
    region: np.ndarray | None = None  # (H, W) bool: where the file says its image is (DICOM)
    single: bool = False  # the file held one two-dimensional image
    sequence: bool = False  # the file says that its frames follow each other in time
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)  # (between frames, axial, lateral), mm
    source: dict = field(default_factory=dict, repr=False)  # headers, by family of formats
    parts: tuple[Path, ...] = ()  # the files that it was read from, where `path` is not the only one


# --- Which files


def family(path) -> str:
    """ "meta", "nrrd", "numpy", "dicom" or "itk", by the file's name."""
    name = Path(path).name.lower()
    if name.endswith((".mha", ".mhd")):
        return "meta"
    if name.endswith((".nrrd", ".nhdr")):
        return "nrrd"
    if name.endswith((".npy", ".npz")):
        return "numpy"
    if name.endswith((".dcm", ".dicom", ".ima")):
        return "dicom"
    return "itk"


def find(inputs) -> list[Path]:
    """The readable files among `inputs`, folders searched through; InputError where there are none."""
    found: list[Path] = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            inside = (p for p in sorted(entry.rglob("*")) if p.is_file() and not p.name.startswith("."))
            inside = [p for p in inside if is_readable(p)]
            if not inside:
                raise InputError(f"The folder {entry} holds no image file.")
            found += inside
        elif entry.is_file():
            found.append(entry)
        else:
            raise InputError(f"There is no file or folder {entry}.")
    return found


def is_readable(path: Path) -> bool:
    """Whether a file is taken for a recording, by its name, or by its first bytes where it has no suffix."""
    if family(path) != "itk":
        return True
    return path.name.lower().endswith(IMAGE_SUFFIXES) or (not path.suffix and pydicom.misc.is_dicom(path))


# --- Reading


def read(path, key: str = "frames") -> Recording:
    """The recording in one file. Raises InputError, in one sentence, for whatever cannot be read as frames.

    key: of several arrays in an archive (.npz), the one to take, if it is there.
    """
    return _read(Path(path), "uif", key)


def _read(path: Path, kinds: str, key: str = "frames") -> Recording:
    """As `read`; kinds: those of numpy's types that the values may be of."""
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty.")
    kind = family(path)
    if kind == "itk" and pydicom.misc.is_dicom(path):
        kind = "dicom"
    readers = {
        "meta": _read_meta,
        "nrrd": _read_nrrd,
        "numpy": partial(_read_numpy, wanted=key),
        "dicom": _read_dicom,
        "itk": _read_itk,
    }
    try:
        recording = readers[kind](path)
    except MemoryError as error:
        raise InputError(f"{path} cannot be read: there is not enough memory.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    frames = recording.frames
    if frames.dtype.kind not in kinds:
        raise InputError(f"{path} holds values of type {frames.dtype}, not grey values.")
    if frames.ndim not in (3, 4) or (frames.ndim == 4 and frames.shape[-1] not in (3, 4)) or 0 in frames.shape:
        raise InputError(
            f"{path} holds an array of shape {frames.shape}, which is not frames, colour frames or a volume."
        )
    return recording


def read_mask(path, shape: tuple[int, int]) -> np.ndarray:
    """A mask file as (H, W) bool: what is neither zero nor NaN. InputError where that is nothing, or where it does not
    fit frames of `shape`."""
    frames = np.nan_to_num(_read(Path(path), "uifb").frames)
    mask = (frames if frames.ndim == 3 else frames[..., :3].max(-1)) != 0
    if mask.shape != (1, *shape):
        raise InputError(f"The mask {path} of {mask.shape} does not fit frames of {shape[0]} x {shape[1]} pixels.")
    if not mask.any():
        raise InputError(f"The mask {path} is empty: mark what is imaged by values other than zero.")
    return mask[0]


def _numbers(text: str, kind, path, name: str) -> list:
    try:
        return [kind(word) for word in text.split()]
    except ValueError as error:
        raise InputError(f"{path} is damaged: its {name} is '{text[:40]}'.") from error


def _pixels(data: Path, start: int, count: int, dtype: np.dtype, packed: str, path) -> np.ndarray:
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


def _skip(text: str, packed: str, path, name: str) -> int:
    """The number of bytes before the pixels; -1: the pixels are at the end of their file."""
    numbers = _numbers(text, int, path, name)
    if len(numbers) != 1 or numbers[0] < -1:
        raise InputError(f"{path} is damaged: its {name} is '{text[:40]}'.")
    if packed and numbers[0]:
        raise InputError(f"{path} has compressed pixels and a {name}, which is not supported; save it without.")
    return numbers[0]


def _lengths(values) -> tuple[float, ...]:
    """Spacings as lengths in mm; 1 for what is none."""
    return tuple(abs(float(v)) if v and math.isfinite(v) else 1.0 for v in values)


def _dimensions(sizes: list[int], path) -> int:
    """The number of values; InputError where a size is no size."""
    if not sizes or min(sizes) < 1:
        raise InputError(f"{path} is damaged: its size is {sizes}.")
    count = 1
    for size in sizes:
        count *= size
    return count


def _check_dimensions(count: int, path) -> None:
    if count > 3:
        raise InputError(f"{path} has {count} dimensions; a sequence of volumes opens in Slicer alone.")


def _detached(path: Path, name: str):
    """The data file that a header names, beside the header."""
    if "%" in name or name == "LIST" or Path(name).name != name:
        raise InputError(f"{path} keeps its pixels in {name}; only one file in the same folder is supported.")
    data = path.parent / name
    if not data.is_file():
        raise InputError(f"{path} keeps its pixels in {name}, which is not there.")
    return data


def _header_lines(file, path, is_last, detached: bool = False) -> list[str]:
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


def _is_true(text: str) -> bool:
    """A boolean of a MetaImage, as MetaIO takes it."""
    return text[:1] in ("T", "t", "1")


def _read_meta(path: Path) -> Recording:
    with path.open("rb") as file:
        lines = _header_lines(file, path, lambda line: line.split("=")[0].strip() == "ElementDataFile")
        end = file.tell()
    entries = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    sizes = _numbers(entries.get("DimSize", ""), int, path, "DimSize")
    channels = _numbers(entries.get("ElementNumberOfChannels", "1"), int, path, "ElementNumberOfChannels")
    flat = len(sizes) == 4 and sizes[2] == 1  # PLUS can give flat frames a third axis
    sizes = [*sizes[:2], sizes[3]] if flat else sizes
    _check_dimensions(len(sizes), path)
    if entries.get("ElementType") not in META_TYPES or len(channels) != 1 or len(sizes) < 2:
        raise InputError(f"{path} is not an image or a sequence of images of a known type.")
    if not _is_true(entries.get("BinaryData", "True")):
        raise InputError(f"{path} holds its pixels as text; save it with BinaryData = True.")
    order = entries.get("BinaryDataByteOrderMSB", entries.get("ElementByteOrderMSB", ""))
    dtype = np.dtype((">" if _is_true(order) else "<") + META_TYPES[entries["ElementType"]])
    count = _dimensions([*channels, *sizes], path)
    packed = "zlib" if _is_true(entries.get("CompressedData", "")) else ""
    skip = _skip(entries.get("HeaderSize", "0"), packed, path, "HeaderSize")
    name = entries["ElementDataFile"]
    data, end = (path, end) if name == "LOCAL" else (_detached(path, name), 0)
    values = _pixels(data, skip or end, count, dtype, packed, path)
    shape = [*([1] if len(sizes) == 2 else []), *sizes[::-1], *(channels if channels[0] > 1 else [])]
    spacing = entries.get("ElementSpacing", entries.get("ElementSize", "1 1 1"))
    spacing = _numbers(spacing, float, path, "ElementSpacing")
    spacing = (*_lengths(spacing), 1.0)[:3][::-1] if len(spacing) >= 2 else (1.0, 1.0, 1.0)
    return Recording(
        values.astype(dtype.newbyteorder("="), copy=False).reshape(shape),
        path,
        single=len(sizes) == 2,
        sequence=flat or any(line.startswith("Seq_Frame") for line in lines),
        spacing=spacing,
        source={"family": "meta", "lines": lines, "packed": packed},
        parts=(data,),
    )


def _read_nrrd(path: Path) -> Recording:
    with path.open("rb") as file:
        lines = _header_lines(file, path, lambda line: line == "", detached=True)
        end = file.tell()
    if not lines[0].startswith("NRRD"):
        raise InputError(f"{path} is not a NRRD file.")
    fields = {}
    for line in lines[1:]:
        if not line.startswith("#") and ": " in line and ":=" not in line.split(": ")[0]:
            key, _, value = line.partition(": ")
            fields[key.strip().lower()] = value.strip()
    sizes = _numbers(fields.get("sizes", ""), int, path, "sizes")
    encoding = fields.get("encoding", "raw").lower()
    if fields.get("type", "").lower() not in NRRD_TYPES or encoding not in ("raw", "gz", "gzip"):
        raise InputError(f"{path} has a pixel type or encoding that is not supported.")
    order = ">" if fields.get("endian", "little").lower() == "big" else "<"
    dtype = np.dtype(order + NRRD_TYPES[fields["type"].lower()])
    count = _dimensions(sizes, path)
    packed = "" if encoding == "raw" else "gzip"
    if _skip(fields.get("line skip", fields.get("lineskip", "0")), packed, path, "line skip"):
        raise InputError(f"{path} has a line skip, which is not supported; use a byte skip.")
    skip = _skip(fields.get("byte skip", fields.get("byteskip", "0")), packed, path, "byte skip")
    name = fields.get("data file", fields.get("datafile"))
    data, end = (path, end) if name is None else (_detached(path, name), 0)
    values = _pixels(data, skip if skip < 0 else end + skip, count, dtype, packed, path)
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
        _check_dimensions(len(listed + image), path)
    source = {"family": "nrrd", "lines": lines, "axes": listed + image + colour, "shape": array.shape}
    lengths = _nrrd_lengths(fields, len(sizes))
    spacing = (1.0, *(lengths[len(sizes) - 1 - axis] for axis in image))[-3:]
    return Recording(frames, path, single=single, sequence=bool(listed), spacing=spacing, source=source, parts=(data,))


def _nrrd_lengths(fields, count: int) -> tuple[float, ...]:
    """The spacings of the axes, fastest first; 1 where the header does not say."""
    try:
        if "space directions" in fields:
            vectors = re.findall(r"none|\(([^()]*)\)", fields["space directions"])  # "" for none
            lengths = [math.hypot(*(float(x) for x in vector.split(",") if vector)) for vector in vectors]
        else:
            lengths = [float(word) for word in fields.get("spacings", "").split()]
    except ValueError:
        lengths = []
    return (*_lengths(lengths), *[1.0] * count)[:count]


def _read_numpy(path: Path, wanted: str) -> Recording:
    key, size = None, path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                key = next((name for name in (wanted, "frames", "input") if name in names), None)
                if key is None and len(names) == 1:
                    key = names[0]
                if key is None:
                    raise InputError(f"{path} holds {', '.join(names) or 'nothing'}; name one of them 'frames'.")
                entry = archive.getinfo(f"{key}.npy")
                with archive.open(entry) as file:
                    array = _array(file, min(entry.file_size, size * DEFLATE_LIMIT), path)
        else:
            with path.open("rb") as file:
                array = _array(file, size, path)
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # numpy and zipfile raise many kinds on damaged files
        raise InputError(f"{path} is not an array of numbers, or it is damaged.") from error
    colour = array.ndim == 3 and array.shape[-1] in (3, 4) and array.dtype == np.uint8
    single = array.ndim == 2 or colour
    return Recording(array[None] if single else array, path, single=single, source={"family": "numpy", "key": key})


def _array(file, size: int, path) -> np.ndarray:
    """The array of a NPY stream that holds `size` bytes; nothing is allocated for more."""
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, by_columns, dtype = read_header(file)
    count = math.prod(shape)
    if min(shape, default=1) < 0 or dtype.hasobject or count * dtype.itemsize > size:
        raise InputError(f"{path} is damaged: it promises {count} values of type {dtype} in {size} bytes.")
    if count * dtype.itemsize >= LARGE and isinstance(file, io.BufferedReader):
        values = np.memmap(file, dtype, "r", file.tell(), (count,))
    else:
        values = np.frombuffer(bytearray(file.read(count * dtype.itemsize)), dtype, count)
    return values.reshape(shape[::-1]).transpose() if by_columns else values.reshape(shape)


def _read_itk(path: Path) -> Recording:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_dimensions(reader.GetDimension(), path)
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
    spacing = (*_lengths(image.GetSpacing()), 1.0)[:3][::-1]
    source = {"family": "itk", "geometry": geometry, "metadata": metadata}
    frames = array[None] if single else array
    return Recording(frames, path, single=single, spacing=spacing, source=source, parts=parts)


def _pair(path: Path) -> tuple[Path, ...]:
    """The file, and what belongs to it if it is one of an Analyze or NIfTI pair."""
    stem = re.sub(r"\.(hdr|img)(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    if stem == path.name:
        return (path,)
    pair = {path, *(path.with_name(stem + end) for end in (".hdr", ".hdr.gz", ".img", ".img.gz"))}
    return tuple(part for part in pair if part.is_file())


def _read_dicom(path: Path) -> Recording:
    try:
        dataset = pydicom.dcmread(path)
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise InputError(f"{path} is not a DICOM file, or it is damaged.") from error
    if "PixelData" not in dataset:
        raise InputError(f"{path} is a DICOM file without an image.")
    try:
        claimed = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames", 1) or 1)
        if claimed < 1 or claimed > len(dataset.PixelData) * DEFLATE_LIMIT:
            raise InputError(f"{path} is damaged: it promises {claimed} pixels in {len(dataset.PixelData)} bytes.")
        photometric = dataset.PhotometricInterpretation
        array = pixel_array(dataset)
        if photometric == "PALETTE COLOR":
            array = apply_color_lut(array, dataset)
            wide = array.max(initial=0) > 255  # entries of 16 bits; some write those of 8 as such
            array = (array >> 8 if wide else array).astype(np.uint8)
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(" .:")
        raise InputError(f"The image in {path} cannot be decoded: {reason}.") from error
    colour = photometric not in ("MONOCHROME1", "MONOCHROME2")
    single = array.ndim == (3 if colour else 2)
    frames = array[None] if single else array
    if photometric == "MONOCHROME1":  # stored inverted: echoes shall be bright
        frames = frames.max() + frames.min() - frames
    region = _dicom_region(dataset, frames.shape[1:3])
    return Recording(
        frames,
        path,
        region=region,
        single=single,
        sequence=True,
        spacing=_dicom_spacing(dataset, region),
        source={"family": "dicom", "dataset": dataset, "turn": (int(frames.max()), int(frames.min()))},
    )


def _dicom_region(dataset, shape) -> np.ndarray | None:
    """The two-dimensional regions of SequenceOfUltrasoundRegions; None without any, or where one leaves the image."""
    region = np.zeros(shape, bool)
    try:
        for item in dataset.get("SequenceOfUltrasoundRegions") or []:
            if item.get("RegionSpatialFormat") != 1:
                continue
            top, bottom = item.get("RegionLocationMinY0", -1), item.get("RegionLocationMaxY1", -1)
            left, right = item.get("RegionLocationMinX0", -1), item.get("RegionLocationMaxX1", -1)
            if not (0 <= top <= bottom < shape[0] and 0 <= left <= right < shape[1]):
                return None  # an image that was scaled after its regions had been written down
            region[top : bottom + 1, left : right + 1] = True
    except Exception:  # pydicom reads a value when it is asked for, and raises many kinds on damaged ones
        return None
    return region if region.any() else None


def _dicom_spacing(dataset, region) -> tuple[float, float, float]:
    """(1, axial, lateral) of PixelSpacing, else of the only region; 1 where neither says, or can be believed."""
    try:
        spacing = dataset.get("PixelSpacing")
        if not spacing and region is not None:
            (item,) = (i for i in dataset.SequenceOfUltrasoundRegions if i.get("RegionSpatialFormat") == 1)
            if item.PhysicalUnitsXDirection == item.PhysicalUnitsYDirection == 3:  # cm
                spacing = (10 * item.PhysicalDeltaY, 10 * item.PhysicalDeltaX)
        axial, lateral = spacing or (1, 1)
        return (1.0, *_lengths((axial, lateral)))
    except Exception:  # as above
        return (1.0, 1.0, 1.0)


def release(array: np.ndarray) -> None:
    """Lets go of the memory that an array on the disk has taken up; nothing for others, and for those of the mode "c",
    whose changes are in memory alone."""
    while isinstance(array, np.ndarray) and getattr(array, "mode", "") != "c":
        if isinstance(array.base, mmap.mmap) and hasattr(array.base, "madvise"):  # not on Windows
            array.base.madvise(mmap.MADV_DONTNEED)
        array = array.base


@contextmanager
def like(frames: np.ndarray, folder):
    """An array of the shape and type of `frames` to write into: on the disk, in `folder`, if it is large."""
    if frames.nbytes < LARGE:
        yield None
        return
    with tempfile.TemporaryFile(prefix=".speckle2self-", dir=folder) as file:
        file.truncate(frames.nbytes)
        yield np.memmap(file, frames.dtype, "r+", shape=frames.shape)


# --- Writing


def _raw(path: Path, header: bytes, array: np.ndarray) -> None:
    """Writes a header and an array, part by part."""
    with path.open("wb") as file:
        file.write(header)
        for part in array if array.ndim > 2 else [array]:
            file.write(np.ascontiguousarray(part).data)
            release(array)


def _keep_input(targets, recording: Recording) -> None:
    """InputError where one of the files to be written is one that the recording was read from."""
    for part in {recording.path, *recording.parts}:
        for target in targets:
            if target.exists() and part.exists() and target.samefile(part):
                raise InputError(f"{target} is the input; choose another output, the input is never overwritten.")


def check_output(path, recording: Recording):
    """The function that writes `recording` to `path`; InputError where it cannot be written there.

    To be called before hours of work, too.
    """
    path = Path(path)
    _keep_input([path, *(path.with_suffix(suffix) for suffix in BESIDE.get(path.suffix.lower(), ()))], recording)
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{path} is a folder or in a folder that does not exist; choose another output file.")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"The folder {path.parent} cannot be written to.")
    name, kind, came = path.name.lower(), family(path), recording.source["family"]
    if kind == came == "meta":
        return _write_meta
    if kind == came == "nrrd":
        return _write_nrrd
    if kind == came == "dicom" or (came == "dicom" and not path.suffix):
        if recording.source["dataset"].original_encoding[1] is False:
            raise InputError(f"{recording.path.name} is big endian, which DICOM has given up; choose .mha or .npy.")
        return _write_dicom
    if kind == "numpy":
        return _write_numpy
    if kind == "dicom":
        raise InputError(
            f"{path.name} cannot be written: only DICOM becomes DICOM; keep the input's format, or choose .npy."
        )
    if came in ("meta", "nrrd"):
        suffix = recording.path.suffix
        raise InputError(
            f"A {suffix} recording cannot become {path.name}: that would lose its fields; choose {suffix} or .npy."
        )
    if name.endswith((".jpg", ".jpeg")):
        raise InputError(f"{path.name} cannot be written: JPEG loses detail; choose .png, .tif, .mha or .npy.")
    if name.endswith((".png", ".bmp")) and len(recording.frames) > 1:
        raise InputError(f"{path.name} cannot be written: it holds one frame only; choose .tif, .mha or .npy.")
    if not name.endswith((*IMAGE_SUFFIXES, ".mha", ".mhd", ".nrrd")):
        raise InputError(f"{path.name} cannot be written: its format is not known; choose .mha, .nrrd, .tif or .npy.")
    try:
        with tempfile.TemporaryDirectory(prefix=".speckle2self-", dir=path.parent) as folder:
            _write_itk(Path(folder) / path.name, recording.frames[:2, :2, :2], recording)
    except (OSError, RuntimeError, TypeError) as error:
        kind = f"{'colour ' if recording.frames.ndim == 4 else ''}frames of type {recording.frames.dtype}"
        reason = getattr(error, "strerror", None) or f"its format does not hold {kind}, or the disk is full"
        raise InputError(f"{path.name} cannot be written: {reason}; choose .npy.") from error
    return _write_itk


def write(path, frames: np.ndarray, recording: Recording) -> None:
    """Writes `frames`, of the shape and type of `recording.frames`, as the file `path`, whole or not at all.

    A file of the input's family of formats keeps every header field, in order and verbatim. Other conversions are made
    where they lose nothing but such fields: arrays from everything, images from arrays, images and DICOM.
    Raises InputError: for the input itself as output, formats that cannot hold it, folders that cannot be written.
    """
    path = Path(path)
    writer = check_output(path, recording)
    if frames.shape != recording.frames.shape or frames.dtype != recording.frames.dtype:
        raise ValueError("The frames differ from the recording's in shape or type.")
    try:
        folder = Path(tempfile.mkdtemp(prefix=".speckle2self-", dir=path.parent))
    except OSError as error:
        raise InputError(f"{path.parent} cannot be written to: {error.strerror or error}.") from error
    try:
        writer(folder / path.name, frames, recording)
        _keep_input([path.parent / part.name for part in folder.iterdir()], recording)
        for part in sorted(folder.iterdir(), key=lambda p: p.name == path.name):  # the header last
            os.replace(part, path.parent / part.name)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "the disk is full, or the format does not hold such frames"
        raise InputError(f"{path} cannot be written: {reason}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_meta(path: Path, frames, recording) -> None:
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
        _raw(path, header, array)


def _write_nrrd(path: Path, frames, recording) -> None:
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
        _raw(path, header, array)


def _write_numpy(path: Path, frames, recording) -> None:
    array = frames[0] if recording.single else frames
    if path.suffix.lower() == ".npz":
        np.savez_compressed(path, **{recording.source.get("key") or "frames": array})
        return
    header = io.BytesIO()  # not np.save, which would take a long cine from the disk into memory
    np.lib.format.write_array_header_1_0(
        header, {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    )
    _raw(path, header.getvalue(), array)


def _write_itk(path: Path, frames, recording) -> None:
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


def _write_dicom(path: Path, frames, recording) -> None:
    """A derived series: the same data set with new identifiers and the frames uncompressed."""
    try:
        path.write_bytes(_derived(frames, recording))
    except (OSError, MemoryError):
        raise
    except Exception as error:  # pydicom keeps damaged values as they are until they are written
        name = recording.path.name
        raise InputError(f"{name} has damaged fields and cannot become DICOM again; choose .npy or .mha.") from error


def _derived(frames, recording) -> bytes:
    dataset = copy.deepcopy(recording.source["dataset"])
    photometric = dataset.PhotometricInterpretation
    if photometric == "MONOCHROME1":
        high, low = recording.source["turn"]
        frames = (high + low - frames.astype(np.int64)).astype(frames.dtype)
    if frames.ndim == 4:
        dataset.PhotometricInterpretation, dataset.SamplesPerPixel, dataset.PlanarConfiguration = "RGB", 3, 0
        dataset.BitsAllocated = dataset.BitsStored = 8 * frames.dtype.itemsize
        dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
        for keyword in ("Red", "Green", "Blue"):
            for part in ("Descriptor", "Data"):
                dataset.pop(f"{keyword}PaletteColorLookupTable{part}", None)
        frames = frames[..., :3]
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):  # of the compressed frames
        dataset.pop(keyword, None)
    if len(frames) > 1 or "NumberOfFrames" in dataset:
        dataset.NumberOfFrames = len(frames)
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    kind = list(dataset.get("ImageType", ["ORIGINAL", "PRIMARY"]))
    dataset.ImageType = ["DERIVED", "SECONDARY", *kind[2:]]
    dataset.DerivationDescription = "Speckle reduced by Speckle2Self; not for diagnosis"
    dataset.SeriesDescription = (str(dataset.get("SeriesDescription", "")) + " despeckled").strip()[:64]
    data = np.ascontiguousarray(frames.astype(frames.dtype.newbyteorder("<"), copy=False)).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if frames.dtype.itemsize == 1 else "OW"
    dataset["PixelData"].is_undefined_length = False
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()
