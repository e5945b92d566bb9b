"""DICOM, read by pydicom, and written as a derived series."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from ..system import InputError
from .base import DEFLATE_LIMIT, Format, Recording, lengths


class Dicom(Format):
    name = "DICOM"
    suffixes = (".dcm", ".dicom", ".ima")
    unnamed = True

    def recognizes(self, path: Path) -> bool:
        return pydicom.misc.is_dicom(path)

    def read(self, path: Path, key: str) -> Recording:
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
            if dataset.get("NumberOfFrames", 1) in (0, None):
                dataset.NumberOfFrames = 1
            photometric = dataset.PhotometricInterpretation
            array = _decoded(dataset)
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
        region = _region(dataset, frames.shape[1:3])
        return Recording(
            frames,
            path,
            self.name,
            region=region,
            single=single,
            sequence=True,
            spacing=_spacing(dataset, region),
            source={"dataset": dataset, "turn": (int(frames.max()), int(frames.min()))},
        )

    def check(self, path: Path, recording: Recording) -> None:
        if recording.format != self.name:
            raise InputError(
                f"{path.name} cannot be written: only DICOM becomes DICOM; keep the input's format, or choose .npy."
            )
        if recording.source["dataset"].is_little_endian is False:
            raise InputError(f"{recording.path.name} is big endian, which DICOM has given up; choose .mha or .npy.")

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        """A derived series: the same data set with new identifiers and the frames uncompressed."""
        try:
            path.write_bytes(_derived(frames, recording))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # pydicom keeps damaged values as they are until they are written
            name = recording.path.name
            raise InputError(
                f"{name} has damaged fields and cannot become DICOM again; choose .npy or .mha."
            ) from error


def _decoded(dataset) -> np.ndarray:
    """The pixels of a data set, colours as RGB; raises many kinds of errors on damaged ones."""
    photometric = dataset.PhotometricInterpretation
    try:
        from pydicom.pixels import apply_color_lut, pixel_array
    except ImportError:  # pydicom 2.4, as in Slicer 5.10
        from pydicom.pixel_data_handlers.util import apply_color_lut, convert_color_space

        array = dataset.pixel_array
        if photometric.startswith("YBR_FULL"):
            array = convert_color_space(array, photometric, "RGB", per_frame=True)
    else:
        array = pixel_array(dataset)
    if photometric == "PALETTE COLOR":
        array = apply_color_lut(array, dataset)
        wide = array.max(initial=0) > 255  # entries of 16 bits; some write those of 8 as such
        array = (array >> 8 if wide else array).astype(np.uint8)
    return array


def _region(dataset, shape) -> np.ndarray | None:
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


def _spacing(dataset, region) -> tuple[float, float, float]:
    """(1, axial, lateral) of PixelSpacing, else of the only region; 1 where neither says, or can be believed."""
    try:
        spacing = dataset.get("PixelSpacing")
        if not spacing and region is not None:
            (item,) = (i for i in dataset.SequenceOfUltrasoundRegions if i.get("RegionSpatialFormat") == 1)
            if item.PhysicalUnitsXDirection == item.PhysicalUnitsYDirection == 3:  # cm
                spacing = (10 * item.PhysicalDeltaY, 10 * item.PhysicalDeltaX)
        axial, lateral = spacing or (1, 1)
        return (1.0, *lengths((axial, lateral)))
    except Exception:  # as above
        return (1.0, 1.0, 1.0)


def _derived(frames: np.ndarray, recording: Recording) -> bytes:
    dataset = copy.deepcopy(recording.source["dataset"])
    photometric, bits = dataset.PhotometricInterpretation, dataset.BitsStored
    if photometric == "MONOCHROME1":
        high, low = recording.source["turn"]
        frames = (high + low - frames.astype(np.int64)).astype(frames.dtype)
    if frames.ndim == 4:
        photometric, bits, frames = "RGB", 8 * frames.dtype.itemsize, frames[..., :3]
        for keyword in ("Red", "Green", "Blue"):
            for part in ("Descriptor", "Data"):
                dataset.pop(f"{keyword}PaletteColorLookupTable{part}", None)
    for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):  # of the compressed frames
        dataset.pop(keyword, None)
    _set_pixels(dataset, frames if len(frames) > 1 or "NumberOfFrames" in dataset else frames[0], photometric, bits)
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    kind = list(dataset.get("ImageType", ["ORIGINAL", "PRIMARY"]))
    dataset.ImageType = ["DERIVED", "SECONDARY", *kind[2:]]
    dataset.DerivationDescription = "Speckle reduced by Speckle2Self; not for diagnosis"
    dataset.SeriesDescription = (str(dataset.get("SeriesDescription", "")) + " despeckled").strip()[:64]
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return _encoded(dataset)


def _set_pixels(dataset, array: np.ndarray, photometric: str, bits: int) -> None:
    """Puts (N, H, W), (H, W) or colours into a data set of `bits` stored of each value, uncompressed."""
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    if hasattr(dataset, "set_pixel_data") and array.dtype.itemsize <= 2:
        dataset.set_pixel_data(array, photometric, bits)
        return
    colour = photometric == "RGB"  # pydicom 2.4, as in Slicer 5.10, or values of 32 bits
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = photometric, 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration, dataset.PixelRepresentation = 0, 0
        dataset.BitsAllocated = dataset.BitsStored = bits
        dataset.HighBit = bits - 1
    if array.ndim == (4 if colour else 3):
        dataset.NumberOfFrames = len(array)
    data = array.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if array.dtype.itemsize == 1 else "OW"
    dataset["PixelData"].is_undefined_length = False


def _encoded(dataset) -> bytes:
    """The file of a data set, with the preamble that files of some scanners lack."""
    buffer = io.BytesIO()
    if hasattr(dataset, "set_pixel_data"):
        dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)
    else:
        dataset.is_implicit_VR, dataset.is_little_endian = False, True
        dataset.save_as(buffer, write_like_original=False)
    return buffer.getvalue()
