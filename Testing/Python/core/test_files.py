"""Files in and out: their content is kept, and files that are not images are refused."""

import sys
import zlib

import numpy as np
import pydicom
import pydicom.examples
import pytest
import SimpleITK as sitk
import torch

from Speckle2SelfBench import speed
from Speckle2SelfLib import files
from Speckle2SelfLib.formats import arrays
from Speckle2SelfLib.system import InputError

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


META = ["ObjectType = Image", "NDims = 3", "DimSize = 30 20 3", "ElementType = MET_UCHAR"]
NRRD = ["NRRD0004", "type: uint8", "dimension: 3", "sizes: 30 20 3"]


def write_bare(path, *extra, data=None, pixels="LOCAL", end="\n"):
    """Write a file with the required fields and `extra`; pixels: the name of the file with the data, next to a detached
    header."""
    if path.suffix in (".mha", ".mhd"):
        lines, end = [*META, *extra, f"ElementDataFile = {pixels}"], ""
    else:
        lines = [*NRRD, *extra, *([] if pixels == "LOCAL" else [f"data file: {pixels}"])]
    data = FRAMES.tobytes() if data is None else data
    header = "".join(f"{line}\n" for line in lines) + end
    path.write_bytes(header.encode() + (data if pixels == "LOCAL" else b""))
    if pixels != "LOCAL":
        (path.parent / pixels).write_bytes(data)
    return path


def read_by_itk(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def inverted(recording):
    return (255 - recording.frames).astype(recording.frames.dtype)


def header_lines(path, but):
    lines = path.read_bytes().split(b"ElementDataFile")[0].split(b"\n")
    return [line for line in lines if not line.startswith(but)]


def test_frames_of_a_plus_recording_may_have_a_third_axis_of_one(tmp_path):
    source = write_meta(tmp_path / "in.igs.mha")
    text = source.read_bytes().replace(b"NDims = 3\nDimSize = 30 20 3 ", b"NDims = 4\nDimSize = 30 20 1 3 ")
    source.write_bytes(text.replace(b"ElementSpacing = 0.1 0.2 1", b"ElementSpacing = 0.1 0.2 5 1"))
    recording = files.read(source)
    assert np.array_equal(recording.frames, FRAMES) and recording.sequence and recording.spacing == (5, 0.2, 0.1)
    files.write(tmp_path / "out.igs.mha", recording.frames, recording)
    assert (tmp_path / "out.igs.mha").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("name", ["v.mha", "v.nrrd", "v.nii.gz"])
def test_volumes_in_time_are_read_slice_by_slice_and_written_back_unchanged(tmp_path, name):
    volumes = np.random.default_rng(0).integers(0, 255, (2, 5, 20, 3)).astype(np.uint8)  # 3 pixels wide, like colors
    path = str(tmp_path / name)
    image = sitk.JoinSeries([sitk.GetImageFromArray(volume) for volume in volumes])
    image.SetSpacing((0.2, 0.3, 2, 0.5))
    sitk.WriteImage(image, path)
    recording = files.read(path)
    assert recording.volumes == 2 and np.array_equal(recording.frames, volumes.reshape(10, 20, 3))
    assert recording.spacing == pytest.approx((2, 0.3, 0.2))
    files.write(tmp_path / f"out.{name}", inverted(recording), recording)
    again = sitk.ReadImage(str(tmp_path / f"out.{name}"))
    assert np.array_equal(sitk.GetArrayFromImage(again).reshape(volumes.shape), 255 - volumes)
    assert again.GetSpacing() == pytest.approx((0.2, 0.3, 2, 0.5))


def test_more_dimensions_are_refused_by_their_number(tmp_path):
    write_nrrd(tmp_path / "a.nrrd", FRAMES.repeat(4, 0), "30 20 2 2 3", "domain domain domain domain list")
    with pytest.raises(InputError, match="has 5 dimensions; save frames"):
        files.read(tmp_path / "a.nrrd")


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


@pytest.mark.parametrize("packed", [False, True])
def test_a_detached_header_that_ends_with_the_file_is_read(tmp_path, packed):
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES), str(tmp_path / "in.nhdr"), packed)
    assert not (tmp_path / "in.nhdr").read_bytes().endswith(b"\n\n")
    recording = files.read(tmp_path / "in.nhdr")
    assert np.array_equal(recording.frames, FRAMES)
    for name in ("out.nhdr", "out.nrrd"):
        files.write(tmp_path / name, inverted(recording), recording)
        assert np.array_equal(files.read(tmp_path / name).frames, 255 - FRAMES)
        assert np.array_equal(read_by_itk(tmp_path / name), 255 - FRAMES)
    data = "out.raw.gz" if packed else "out.raw"
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.nhdr", "out.nrrd", data]


def test_a_header_that_ends_too_early_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds 0"):
        files.read(write_bare(tmp_path / "a.nrrd", "encoding: raw", data=b"", end=""))


@pytest.mark.parametrize(
    ("source", "data", "target"),
    [
        ("in.mhd", "scan.raw", "scan.mhd"),
        ("in.mhd", "scan.zraw", "scan.mhd"),
        ("in.mhd", "scan.mha", "scan.mha"),
        ("in.nhdr", "scan.raw", "scan.nhdr"),
        ("in.nhdr", "in.raw", "in.nhdr"),
        ("in.hdr", "in.img", "in.hdr"),
        ("in.img", "in.hdr", "in.hdr"),
        ("in.npy", "in.npy", "link.npy"),
    ],
)
def test_no_file_of_the_input_is_overwritten(tmp_path, source, data, target):
    (tmp_path / "link.npy").symlink_to("in.npy")
    if source.endswith(".npy"):
        np.save(tmp_path / source, FRAMES)
    elif source.endswith(("hdr", "img")) and "nhdr" not in source:
        sitk.WriteImage(sitk.GetImageFromArray(FRAMES), str(tmp_path / source))
    else:
        write_bare(tmp_path / source, *(["encoding: raw"] if source == "in.nhdr" else []), pixels=data)
    recording = files.read(tmp_path / source)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.exists()}
    for use in (files.check_output, lambda path, recording: files.write(path, inverted(recording), recording)):
        with pytest.raises(InputError, match="is the input"):
            use(tmp_path / target, recording)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.exists()} == before


@pytest.mark.parametrize(
    ("name", "skip", "before"),
    [
        ("in.mhd", "HeaderSize = 100", 100),
        ("in.mhd", "HeaderSize = -1", 100),
        ("in.mha", "HeaderSize = -1", 100),
        ("in.nhdr", "byte skip: 100", 100),
        ("in.nhdr", "byteskip: -1", 100),
        ("in.nrrd", "byte skip: 100", 100),
        ("in.nrrd", "byte skip: -1", 100),
        ("in.nrrd", "byte skip: 0", 0),
    ],
)
def test_bytes_before_the_pixels_are_skipped_as_by_itk(tmp_path, name, skip, before):
    extra = [skip] if name.startswith("in.mh") else ["encoding: raw", skip]
    pixels = "in.raw" if name in ("in.mhd", "in.nhdr") else "LOCAL"
    source = write_bare(tmp_path / name, *extra, pixels=pixels, data=b"H" * before + FRAMES.tobytes())
    recording = files.read(source)
    assert np.array_equal(recording.frames, FRAMES) and np.array_equal(read_by_itk(source), FRAMES)
    target = tmp_path / f"out{source.suffix}"
    files.write(target, inverted(recording), recording)
    assert np.array_equal(files.read(target).frames, 255 - FRAMES)
    assert np.array_equal(read_by_itk(target), 255 - FRAMES)


@pytest.mark.parametrize(
    ("name", "extra", "said"),
    [
        ("a.mha", ["HeaderSize = -2"], "HeaderSize is '-2'"),
        ("a.mha", ["HeaderSize = 99999999999999999999"], "holds 0"),
        ("a.mha", ["HeaderSize = 100", "CompressedData = True"], "compressed pixels and a HeaderSize"),
        ("a.mha", ["BinaryData = False"], "pixels as text"),
        ("a.nrrd", ["encoding: raw", "line skip: 1"], "line skip"),
        ("a.nrrd", ["encoding: raw", "byte skip: x"], "byte skip is 'x'"),
        ("a.nrrd", ["encoding: gzip", "byte skip: -1"], "compressed pixels and a byte skip"),
        ("a.nrrd", ["encoding: raw", "byte skip: 1"], "holds 1799"),
    ],
)
def test_pixels_that_cannot_be_found_are_refused(tmp_path, name, extra, said):
    with pytest.raises(InputError, match=said) as error:
        files.read(write_bare(tmp_path / name, *extra))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("true", ["True", "true", "T", "1"])
def test_booleans_of_a_metaimage_are_read_as_itk_reads_them(tmp_path, true):
    binary, false = f"BinaryData = {true}", "CompressedData = no"
    packed = zlib.compress(FRAMES.tobytes())
    zipped = [f"CompressedData = {true}", f"CompressedDataSize = {len(packed)}"]
    sources = [write_bare(tmp_path / "packed.mha", binary, *zipped, data=packed)]
    for field in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"):
        path = write_bare(tmp_path / f"{field}.mha", binary, false, f"{field} = {true}", data=b"")
        header = path.read_bytes().replace(b"UCHAR", b"USHORT")
        path.write_bytes(header + FRAMES.astype(">u2").tobytes())
        sources.append(path)
    for source in sources:
        recording = files.read(source)
        assert np.array_equal(recording.frames, FRAMES) and np.array_equal(read_by_itk(source), FRAMES)
        files.write(tmp_path / "out.mha", recording.frames, recording)
        assert np.array_equal(read_by_itk(tmp_path / "out.mha"), FRAMES)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("a.mha", ["ElementSize = 0.1 0.4 0.2"]),
        ("a.mha", ["ElementSize = 1 2 3", "ElementSpacing = 0.1 0.4 0.2"]),
        ("a.nrrd", ["spacings: 0.1 0.4 0.2"]),
        ("a.nrrd", ["spacings: 0.1 0.4 nan"]),
        ("a.nrrd", ["space: LPS", "space directions: ( 0.1 , 0 , 0 ) ( 0 , 0.4 , 0 ) ( 0 , 0 , 0.2 )"]),
        ("a.nrrd", ["space: LPS", "space directions: (0, 0.1, 0) (0.4, 0, 0) (0, 0, -0.2)"]),
    ],
)
def test_the_spacing_is_read_as_by_itk(tmp_path, name, extra):
    source = write_bare(tmp_path / name, *extra, *(["encoding: raw"] if name == "a.nrrd" else []))
    spacing = files.read(source).spacing
    assert spacing == pytest.approx(sitk.ReadImage(str(source)).GetSpacing()[::-1])
    assert spacing[1:] == pytest.approx((0.4, 0.1))


@pytest.mark.parametrize(
    ("kinds", "field"),
    [
        ("domain domain list", "space directions: ( 0.1 , 0 , 0 ) ( 0 , 0.4 , 0 ) none"),
        ("list domain domain", "space directions: none (0.1, 0) (0, 0.4)"),
        ("list domain domain", "spacings: nan 0.1 0.4"),
        ("list domain domain", "spacings: 0.04 0.1 0.4"),
    ],
)
def test_the_axis_of_a_list_has_no_spacing(tmp_path, kinds, field):
    """ITK does not read the first two."""
    source = write_bare(tmp_path / "a.nrrd", f"kinds: {kinds}", field, "encoding: raw")
    assert files.read(source).spacing == (1.0, 0.4, 0.1)


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


def test_a_png_keeps_its_colors(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(COLOUR[0], isVector=True), str(tmp_path / "in.png"))
    recording = files.read(tmp_path / "in.png")
    assert recording.single and recording.frames.shape == (1, 20, 30, 3)
    files.write(tmp_path / "out.png", recording.frames, recording)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.png"))), COLOUR[0])


def test_a_dicom_cine_becomes_a_derived_series_with_its_times(tmp_path):
    source = pydicom.examples.get_path("ybr_color")
    recording = files.read(source)
    assert recording.frames.shape == (30, 240, 320, 3)
    assert recording.region is None, "the file's region leaves its image: it must not be believed"
    files.write(tmp_path / "out.dcm", inverted(recording), recording)
    before, after = pydicom.dcmread(source), pydicom.dcmread(tmp_path / "out.dcm")
    assert np.array_equal(after.pixel_array, inverted(recording))
    assert after.FrameTime == before.FrameTime and after.PatientID == before.PatientID
    assert after.StudyInstanceUID == before.StudyInstanceUID
    assert after.SOPInstanceUID not in (before.SOPInstanceUID, None)
    assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID
    assert list(after.ImageType)[:2] == ["DERIVED", "SECONDARY"]


def test_a_palette_of_16_bits_is_read_as_colors(tmp_path):
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
def test_monochrome_dicom_round_trips_with_bright_echoes(tmp_path, photometric):
    source = monochrome(tmp_path, PhotometricInterpretation=photometric)
    recording = files.read(source)
    bright = photometric == "MONOCHROME2"
    assert (np.corrcoef(recording.frames.ravel(), FRAMES.ravel())[0, 1] > 0) == bright
    files.write(tmp_path / "out.dcm", recording.frames, recording)
    assert np.array_equal(pydicom.dcmread(tmp_path / "out.dcm").pixel_array, FRAMES)


def ultrasound_region(**tags):
    item = pydicom.Dataset()
    item.RegionSpatialFormat, item.RegionLocationMinX0, item.RegionLocationMinY0 = 1, 5, 2
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = 24, 17
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3  # cm
    item.PhysicalDeltaX, item.PhysicalDeltaY = 0.01, -0.02
    for tag, value in tags.items():
        setattr(item, tag, value)
    return item


@pytest.mark.parametrize(
    ("tags", "spacing"),
    [
        ({}, (1, 1, 1)),
        ({"PixelSpacing": [0.3, 0.4]}, (1, 0.3, 0.4)),
        ({"PixelSpacing": [0, 0.4]}, (1, 1, 0.4)),
        ({"PixelSpacing": [0.3]}, (1, 1, 1)),
        ({"PixelSpacing": [0.3, 0.4], "SequenceOfUltrasoundRegions": [ultrasound_region()]}, (1, 0.3, 0.4)),
        ({"SequenceOfUltrasoundRegions": [ultrasound_region()]}, (1, 0.2, 0.1)),
        ({"SequenceOfUltrasoundRegions": [ultrasound_region(), ultrasound_region(PhysicalDeltaX=0.02)]}, (1, 1, 1)),
        ({"SequenceOfUltrasoundRegions": [ultrasound_region(), ultrasound_region()]}, (1, 0.2, 0.1)),
        (
            {"SequenceOfUltrasoundRegions": [ultrasound_region(RegionSpatialFormat=4), ultrasound_region()]},
            (1, 0.2, 0.1),
        ),
        ({"SequenceOfUltrasoundRegions": [ultrasound_region(PhysicalUnitsXDirection=4)]}, (1, 1, 1)),
        ({"SequenceOfUltrasoundRegions": [ultrasound_region(RegionLocationMaxX1=99)]}, (1, 1, 1)),
    ],
)
def test_the_pixel_size_of_a_dicom_file_reaches_other_formats(tmp_path, tags, spacing):
    recording = files.read(monochrome(tmp_path, **tags))
    assert recording.spacing == pytest.approx(spacing)
    for name in ("out.mha", "out.nrrd", "out.nii.gz"):
        files.write(tmp_path / name, recording.frames, recording)
        assert sitk.ReadImage(str(tmp_path / name)).GetSpacing() == pytest.approx(spacing[::-1])


def test_the_pixel_size_of_a_single_dicom_frame_reaches_a_flat_image(tmp_path):
    source = monochrome(tmp_path, NumberOfFrames=1, PixelData=FRAMES[0].tobytes(), PixelSpacing=[0.3, 0.4])
    recording = files.read(source)
    files.write(tmp_path / "out.mha", recording.frames, recording)
    assert sitk.ReadImage(str(tmp_path / "out.mha")).GetSpacing() == pytest.approx((0.4, 0.3))


@pytest.mark.parametrize("count", [3, 1])
def test_a_written_dicom_does_not_mention_the_compressed_frames(tmp_path, count):
    source = monochrome(tmp_path, NumberOfFrames=count, PixelData=FRAMES[:count].tobytes())
    dataset = pydicom.dcmread(source)
    dataset.compress(pydicom.uid.RLELossless, encapsulate_ext=True)
    dataset.NumberOfFrames = count if count > 1 else 0
    dataset.save_as(source)
    recording = files.read(source)
    files.write(tmp_path / "out.dcm", inverted(recording), recording)
    after = pydicom.dcmread(tmp_path / "out.dcm")
    assert np.array_equal(after.pixel_array.reshape(count, 20, 30), 255 - FRAMES[:count])
    assert "ExtendedOffsetTable" not in after and "ExtendedOffsetTableLengths" not in after
    assert after.NumberOfFrames == count


@pytest.mark.parametrize("wide", [False, True])
def test_a_big_endian_dicom_becomes_little_endian_with_all_its_values(tmp_path, wide):
    source = monochrome(tmp_path)
    dataset = pydicom.dcmread(source)
    table = np.arange(6, dtype=">u2")
    words = pydicom.Dataset()
    words.add_new("LUTData", "OW", table.tobytes())
    words.add_new("LUTDescriptor", "US", [6, 0, 16])
    dataset.ModalityLUTSequence = [words]
    dataset.add_new(0x00091001, "OF", np.float32([1.5, -2]).astype(">f4").tobytes())
    frames = (FRAMES.astype(np.uint16) * 200).astype(">u2") if wide else FRAMES
    if wide:
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit = 15
    dataset.PixelData = frames.tobytes()
    dataset["PixelData"].VR = "OW" if wide else "OB"
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    if hasattr(dataset, "set_pixel_data"):
        pydicom.dcmwrite(source, dataset, little_endian=False, implicit_vr=False, force_encoding=True)
    else:  # pydicom 2.4, as in Slicer 5.10
        dataset.is_little_endian = False
        dataset.save_as(source)
    recording = files.read(source)
    assert np.array_equal(recording.frames, frames) and recording.frames.dtype.isnative
    files.check_output(tmp_path / "out.dcm", recording)
    files.write(tmp_path / "out.dcm", recording.frames[:, ::-1], recording)
    after = pydicom.dcmread(tmp_path / "out.dcm")
    assert after.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert np.array_equal(after.pixel_array, frames[:, ::-1]) and after.PatientName == dataset.PatientName
    assert after.ModalityLUTSequence[0].LUTDescriptor == [6, 0, 16]
    assert np.array_equal(np.frombuffer(after.ModalityLUTSequence[0].LUTData, "<u2"), table)
    assert np.frombuffer(after[0x00091001].value, "<f4").tolist() == [1.5, -2]
    seen = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.dcm")))
    assert wide or np.array_equal(seen, frames[:, ::-1]), "GDCM also reads it"
    files.write(tmp_path / "out.mha", recording.frames, recording)
    assert np.array_equal(files.read(tmp_path / "out.mha").frames, recording.frames)


def test_an_image_that_cannot_be_decoded_is_reported_in_one_sentence(tmp_path):
    source = monochrome(tmp_path)
    dataset = pydicom.dcmread(source)
    dataset.PixelData = pydicom.encaps.encapsulate([b"no image"] * 3)
    dataset["PixelData"].is_undefined_length = True
    for syntax in (pydicom.uid.JPEG2000Lossless, pydicom.uid.RLELossless, pydicom.uid.JPEGBaseline8Bit):
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(source)
        with pytest.raises(InputError, match=r"cannot be decoded: .*[^ :.]\.$"):
            files.read(source)


def test_the_region_of_a_dicom_file_is_used(tmp_path):
    region = files.read(monochrome(tmp_path, SequenceOfUltrasoundRegions=[ultrasound_region()])).region
    assert region.sum() == 20 * 16 and region[2:18, 5:25].all()


def test_a_folder_is_searched_and_other_files_in_it_are_skipped(tmp_path):
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
    np.save(tmp_path / "mask8.npy", (FRAMES[0] > 100).astype(np.uint8))
    assert np.array_equal(files.read_mask(tmp_path / "mask8.npy", (20, 30)), FRAMES[0] > 100)
    with pytest.raises(InputError, match="does not fit"):
        files.read_mask(tmp_path / "mask8.npy", (20, 31))


def test_a_mask_may_be_of_booleans_or_hold_nan(tmp_path):
    inside = FRAMES[0] > 100
    np.save(tmp_path / "bool.npy", inside)
    np.savez(tmp_path / "bool.npz", mask=inside)
    np.save(tmp_path / "nan.npy", np.where(inside, 0.5, np.nan))
    for name in ("bool.npy", "bool.npz", "nan.npy"):
        assert np.array_equal(files.read_mask(tmp_path / name, (20, 30)), inside)
    with pytest.raises(InputError, match="bool"):
        files.read(tmp_path / "bool.npy")


@pytest.mark.parametrize(
    ("array", "target"),
    [
        (FRAMES[0].astype(np.float64), "out.bmp"),
        (FRAMES[0].astype(np.float32), "out.png"),
        (FRAMES.astype(np.float16), "out.mha"),
        (COLOUR, "out.gipl"),
    ],
    ids=["float64 bmp", "float32 png", "float16 mha", "colour gipl"],
)
def test_a_format_that_cannot_hold_the_type_is_reported_before_the_work(tmp_path, array, target):
    np.save(tmp_path / "in.npy", array)
    with pytest.raises(InputError, match=f"does not hold .*frames of type {array.dtype}"):
        files.check_output(tmp_path / target, files.read(tmp_path / "in.npy"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def changed_meta(path, old, new):
    write_meta(path)
    path.write_bytes(path.read_bytes().replace(old, new))


def cut(path, packed=False):
    write_meta(path, packed=packed)
    path.write_bytes(path.read_bytes()[:-10])


def without_pixels(path):
    dataset = pydicom.dcmread(pydicom.examples.get_path("ybr_color"))
    del dataset.PixelData
    dataset.save_as(path)


WRONG = {
    "m missing": lambda path: None,
    "m empty": lambda path: path.write_bytes(b""),
    **{f"{kind} text": lambda path: path.write_text("this is not an image\n" * 20) for kind in "mdrnp"},
    "m short": cut,
    "m short packed": lambda path: cut(path, packed=True),
    "m type": lambda path: write_meta(path, kind="MET_STRING"),
    "m huge": lambda path: changed_meta(path, b"30 20 3 ", b"65535 65535 65535 "),
    "m zero": lambda path: changed_meta(path, b"30 20 3 ", b"30 20 0 "),
    "m elsewhere": lambda path: changed_meta(path, b"LOCAL", b"/etc/passwd"),
    "r short": lambda path: write_nrrd(path, FRAMES[:2]),
    "r five dimensions": lambda path: write_nrrd(
        path, np.repeat(FRAMES, 4, 0), "30 20 2 2 3", "domain domain domain domain list"
    ),
    "n objects": lambda path: np.save(path, np.array([{"a": 1}, None], object), allow_pickle=True),
    "n words": lambda path: np.save(path, FRAMES.astype(str)),
    "n dimensions": lambda path: np.save(path, np.zeros((2, 3, 4, 5, 6))),
    "n none": lambda path: np.save(path, FRAMES[:0]),
    "d no image": without_pixels,
    "d huge": lambda path: monochrome(path.parent, path.name, Rows=65535, Columns=65535),
}
SUFFIXES = {"n": ".npy", "m": ".mha", "d": ".dcm", "r": ".nrrd", "p": ".png"}


@pytest.mark.parametrize("kind", WRONG)
def test_files_that_are_not_recordings_are_refused_in_one_sentence(tmp_path, kind):
    path = tmp_path / f"wrong{SUFFIXES[kind[0]]}"
    WRONG[kind](path)
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

    monkeypatch.setattr(arrays, "write_raw", full)
    with pytest.raises(InputError, match="No space left"):
        files.write(tmp_path / "out.npy", FRAMES, recording)
    assert (tmp_path / "out.npy").read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "out.npy"]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_cine_on_the_disk_becomes_an_array_file_without_being_read_into_memory(tmp_path):
    np.save(tmp_path / "in.npy", np.zeros((256, 512, 512), np.uint8))
    recording = files.read(tmp_path / "in.npy")
    frames = np.memmap(tmp_path / "cine", np.uint8, "w+", shape=(256, 512, 512))  # 64 MB
    frames[-1] = 7
    files.release(frames)
    added = speed.peak_megabytes(lambda: files.write(tmp_path / "long.npy", frames, recording), torch.device("cpu"))
    assert added < 16
    written = np.load(tmp_path / "long.npy", mmap_mode="r")
    assert written.shape == frames.shape and written.dtype == np.uint8 and written[-1].min() == 7
