"""TIFF (.tif, .tiff) of any type, layout and axes, by tifffile, with the metadata of ImageJ and OME."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from ..system import InputError
from . import base
from .base import (
    DEFLATE_LIMIT,
    SECONDS,
    Format,
    Recording,
    check_promise,
    frame_times,
    is_steady,
    orient,
    quiet,
    reading,
    steady_times,
    unsupported_type,
)

MILLIMETRES = {"inch": 25.4, "in": 25.4, "cm": 10.0, "mm": 1.0, "um": 1e-3, "µm": 1e-3, "\\u00B5m": 1e-3,
               "micron": 1e-3, "microns": 1e-3, "m": 1000.0, "nm": 1e-6}  # fmt: skip
MOST = 2**32 - 2**25  # bytes; the limit of ImageJ's files and of those that are not BigTIFF
KEPT = {269, 271, 272, 274, 285, 305, 306, 315, 316, 33432, 34675}  # texts, orientation, copyright, color profile
XRESOLUTION, YRESOLUTION, ORIENTATION = 282, 283, 274
FOLDERS = {34665, 34853}  # tags of EXIF and GPS, which hold offsets in the input
IMAGEJ = {50838, 50839}  # written by tifffile itself


class Tiff(Format):
    name = "TIFF"
    suffixes = (".tif", ".tiff", ".btf", ".tf8")

    def recognizes(self, head: bytes, path: Path) -> bool:
        return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

    def read(self, path: Path, key: str) -> Recording:
        import tifffile  # imported here and below, because Slicer does not bundle it, and reads TIFF files itself

        with reading(path, "an image", "tifffile"), tifffile.TiffFile(path) as file:
            _check_chain(file, path)
            series = _only_series(file, path)
            page = series.keyframe
            count = math.prod(series.shape) * series.dtype.itemsize
            check_promise(count, path.stat().st_size, path, 8 * DEFLATE_LIMIT)
            array = _pixels(series, page, path)
            source = _source(file, series, page)
            spacing, times = _units(file, series, page)
        return _recording(path, array, series.axes, source, spacing, times)

    def keeps_times(self, path: Path, recording: Recording) -> bool:
        return _has_imagej(recording.frames) and is_steady(recording.times)

    def check(self, path: Path, recording: Recording) -> None:
        if recording.frames.dtype.kind not in "uif" or recording.frames.dtype.itemsize > 8:
            raise unsupported_type(path, self.name, recording)

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        own = recording.format == self.name
        try:
            with quiet("tifffile"):
                (_write_again if own else _write_new)(path, frames, recording)
        except (ValueError, TypeError, KeyError) as error:  # tags that cannot be written
            raise RuntimeError("not the frames that were read") from error


def _check_chain(file, path: Path) -> None:
    """Raise InputError if the pages of a file form a circle, which tifffile would read without end, or continue beyond
    the end of the file, where tifffile would stop."""
    layout, stream, offset, seen = file.tiff, file.filehandle, file.pages.first.offset, set()

    def number(size: int) -> int:
        data = stream.read(size)
        if len(data) < size:
            raise InputError(f"{path} is cut short: a page continues beyond its end.")
        return int.from_bytes(data, "little" if file.byteorder == "<" else "big")

    while offset:
        if offset in seen:
            raise InputError(f"{path} is damaged: its pages follow each other in a circle.")
        seen.add(offset)
        stream.seek(offset)
        tags = number(layout.tagnosize)
        stream.seek(offset + layout.tagnosize + tags * layout.tagsize)
        offset = number(layout.offsetsize)


def _only_series(file, path: Path):
    """Return the only series of a file, ignoring its reduced copies. Raises InputError if there are others."""
    series = [one for one in file.series if not one.keyframe.is_reduced] or list(file.series)
    if len(series) > 1:
        shapes = ", ".join(str(one.shape) for one in series[:4])
        raise InputError(f"{path} holds {len(series)} stacks, of {shapes}; save each to a file of its own.")
    if not series:
        raise InputError(f"{path} is a TIFF file without an image.")
    return series[0]


def _pixels(series, page, path: Path) -> np.ndarray:
    """Return the values of a series as displayed: white as the largest value, colors instead of a palette."""
    from tifffile import PHOTOMETRIC

    try:
        large = series.dataoffset is not None and series.nbytes >= base.LARGE
        array = series.asarray(out="memmap") if large else series.asarray()
    except Exception as error:
        if "imagecodecs" not in str(error) and "codec" not in str(error).lower():
            raise
        return _pixels_by_itk(series, page, path)
    if array.shape != series.shape:
        raise InputError(f"{path} is damaged: it holds {array.shape} values instead of {series.shape}.")
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    if page.photometric == PHOTOMETRIC.MINISWHITE:
        array = _invert(array, *_black_and_white(array, page.bitspersample))
    if page.photometric == PHOTOMETRIC.PALETTE and page.colormap is not None:
        colours = np.moveaxis(page.colormap[:, array], 0, -1)
        array = (colours >> 8 if colours.max(initial=0) > 255 else colours).astype(np.uint8)
    return array


def _pixels_by_itk(series, page, path: Path) -> np.ndarray:
    """Read like `_pixels`, for compressions that ITK supports but tifffile, without imagecodecs, does not."""
    import SimpleITK as sitk

    try:
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError:
        array = np.zeros(0)
    if array.dtype != series.dtype or array.size != math.prod(series.shape) or page.planarconfig != 1 or page.is_tiled:
        name = getattr(page.compression, "name", page.compression)
        raise InputError(f"{path} is compressed as {name}; install the package imagecodecs to read it.") from None
    return array.reshape(series.shape)


def _black_and_white(array: np.ndarray, bits: int) -> tuple[float, float]:
    """Return the values of black and white for a number of bits."""
    if array.dtype.kind == "u":
        return 0, 2 ** (8 if bits == 1 else bits) - 1
    return array.min(), array.max()


def _invert(array: np.ndarray, low, high) -> np.ndarray:
    """Return values with black and white exchanged."""
    if array.dtype.kind == "f":
        return array.dtype.type(low) + array.dtype.type(high) - array
    return (int(low) + int(high) - array.astype(np.int64)).astype(array.dtype)


def _source(file, series, page) -> dict:
    """Return everything that is needed to write the file again, except its values."""
    from tifffile import COMPRESSION, PHOTOMETRIC, PLANARCONFIG

    tags = [tag for tag in page.tags.values() if tag.code in KEPT or (tag.code >= 32768 and tag.code not in IMAGEJ)]
    tags = [tag for tag in tags if isinstance(tag.value, (int, float, str, bytes, tuple)) and tag.code not in FOLDERS]
    source = {
        "axes": series.axes, "shape": series.shape, "imagej": file.is_imagej, "ome": file.is_ome,
        "photometric": PHOTOMETRIC(page.photometric).name,
        "planar": PLANARCONFIG(page.planarconfig).name, "byteorder": file.byteorder,
        "bigtiff": file.is_bigtiff, "resolution": page.resolution,
        "unit": int(page.resolutionunit) if page.resolutionunit in (1, 2, 3) and _has_resolution(page) else 1,
        "orientation": page.tags[ORIENTATION].value if ORIENTATION in page.tags else 1,
        "tile": page.tile if page.is_tiled else None, "extrasamples": tuple(int(x) for x in page.extrasamples),
        "packed": page.compression != COMPRESSION.NONE,
        "tags": [(tag.code, int(tag.dtype), tag.count, _as_bytes(tag.value), True) for tag in tags],
        "metadata": dict(file.imagej_metadata or {}), "description": page.description, "bits": page.bitspersample,
    }  # fmt: skip
    if file.is_ome:
        source["description"] = file.ome_metadata
    return source


def _has_resolution(page) -> bool:
    """Return whether the file stores the pixel size; tifffile returns one pixel per inch otherwise."""
    return XRESOLUTION in page.tags and YRESOLUTION in page.tags


def _as_bytes(value):
    """Return text, which may not be ASCII, as the bytes to write; other values unchanged."""
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _units(file, series, page) -> tuple[tuple[float, float, float], np.ndarray | None]:
    """Return the spacing (slices, axial, lateral) in mm and the times of frames or volumes, as far as the file has
    them."""
    x, y = (1 / value if value and math.isfinite(value) else 1.0 for value in page.resolution)
    frames = series.shape[series.axes.index("T")] if "T" in series.axes else 1
    if file.is_imagej:
        known = file.imagej_metadata or {}
        unit = MILLIMETRES.get(str(known.get("unit", "")).lower())
        step = known.get("finterval") or (1 / known["fps"] if known.get("fps") else None)
        apart = float(known.get("spacing", 1)) * unit if unit and known.get("spacing") else 1.0
        count = frames if "T" in series.axes else math.prod(series.shape[: -3 if series.axes.endswith("S") else -2])
        times = steady_times(step, count) if "Z" not in series.axes or "T" in series.axes else None
        return ((abs(apart), y * unit, x * unit) if unit else (1.0, 1.0, 1.0)), times
    if file.is_ome:
        return _units_of_ome(file.ome_metadata or "", frames)
    unit = {2: 25.4, 3: 10.0}.get(int(page.resolutionunit)) if _has_resolution(page) else None
    return ((1.0, y * unit, x * unit) if unit else (1.0, 1.0, 1.0)), None


def _units_of_ome(text: str, count: int):
    def value(name: str, units: dict, usual: str) -> float | None:
        found = re.search(rf'\b{name}="([^"]+)"', text)
        unit = re.search(rf'\b{name}Unit="([^"]+)"', text)
        try:
            return float(found[1]) * units[unit[1] if unit else usual] if found else None
        except (KeyError, ValueError):
            return None

    spacing = [value(f"PhysicalSize{axis}", MILLIMETRES, "µm") or 1.0 for axis in "ZYX"]
    times = [float(word) for word in re.findall(r'\bDeltaT="([-\d.eE+]+)"', text)]
    step = value("TimeIncrement", SECONDS, "s")
    return tuple(base.lengths(spacing)), steady_times(step, count) if step else frame_times(times, count)


def _recording(path: Path, array, axes: str, source: dict, spacing, times) -> Recording:
    """Return a recording of an array with named axes: samples last; the axes before rows and columns are flattened."""
    if len(axes) != array.ndim:  # a palette adds colors
        axes += "S"
    rows, columns = axes.index("Y"), axes.index("X")
    colour = [axes.index("S")] if "S" in axes and array.shape[axes.index("S")] > 1 else []
    before = [axis for axis in range(array.ndim) if axis not in (rows, columns, *colour)]
    moved = array.transpose([*before, rows, columns, *colour])
    source["order"] = [*before, rows, columns, *colour]
    source["array"] = array.shape
    frames = orient(moved.reshape(-1, *moved.shape[len(before) :]), source["orientation"])
    if source["orientation"] in (5, 6, 7, 8):
        spacing = (spacing[0], spacing[2], spacing[1])
    names = {axes[axis]: array.shape[axis] for axis in before if array.shape[axis] > 1}
    several = set(names) == {"T", "Z"} and [axes[axis] for axis in before if axes[axis] in "TZ"] == ["T", "Z"]
    volumes = names["T"] if several else 1
    length = volumes if volumes > 1 else len(frames)
    return Recording(
        frames,
        path,
        Tiff.name,
        single=len(frames) == 1 and not before,
        sequence=set(names) == {"T"} or (times is not None and volumes == 1 and "Z" not in names),
        volumes=volumes,
        times=times if times is not None and len(times) == length else None,
        spacing=spacing,
        source=source,
    )


def _write_again(path: Path, frames: np.ndarray, recording: Recording) -> None:
    """Write with the layout, axes, units and texts of the input; compressed files with deflate."""
    import tifffile

    source = recording.source
    frames = orient(frames, source["orientation"], back=True)
    moved = frames.reshape([source["array"][axis] for axis in source["order"]])
    array = moved.transpose(np.argsort(source["order"]))
    photometric = source["photometric"]
    if photometric == "MINISWHITE":
        array = _invert(array, *_black_and_white(recording.frames, source["bits"]))
    if photometric not in ("MINISBLACK", "MINISWHITE"):
        photometric = "RGB" if frames.ndim == 4 else "MINISBLACK"
    planar = source["planar"] if frames.ndim == 4 and array.ndim == len(source["axes"]) else None
    given = {
        "photometric": photometric, "resolution": source["resolution"], "resolutionunit": source["unit"],
        "byteorder": source["byteorder"], "extratags": source["tags"],
        "compression": "zlib" if source["packed"] else None, "tile": source["tile"],
    }  # fmt: skip
    if planar:
        given["planarconfig"] = planar
    if frames.ndim == 4 and frames.shape[-1] == 4:
        given["extrasamples"] = source["extrasamples"] or ("UNASSALPHA",)
    if source["imagej"]:
        known = {name: value for name, value in source["metadata"].items() if name not in ("ImageJ", "images")}
        for name in ("tile", "planarconfig"):  # ImageJ's files have neither
            given.pop(name, None)
        tifffile.imwrite(path, array, imagej=True, metadata={"axes": source["axes"], **known}, **given)
        return
    text = source["description"] or None
    given |= {
        "description": text and text.encode("utf-8", "surrogateescape"),
        "bigtiff": source["bigtiff"] or array.nbytes > MOST,
    }
    tifffile.imwrite(path, array, metadata=None, software=False, **given)
    with tifffile.TiffFile(path) as file:  # an unusual layout may have changed
        again = file.series[0]
        if math.prod(again.shape) != array.size or again.dtype != array.dtype:
            raise RuntimeError("not the written frames")


def _has_imagej(frames: np.ndarray) -> bool:
    """Return whether ImageJ's files, the only ones here with a rate, hold such frames."""
    types = (np.uint8,) if frames.ndim == 4 else (np.uint8, np.uint16, np.float32)
    return frames.dtype in types and frames.nbytes <= MOST


def _write_new(path: Path, frames: np.ndarray, recording: Recording) -> None:
    """Write a recording from another format, with ImageJ's fields (pixel size, rate, axes) if ImageJ has the type."""
    import tifffile

    colour = frames.ndim == 4
    axial, lateral = recording.spacing[1:]
    array = frames[0] if recording.single else frames
    photometric = {"photometric": "RGB" if colour else "MINISBLACK"}
    if colour and frames.shape[-1] == 4:
        photometric["extrasamples"] = ("UNASSALPHA",)
    if not _has_imagej(frames):
        given = {"resolution": (10 / lateral, 10 / axial), "resolutionunit": "CENTIMETER", **photometric}
        tifffile.imwrite(path, array, metadata=None, software=False, bigtiff=array.nbytes > MOST, **given)
        return
    axes, metadata = "T" if recording.sequence else "Z", {"unit": "mm"}
    if recording.volumes > 1:
        axes, array = "TZ", frames.reshape(recording.volumes, -1, *frames.shape[1:])
    if recording.times is not None:
        metadata["finterval"] = float(np.mean(np.diff(recording.times)))
    if "Z" in axes:
        metadata["spacing"] = recording.spacing[0]
    metadata["axes"] = ("" if recording.single else axes) + ("YXS" if colour else "YX")
    tifffile.imwrite(path, array, imagej=True, metadata=metadata, resolution=(1 / lateral, 1 / axial), **photometric)
