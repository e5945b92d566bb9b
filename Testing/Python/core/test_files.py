"""Files in and out: what they held must still be there, and what is no image is refused."""

import sys

import numpy as np
import pydicom
import pydicom.examples
import pytest
import SimpleITK as sitk
import torch

from Speckle2SelfLib import files, speed
from Speckle2SelfLib.config import InputError

FRAMES = np.random.default_rng(0).integers(0, 255, (3, 20, 30)).astype(np.uint8)
COLOUR = np.repeat(FRAMES[..., None], 3, -1)
PLUS_FIELDS = [
    "UltrasoundImageOrientation = MF",
    "Seq_Frame0000_ProbeToTrackerTransform = 1 0 0 -42.1719 0 1 0 0 0 0 1 0 0 0 0 1 ",
    "Seq_Frame0000_ProbeToTrackerTransformStatus = OK",
    "Seq_Frame0000_Timestamp = 232.542071",
    "Seq_Frame0001_Timestamp = 1e-3",
    "Seq_Frame0002_UnknownField = \u00e9 = :",
]


def write_meta(path, frames=FRAMES, kind="MET_UCHAR", extra=PLUS_FIELDS, packed=False):
    import zlib

    data = zlib.compress(frames.tobytes()) if packed else frames.tobytes()
    header = ["ObjectType = Image", "NDims = 3", "DimSize = 30 20 3              ", *extra]
    header += [f"CompressedData = {packed}"] + ([f"CompressedDataSize = {len(data)}      "] if packed else [])
    header += ["BinaryDataByteOrderMSB = False", "ElementSpacing = 0.1 0.2 1", f"ElementType = {kind}"]
    header += ["ElementDataFile = LOCAL"]
    path.write_bytes("".join(f"{line}\n" for line in header).encode() + data)
    return path


def write_nrrd(path, array=FRAMES, sizes="30 20 3", kinds="domain domain list", extra=()):
    header = ["NRRD0004", "# a comment", "type: uint8", "dimension: 3", f"sizes: {sizes}", f"kinds: {kinds}"]
    header += ["encoding: raw", "Seq_Frame0001_Timestamp:=0.10", *extra, ""]
    path.write_bytes("".join(f"{line}\n" for line in header).encode() + array.tobytes())
    return path


def inverted(recording):
    return (255 - recording.frames).astype(recording.frames.dtype)


def header_lines(path, but):
    lines = path.read_bytes().split(b"ElementDataFile")[0].split(b"\n")
    return [line for line in lines if not line.startswith(but)]


@pytest.mark.parametrize("packed", [False, True])
def test_every_field_of_a_plus_recording_is_kept_verbatim(tmp_path, packed):
    source = write_meta(tmp_path / "in.igs.mha", packed=packed)
    recording = files.read(source)
    assert np.array_equal(recording.frames, FRAMES)
    assert recording.spacing == (1.0, 0.2, 0.1)
    files.write(tmp_path / "out.igs.mha", inverted(recording), recording)
    assert np.array_equal(files.read(tmp_path / "out.igs.mha").frames, 255 - FRAMES)
    assert header_lines(source, b"CompressedDataSize") == header_lines(tmp_path / "out.igs.mha", b"CompressedDataSize")
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.igs.mha"))), 255 - FRAMES)


def test_every_field_of_real_plus_recordings_is_kept(shared_data, tmp_path):
    for source in sorted((shared_data / "plus").glob("*.mha")):
        recording = files.read(source)
        files.write(tmp_path / source.name, recording.frames, recording)
        but = b"CompressedDataSize"
        assert header_lines(source, but) == header_lines(tmp_path / source.name, but)
        again = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / source.name)))
        assert np.array_equal(again, sitk.GetArrayFromImage(sitk.ReadImage(str(source))))


@pytest.mark.parametrize(
    ("array", "sizes", "kinds", "shape"),
    [
        (FRAMES, "30 20 3", "domain domain list", (3, 20, 30)),
        (FRAMES.transpose(1, 2, 0), "3 30 20", "list domain domain", (3, 20, 30)),
        (FRAMES, "30 20 1 3", "domain domain domain list", (3, 20, 30)),
        (COLOUR, "3 30 20 3", "RGB-color domain domain list", (3, 20, 30, 3)),
        (COLOUR[0], "3 30 20", "vector domain domain", (1, 20, 30, 3)),
    ],
)
def test_nrrd_sequences_of_every_layout_round_trip(tmp_path, array, sizes, kinds, shape):
    source = write_nrrd(tmp_path / "in.seq.nrrd", array, sizes, kinds)
    recording = files.read(source)
    assert recording.frames.shape == shape
    assert np.array_equal(recording.frames if len(shape) == 3 else recording.frames[..., 0], FRAMES[: shape[0]])
    files.write(tmp_path / "out.seq.nrrd", recording.frames, recording)
    assert (tmp_path / "out.seq.nrrd").read_bytes() == source.read_bytes()


def test_a_detached_pair_is_written_as_a_pair(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES), str(tmp_path / "in.mhd"))
    recording = files.read(tmp_path / "in.mhd")
    files.write(tmp_path / "out.mhd", inverted(recording), recording)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.mhd"))), 255 - FRAMES)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".nii.gz", ".tif"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_types_and_geometry_of_volumes_are_kept(tmp_path, suffix, dtype):
    image = sitk.GetImageFromArray(FRAMES.astype(dtype))
    if suffix != ".tif":
        image.SetSpacing((0.25, 0.5, 2))
        image.SetOrigin((-10, 20, 5))
        image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"in{suffix}"))
    recording = files.read(tmp_path / f"in{suffix}")
    assert recording.frames.dtype == dtype and np.array_equal(recording.frames, FRAMES)
    if suffix != ".tif":
        assert recording.spacing == pytest.approx((2, 0.5, 0.25))
    files.write(tmp_path / f"out{suffix}", recording.frames, recording)
    again = sitk.ReadImage(str(tmp_path / f"out{suffix}"))
    assert np.array_equal(sitk.GetArrayFromImage(again), FRAMES)
    assert again.GetPixelIDValue() == image.GetPixelIDValue()
    read = sitk.ReadImage(str(tmp_path / f"in{suffix}"))
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(again, name)() == pytest.approx(getattr(read, name)())


@pytest.mark.parametrize("array", [FRAMES[0], FRAMES, COLOUR, FRAMES.astype(np.float64)], ids=lambda a: str(a.shape))
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_round_trip(tmp_path, suffix, array):
    path = tmp_path / f"in{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez(path, input=array, other=np.zeros(3))
    recording = files.read(path)
    files.write(tmp_path / f"out{suffix}", recording.frames, recording)
    again = np.load(tmp_path / f"out{suffix}")
    again = again if suffix == ".npy" else again["input"]
    assert again.dtype == array.dtype and np.array_equal(again, array)


def test_a_png_keeps_its_colours(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(COLOUR[0], isVector=True), str(tmp_path / "in.png"))
    recording = files.read(tmp_path / "in.png")
    assert recording.single and recording.frames.shape == (1, 20, 30, 3)
    files.write(tmp_path / "out.png", recording.frames, recording)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.png"))), COLOUR[0])


def test_a_dicom_cine_becomes_a_derived_series_with_its_times(tmp_path):
    source = pydicom.examples.get_path("ybr_color")
    recording = files.read(source)
    assert recording.frames.shape == (30, 240, 320, 3)
    assert recording.times[:2] == pytest.approx([0, 0.033333])
    assert recording.region is None, "the file's region leaves its image: it must not be believed"
    files.write(tmp_path / "out.dcm", inverted(recording), recording)
    before, after = pydicom.dcmread(source), pydicom.dcmread(tmp_path / "out.dcm")
    assert np.array_equal(after.pixel_array, inverted(recording))
    assert after.FrameTime == before.FrameTime and after.PatientID == before.PatientID
    assert after.StudyInstanceUID == before.StudyInstanceUID
    assert after.SOPInstanceUID not in (before.SOPInstanceUID, None)
    assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
    assert list(after.ImageType)[:2] == ["DERIVED", "SECONDARY"]


def test_a_palette_of_16_bits_gives_its_colours(tmp_path):
    recording = files.read(pydicom.examples.get_path("palette_color"))
    assert recording.frames.dtype == np.uint8 and recording.frames.shape == (1, 350, 800, 3)
    assert recording.frames.max() == 255 and (recording.frames[0, 20, 200:300] == (37, 62, 94)).all(1).any()
    files.write(tmp_path / "out.dcm", recording.frames, recording)
    assert np.array_equal(pydicom.dcmread(tmp_path / "out.dcm").pixel_array, recording.frames[0])


def monochrome(tmp_path, name="in.dcm", **tags):
    dataset = pydicom.dcmread(pydicom.examples.get_path("ybr_color"))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = 3, 20, 30
    dataset.pop("PlanarConfiguration", None)
    dataset.pop("SequenceOfUltrasoundRegions", None)
    dataset.PixelData = FRAMES.tobytes()
    dataset["PixelData"].is_undefined_length = False
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    dataset.save_as(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_monochrome_dicom_round_trips_with_echoes_bright(tmp_path, photometric):
    source = monochrome(tmp_path, PhotometricInterpretation=photometric)
    recording = files.read(source)
    bright = photometric == "MONOCHROME2"
    assert (np.corrcoef(recording.frames.ravel(), FRAMES.ravel())[0, 1] > 0) == bright
    files.write(tmp_path / "out.dcm", recording.frames, recording)
    assert np.array_equal(pydicom.dcmread(tmp_path / "out.dcm").pixel_array, FRAMES)


def test_the_region_of_a_dicom_file_is_taken(tmp_path):
    item = pydicom.Dataset()
    item.RegionSpatialFormat, item.RegionLocationMinX0, item.RegionLocationMinY0 = 1, 5, 2
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = 24, 17
    region = files.read(monochrome(tmp_path, SequenceOfUltrasoundRegions=[item])).region
    assert region.sum() == 20 * 16 and region[2:18, 5:25].all()


def test_a_folder_is_searched_and_other_files_in_it_are_passed_over(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.npy").write_text("no image")
    np.save(tmp_path / "deep" / "a.npy", FRAMES)
    np.save(tmp_path / "b.npy", FRAMES)
    assert files.find([tmp_path]) == [tmp_path / "b.npy", tmp_path / "deep" / "a.npy"]
    with pytest.raises(InputError, match="holds no image"):
        (tmp_path / "none").mkdir()
        files.find([tmp_path / "none"])


def test_a_mask_must_fit(tmp_path):
    np.save(tmp_path / "mask.npy", FRAMES[0] > 100)
    np.save(tmp_path / "mask8.npy", (FRAMES[0] > 100).astype(np.uint8))
    assert np.array_equal(files.read_mask(tmp_path / "mask8.npy", (20, 30)), FRAMES[0] > 100)
    with pytest.raises(InputError, match="does not fit"):
        files.read_mask(tmp_path / "mask8.npy", (20, 31))


def wrong_file(kind, folder):
    path = folder / {"n": "wrong.npy", "m": "wrong.mha", "d": "wrong.dcm", "r": "wrong.nrrd", "p": "wrong.png"}[kind[0]]
    if kind == "m empty":
        path.write_bytes(b"")
    elif kind in ("m text", "d text", "r text", "n text", "p text"):
        path.write_text("this is not an image\n" * 20)
    elif kind == "m short":
        write_meta(path)
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "m short packed":
        write_meta(path, packed=True)
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "m type":
        write_meta(path, kind="MET_STRING")
    elif kind == "m huge":
        write_meta(path)
        path.write_bytes(path.read_bytes().replace(b"30 20 3 ", b"65535 65535 65535 "))
    elif kind == "m zero":
        write_meta(path)
        path.write_bytes(path.read_bytes().replace(b"30 20 3 ", b"30 20 0 "))
    elif kind == "m elsewhere":
        write_meta(path)
        path.write_bytes(path.read_bytes().replace(b"LOCAL", b"/etc/passwd"))
    elif kind == "r short":
        write_nrrd(path, FRAMES[:2])
    elif kind == "r four dimensions":
        write_nrrd(path, np.repeat(FRAMES, 4, 0), "30 20 4 3", "domain domain domain list")
    elif kind == "n objects":
        np.save(path, np.array([{"a": 1}, None], object), allow_pickle=True)
    elif kind == "n complex":
        np.save(path, FRAMES.astype(complex))
    elif kind == "n dimensions":
        np.save(path, np.zeros((2, 3, 4, 5, 6)))
    elif kind == "n none":
        np.save(path, FRAMES[:0])
    elif kind == "d no image":
        dataset = pydicom.dcmread(pydicom.examples.get_path("ybr_color"))
        del dataset.PixelData
        dataset.save_as(path)
    elif kind == "d huge":
        monochrome(folder, "wrong.dcm", Rows=65535, Columns=65535)
    return path


@pytest.mark.parametrize(
    "kind",
    ["m missing", "m empty", "m text", "d text", "r text", "n text", "p text", "m short", "m short packed", "m type",
     "m huge", "m zero", "m elsewhere", "r short", "r four dimensions", "n objects", "n complex", "n dimensions",
     "n none", "d no image", "d huge"],
)  # fmt: skip
def test_what_is_no_recording_is_refused_in_one_sentence(tmp_path, kind):
    path = wrong_file(kind, tmp_path)
    with pytest.raises(InputError) as error:
        files.read(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_refused_output_leaves_nothing_behind(tmp_path):
    np.save(tmp_path / "in.npy", FRAMES)
    recording = files.read(tmp_path / "in.npy")
    (tmp_path / "folder.npy").mkdir()
    for target in ("in.npy", "none/out.npy", "out.png", "out.jpg", "out.dcm", "out.xyz", "folder.npy"):
        with pytest.raises(InputError):
            files.write(tmp_path / target, FRAMES, recording)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.npy", "in.npy"]
    assert np.array_equal(np.load(tmp_path / "in.npy"), FRAMES)


def test_a_failing_write_keeps_the_earlier_file(tmp_path, monkeypatch):
    np.save(tmp_path / "in.npy", FRAMES)
    (tmp_path / "out.npy").write_bytes(b"earlier")
    recording = files.read(tmp_path / "in.npy")

    def full(path, header, array):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_raw", full)
    with pytest.raises(InputError, match="No space left"):
        files.write(tmp_path / "out.npy", FRAMES, recording)
    assert (tmp_path / "out.npy").read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "out.npy"]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_cine_on_the_disk_becomes_an_array_file_without_being_taken_into_memory(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((256, 512, 512), np.uint8))
    recording = files.read(tmp_path / "in.npy")
    frames = np.memmap(tmp_path / "cine", np.uint8, "w+", shape=(256, 512, 512))  # 64 MB
    frames[-1] = 7
    files.release(frames)
    added = speed.peak_megabytes(lambda: files.write(tmp_path / "long.npy", frames, recording), torch.device("cpu"))
    assert added < 16
    written = np.load(tmp_path / "long.npy", mmap_mode="r")
    assert written.shape == frames.shape and written.dtype == np.uint8 and written[-1].min() == 7
