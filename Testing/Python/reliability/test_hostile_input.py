"""Damaged and malicious files, configs and answers: one InputError or a clean result; no crash, no hang, no code run.

Random cases are seeded. SPECKLE2SELF_FUZZ sets their number for the whole file; each is named by its seed.
"""

import gzip
import io
import json
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)
from safetensors.torch import save as safetensors_bytes
from scipy.io import savemat

from Speckle2SelfLib import checkpoint, files, library, runs, worker_process
from Speckle2SelfLib.__main__ import main
from Speckle2SelfLib.config import Job, ModelConfig, TrainingConfig, from_dict
from Speckle2SelfLib.network import SpeckleReductionNetwork, build
from Speckle2SelfLib.protocol import encode
from Speckle2SelfLib.system import Cancelled, InputError
from Speckle2SelfSlicer import worker as worker_module
from Speckle2SelfSlicer.trainer import Trainer
from Speckle2SelfSlicer.worker import NONSENSE, Worker

resource = pytest.importorskip("resource")  # Windows has none
h5py, av = pytest.importorskip("h5py"), pytest.importorskip("av")

CASES = int(os.environ.get("SPECKLE2SELF_FUZZ", "1500"))
FRAMES = np.random.default_rng(0).integers(1, 255, (3, 24, 32)).astype(np.uint8)
SIGNED = (FRAMES.astype(np.int16) - 99) * 50
SECONDS = 10  # seconds for one case; most need milliseconds
ROOM = 3 * 2**30  # bytes of address space that the cases may use in addition to the tests


# --- Seeds: small good files


def mha(packed=False, **changes):
    data = zlib.compress(FRAMES.tobytes()) if packed else FRAMES.tobytes()
    entries = {
        "ObjectType": "Image", "NDims": 3, "DimSize": "32 24 3", "ElementSpacing": "0.1 0.2 1",
        "Seq_Frame0000_Timestamp": 0.5, "Seq_Frame0001_Timestamp": 0.6, "CompressedData": packed,
        "BinaryDataByteOrderMSB": False, "ElementType": "MET_UCHAR", **changes, "ElementDataFile": "LOCAL",
    }  # fmt: skip
    return "".join(f"{key} = {value}\n" for key, value in entries.items()).encode() + data


def nrrd(encoding="raw", **changes):
    data = FRAMES.tobytes()
    fields = {
        "type": "uint8", "dimension": 3, "sizes": "32 24 3", "kinds": "domain domain list", "encoding": encoding,
        "space directions": "(0.1,0,0) (0,0.2,0) none", **changes,
    }  # fmt: skip
    header = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in fields.items()) + "time:=0.1\n\n"
    return header.encode() + (gzip.compress(data) if encoding == "gzip" else data)


def dicom(packed=False, frames=FRAMES, **changes):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UltrasoundMultiFrameImageStorage, generate_uid()
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.Modality, dataset.FrameTime = generate_uid(), "US", 33.3
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = frames.shape[1], frames.shape[2], len(frames)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * frames.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    place = Dataset()
    place.RegionSpatialFormat, place.RegionLocationMinX0, place.RegionLocationMinY0 = 1, 2, 2
    place.RegionLocationMaxX1, place.RegionLocationMaxY1 = 29, 20
    dataset.SequenceOfUltrasoundRegions = [place]
    dataset.PixelData = frames.tobytes()
    if packed:
        dataset.compress(RLELossless)
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def deflated_dicom():
    dataset, buffer = pydicom.dcmread(io.BytesIO(dicom(frames=SIGNED, PixelRepresentation=1))), io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(buffer)
    return buffer.getvalue()


def numpy_file(array=FRAMES):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def numpy_archive(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **(arrays or {"frames": FRAMES, "truth": FRAMES[0]}))
    return buffer.getvalue()


OTHERS = (".bmp", ".jpg", ".vtk", ".gipl")


def image(suffix, folder):
    single = suffix in (".png", ".bmp", ".jpg")
    path = folder / f"seed{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES[0] if single else FRAMES), str(path), suffix == ".tif")
    return path.read_bytes()


def by_gdcm(compressor, folder):
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(folder / "seed.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(FRAMES))
    return (folder / "seed.dcm").read_bytes()


def pillow_file(kind, frames, **options):
    buffer = io.BytesIO()
    first, *others = [Image.fromarray(frame) for frame in frames]
    more = {"save_all": True, "append_images": others, "duration": 40} if others else {}
    first.save(buffer, kind, **more, **options)
    return buffer.getvalue()


TIFFS = [
    {"imagej": True, "metadata": {"axes": "TYX", "unit": "mm", "finterval": 0.04}},
    {"tile": (16, 16), "metadata": {"axes": "TYX", "PhysicalSizeX": 0.2}, "ome": True},
    {"compression": "zlib", "photometric": "MINISWHITE", "metadata": None},
    {"extratags": [(274, "H", 1, 6, True)], "photometric": "MINISBLACK", "metadata": None},
    {"planarconfig": "SEPARATE", "photometric": "RGB", "metadata": None},
]


def tiff(folder, **options):
    tifffile.imwrite(folder / "seed2.tif", FRAMES, **options)
    return (folder / "seed2.tif").read_bytes()


def film(suffix, folder, codec="ffv1", pixels="gray"):
    path = folder / f"seed{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *FRAMES.shape[1:], pixels
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode(None))
    return path.read_bytes()


FILMS = {  # suffix -> codecs of other kinds
    ".mkv": [("ffv1", "gray"), ("libvpx-vp9", "yuv420p")], ".mp4": [("libx264", "gray"), ("mpeg4", "yuv420p")],
    ".avi": [("ffv1", "gray"), ("mjpeg", "yuvj420p")], ".mov": [("png", "gray"), ("qtrle", "gray")],
    ".mpg": [("mpeg1video", "yuv420p")], ".wmv": [("wmv2", "yuv420p")],
}  # fmt: skip


def films(suffix, folder):
    return [film(suffix, folder, *codec) for codec in FILMS[suffix] if codec[0] in av.codecs_available]


def matlab_file(packed):
    buffer = io.BytesIO()
    info = {"depth": 4.0, "probe": "L14"}
    savemat(buffer, {"frames": FRAMES.transpose(1, 2, 0), "info": info}, do_compression=packed)
    return buffer.getvalue()


def newer_matlab_file(folder):
    with h5py.File(folder / "seed73.mat", "w", userblock_size=512) as file:
        file["frames"] = FRAMES.transpose(0, 2, 1)
    data = (folder / "seed73.mat").read_bytes()
    return b"MATLAB 7.3 MAT-file".ljust(512) + data[512:]


def hdf5_file(folder):
    with h5py.File(folder / "seed.h5", "w") as file:
        file.create_dataset("data/image", data=FRAMES, compression="gzip", chunks=(1, 24, 32))
        file["scan/depth"] = np.arange(4.0)
    return (folder / "seed.h5").read_bytes()


def ustb_file(folder):
    with h5py.File(folder / "seed.uff", "w") as file:
        file["b_data/data/real"] = file["b_data/data/imag"] = FRAMES.reshape(3, 1, 1, -1) / np.float32(9)
        file["b_data/scan/x_axis"], file["b_data/scan/z_axis"] = np.arange(24.0)[None], np.arange(32.0)[None]
    return (folder / "seed.uff").read_bytes()


def weights():
    config = ModelConfig(width=4)
    metadata = {"format": checkpoint.FORMAT, "config": '{"width": 4, "grain": [0.75, 1.7]}', "card": "{}"}
    return safetensors_bytes(build(config).state_dict(), metadata)


def authors_weights():
    buffer = io.BytesIO()
    torch.save(dict(list(SpeckleReductionNetwork(1).state_dict().items())[:6]), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Return suffix -> good files."""
    folder = tmp_path_factory.mktemp("seeds")
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": 1, "FrameTimeVector": [0, 30, 40]}
    sequence = {"labels": '"" "" "time"', "units": '"" "" "s"', "kinds": "domain domain list"}
    return {
        ".mha": [mha(), mha(packed=True)],
        ".nrrd": [nrrd(), nrrd("gzip"), nrrd(**sequence)],
        ".dcm": [
            dicom(),
            dicom(packed=True),
            dicom(frames=SIGNED, **inverted),
            deflated_dicom(),
            *(by_gdcm(compressor, folder) for compressor in ("JPEG", "JPEG2000")),
        ],
        ".npy": [numpy_file(), numpy_file(FRAMES.astype(np.float64)), numpy_file(FRAMES * np.complex64(1j))],
        ".npz": [numpy_archive()],
        **{suffix: [image(suffix, folder)] for suffix in (".nii", ".nii.gz", *OTHERS)},
        ".png": [
            image(".png", folder),
            pillow_file("PNG", SIGNED[:1].astype(np.uint16)),
            pillow_file("PNG", np.dstack([FRAMES[0], FRAMES[1]])[None]),
        ],
        ".tif": [image(".tif", folder), *(tiff(folder, **options) for options in TIFFS)],
        ".gif": [pillow_file("GIF", FRAMES)],
        ".webp": [pillow_file("WEBP", FRAMES, lossless=True)],
        **{suffix: films(suffix, folder) for suffix in FILMS},
        ".mat": [matlab_file(True), matlab_file(False), newer_matlab_file(folder)],
        ".h5": [hdf5_file(folder), ustb_file(folder)],
    }


# --- Damage

WORDS = [b"-1", b"0", b"65535", b"4294967296", b"99999999999999999999", b"1e999", b"nan", b"", b"\xff", b"\0", b"%"]
NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1]


def damaged(good: list[bytes], rng) -> bytes:
    """Return one of the files, cut, with flipped bits, exchanged numbers or parts of another file."""
    data = bytearray(good[rng.integers(len(good))])
    for _ in range(rng.integers(1, 4)):
        end = len(data) if rng.random() < 0.5 else min(len(data), int(rng.choice([400, 1500])))  # headers more often
        at, kind = int(rng.integers(0, max(end, 1))), rng.integers(7)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            for place in rng.integers(0, max(end, 1), rng.integers(1, 9)):
                if place < len(data):
                    data[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            size = int(rng.choice([1, 2, 4, 8]))
            number = int(NUMBERS[rng.integers(len(NUMBERS))]) % 256**size
            data[at : at + size] = number.to_bytes(size, "little" if rng.random() < 0.6 else "big")
        elif kind == 3:
            numbers = list(re.finditer(rb"-?\d+", bytes(data[:2000])))
            if numbers:
                found = numbers[rng.integers(len(numbers))]
                data[found.start() : found.end()] = WORDS[rng.integers(len(WORDS))]
        elif kind == 4:
            other = good[rng.integers(len(good))]
            start = int(rng.integers(0, len(other)))
            data[at : at + int(rng.integers(0, 64))] = other[start : start + int(rng.integers(1, 200))]
        elif kind == 5:
            data[at:at] = rng.bytes(int(rng.integers(1, 50)))
        else:
            del data[at : at + int(rng.integers(1, 30))]
    return bytes(data)


def chunk(name: bytes, data: bytes) -> bytes:
    """Return a part of a PNG, with its checksum."""
    return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")


def png_opened(data: bytes) -> bytes:
    """Return the header and the inflated rows of a PNG."""
    at, packed = 8, b""
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        packed += data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    return data[16:29] + zlib.decompress(packed)


def png_sealed(data: bytes) -> bytes:
    return data_of_png(data[:13], zlib.compress(data[13:]))


def data_of_png(header: bytes, packed: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", data)
    return buffer.getvalue()


SEALED = {  # files with checksums: their content is damaged as often, and the checksum renewed
    ".png": (png_opened, png_sealed),
    ".nii.gz": (gzip.decompress, gzip.compress),
    ".npz": (lambda data: zipfile.ZipFile(io.BytesIO(data)).read("frames.npy"), zipped),
}


def hostile(suffix: str, good: list[bytes], rng) -> bytes:
    if suffix not in SEALED or rng.random() < 0.5:
        return damaged(good, rng)
    opened, sealed = SEALED[suffix]
    return sealed(damaged([opened(data) for data in good], rng))


class TooLong(BaseException):
    """A case that hangs; no handler of an ordinary error may swallow it."""


@contextmanager
def bounded():
    """Limit the time and the address space of each case."""

    def stop(number, frame):
        raise TooLong

    status = Path("/proc/self/statm")
    used = int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 0
    old_handler, old_limit = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    signal.alarm(SECONDS)
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, old_limit[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old_handler)
        resource.setrlimit(resource.RLIMIT_AS, old_limit)


def told(error) -> str:
    """Return the one sentence of an InputError."""
    text = str(error.value if hasattr(error, "value") else error)
    assert text.strip() and "\n" not in text
    return text


def resident():
    """Return the largest amount of memory that the tests have held until now, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


SHARES = {
    ".mha": 3, ".nrrd": 3, ".dcm": 4, ".npy": 2, ".npz": 2, ".png": 2, ".tif": 3, ".nii.gz": 1, ".nii": 1, ".bmp": 1,
    ".jpg": 1, ".vtk": 1, ".gipl": 1,
    ".gif": 1, ".webp": 1, ".mkv": 1, ".mp4": 1, ".avi": 1, ".mov": 1, ".mpg": 1, ".wmv": 1, ".mat": 2, ".h5": 2,
    "checkpoint": 3, "pth": 1, "json": 4, "job": 1, "answers": 4, "requests": 2,
}  # fmt: skip


def numbers(kind):
    """Return the seeds of the cases of a kind."""
    return range(max(1, round(CASES * SHARES[kind] / sum(SHARES.values()))))


# --- Files


LOSSY = (".jpg", ".mpg", ".wmv")  # never written


@pytest.mark.parametrize("suffix", [kind for kind in SHARES if kind.startswith(".")])
def test_damaged_recordings_are_refused_or_read(suffix, seeds, tmp_path, recwarn, capfd):
    before, refused = resident(), 0
    path = tmp_path / f"case{suffix}"
    for number in numbers(suffix):
        path.write_bytes(hostile(suffix, seeds[suffix], np.random.default_rng([number, 1])))
        try:
            with bounded():
                recording = files.read(path)
                assert recording.frames.ndim in (3, 4) and recording.frames.size, number
                if suffix not in LOSSY:
                    files.write(tmp_path / f"again{suffix}", recording.frames, recording)
        except InputError as error:
            refused += 1
            told(error)
        except BaseException as error:
            raise AssertionError(f"case {number} of {suffix}") from error
        assert {p.name for p in tmp_path.iterdir()} <= {path.name, f"again{suffix}"}
    assert refused or CASES < 1000
    assert resident() - before < 600e6
    assert not [warning for warning in recwarn if warning.category is not ResourceWarning], "nothing for the terminal"
    assert capfd.readouterr() == ("", ""), "nor of libraries"


class Malicious:
    def __reduce__(self):
        return (open, (os.environ["SPECKLE2SELF_MARK"], "w"))


@pytest.mark.parametrize("kind", ["checkpoint", "pth"])
def test_damaged_models_are_refused_or_loaded(kind, tmp_path):
    good = [weights()] if kind == "checkpoint" else [authors_weights()]
    path = tmp_path / "case.model"
    before = resident()
    for number in numbers(kind):
        path.write_bytes(damaged(good, np.random.default_rng([number, 2])))
        for load in (checkpoint.load, checkpoint.load_state, lambda path: library.card(str(path))):
            try:
                with bounded():
                    load(path)
            except InputError as error:
                told(error)
            except BaseException as error:
                raise AssertionError(f"case {number} of {kind}") from error
    assert resident() - before < 600e6


@pytest.mark.parametrize("form", ["pickle", "torch", "legacy torch", "in a state dict", "in an archive's middle"])
def test_a_malicious_model_runs_nothing(form, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECKLE2SELF_MARK", str(tmp_path / "executed"))
    monkeypatch.setenv("SPECKLE2SELF_HOME", str(tmp_path / "home"))
    path = tmp_path / "evil.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Malicious()))
    elif form == "in an archive's middle":
        torch.save(SpeckleReductionNetwork(1).state_dict(), tmp_path / "good.pth")
        with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(path, "w") as evil:
            for name in good.namelist():
                evil.writestr(name, pickle.dumps(Malicious()) if name.endswith("data.pkl") else good.read(name))
    else:
        content = {"state_dict": {"weight": Malicious()}} if form == "in a state dict" else Malicious()
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy torch")
    (tmp_path / "executed").unlink(missing_ok=True)  # saving may have pickled, never run
    for use in (checkpoint.load, library.add, checkpoint.load_state, lambda path: library.card(str(path))):
        with pytest.raises(InputError) as error:
            use(path)
        told(error)
    assert not (tmp_path / "executed").exists() and not list((tmp_path / "home").rglob("*.safetensors"))


def write(folder, name, data):
    (folder / name).write_bytes(data)
    return folder / name


REFUSED = {
    "DICOM of a wrong length.dcm": lambda: dicom().replace(b"OB\0\0" + FRAMES.nbytes.to_bytes(4, "little"),
                                                           b"OB\0\0" + (100).to_bytes(4, "little")),
    "DICOM cut in its pixels.dcm": lambda: dicom()[:-500],
    "DICOM cut in its header.dcm": lambda: dicom()[:300],
    "DICOM of 65535 x 65535.dcm": lambda: dicom(Rows=65535, Columns=65535),
    "packed DICOM of 65535 x 65535.dcm": lambda: dicom(packed=True, Rows=65535, Columns=65535),
    "packed DICOM of many frames.dcm": lambda: dicom(packed=True, NumberOfFrames=10**6),
    "DICOM of no rows.dcm": lambda: dicom(Rows=0),
    "DICOM of negative frames.dcm": lambda: dicom(NumberOfFrames=-3),
    "DICOM without a photometric interpretation.dcm": lambda: dicom(PhotometricInterpretation=None),
    "MHA of 65535 x 65535.mha": lambda: mha(DimSize="65535 65535 1"),
    "packed MHA of 65535 x 65535.mha": lambda: mha(packed=True, DimSize="65535 65535 1"),
    "MHA of no frames.mha": lambda: mha(DimSize="32 24 0"),
    "MHA of negative frames.mha": lambda: mha(DimSize="32 -24 -3"),
    "MHA of a size beyond all numbers.mha": lambda: mha(DimSize="32 24 " + "9" * 5000),
    "NRRD of 65535 x 65535.nrrd": lambda: nrrd(sizes="65535 65535 1"),
    "packed NRRD of 65535 x 65535.nrrd": lambda: nrrd("gzip", sizes="65535 65535 1"),
    "NRRD of no frames.nrrd": lambda: nrrd(sizes="32 24 0"),
    "NPY of 65535 x 65535.npy": lambda: numpy_file().replace(b"(3, 24, 32), }    ", b"(65535, 65535), }"[:-1] + b" }"),
    "NPY of no frames.npy": lambda: numpy_file(FRAMES[:0]),
    "NPY of objects.npy": lambda: numpy_file(np.array([FRAMES[0], FRAMES[0, :5]], object)),
    "NPY of five channels.npy": lambda: numpy_file(np.zeros((3, 24, 32, 5), np.uint8)),
    "NPZ of several arrays.npz": lambda: numpy_archive(a=FRAMES, b=FRAMES),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    path, before = write(tmp_path, name, REFUSED[name]()), resident()
    with bounded(), pytest.raises(InputError) as error:
        files.read(path)
    assert str(path) in told(error)
    assert resident() - before < 100e6, "before anything of that size is allocated"


@pytest.mark.parametrize("packed", [False, True])
def test_kinds_of_elements_that_end_a_process_are_refused(packed, tmp_path):
    """These would make scipy's reader of MATLAB files end the whole process, which in Slicer is the application."""
    buffer = io.BytesIO()
    savemat(buffer, {"frames": FRAMES.transpose(1, 2, 0), "info": {"probe": "L14", "parts": [1.0, "a"]}})
    good = buffer.getvalue()
    assert np.array_equal(files.read(write(tmp_path, "case.mat", good)).frames, FRAMES)
    for kind in (0, 8, 14, 15, 19, 60, 1000, 65535, 0x40000, 0x10064):
        data = bytearray(good)
        data[192:196] = kind.to_bytes(4, "little")  # the values, behind flags, sizes and name
        if packed:
            element = zlib.compress(bytes(data[128:]))
            data[128:] = (15).to_bytes(4, "little") + len(element).to_bytes(4, "little") + element
        with bounded(), pytest.raises(InputError) as error:
            files.read(write(tmp_path, "case.mat", bytes(data)))
        told(error)


def test_images_that_claim_to_be_large_are_refused_before_they_are_read(tmp_path):
    import struct

    png = data_of_png(struct.pack(">IIBBBBB", 65535, 65535, 8, 0, 0, 0, 0), zlib.compress(b"\0" * 100))
    tags = [(256, 4, 65535), (257, 4, 65535), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 4, 65535), (279, 4, 65535 * 65535)]  # fmt: skip
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
    nifti = struct.pack("<I36x8h", 348, 2, 32767, 32767, 1, 1, 1, 1, 1) + struct.pack("<14xhh", 2, 8)
    nifti += struct.pack("<h8fffhbbffff8x", 0, *[1.0] * 8, 352, 1, 0, 0, 0, 0, 0, 0, 0)
    nifti = nifti.ljust(344, b"\0") + b"n+1\0" + b"\0" * 40
    gif = bytearray(pillow_file("GIF", FRAMES))
    gif[6:10] = struct.pack("<HH", 13600, 5408)
    before = resident()
    for name, data in {"a.png": png, "a.tif": tiff + b"\0" * 40, "a.nii": nifti, "a.gif": gif}.items():
        with bounded(), pytest.raises(InputError) as error:
            files.read(write(tmp_path, name, data))
        told(error)
    assert resident() - before < 100e6


@pytest.mark.parametrize("count", [1, 120])
def test_pages_of_a_tiff_in_a_circle_are_refused(count, tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((count, 8, 8), np.uint8), photometric="MINISBLACK", metadata=None)
    with tifffile.TiffFile(path) as file:
        first, last = file.pages[0].offset, file.pages[-1]
        after_last = last.offset + 2 + 12 * len(last.tags)
    data = bytearray(path.read_bytes())
    data[after_last : after_last + 4] = first.to_bytes(4, "little")
    with bounded(), pytest.raises(InputError, match="in a circle"):
        files.read(write(tmp_path, "b.tif", data))


def test_a_bmp_with_which_itk_ends_a_process_is_refused(tmp_path):
    data = bytearray(image(".bmp", tmp_path))
    data[30], data[46:50] = 1, (2**29).to_bytes(4, "little")  # compressed, with this number of colors
    code = "import sys; from Speckle2SelfLib import files; files.read(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, write(tmp_path, "a.bmp", data)], capture_output=True, text=True)
    assert done.returncode == 1 and "InputError" in done.stderr


def test_unusual_but_good_files_are_read(tmp_path):
    assert files.read(write(tmp_path, "a.mha", mha(ElementSpacing="-0.1 -0.2 1"))).frames.shape == FRAMES.shape
    assert min(files.read(tmp_path / "a.mha").spacing) > 0, "a spacing is a length"
    assert min(files.read(write(tmp_path, "b.mha", mha(ElementSpacing="0 nan inf"))).spacing) > 0
    assert min(files.read(write(tmp_path, "a.nrrd", nrrd(**{"space directions": "(-0.1,0) (0,nan) none"}))).spacing) > 0
    recording = files.read(write(tmp_path, "zero frames said.dcm", dicom(NumberOfFrames=0, frames=FRAMES[:1])))
    assert recording.frames.shape == (1, 24, 32)
    longer = dicom().replace(FRAMES.nbytes.to_bytes(4, "little") + FRAMES.tobytes(), b"\0\0\0\x40" + FRAMES.tobytes())
    with bounded():
        assert np.array_equal(files.read(write(tmp_path, "1 GB said.dcm", longer)).frames, FRAMES)
    signed = (FRAMES.astype(np.int16) - 200) * 100
    recording = files.read(write(tmp_path, "signed.dcm", dicom(frames=signed, PixelRepresentation=1)))
    assert recording.frames.dtype == np.int16 and np.array_equal(recording.frames, signed)
    assert np.array_equal(files.read(write(tmp_path, "signed.npy", numpy_file(signed))).frames, signed)
    four = np.repeat(FRAMES[..., None], 4, -1)
    assert files.read(write(tmp_path, "four.npy", numpy_file(four))).frames.shape == (3, 24, 32, 4)


@pytest.mark.parametrize("field", ["FrameTime", "FrameTimeVector", "CineRate"])
@pytest.mark.parametrize("value", [b"-5 ", b"nan ", b"inf ", b"ab", b"0 ", b"1e400 "])
def test_a_recording_with_impossible_times_is_read(field, value, tmp_path):
    dataset = pydicom.dcmread(io.BytesIO(dicom(FrameTime=None)))
    tag = pydicom.tag.Tag(field)
    vr = {"FrameTime": "DS", "FrameTimeVector": "DS", "CineRate": "IS"}[field]
    value = b"\\".join([value] * 3) if field == "FrameTimeVector" else value
    dataset._dict[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)
    dataset.save_as(tmp_path / "a.dcm")
    assert np.array_equal(files.read(tmp_path / "a.dcm").frames, FRAMES)


def test_an_image_with_a_description_in_latin_1_is_written(tmp_path):
    data = bytearray(image(".nii", tmp_path))
    data[148:154] = b"Gef\xe4ss"  # NIfTI's field descrip
    recording = files.read(write(tmp_path, "a.nii", data))
    assert recording.source["metadata"]["descrip"].startswith("Gef")
    files.write(tmp_path / "b.nii", recording.frames, recording)
    assert np.array_equal(files.read(tmp_path / "b.nii").frames, FRAMES)


@pytest.mark.parametrize("name, field", [("a.mha", b"ElementType = none\n"), ("a.nrrd", b"type: none\n")])
def test_a_type_that_is_declared_twice_is_written_as_it_was_read(name, field, tmp_path):
    data = mha() if name == "a.mha" else nrrd()
    at = data.index(b"\n") + 1
    recording = files.read(write(tmp_path, name, data[:at] + field + data[at:]))
    files.write(tmp_path / f"b{name[1:]}", recording.frames, recording)
    assert np.array_equal(files.read(tmp_path / f"b{name[1:]}").frames, FRAMES)


def test_equal_time_stamps_are_kept_verbatim(tmp_path):
    stamps = {"Seq_Frame0000_Timestamp": 0.5, "Seq_Frame0001_Timestamp": 0.5}
    recording = files.read(write(tmp_path, "a.mha", mha(**stamps)))
    files.write(tmp_path / "b.mha", recording.frames, recording)
    assert (tmp_path / "b.mha").read_bytes().count(b"_Timestamp = 0.5\n") == 2


def test_a_recording_without_a_finite_value_is_refused_and_single_pixels_are_kept(tmp_path):
    from Speckle2SelfLib.despeckling import despeckle
    from Speckle2SelfLib.filters import FILTERS

    frames = FRAMES.astype(np.float32)
    frames[1] = np.nan
    frames[2, 3, 4] = np.inf
    output = despeckle(files.read(write(tmp_path, "a.npy", numpy_file(frames))).frames, FILTERS["median"])
    assert np.isnan(output[1]).all() and output[2, 3, 4] == np.inf and np.isfinite(output[0]).all()
    with pytest.raises(InputError, match="no finite value"):
        despeckle(np.full_like(frames, np.nan), FILTERS["median"])


# --- Configs and jobs

VALUES = [
    None, True, False, 0, -1, 1, 0.5, 1e308, float("nan"), float("inf"), 10**400, 2**63, -(2**63), "", "x", "\0",
    "../../etc", "\ud800", [], {}, [1], [[]], {"a": 1}, [0.5, float("nan")], [1e308, 1e308], ["a"] * 3, "auto", "adapt",
]  # fmt: skip


@pytest.mark.parametrize("kind", [ModelConfig, TrainingConfig, Job])
def test_nonsense_in_a_config_is_refused_or_a_config(kind):
    names = [*kind.__dataclass_fields__, "unknown", "__class__", ""]
    good = {"output": "m"} if kind is Job else {}
    for number in numbers("json"):
        rng = np.random.default_rng([number, 3])
        values = good | {
            str(rng.choice(names)): VALUES[rng.integers(len(VALUES))] for _ in range(int(rng.integers(1, 4)))
        }
        try:
            with bounded():
                config = from_dict(kind, values)
                assert from_dict(kind, json.loads(json.dumps(config.__dict__))) == config, number
        except InputError as error:
            told(error)
        except BaseException as error:
            raise AssertionError(f"case {number} of {kind.__name__}: {values}") from error
    for values in (*VALUES, [VALUES]):
        if values != {}:
            with pytest.raises(InputError):
                from_dict(kind, values)


def test_an_impossible_seed_is_refused_at_once():
    for values in ({"seed": -1}, {"seed": 2**70}):
        with pytest.raises(InputError, match="seed"):
            from_dict(TrainingConfig, values)
        with pytest.raises(InputError, match="seed"):
            from_dict(Job, {"output": "m", **values})


@pytest.mark.parametrize("values", [[], {}, 3, {"config": {}, "model": {}}, {"config": 3, "model": None}])
def test_a_nonsensical_training_state_is_refused(values, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", FRAMES.repeat(4, 1).repeat(4, 2))
    checkpoint.save("start.model", ModelConfig(width=4), build(ModelConfig(width=4)), {})
    checkpoint.save_state("m.model.state", {"a": torch.zeros(1)}, values)
    arguments = ["train", "in.npy", "--output", "m.model", "--init", "start.model", "--preset", "adapt", "--resume"]
    assert main([*arguments, "--device", "cpu"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not Path("m.model").exists()


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """Return a folder with a recording, a model to start from, and an unfinished run; its job, tensors and values."""
    folder = tmp_path_factory.mktemp("state")
    np.save(folder / "in.npy", FRAMES.repeat(3, 1).repeat(2, 2).repeat(5, 0))
    torch.manual_seed(0)
    config = ModelConfig(width=4, grain=(0.75, 1.7))
    checkpoint.save(folder / "start.model", config, build(config), {})
    job = Job(str(folder / "m.model"), (str(folder / "in.npy"),), preset="adapt", init=str(folder / "start.model"),
              steps=4, batch=2, simulated=2, device="cpu", region="none", resume=True)  # fmt: skip
    asked = iter([False, False, False, False, True])  # twice while it simulates
    with pytest.raises(Cancelled):
        runs.run(job, stop=lambda: next(asked))
    return job, *checkpoint.load_state(runs.state_path(job.output))


RNG = {"bit_generator": "PCG64", "state": {"state": 1, "inc": 1}, "has_uint32": 0, "uinteger": 0}
WRONG = {
    "rng": [None, "x", [], {}, RNG | {"state": {"state": 2**200, "inc": 1}}, RNG | {"state": {"state": -1, "inc": 1}},
            RNG | {"bit_generator": "MT19937"}, RNG | {"uinteger": 2**70}, RNG | {"state": 3}],
    "step": [None, "x", [], -3, 99, 1.5, True, 2**70], "batch": [0, -1, 10**9, "x", None],
    "best": ["x", []], "curve": ["x", None, [1, "x"], [[1, 2, 3]]],
    "start": [[1], "x", {"homogeneity": "x"}, {"structure": None}], "started_from": [None, 3], "random": [None, 1],
    "precision": ["float16", [], None], "data": [None, "x", [], ["x"]], "config": [[], {"steps": 0}, None],
    "model": [{"architecture": "published", "normalisation": "frame"}, {"width": 8}, {"width": 0}, []],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_training_state_with_a_wrong_value_is_refused_and_nothing_is_overwritten(name, state):
    job, tensors, values = state
    before = Path(job.output).read_bytes()
    for wrong in WRONG[name]:
        checkpoint.save_state(runs.state_path(job.output), tensors, values | {name: wrong})
        with bounded(), pytest.raises(InputError) as error:
            runs.run(job)
        told(error)
        assert Path(job.output).read_bytes() == before, wrong


def test_a_training_state_with_wrong_tensors_is_refused_and_nothing_is_overwritten(state):
    job, tensors, values = state
    before = Path(job.output).read_bytes()
    weight = tensors["learner.network.head.weight"]
    for name, wrong in {
        "learner.network.head.weight": [weight * np.nan, weight.half(), weight.to(torch.float8_e4m3fn), weight[:1]],
        "adam.x.exp_avg": [torch.zeros(1)], "adam.1.2.3": [torch.zeros(1)], "adam.9999.exp_avg": [torch.zeros(1)],
        "adam.0.exp_avg": [torch.zeros(3)], "adam.0.step": [torch.zeros(3)], "adam.0.other": [torch.zeros(3)],
    }.items():  # fmt: skip
        for tensor in wrong:
            checkpoint.save_state(runs.state_path(job.output), tensors | {name: tensor}, values)
            with bounded(), pytest.raises(InputError) as error:
                runs.run(job)
            told(error)
            assert Path(job.output).read_bytes() == before, name


CARDS = ["[1]", '{"figures": [1]}', '{"figures": {"holes": "x"}}', '{"figures_at_start": 3}', '{"description": 3}',
         '{"training": []}', '{"curve": "x"}', '{"figures": {"holes": 1e999}}', '{"other": 1e999}',
         '{"a": ' + "9" * 5000 + "}"]  # fmt: skip


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card[:30])
def test_a_card_of_other_types_is_refused(card, tmp_path):
    metadata = {"format": checkpoint.FORMAT, "config": '{"width": 4}', "card": card}
    path = write(tmp_path, "a.model", safetensors_bytes(build(ModelConfig(width=4)).state_dict(), metadata))
    with pytest.raises(InputError) as error:
        checkpoint.load(path)
    told(error)
    if card == "[1]":
        with pytest.raises(InputError):
            library.card(str(path))


def test_figures_that_are_nan_are_left_out(tmp_path):
    metadata = {"format": checkpoint.FORMAT, "config": '{"width": 4}', "card": '{"figures": {"a": NaN, "b": 1}}'}
    path = write(tmp_path, "a.model", safetensors_bytes(build(ModelConfig(width=4)).state_dict(), metadata))
    assert checkpoint.load(path)[2] == {"figures": {"b": 1}}


def test_whole_numbers_of_thousands_of_digits_are_refused(tmp_path):
    weights = build(ModelConfig(width=4)).state_dict()
    metadata = {"config": '{"width": ' + "9" * 5000 + "}", "card": "{}", "values": '{"a": ' + "9" * 5000 + "}"}
    for form, load in ((checkpoint.FORMAT, checkpoint.load), (checkpoint.STATE_FORMAT, checkpoint.load_state)):
        path = write(tmp_path, "a.model", safetensors_bytes(weights, metadata | {"format": form}))
        with pytest.raises(InputError) as error:
            load(path)
        told(error)


@pytest.mark.parametrize("name", ["job.json", "log.jsonl", "name.txt"])
def test_damaged_folders_of_runs_are_skipped(name, tmp_path):
    for number, nonsense in enumerate([b"", b"3\n", b"[" * 100_000, b"\xff\xfe", b"null\n{}\n", b"[1]\n"]):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, "job.json", b'{"output": "../../model", "preview": "../../preview.png"}')
        write(folder, "log.jsonl", b'{"step": 3}\n')
        write(folder, "name.txt", b"run")
        write(folder, "model.safetensors.state", b"")
        write(folder, name, nonsense)
    for run in Trainer(tmp_path).unfinished_runs():
        assert (run.job.output, run.job.preview) == ("model.safetensors", "preview.png"), "nothing leaves the folder"
        assert all(isinstance(report["step"], int) for report in run.reports)


JOBS = [b"", b"[" * 100_000, b'{"steps": ' + b"9" * 5000 + b"}", b"\xff\xfe", b"[]", b"3", b'{"output": 3}', b"{"]


def test_nonsense_in_a_job_file_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = json.dumps({"inputs": ["none.npy"], "output": "m.model", "steps": 3, "preset": "adapt", "device": "cpu"})
    for number in numbers("job"):
        rng = np.random.default_rng([number, 4])
        text = JOBS[number] if number < len(JOBS) else damaged([good.encode()], rng)
        (tmp_path / "job.json").write_bytes(text)
        with bounded():
            assert main(["train", "--job", "job.json"]) == 2, number  # none.npy does not exist
        assert len(capsys.readouterr().err.splitlines()) == 1, number
        assert [path.name for path in tmp_path.iterdir()] == ["job.json"], number


# --- The worker's protocol


class FakeChild(worker_module._Child):
    """A child whose answers come through a pipe, from here."""

    def __init__(self, text: bytes):
        reader, writer = os.pipe()
        os.write(writer, text[:60000])
        os.close(writer)
        os.set_blocking(reader, False)
        stdout, stderr, stdin = os.fdopen(reader, "rb"), io.BytesIO(), io.BytesIO()
        stderr.fileno = lambda: -1
        self.process = SimpleNamespace(stdout=stdout, stderr=stderr, stdin=stdin, poll=lambda: None, pid=0)
        self._rest, self._errors = {stdout: b"", stderr: b""}, worker_module.deque(maxlen=20)

    def close(self, wait=True):
        self.process.stdout.close()


ANSWERS = [
    b'{"event": "ready", "pid": 5}\n', b'{"event": "devices", "devices": ["cpu"]}\n',
    b'{"event": "started", "job": 1, "mapping": [0, 255], "device": "cpu", "precision": "float32"}\n',
    b'{"event": "progress", "job": 1, "done": 1, "seconds": 0.5}\n',
    b'{"event": "progress", "job": 1, "done": 3, "seconds": 0.9}\n{"event": "done", "job": 1}\n',
    b'{"event": "failed", "job": 1, "message": "no"}\n', b'{"event": "cancelled", "job": 1}\n',
    b'{"event": "open", "stream": 2, "device": "cpu", "precision": "float32"}\n',
    b'{"event": "frame", "stream": 2, "number": 1, "seconds": 0.1}\n',
]  # fmt: skip


def test_nonsense_from_the_worker_never_reaches_the_application(monkeypatch):
    monkeypatch.setattr(worker_module.Worker, "warm_up", lambda self: None)
    failed = 0
    for number in numbers("answers"):
        rng = np.random.default_rng([number, 5])
        text = b"".join(ANSWERS[i] for i in rng.integers(0, len(ANSWERS), rng.integers(1, 5)))
        text = damaged([text, b"".join(ANSWERS)], rng)
        worker = Worker(command=["none"])
        try:
            with bounded():
                job, stream = worker.despeckle(FRAMES), worker.live((24, 32), np.uint8)
                stream.push(FRAMES[0])
                worker._child = FakeChild(text)
                for _ in range(3):
                    worker.poll()
                    stream.take()
                assert job.state in ("running", "done", "failed", "cancelled") and 0 <= job.done <= 3
                if job.message == NONSENSE:
                    failed += 1
                    assert worker.pid is None
        except BaseException as error:
            raise AssertionError(f"case {number}: {text!r}") from error
        finally:
            worker.close()
    assert failed or CASES < 1000


class Ended(Exception):
    """No more requests."""


REQUESTS = [
    {"command": "despeckle", "job": 1, "shape": [3, 24, 32], "dtype": "|u1", "block": "", "inode": 0,
     "options": {"model": "median", "region": "none", "device": "cpu", "strength": 1.0, "gamma": 1.0}},
    {"command": "stream", "stream": 2, "shape": [24, 32], "dtype": "|u1", "block": "", "inode": 0,
     "options": {"model": "median", "region": "auto", "device": "cpu", "strength": 1.0, "gamma": 1.0}, "last": 0},
    {"command": "cancel", "job": 1}, {"command": "stop", "stream": 2}, {"command": "wake"},
]  # fmt: skip
ODD = [*VALUES, "O", "|V8", [1e9, 1e9, 1e9], [3, 10**9, 10**9], [-3, 24, 32], [0, 0, 0], ["/etc/passwd", 0], 1 << 70]


def test_nonsense_for_the_worker_is_answered_or_ends_it(tmp_path, monkeypatch):
    """A request that can be answered fails on its own; one that has no number ends the process."""
    monkeypatch.setattr(worker_process, "TORN", 0.02)  # the block also holds nonsense
    block = tmp_path / "block"
    for number in numbers("requests"):
        rng = np.random.default_rng([number, 6])
        block.write_bytes(FRAMES.tobytes() * 8)
        lines, said = queue.SimpleQueue(), []

        def get(block=True, lines=lines):
            try:
                return lines.get_nowait()
            except queue.Empty:
                if block:
                    raise Ended from None
                raise

        for index in rng.integers(0, len(REQUESTS), rng.integers(1, 4)):
            request = json.loads(json.dumps(REQUESTS[index]))
            if "block" in request:
                request |= {"block": str(block), "inode": block.stat().st_ino}
            if rng.random() < 0.8:
                changed = request["options"] if "options" in request and rng.random() < 0.5 else request
                changed[str(rng.choice([*changed, "extra"]))] = ODD[rng.integers(len(ODD))]
            if rng.random() < 0.2:
                request.pop(str(rng.choice(list(request))))
            lines.put(request)
        server = worker_process.Server(SimpleNamespace(get=get), lambda answer, said=said: said.append(encode(answer)))
        try:
            with bounded():
                server.run()
        except (Ended, KeyError, TypeError, ValueError):
            pass
        except BaseException as error:
            raise AssertionError(f"case {number}") from error
        for answer in said:
            assert answer["event"] in ("started", "progress", "done", "failed", "open", "frame", "cancelled")
            assert len(answer.get("message", "")) <= 500


@pytest.mark.parametrize("line", [b"hello\n", b"[1, 2]\n", b"[" * 100_000 + b"\n", b'{"command": 3}\n{}\n', b"\xff\n"])
def test_a_worker_that_receives_nonsense_ends(line):
    command = [sys.executable, "-m", "Speckle2SelfLib.worker_process"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(line)
    process.stdin.flush()
    try:
        process.wait(120)  # on a busy machine, loading its libraries needs most of that
        assert process.returncode in (0, 1)
    finally:
        process.kill()
        process.communicate()
