"""Decode the pixels of DICOM data sets, by pydicom and its plugins or else by the GDCM inside SimpleITK, and encode
them."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image, features
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless

from .base import quiet

# elements of a data set that GDCM needs to decode its pixels
PIXEL_MODULE = (
    "SOPClassUID", "SOPInstanceUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip

SMALLEST = 32  # pixels; JPEG 2000 halves an image five times
PRECISION, SIGNED = 42, 0x80  # the byte of a JPEG 2000 stream with the number of bits, and its bit for signed values


def decode(dataset) -> np.ndarray:
    """Return the pixels of a data set, colors as RGB. Raises many kinds of exceptions for damaged data."""
    photometric = dataset.PhotometricInterpretation
    with quiet("pydicom"):
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            _check_sizes(dataset)
        try:
            array = _decode_by_pydicom(dataset)
        except Exception as error:
            if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
                raise
            try:
                array = _decode_by_gdcm(dataset)
            except Exception:
                raise error from None
    if photometric == "PALETTE COLOR":
        array = _apply_palette(array, dataset)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_sizes(dataset) -> None:
    """Raise ValueError if a compressed frame's size differs from its data set's: decoders would allocate it."""
    for fragment in _fragments(dataset.PixelData):
        size = _frame_size(fragment)
        if size is not None and size != (dataset.Rows, dataset.Columns):
            raise ValueError(f"a frame is of {size[0]} x {size[1]} pixels, not of {dataset.Rows} x {dataset.Columns}")


def _fragments(data: bytes) -> list[bytes]:
    """Return the items of compressed pixels except the first, a table. Raises ValueError if they end too early."""
    at, items = 0, []
    while data[at : at + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        items.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    if at > len(data) or data[at : at + 4] not in (b"\xfe\xff\xdd\xe0", b""):
        raise ValueError("the parts of its compressed frames are damaged")
    return items[1:]


def _frames(dataset) -> list[bytes]:
    """Return the compressed frames: one item each or, if JPEG frames span several items, as many as begin a frame."""
    fragments, count = _fragments(dataset.PixelData), int(dataset.get("NumberOfFrames", 1) or 1)
    if count == 1:
        fragments = [b"".join(fragments)]
    elif len(fragments) > count:
        joined: list[bytes] = []
        for fragment in fragments:
            if fragment[:2] in (b"\xff\xd8", b"\xff\x4f") or not joined:
                joined.append(fragment)
            else:
                joined[-1] += fragment
        fragments = joined
    if len(fragments) != count:
        raise ValueError(f"it holds {len(fragments)} of {count} frames")
    return fragments


def _frame_size(stream: bytes) -> tuple[int, int] | None:
    """Return height and width of a JPEG, JPEG-LS or JPEG 2000 frame from its header; None for other data."""
    if stream[:4] == b"\xff\x4f\xff\x51":
        right, bottom, left, top = np.frombuffer(stream[8:24].ljust(16, b"\0"), ">u4").tolist()
        return bottom - top, right - left
    at = 2
    while stream[:2] == b"\xff\xd8" and at + 9 <= len(stream) and stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(stream[at + 5 : at + 7], "big"), int.from_bytes(stream[at + 7 : at + 9], "big")
        at += 2 + length if marker != 0xFF else 1
    return None


def _decode_by_pydicom(dataset) -> np.ndarray:
    try:
        from pydicom.pixels import pixel_array
    except ImportError:  # pydicom 2.4, as in Slicer 5.10
        from pydicom.pixel_data_handlers.util import convert_color_space

        array = dataset.pixel_array
        if dataset.PhotometricInterpretation.startswith("YBR_FULL"):
            array = convert_color_space(array, dataset.PhotometricInterpretation, "RGB", per_frame=True)
        return array
    return pixel_array(dataset)


def _decode_by_gdcm(dataset) -> np.ndarray:
    """Do the same for JPEG Lossless, JPEG-LS, 12-bit JPEG and everything else that GDCM decodes."""
    import SimpleITK as sitk

    plain = pydicom.Dataset()
    for keyword in PIXEL_MODULE:
        if keyword in dataset:
            plain[keyword] = dataset[keyword]
    if dataset.SamplesPerPixel == 1:  # stored values, without inversion or palette
        plain.PhotometricInterpretation = "MONOCHROME2"
    plain.PixelData = encapsulate(_frames(dataset))  # repaired as far as possible
    plain["PixelData"].VR = "OB"
    plain["PixelData"].is_undefined_length = True
    plain.file_meta = pydicom.dataset.FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    plain.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    plain.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    with tempfile.TemporaryDirectory(prefix="speckle2self-") as folder:
        path = Path(folder) / "image.dcm"
        path.write_bytes(encode(plain, dataset.file_meta.TransferSyntaxUID))
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    shape = [*([count] if count > 1 else []), dataset.Rows, dataset.Columns, *([3] if array.ndim == 4 else [])]
    return array.reshape(shape)


def _apply_palette(array: np.ndarray, dataset) -> np.ndarray:
    """Return 8-bit RGB values for the entries of a palette."""
    try:
        from pydicom.pixels import apply_color_lut
    except ImportError:  # as above
        from pydicom.pixel_data_handlers.util import apply_color_lut

    array = apply_color_lut(array, dataset)
    wide = array.max(initial=0) > 255  # entries of 16 bits; some writers store entries of 8 bits as such
    return (array >> 8 if wide else array).astype(np.uint8)


def set_pixels(dataset, array: np.ndarray, photometric: str, bits: int, compressed: bool) -> None:
    """Put (N, H, W), (H, W) or colors into a data set, with `bits` stored per value; compressed: as lossless JPEG 2000
    with all bits of their type, or deflated if Pillow cannot write such values."""
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    shape = array.shape[-3 if photometric == "RGB" else -2 :]
    dtypes = (np.uint8,) if photometric == "RGB" else (np.uint8, np.int8, np.uint16, np.int16)
    jpeg = compressed and array.dtype in dtypes and min(shape[:2]) >= SMALLEST and features.check("jpg_2000")
    bits = 8 * array.dtype.itemsize if jpeg else bits
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if hasattr(dataset, "set_pixel_data") and array.dtype.itemsize <= 2:
        dataset.set_pixel_data(array, photometric, bits)
    else:
        _set_pixels(dataset, array, photometric, bits)
    if jpeg:
        dataset.PixelData = encapsulate([_jpeg_2000(frame) for frame in array.reshape(-1, *shape)])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.PhotometricInterpretation = "YBR_RCT" if photometric == "RGB" else photometric
        dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    elif compressed:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


def _jpeg_2000(frame: np.ndarray) -> bytes:
    """Return a frame as lossless JPEG 2000. Pillow does not write signed values, but JPEG 2000 stores them like
    unsigned ones that are larger by half of their range; only one bit of the header differs."""
    signed = frame.dtype.kind == "i"
    if signed:
        frame = (frame.astype(int) - np.iinfo(frame.dtype).min).astype(f"u{frame.itemsize}")
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG2000", irreversible=False, no_jp2=True, mct=frame.ndim == 3)
    stream = bytearray(buffer.getvalue())
    stream[PRECISION] |= SIGNED if signed else 0
    return bytes(stream)


def _set_pixels(dataset, array: np.ndarray, photometric: str, bits: int) -> None:
    """Do the same as pydicom 3's `set_pixel_data`, for pydicom 2.4 (Slicer 5.10) and for 32-bit values."""
    colour = photometric == "RGB"
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = photometric, 3 if colour else 1
    if colour:
        dataset.PlanarConfiguration, dataset.PixelRepresentation = 0, 0
        dataset.BitsAllocated = bits
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    if array.ndim == (4 if colour else 3):
        dataset.NumberOfFrames = len(array)
    data = array.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if array.dtype.itemsize == 1 else "OW"
    dataset["PixelData"].is_undefined_length = False


def encode(dataset, syntax) -> bytes:
    """Return a data set as file content, with the preamble that some scanners omit."""
    buffer, explicit = io.BytesIO(), not syntax.is_implicit_VR
    if hasattr(dataset, "set_pixel_data"):
        pydicom.dcmwrite(buffer, dataset, implicit_vr=not explicit, little_endian=True, enforce_file_format=True)
    else:
        dataset.is_implicit_VR, dataset.is_little_endian = not explicit, True
        dataset.save_as(buffer, write_like_original=False)
    return buffer.getvalue()
