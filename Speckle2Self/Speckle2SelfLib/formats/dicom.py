"""DICOM: read by pydicom, and written as a derived series."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pydicom
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from ..system import InputError
from .base import Format, Recording, check_promise, frame_times, lengths, quiet, steady_times
from .dicom_pixels import decode, encode, set_pixels

OURS = "2.25.95834162705421935262184372517093826165"  # a UUID: the class of the program that writes the files
STALE = (  # fields that describe the input's pixels or compression
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelDataProviderURL", "IconImageSequence",
)  # fmt: skip
SENDERS = (
    "SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ReceivingApplicationEntityTitle",
    "PrivateInformationCreatorUID", "PrivateInformation",
)  # fmt: skip
WORDS = {"OW": "u2", "OL": "u4", "OF": "u4", "OD": "u8", "OV": "u8"}  # numpy's type of a kind of values


class Dicom(Format):
    name = "DICOM"
    suffixes = (".dcm", ".dicom", ".ima")
    unnamed = True

    def recognizes(self, head: bytes, path: Path) -> bool:
        if head[128:132] == b"DICM":
            return True
        if head[:2] not in (b"\x02\0", b"\x08\0") or head[3:4] != b"\0":  # no preamble: the first groups
            return False
        header = _header(path)
        return header is not None and "SOPClassUID" in header

    def holds_image(self, path: Path) -> bool:
        """Return False for a DICOMDIR, report or document, which are stored with the images."""
        header = _header(path)
        return header is None or ("Rows" in header and "Columns" in header)

    def read(self, path: Path, key: str) -> Recording:
        with quiet("pydicom"):  # pydicom warns of a damaged value when that is read
            return self._read(path, _dataset(path))

    def _read(self, path: Path, dataset) -> Recording:
        if "PixelData" not in dataset:
            what = "a DICOMDIR; name its folder instead" if "DirectoryRecordSequence" in dataset else "without an image"
            raise InputError(f"{path} is a DICOM file {what}." if what == "without an image" else f"{path} is {what}.")
        try:
            count = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames", 1) or 1)
            check_promise(count, len(dataset.PixelData), path)
            if dataset.get("NumberOfFrames", 1) in (0, None):
                dataset.NumberOfFrames = 1
            photometric = dataset.PhotometricInterpretation
            array = decode(dataset)
        except InputError:
            raise
        except Exception as error:
            raise _decoding_error(path, dataset, error) from error
        colour = photometric not in ("MONOCHROME1", "MONOCHROME2")
        single = array.ndim == (3 if colour else 2)
        frames = array[None] if single else array
        if photometric == "MONOCHROME1":  # stored inverted; invert it, so that echoes are bright
            frames = frames.max() + frames.min() - frames
        region = _region(dataset, frames.shape[1:3])
        return Recording(
            frames,
            path,
            self.name,
            region=region,
            single=single,
            sequence=True,
            times=_times(dataset, len(frames)),
            spacing=_spacing(dataset, region),
            source={"dataset": dataset, "bounds": (int(frames.max()), int(frames.min()))},
        )

    def check(self, path: Path, recording: Recording) -> None:
        if recording.format != self.name:
            raise InputError(
                f"{path.name} cannot be written: only DICOM becomes DICOM; keep the input's format, or choose .npy."
            )

    def write(self, path: Path, frames: np.ndarray, recording: Recording) -> None:
        """Write a derived series: the same data set with new identifiers and the frames without loss."""
        try:
            with quiet("pydicom"):
                path.write_bytes(_derived_file(frames, recording))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # pydicom finds damaged values only when they are written
            name = recording.path.name
            raise InputError(
                f"{name} has damaged fields and cannot be written as DICOM again; choose .npy or .mha."
            ) from error


def _decoding_error(path: Path, dataset, error: Exception) -> InputError:
    """Return the error for pixels that cannot be decoded, with the packages to install, if any would help."""
    name = getattr(dataset.file_meta.TransferSyntaxUID, "name", "")
    if packages := re.findall(r"requires (.+)", str(error)):  # pydicom names them for each of its plugins
        return InputError(f"{path} is compressed as {name}; install {packages[0].rstrip(' .')} to read it.")
    if name.startswith(("MPEG", "HEVC")):
        return InputError(f"{path} holds a film ({name}); export it as MP4, AVI or uncompressed DICOM.")
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(" .:")
    return InputError(f"{path} cannot be decoded: {reason}.")


def _header(path: Path):
    """Return a few fields of a file, with or without a preamble; None where it cannot be read."""
    try:
        with quiet("pydicom"):
            return pydicom.dcmread(
                path, stop_before_pixels=True, force=True, specific_tags=["SOPClassUID", "Rows", "Columns"]
            )
    except Exception:  # pydicom raises many kinds for damaged files
        return None


def _dataset(path: Path):
    """Return the data set of a file, with or without a preamble. Raises InputError if it is not DICOM."""
    try:
        with quiet("pydicom"):
            dataset = pydicom.dcmread(path, force=True)
            if not len(dataset):
                raise ValueError("it has no fields")
        if "TransferSyntaxUID" not in dataset.file_meta:
            explicit = not dataset.is_implicit_VR
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian
    except Exception as error:  # as above
        raise InputError(f"{path} is not a DICOM file, or it is damaged.") from error
    if "SOPClassUID" not in dataset and "Rows" not in dataset and "DirectoryRecordSequence" not in dataset:
        raise InputError(f"{path} is not a DICOM file, or it is damaged.")
    return dataset


def _region(dataset, shape) -> np.ndarray | None:
    """Return the imaged regions of SequenceOfUltrasoundRegions (H, W) bool; None if there are none, or one exceeds the
    image. Some scanners store the last row and column plus one, which is accepted."""
    region = np.zeros(shape, bool)
    try:
        for item in _tissue_regions(dataset):
            top, bottom = item.get("RegionLocationMinY0", -1), item.get("RegionLocationMaxY1", -1)
            left, right = item.get("RegionLocationMinX0", -1), item.get("RegionLocationMaxX1", -1)
            if not (0 <= top <= bottom <= shape[0] and 0 <= left <= right <= shape[1]):
                return None  # the image was scaled after its regions had been stored
            region[top : bottom + 1, left : right + 1] = True
    except Exception:  # pydicom converts a value on access, and raises many kinds for damaged ones
        return None
    return region if region.any() else None


def _tissue_regions(dataset) -> list:
    """Return the items of SequenceOfUltrasoundRegions that show tissue, perhaps with color Doppler, as opposed to
    M-mode, spectra, traces and bars of grey values or colors."""
    items = dataset.get("SequenceOfUltrasoundRegions") or []
    return [x for x in items if x.get("RegionSpatialFormat") == 1 and x.get("RegionDataType", 1) in (0, 1, 2, 15)]


def _spacing(dataset, region) -> tuple[float, float, float]:
    """Return (1, axial, lateral) in mm from PixelSpacing, else from regions of one scale; 1 where neither is
    credible."""
    try:
        spacing = dataset.get("PixelSpacing")
        if not spacing and region is not None:
            scales = {
                (x.PhysicalUnitsYDirection, x.PhysicalUnitsXDirection, abs(x.PhysicalDeltaY), abs(x.PhysicalDeltaX))
                for x in _tissue_regions(dataset)
            }
            (scale,) = scales
            if scale[:2] == (3, 3):  # cm
                spacing = (10 * scale[2], 10 * scale[3])
        axial, lateral = spacing or (1, 1)
        return (1.0, *lengths((axial, lateral)))
    except Exception:  # as above
        return (1.0, 1.0, 1.0)


def _times(dataset, count: int) -> np.ndarray | None:
    """Return the times of frames (s), from the durations between them or their rate."""
    try:
        if vector := dataset.get("FrameTimeVector"):
            steps = np.atleast_1d(np.array(vector, float)) / 1000
            first = [0.0] * (len(steps) == count - 1)  # some omit the first
            times = frame_times(np.cumsum([*first, *steps]), count)
            if times is not None:  # otherwise it is damaged
                return times
        if dataset.get("FrameTime"):
            return steady_times(float(dataset.FrameTime) / 1000, count)
        rate = dataset.get("CineRate") or dataset.get("RecommendedDisplayFrameRate")
        return steady_times(1 / float(rate), count) if rate else None
    except Exception:  # as above
        return None


def _derived_file(frames: np.ndarray, recording: Recording) -> bytes:
    dataset = copy.deepcopy(recording.source["dataset"])
    photometric, bits = dataset.PhotometricInterpretation, dataset.BitsStored
    syntax = dataset.file_meta.TransferSyntaxUID
    if photometric == "MONOCHROME1":
        high, low = recording.source["bounds"]
        frames = (high + low - frames.astype(np.int64)).astype(frames.dtype)
    if frames.ndim == 4:
        photometric, bits, frames = "RGB", 8 * frames.dtype.itemsize, frames[..., :3]
        for keyword in ("Red", "Green", "Blue"):
            for part in ("Descriptor", "Data"):
                dataset.pop(f"{keyword}PaletteColorLookupTable{part}", None)
    for keyword in STALE:
        dataset.pop(keyword, None)
    if syntax == ExplicitVRBigEndian:  # retired by DICOM
        _swap_words(dataset)
    several = len(frames) > 1 or "NumberOfFrames" in dataset
    compressed = syntax.is_encapsulated or syntax.is_deflated
    set_pixels(dataset, frames if several else frames[0], photometric, bits, compressed)
    _identify(dataset, recording)
    return encode(dataset, dataset.file_meta.TransferSyntaxUID)


def _swap_words(dataset) -> None:
    """Swap the bytes of all words except the pixels, for example of tables, which pydicom keeps in the file's byte
    order."""
    for element in dataset.iterall():
        if element.VR in WORDS and element.keyword != "PixelData" and isinstance(element.value, bytes):
            element.value = np.frombuffer(element.value, WORDS[element.VR]).byteswap().tobytes()


def _identify(dataset, recording: Recording) -> None:
    """Set new identifiers, the source image and the derivation. Slices of one series are kept as one series."""
    original = recording.source["dataset"]
    sources = [original.get("SeriesInstanceUID", ""), recording.run]
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=sources) if recording.run and sources[0] else generate_uid()
    dataset.SOPInstanceUID = generate_uid()
    kind = list(dataset.get("ImageType") or ["ORIGINAL", "PRIMARY"])
    dataset.ImageType = ["DERIVED", "SECONDARY", *kind[2:]]
    dataset.DerivationDescription = "Speckle reduced by Speckle2Self; not for diagnosis"
    dataset.DerivationCodeSequence = Sequence([_code("113087", "Smoothing")])
    dataset.SeriesDescription = (str(dataset.get("SeriesDescription", "")) + " despeckled").strip()[:64]
    if "SOPClassUID" in original and "SOPInstanceUID" in original:
        source = pydicom.Dataset()
        source.ReferencedSOPClassUID = original.SOPClassUID
        source.ReferencedSOPInstanceUID = original.SOPInstanceUID
        purpose = _code("121322", "Source image for image processing operation")
        source.PurposeOfReferenceCodeSequence = Sequence([purpose])
        dataset.SourceImageSequence = Sequence([source])
    meta = dataset.file_meta
    for keyword in SENDERS:
        meta.pop(keyword, None)
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if "SOPClassUID" in dataset:
        meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.ImplementationClassUID, meta.ImplementationVersionName = OURS, "SPECKLE2SELF"


def _code(value: str, meaning: str):
    """Return an item of a code sequence with one of DICOM's own codes."""
    item = pydicom.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item
