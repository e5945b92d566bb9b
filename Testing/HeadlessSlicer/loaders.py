"""Load recordings into the scene like Slicer's own importers, which are not in the wheel.

DICOM ultrasound: Slicer's "DICOM Image Sequence" importer. `.igs.mha`, `.igs.nrrd`: the SlicerIGSIO extension.
Everything else goes through the wheel's own readers. README.md names the source files.
"""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

UPRIGHT = (-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1)  # IJK to RAS of a frame: turned by 180 degrees


def load(path):
    """Load any recording or volume as Slicer would; return the sequence node, or else the volume node.

    Raises ValueError in one sentence if it cannot be loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file '{path}'.")
    with _quiet():
        return _load(path)


@contextmanager
def _quiet():
    """Keep the readers' attempts out of the terminal; the raised error is sufficient."""
    shown = vtk.vtkLogger.GetCurrentVerbosityCutoff()
    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
    try:
        yield
    finally:
        vtk.vtkLogger.SetStderrVerbosity(shown)


def _load(path: Path):
    if isDicom(path):
        return loadDicom(path)
    nodes, messages = vtk.vtkCollection(), slicer.vtkMRMLMessageCollection()
    manager = slicer.app.coreIOManager()
    kind = manager.fileType(str(path))
    if kind == "SceneFile":
        raise ValueError(f"'{path}' is a scene; choose a recording or a volume.")
    if not manager.loadNodes(kind, {"fileName": str(path)}, nodes, messages):
        said = messages.GetNthMessageText(0).partition(" - ")[2] if kind == "UltrasoundRecordingFile" else ""
        raise ValueError(said or f"'{path}' cannot be read as an image; choose a DICOM, MetaImage, NRRD or image file.")
    return nodes.GetItemAsObject(0)


def isDicom(path: Path) -> bool:
    """Return whether the file has the DICOM mark behind its preamble."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def loadDicom(path: Path):
    """Load a DICOM ultrasound image or cine as sequence, browser and proxy volume; return the sequence node."""
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True)
    grey = "MONOCHROME" in header.get("PhotometricInterpretation", "")
    frames, milliseconds = _dicomFrames(path, grey)
    spacing = _dicomSpacing(header)
    parts = [
        f"{header.get('SeriesNumber')}:" if header.get("SeriesNumber") else "",
        str(header.get("Modality", "")),
        str(header.get("SeriesDescription", "")),
        f"[{header.get('InstanceNumber')}]" if header.get("InstanceNumber") else "",
    ]
    name = " ".join(part for part in parts if part)
    if milliseconds == 1:  # the reader's spacing where it finds no frame time
        index, unit, rate = "frame", "", 10
        values = [str(i) for i in range(len(frames))]
    else:
        index, unit, rate = "time", "s", 1000 / milliseconds
        values = [f"{i * milliseconds / 1000:.3f}" for i in range(len(frames))]

    def volume(number):
        node = newVolume(frames[number])
        node.SetIJKToRASMatrix(_matrix(UPRIGHT))
        node.SetSpacing(*(spacing or (1, 1)), 1)
        node.SetAttribute("DICOM.instanceUIDs", str(header.get("SOPInstanceUID", "")))
        return node

    sequence = addSequence(name, index, unit, ((values[i], volume(i)) for i in range(len(frames))))
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVolumeSequenceStorageNode")
    sequence.SetAndObserveStorageNodeID(storage.GetID())
    addBrowser(slicer.mrmlScene.GenerateUniqueName(f"{name} browser"), [sequence], rate)
    return sequence


def _dicomFrames(path: Path, grey: bool):
    """Return the frames (N, H, W) or (N, H, W, 3), and their distance from the reader: ms, 1 if unknown."""
    reader = (
        slicer.vtkITKArchetypeImageSeriesScalarReader if grey else slicer.vtkITKArchetypeImageSeriesVectorReaderFile
    )()
    reader.SetArchetype(str(path))
    reader.AddFileName(str(path))
    reader.SetSingleFile(True)
    reader.SetOutputScalarTypeToNative()
    reader.SetDesiredCoordinateOrientationToNative()
    reader.SetUseNativeOriginOn()
    reader.SetDICOMImageIOApproachToGDCM()
    reader.Update()
    image = reader.GetOutput()
    if reader.GetErrorCode() or not image.GetPointData().GetScalars():
        raise ValueError(f"'{path}' holds no image that can be read.")
    scalars = vtk_to_numpy(image.GetPointData().GetScalars())
    shape = image.GetDimensions()[::-1] + (() if scalars.ndim == 1 else scalars.shape[1:])
    return scalars.reshape(shape), image.GetSpacing()[2]


def _dicomSpacing(header):
    """Return millimeters per pixel (x, y) of the only calibrated tissue region; None if there is none."""
    regions = header.get("SequenceOfUltrasoundRegions") or []
    if header.get("Modality") != "US" or len(regions) != 1:
        return None
    region = regions[0]
    tissue = region.get("RegionSpatialFormat") == 1 and region.get("RegionDataType") in (1, 2)
    centimetres = region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == 3
    if not (tissue and centimetres and "PhysicalDeltaX" in region and "PhysicalDeltaY" in region):
        return None
    return 10 * region.PhysicalDeltaX, 10 * region.PhysicalDeltaY


def loadTracked(path: Path) -> list:
    """Load a PLUS recording: an image sequence and one sequence for each transform, in one browser.

    Returns the image sequence, the browser and the transform sequences; None if the file cannot be read.
    """
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return None
    frames = sitk.GetArrayFromImage(image)
    if image.GetDimension() == 2:
        frames = frames[np.newaxis]
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    frames = _turned(frames, fields)
    perFrame = [{} for _ in frames]
    for key, value in fields.items():
        match = re.fullmatch(r"Seq_Frame(\d+)_(.+)", key)
        if match and int(match[1]) < len(frames):
            perFrame[int(match[1])][match[2]] = value
    name, digits = path.name.split(".")[0], int(math.log10(len(frames))) + 1
    times = [f"{float(one.get('Timestamp', 0)):g}" for one in perFrame]
    images = addSequence(
        _sequenceName(name, "Image"),
        "time",
        "s",
        (
            (times[i], newVolume(frames[i], f"Image_{i:0{digits}}"))
            for i, one in enumerate(perFrame)
            if one.get("ImageStatus", "OK") == "OK"
        ),
    )
    images.SetAttribute("Sequences.Source", "Image")
    transforms = []
    for key in sorted({key for one in perFrame for key in one if key.endswith("Transform")}):
        source = key.removesuffix("Transform")
        items = (
            (times[i], _newTransform(one[key], f"{key}_{i:0{digits}}")) for i, one in enumerate(perFrame) if key in one
        )
        sequence = addSequence(_sequenceName(name, source), "time", "s", items)
        sequence.SetAttribute("Sequences.Source", source)
        transforms.append(sequence)
    return [images, addBrowser(name, [images, *transforms]), *transforms]


def _turned(frames: np.ndarray, fields: dict) -> np.ndarray:
    """Return frames as in the extension: first column marked side (M), rows from the probe downwards (F)."""
    orientation = fields.get("UltrasoundImageOrientation") or fields.get("ultrasound image orientation") or "MF"
    if orientation[0] == "U":
        frames = frames[:, :, ::-1]
    if orientation[1:2] == "N":
        frames = frames[:, ::-1]
    return np.ascontiguousarray(frames)


def _sequenceName(base: str, source: str) -> str:
    return slicer.vtkMRMLSequenceStorageNode.GetSequenceNodeName(base, source)


def _newTransform(text: str, name: str):
    node = slicer.vtkMRMLLinearTransformNode()
    node.SetName(name)
    node.SetMatrixTransformToParent(_matrix([float(number) for number in text.split()]))
    return node


def loadPictures(path: Path, name: str, single: bool):
    """Load PNG, TIFF and JPEG files, which the wheel cannot read, as a scalar volume, or a vector volume in
    color, with a slice for each picture or page; return the volume, or None if they cannot be read.

    single: only this file, without others of the same numbering.
    """
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
        found = [] if single or image.GetDimension() > 2 else numbered(path)
        image = sitk.ReadImage([str(one) for one in found]) if len(found) > 1 else image
    except RuntimeError:
        return None
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    frames, components = sitk.GetArrayFromImage(image), image.GetNumberOfComponentsPerPixel()
    node = newVolume(frames, name, color=components > 1)
    node.SetIJKToRASMatrix(_matrix(UPRIGHT))  # ITK's directions and origin, which such files do not change
    node.SetSpacing(image.GetSpacing())
    slicer.mrmlScene.AddNode(node)
    node.CreateDefaultDisplayNodes()
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(path))
    node.SetAndObserveStorageNodeID(storage.GetID())
    return node


def numbered(path: Path) -> list[Path]:
    """Return a file's series in order: files in its folder whose names differ only in one number, the last possible."""
    for number in reversed(list(re.finditer(r"\d+", path.name))):
        before, after = (re.escape(part) for part in (path.name[: number.start()], path.name[number.end() :]))
        like = {one: re.fullmatch(f"{before}(\\d+){after}", one.name) for one in path.parent.iterdir()}
        found = sorted((one for one, match in like.items() if match), key=lambda one: int(like[one][1]))
        if len(found) > 1:
            return found
    return [path]


#
# Nodes
#


def newVolume(frame: np.ndarray, name: str = "", color: bool | None = None):
    """Return a volume node, not in a scene, of one frame (H, W), or (H, W, C), which makes it a vector volume.

    color: if given, `frame` is a volume (K, H, W), or (K, H, W, C).
    """
    frame, color = (frame[None], frame.ndim == 3) if color is None else (frame, color)
    node = slicer.vtkMRMLVectorVolumeNode() if color else slicer.vtkMRMLScalarVolumeNode()
    image = vtk.vtkImageData()
    image.SetDimensions(frame.shape[2], frame.shape[1], frame.shape[0])
    values = np.ascontiguousarray(frame).reshape(-1, *frame.shape[3:])
    image.GetPointData().SetScalars(numpy_to_vtk(values, deep=True))
    node.SetAndObserveImageData(image)
    node.SetName(name)
    return node


def addSequence(name: str, index: str, unit: str, items):
    """Return a sequence node in the scene of (index value, node) items."""
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
    sequence.SetIndexName(index)
    sequence.SetIndexUnit(unit)
    for value, node in items:
        sequence.SetDataNodeAtValue(node, value)
    return sequence


def addBrowser(name: str, sequences: list, rate: float | None = None):
    """Return a browser of sequences, the first one leading, with its proxies; show the first volume."""
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", name)
    if rate is not None:
        browser.SetPlaybackRateFps(rate)
    for sequence in sequences:
        browser.AddSynchronizedSequenceNode(sequence)
    showVolume(browser.GetProxyNode(sequences[0]))
    return browser


def showVolume(volume) -> None:
    """Make a volume the active one, shown in all slice views, as the importers do."""
    logic = slicer.app.applicationLogic()
    logic.GetSelectionNode().SetActiveVolumeID(volume.GetID())
    logic.PropagateVolumeSelection()


def _matrix(elements):
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(elements)
    return matrix
