"""DICOM of every compression, without a preamble, in series; and the description of derived images."""

import io
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.data import get_testdata_file

from Speckle2SelfLib import files
from Speckle2SelfLib.__main__ import main
from Speckle2SelfLib.system import InputError

SMOOTH = (np.add.outer(np.arange(40), np.arange(50)) * 2 + np.arange(3)[:, None, None]).astype(np.uint8)
LOSSLESS = {"JPEG": "1.2.840.10008.1.2.4.70", "JPEG2000": "1.2.840.10008.1.2.4.90"}  # the ones that GDCM writes


def compressed(folder, compressor, frames=SMOOTH):
    """Return a file that GDCM has compressed."""
    writer, path = sitk.ImageFileWriter(), folder / f"{compressor}.dcm"
    writer.SetFileName(str(path))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(frames, isVector=frames.ndim == 4))
    return path


def run_length_encoded(folder, frames, **tags):
    """Return a file that pydicom has compressed."""
    dataset = pydicom.dcmread(plain(folder, frames=frames, **tags))
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(folder / "RLE.dcm")
    return folder / "RLE.dcm"


def plain(folder, name="in.dcm", frames=SMOOTH, **tags):
    """Return an uncompressed file with the fields of one from a scanner."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.SourceApplicationEntityTitle = "SCANNER"
    dataset.SOPClassUID = pydicom.uid.UltrasoundMultiFrameImageStorage
    dataset.SOPInstanceUID, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "1.2.3.4.5", "1.2.3.4", "1.2.3"
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = (
        dataset.SOPClassUID,
        "1.2.3.4.5",
    )
    dataset.PatientID, dataset.Modality, dataset.ImageType = "4711", "US", ["ORIGINAL", "PRIMARY", "ABDOMINAL"]
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames, dataset.FrameTime = *frames.shape[1:3], len(frames), "40"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * frames.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.SmallestImagePixelValue, dataset.LargestImagePixelValue = 0, 255
    dataset.PixelData = frames.tobytes()
    dataset["PixelData"].VR = "OB" if frames.dtype.itemsize == 1 else "OW"
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    path = folder / name
    if hasattr(dataset, "set_pixel_data"):
        dataset.save_as(path, enforce_file_format=True)
    else:  # pydicom 2.4, as in Slicer 5.10
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        dataset.save_as(path, write_like_original=False)
    return path


@pytest.mark.parametrize("compressor", LOSSLESS)
@pytest.mark.parametrize("kind", ["grey", "16 bits", "one", "colour"])
def test_lossless_compressions_are_decoded_and_written_compressed(tmp_path, compressor, kind, capfd):
    colours = np.stack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH], -1)
    frames = {"grey": SMOOTH, "16 bits": SMOOTH.astype(np.uint16) * 250, "one": SMOOTH[:1], "colour": colours}[kind]
    source = compressed(tmp_path, compressor, frames)
    assert pydicom.dcmread(source).file_meta.TransferSyntaxUID == LOSSLESS[compressor]
    recording = files.read(source)
    assert recording.frames.dtype == frames.dtype and np.array_equal(recording.frames, frames)
    files.write(tmp_path / "out.dcm", recording.frames[..., ::-1, :].copy(), recording)
    written = pydicom.dcmread(tmp_path / "out.dcm")
    assert written.file_meta.TransferSyntaxUID == LOSSLESS["JPEG2000"]
    expected = frames[..., ::-1, :]
    assert np.array_equal(written.pixel_array.reshape(frames.shape), expected), "by Pillow's decoder"
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.dcm")))
    assert np.array_equal(read.reshape(frames.shape), expected), "by GDCM's decoder"
    assert np.array_equal(files.read(tmp_path / "out.dcm").frames, expected)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"])
def test_signed_values_equal_those_of_the_uncompressed_file(tmp_path, name):
    recording = files.read(get_testdata_file(name))
    assert np.array_equal(recording.frames, files.read(get_testdata_file("MR_small.dcm")).frames)
    files.write(tmp_path / "out.dcm", recording.frames, recording)
    assert np.array_equal(by_pydicom(tmp_path / "out.dcm"), recording.frames[0])
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.dcm")))
    assert np.array_equal(read[0], recording.frames[0]), "by GDCM's decoder"


def by_pydicom(path):
    """Return the values in a file; signed JPEG 2000, which pydicom 2.4 does not decode with numpy 2, is read by our
    reader."""
    dataset = pydicom.dcmread(path)
    old = not hasattr(dataset, "set_pixel_data")
    signed = old and dataset.PixelRepresentation and dataset.file_meta.TransferSyntaxUID == LOSSLESS["JPEG2000"]
    return files.read(path).frames.squeeze() if signed else dataset.pixel_array


@pytest.mark.parametrize(
    "name", ["JPGExtended.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle_2frame.dcm"]
)
def test_other_compressions_are_decoded_as_gdcm_does(name, capfd):
    path = get_testdata_file(name)
    read = sitk.GetArrayFromImage(sitk.ReadImage(path))
    capfd.readouterr()
    frames = files.read(path).frames
    assert np.array_equal(frames.reshape(read.shape), read)
    assert capfd.readouterr().err == ""


def by_ffmpeg(path):
    """Return the frames of a file with JPEG 2000, by a decoder that shares nothing with those of Pillow and GDCM."""
    av, dataset = pytest.importorskip("av"), pydicom.dcmread(path)
    data, frames, at = dataset.PixelData, [], 0
    while data[at : at + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length
        if length and data[at - length : at - length + 4] == b"\xff\x4f\xff\x51":
            (frame,) = av.CodecContext.create("jpeg2000", "r").decode(av.Packet(data[at - length : at]))
            frames.append(frame.to_ndarray())
    return np.stack(frames)


@pytest.mark.parametrize("kind", ["grey", "12 bits", "16 bits", "colour", "signed, 8 bits", "signed"])
def test_other_decoders_agree_on_the_files_that_are_written_compressed(tmp_path, kind):
    colours = np.stack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH], -1)
    factor = {"12 bits": 16, "16 bits": 250}.get(kind)
    frames = colours if kind == "colour" else SMOOTH.astype(np.uint16) * factor if factor else SMOOTH
    if kind.startswith("signed"):
        frames = (SMOOTH - 100.0).astype(np.int8) if "8" in kind else (SMOOTH - 100.0).astype(np.int16) * 250
    if kind == "12 bits":
        source = run_length_encoded(tmp_path, frames, BitsStored=12, HighBit=11)
    elif kind.startswith("signed"):
        source = run_length_encoded(tmp_path, frames, PixelRepresentation=1)
    else:
        source = compressed(tmp_path, "JPEG", frames)
    recording = files.read(source)
    files.write(tmp_path / "out.dcm", recording.frames[..., ::-1, :].copy(), recording)
    written, expected = pydicom.dcmread(tmp_path / "out.dcm"), frames[..., ::-1, :]
    assert written.file_meta.TransferSyntaxUID == LOSSLESS["JPEG2000"]
    assert written.BitsStored == written.HighBit + 1 == 8 * frames.dtype.itemsize, "the precision of the stream"
    assert np.array_equal(by_pydicom(tmp_path / "out.dcm"), expected), "by Pillow's decoder"
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.dcm")))
    assert np.array_equal(read.reshape(frames.shape), expected), "by GDCM's decoder"
    if kind.startswith("signed"):  # FFmpeg decodes it as unsigned
        expected = (expected.astype(int) + 2 ** (written.BitsStored - 1)).astype(f"u{frames.itemsize}")
    assert np.array_equal(by_ffmpeg(tmp_path / "out.dcm"), expected), "by FFmpeg's decoder"


@pytest.mark.parametrize(
    ("syntax", "said"),
    [
        (
            "1.2.840.10008.1.2.4.201",
            r"compressed as High-Throughput JPEG 2000 .*; install pylibjpeg.*openjpeg",
        ),
        ("1.2.840.10008.1.2.4.102", r"holds a film \(MPEG-4 .*\); export it as MP4, AVI or uncompressed"),
    ],
)
def test_a_compression_that_cannot_be_decoded_is_reported_with_what_to_do(tmp_path, syntax, said):
    if not hasattr(pydicom.uid, "HTJ2KLossless"):
        pytest.skip("pydicom 2.4 knows neither")
    dataset = pydicom.dcmread(plain(tmp_path))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = pydicom.encaps.encapsulate([bytes(1000)] * 3)
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "in.dcm")
    with pytest.raises(InputError, match=said) as error:
        files.read(tmp_path / "in.dcm")
    assert "\n" not in str(error.value)


def test_without_an_encoder_a_compressed_file_is_deflated(tmp_path, monkeypatch):
    recording = files.read(compressed(tmp_path, "JPEG"))
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    deflated(tmp_path / "out.dcm", recording, SMOOTH)


def deflated(path, recording, frames):
    """Write `frames` and see that their file is deflated and read as such by pydicom and GDCM."""
    files.write(path, frames, recording)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == pydicom.uid.DeflatedExplicitVRLittleEndian
    assert path.stat().st_size < frames.nbytes / 2
    assert np.array_equal(pydicom.dcmread(path).pixel_array, frames)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), frames)
    assert np.array_equal(files.read(path).frames, frames)


def test_a_deflated_file_is_written_compressed(tmp_path):
    dataset = pydicom.dcmread(plain(tmp_path))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(tmp_path / "in.dcm")
    recording = files.read(tmp_path / "in.dcm")
    files.write(tmp_path / "out.dcm", recording.frames, recording)
    written = pydicom.dcmread(tmp_path / "out.dcm")
    assert written.file_meta.TransferSyntaxUID == LOSSLESS["JPEG2000"]
    assert np.array_equal(written.pixel_array, SMOOTH)


def test_compressed_colors_of_16_bits_are_deflated(tmp_path):
    """Pillow writes no such JPEG 2000, and GDCM reads such RLE with its bytes in another order."""
    frames = np.stack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH], -1).astype(np.uint16) * 250
    colours = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    recording = files.read(run_length_encoded(tmp_path, frames, **colours))
    deflated(tmp_path / "out.dcm", recording, frames[:, ::-1].copy())


def test_an_uncompressed_file_is_written_uncompressed(tmp_path):
    recording = files.read(plain(tmp_path))
    files.write(tmp_path / "out.dcm", recording.frames, recording)
    assert not pydicom.dcmread(tmp_path / "out.dcm").file_meta.TransferSyntaxUID.is_compressed


def test_a_compressed_color_cine_does_not_grow_to_its_uncompressed_size(tmp_path):
    source = pydicom.examples.get_path("ybr_color")
    recording = files.read(source)
    files.write(tmp_path / "out.dcm", recording.frames, recording)
    written = pydicom.dcmread(tmp_path / "out.dcm")
    assert (tmp_path / "out.dcm").stat().st_size < recording.frames.nbytes / 6
    assert written.PhotometricInterpretation == "YBR_RCT" and written.LossyImageCompression == "01"
    assert np.array_equal(files.read(tmp_path / "out.dcm").frames, recording.frames)


def test_a_derived_image_names_its_source_and_its_software(tmp_path):
    recording = files.read(plain(tmp_path))
    files.write(tmp_path / "out.dcm", recording.frames // 2, recording)
    made = pydicom.dcmread(tmp_path / "out.dcm")
    (source,) = made.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == "1.2.3.4.5"
    assert source.ReferencedSOPClassUID == pydicom.uid.UltrasoundMultiFrameImageStorage
    assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    (code,) = made.DerivationCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == ("113087", "DCM", "Smoothing")
    assert list(made.ImageType) == ["DERIVED", "SECONDARY", "ABDOMINAL"]
    assert "SmallestImagePixelValue" not in made and "LargestImagePixelValue" not in made
    assert made.file_meta.ImplementationVersionName == "SPECKLE2SELF"
    assert "SourceApplicationEntityTitle" not in made.file_meta
    assert made.file_meta.MediaStorageSOPInstanceUID == made.SOPInstanceUID != "1.2.3.4.5"
    assert made.PatientID == "4711" and made.StudyInstanceUID == "1.2.3" and made.FrameTime == 40


def test_a_series_of_slices_becomes_one_new_series(tmp_path):
    earlier = {"1.2.3.4"}
    (tmp_path / "in").mkdir()
    for number in range(3):
        tags = {"SOPInstanceUID": f"1.2.3.4.{number}", "ImagePositionPatient": [0, 0, 2 * number],
                "InstanceNumber": number, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.5, 0.5],
                "NumberOfFrames": 1, "SOPClassUID": pydicom.uid.UltrasoundImageStorage}  # fmt: skip
        plain(tmp_path / "in", f"{number}.dcm", SMOOTH[number : number + 1], **tags)
    arguments = ["despeckle", str(tmp_path / "in"), "--model", "median", "--region", "none"]
    for output, more in (("one", []), ("two", []), ("one", ["--strength", "0.5"])):
        shutil.rmtree(tmp_path / output, ignore_errors=True)
        assert main([*arguments[:2], str(tmp_path / output), *arguments[2:], *more]) == 0
        (names,) = [sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(tmp_path / output))]
        assert len(names) == 1 and names[0] not in earlier
        earlier.add(names[0])
        sorted_files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / output), names[0])
        volume = sitk.ReadImage(sorted_files)
        assert volume.GetSize() == (50, 40, 3) and volume.GetSpacing() == pytest.approx((0.5, 0.5, 2))
    (tmp_path / "one" / "1.dcm").unlink()
    assert main([*arguments[:2], str(tmp_path / "one"), *arguments[2:], "--strength", "0.5", "--skip-existing"]) == 0
    assert len(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(tmp_path / "one"))) == 1, "resumed files join it"


@pytest.mark.parametrize("explicit", [True, False])
def test_a_bare_cine_without_preamble_and_meta_information_is_read(tmp_path, explicit):
    dataset, buffer = pydicom.dcmread(plain(tmp_path)), io.BytesIO()
    if hasattr(dataset, "set_pixel_data"):
        pydicom.dcmwrite(buffer, dataset, implicit_vr=not explicit, little_endian=True, force_encoding=True)
    else:  # pydicom 2.4, as in Slicer 5.10
        dataset.is_implicit_VR = not explicit
        dataset.save_as(buffer)
    data = buffer.getvalue()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IM17").write_bytes(data[data.index(b"\x08\0\x08\0") :])  # from ImageType on
    assert files.find([tmp_path / "in"]) == [tmp_path / "in" / "IM17"]
    recording = files.read(tmp_path / "in" / "IM17")
    assert np.array_equal(recording.frames, SMOOTH) and recording.times == pytest.approx([0, 0.04, 0.08])
    files.write(tmp_path / "out.dcm", recording.frames // 2, recording)
    assert np.array_equal(pydicom.dcmread(tmp_path / "out.dcm").pixel_array, SMOOTH // 2)


def test_a_dicomdir_and_reports_next_to_images_are_named_and_skipped(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    plain(tmp_path / "in", "IM1")
    shutil.copy(get_testdata_file("DICOMDIR"), tmp_path / "in" / "DICOMDIR")
    shutil.copy(get_testdata_file("test-SR.dcm"), tmp_path / "in" / "report.dcm")
    arguments = ["despeckle", str(tmp_path / "in"), str(tmp_path / "out"), "--model", "median", "--region", "none"]
    assert main(arguments) == 0
    error = capsys.readouterr().err
    assert error.count("DICOMDIR") == error.count("report.dcm") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["IM1"]
    with pytest.raises(InputError, match="is a DICOMDIR; name its folder instead"):
        files.read(tmp_path / "in" / "DICOMDIR")


@pytest.mark.parametrize(
    ("tags", "times"),
    [
        ({"FrameTime": "20"}, [0, 0.02, 0.04]),
        ({"FrameTime": None, "FrameTimeVector": ["0", "30", "50"]}, [0, 0.03, 0.08]),
        ({"FrameTime": None, "FrameTimeVector": ["30", "50"]}, [0, 0.03, 0.08]),  # without the first frame's 0
        ({"FrameTime": "20", "FrameTimeVector": ["0", "30", "50", "20"]}, [0, 0.02, 0.04]),
        ({"FrameTime": None, "CineRate": "50"}, [0, 0.02, 0.04]),
        ({"FrameTime": None}, None),
        ({"FrameTime": "0"}, None),
    ],
)
def test_the_times_of_frames_are_read(tmp_path, tags, times):
    found = files.read(plain(tmp_path, **tags)).times
    assert found is None if times is None else found == pytest.approx(times)


def region(**tags):
    item = pydicom.Dataset()
    item.RegionSpatialFormat, item.RegionLocationMinX0, item.RegionLocationMinY0 = 1, 25, 0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = 49, 39
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = 3  # cm
    item.PhysicalDeltaX, item.PhysicalDeltaY = 0.02, 0.02
    for tag, value in tags.items():
        setattr(item, tag, value)
    return item


@pytest.mark.parametrize(
    "tags", [{}, {"RegionLocationMaxX1": 50}, {"RegionLocationMaxX1": 50, "RegionLocationMaxY1": 40}]
)
def test_a_region_that_ends_at_the_number_of_columns_is_accepted(tmp_path, tags):
    recording = files.read(plain(tmp_path, SequenceOfUltrasoundRegions=[region(**tags)]))
    assert recording.region[:, 25:].all() and not recording.region[:, :25].any()
    assert recording.spacing == pytest.approx((1, 0.2, 0.2))


def test_known_faults_of_dicom_files_do_not_return(shared_data, tmp_path):
    faults = Path(shared_data) / "faults"
    if not faults.is_dir():
        pytest.skip("the faults are not on this machine")
    edge, inside = (files.read(faults / "dicom_region_edge" / f"{name}.dcm") for name in ("edge", "inside"))
    assert np.array_equal(edge.region, inside.region) and edge.spacing == inside.spacing == pytest.approx((1, 0.2, 0.2))
    assert files.read(faults / "jpeg_lossless" / "jpegls.dcm").frames.shape == (1, 128, 128)
    for name in ("dicom_series", "uid_names"):
        arguments = ["despeckle", str(faults / name / "in"), str(tmp_path / name), "--model", "median"]
        assert main(arguments) == 0
        made = [pydicom.dcmread(path) for path in (tmp_path / name).iterdir()]
        assert len(made) == len(list((faults / name / "in").iterdir()))
        assert len({dataset.SeriesInstanceUID for dataset in made}) == (1 if name == "dicom_series" else 2)
