"""Sequences and compressed DICOM that the core writes, as Slicer's own readers read them."""

import numpy as np
import pydicom
import pytest

slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402
from vtk.util.numpy_support import vtk_to_numpy  # noqa: E402

from Speckle2SelfLib import files  # noqa: E402
from Speckle2SelfLib.formats.base import Recording  # noqa: E402
from Speckle2SelfLib.formats.dicom_pixels import encode, set_pixels  # noqa: E402
from Speckle2SelfLib.system import InputError  # noqa: E402

FRAMES = np.random.default_rng(0).integers(1, 255, (4, 20, 30)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(1, 255, (4, 20, 30, 3)).astype(np.uint8)
TIMES = np.array([0, 0.04, 0.09, 0.12])


def cine(tmp_path, frames=FRAMES, times=TIMES, **changes):
    given = {"sequence": True, "times": times, "spacing": (1.0, 0.25, 0.2), **changes}
    return Recording(frames, tmp_path / "in.dcm", "DICOM", **given)


def loaded(path):
    """Return the arrays, index values and first node of a sequence as MRML reads it."""
    scene = slicer.vtkMRMLScene()
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode")
    storage = scene.AddNewNodeByClass("vtkMRMLVolumeSequenceStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(sequence)
    nodes = [sequence.GetNthDataNode(number) for number in range(sequence.GetNumberOfDataNodes())]
    arrays = []
    for node in nodes:
        image = node.GetImageData()
        shape = (*image.GetDimensions()[::-1], image.GetNumberOfScalarComponents())
        arrays.append(vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape).squeeze())
    values = [float(sequence.GetNthIndexValue(number)) for number in range(len(nodes))]
    return np.stack(arrays), values, sequence, nodes[0], scene


@pytest.mark.parametrize("name", ["out.seq.nrrd", "out.igs.nrrd", "out.seq.nhdr"])
@pytest.mark.parametrize("frames", [FRAMES, COLOUR, FRAMES.astype(np.int16) - 99], ids=["grey", "color", "signed"])
def test_a_cine_is_a_sequence_with_its_times_in_slicer(tmp_path, name, frames):
    recording = cine(tmp_path, frames)
    files.write(tmp_path / name, frames, recording)
    arrays, values, sequence, node, _ = loaded(tmp_path / name)
    assert np.array_equal(arrays, frames) and values == pytest.approx(TIMES)
    assert sequence.GetIndexName() == "time" and sequence.GetIndexUnit() == "s"
    assert node.GetSpacing() == pytest.approx((0.2, 0.25, 1))
    assert node.GetClassName() == ("vtkMRMLVectorVolumeNode" if frames.ndim == 4 else "vtkMRMLScalarVolumeNode")
    again = files.read(tmp_path / name)
    assert again.sequence and np.array_equal(again.frames, frames) and again.times == pytest.approx(TIMES)


@pytest.mark.parametrize("name", ["out.seq.nrrd", "out.igs.nrrd"])
def test_frames_of_five_thousand_a_second_are_all_kept_in_slicer(tmp_path, name):
    files.write(tmp_path / name, FRAMES, cine(tmp_path, times=np.arange(4) / 5000))
    arrays, values, sequence, *_ = loaded(tmp_path / name)
    assert np.array_equal(arrays, FRAMES) and values == pytest.approx([0, 0.2, 0.4, 0.6])
    assert sequence.GetIndexName() == "time" and sequence.GetIndexUnit() == "ms"
    assert files.read(tmp_path / name).times == pytest.approx(np.arange(4) / 5000)


def test_frames_without_times_are_numbered(tmp_path):
    files.write(tmp_path / "out.seq.nrrd", FRAMES, cine(tmp_path, times=None))
    arrays, values, sequence, *_ = loaded(tmp_path / "out.seq.nrrd")
    assert files.read(tmp_path / "out.seq.nrrd").times is None, "numbers are not seconds"
    assert np.array_equal(arrays, FRAMES) and values == [0, 1, 2, 3] and sequence.GetIndexName() == "frame"


def test_volumes_in_time_are_a_sequence_of_volumes_in_their_place(tmp_path):
    geometry = {"spacing": (0.2, 0.25, 2.0), "origin": (1.0, 2.0, 3.0), "direction": (0, 1, 0, -1, 0, 0, 0, 0, 1)}
    recording = cine(tmp_path, times=np.array([0, 0.5]), volumes=2, spacing=(2.0, 0.25, 0.2),
                     source={"geometry": geometry})  # fmt: skip
    files.write(tmp_path / "out.seq.nrrd", FRAMES, recording)
    arrays, values, _, node, _ = loaded(tmp_path / "out.seq.nrrd")
    assert np.array_equal(arrays, FRAMES.reshape(2, 2, 20, 30)) and values == [0, 0.5]
    assert node.GetSpacing() == pytest.approx((0.2, 0.25, 2)) and node.GetOrigin() == pytest.approx((-1, -2, 3))
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASDirectionMatrix(matrix)
    assert [matrix.GetElement(row, 0) for row in range(3)] == pytest.approx([0, 1, 0])


@pytest.mark.parametrize("name", ["out.seq.mha", "out.igs.mha", "out.igs.mhd"])
@pytest.mark.parametrize("frames", [FRAMES, COLOUR], ids=["grey", "color"])
def test_a_cine_has_the_fields_of_plus_in_a_metaimage(tmp_path, name, frames):
    import SimpleITK as sitk

    files.write(tmp_path / name, frames, cine(tmp_path, frames))
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(tmp_path / name))
    image = reader.Execute()
    assert np.array_equal(sitk.GetArrayFromImage(image), frames) and image.GetSpacing() == pytest.approx((0.2, 0.25, 1))
    assert float(image.GetMetaData("Seq_Frame0002_Timestamp")) == 0.09
    assert image.GetMetaData("Seq_Frame0003_ImageStatus") == "OK"
    assert image.GetMetaData("UltrasoundImageOrientation") == "MF"
    assert image.GetMetaData("UltrasoundImageType") == ("RGB_COLOR" if frames.ndim == 4 else "BRIGHTNESS")
    again = files.read(tmp_path / name)
    assert again.sequence and again.times == pytest.approx(TIMES)
    files.write(tmp_path / f"again{''.join((tmp_path / name).suffixes)}", again.frames, again)


def test_a_volume_is_not_a_sequence(tmp_path):
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(FRAMES), str(tmp_path / "in.nii.gz"))
    recording = files.read(tmp_path / "in.nii.gz")
    for name in ("out.seq.nrrd", "out.igs.mha"):
        with pytest.raises(InputError, match="is a volume, not a sequence"):
            files.check_output(tmp_path / name, recording)


def test_a_type_that_a_sequence_cannot_hold_is_refused(tmp_path):
    for name in ("out.seq.nrrd", "out.igs.mha"):
        with pytest.raises(InputError, match="does not hold frames of type float16"):
            files.check_output(tmp_path / name, cine(tmp_path, FRAMES.astype(np.float16)))


RAMP = (np.add.outer(np.arange(40), np.arange(60)) * 2 + np.arange(3)[:, None, None]).astype(np.uint8)
RAMPS = np.stack([RAMP, RAMP[::-1], 255 - RAMP], -1)
DICOM = {  # frames of each kind that is written compressed
    "grey": RAMP,
    "16 bits": RAMP.astype(np.uint16) * 250,
    "signed": (RAMP.astype(np.int16) - 99) * 250,
    "color": RAMPS,
    "color of 16 bits": RAMPS.astype(np.uint16) * 250,
}


@pytest.mark.parametrize("kind", DICOM)
def test_compressed_dicom_is_read_by_slicer(tmp_path, kind):
    frames = DICOM[kind]
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = pydicom.uid.UltrasoundMultiFrameImageStorage
    dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = *frames.shape[1:3], len(frames)
    dataset.SamplesPerPixel = 3 if "color" in kind else 1
    dataset.PhotometricInterpretation = "RGB" if "color" in kind else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * frames.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(kind == "signed")
    set_pixels(dataset, frames, dataset.PhotometricInterpretation, dataset.BitsStored, compressed=True)
    path = tmp_path / "a.dcm"
    path.write_bytes(encode(dataset, dataset.file_meta.TransferSyntaxUID))
    assert path.stat().st_size < frames.nbytes / 2
    reader = slicer.vtkITKArchetypeImageSeriesScalarReader()
    if "color" in kind:
        reader = slicer.vtkITKArchetypeImageSeriesVectorReaderFile()
    reader.SetArchetype(str(path))
    reader.AddFileName(str(path))
    reader.SetOutputScalarTypeToNative()
    reader.SetDesiredCoordinateOrientationToNative()
    reader.SetDICOMImageIOApproachToGDCM()
    reader.Update()
    read = vtk_to_numpy(reader.GetOutput().GetPointData().GetScalars())
    assert read.dtype == frames.dtype and np.array_equal(read.reshape(frames.shape), frames)
