"""Load files that Slicer itself cannot load: films, GIF, WebP, NumPy, MATLAB and HDF5."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import slicer
import vtk
from slicer import vtkMRMLNode, vtkMRMLSequenceNode, vtkMRMLVolumeNode
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from Speckle2SelfLib.system import InputError, out_of_memory

from . import dependencies

FILE_TYPE = "UltrasoundRecordingFile"
SUFFIXES = {
    _("Film"): (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp"),
    _("Animation"): (".gif", ".webp"),
    _("Arrays"): (".npy", ".npz", ".mat", ".h5", ".hdf5", ".uff"),
}
NEEDED = {
    "film": "av",
    "animation": "",
    "NumPy": "",
    "MATLAB": "",
    "HDF5": "h5py",
}  # format -> package that Slicer does not bundle
# Confidence: Slicer's reader of transforms, for any .mat and .h5, and SlicerIGSIO's of streams have 0.54.
CERTAIN, AFTER_OTHERS = 0.7, 0.52  # Slicer's reader of volumes, for any file, has 0.5
HEAD = 2**16  # bytes in which a file names the content that other readers handle
TRANSFORMS_AND_IMAGES = (b"TransformGroup", b"ITKImage")  # groups in HDF5 files that Slicer itself loads
STREAMS = (b"V_VP9", b"V_UNCOMPRESSED")  # recorded by SlicerIGSIO, with transforms
UPRIGHT = (-1, -1, 1, 1)  # along R, A, S: the orientation that Slicer's DICOM importer gives a frame
logger = logging.getLogger("Speckle2SelfLib")


class Speckle2SelfFileReader:
    """The reader that Slicer expects as the class `<Module>FileReader`. parent: its qSlicerScriptedFileReader."""

    def __init__(self, parent):
        self.parent = parent

    def description(self) -> str:
        return _("Ultrasound recording")

    def fileType(self) -> str:
        return FILE_TYPE

    def extensions(self) -> list[str]:
        return [f"{name} ({' '.join(f'*{suffix}' for suffix in suffixes)})" for name, suffixes in SUFFIXES.items()]

    def canLoadFileConfidence(self, filePath: str) -> float:
        """Return the confidence that a file is ours, from its name and, if that fits, its content."""
        return confidence(Path(filePath)) if self.parent.supportedNameFilters(filePath) else 0.0

    def load(self, properties: dict) -> bool:
        """Load `properties["fileName"]`; see `load`. Errors become messages for the user."""
        path, said = Path(properties["fileName"]), self.parent.userMessages()
        try:
            with _warnings() as warnings:
                nodes = load(
                    path,
                    str(properties.get("name") or ""),
                    properties.get("dynamicRange"),
                    bool(properties.get("show", True)),
                )
        except Exception as error:
            said.AddMessage(vtk.vtkCommand.ErrorEvent, _sentence(path, error))
            return False
        for text in warnings:
            said.AddMessage(vtk.vtkCommand.WarningEvent, text.replace("--dynamic-range", "property dynamicRange"))
        self.parent.loadedNodes = [node.GetID() for node in nodes]
        return True


def _sentence(path: Path, error: Exception) -> str:
    """Return the message for the user; write errors that are not the user's to the log in full."""
    if isinstance(error, InputError):
        return str(error)
    if out_of_memory(error):
        return _("{path} cannot be loaded: there is not enough memory.").format(path=path)
    logging.exception(f"{path} could not be loaded.")
    return _("{path} cannot be loaded ({error}); see the log.").format(path=path, error=repr(error)[:200])


def confidence(path: Path) -> float:
    """Return 0 for files that are not ours; else a value below that of other readers if these may load more, or above
    it."""
    found = _format(path)
    if found not in NEEDED:
        return 0.0
    with path.open("rb") as file:
        head = file.read(HEAD)
    if found == "HDF5" and _names(head, TRANSFORMS_AND_IMAGES):
        return 0.0
    return AFTER_OTHERS if found == "film" and _names(head, STREAMS) else CERTAIN


def _format(path: Path) -> str:
    """Return the name of the format of a file's content; empty if it is unknown or cannot be read."""
    from Speckle2SelfLib.formats import by_content

    try:
        found = by_content(path)
    except OSError:
        return ""
    return "" if found is None else found.name


def _names(head: bytes, words: tuple[bytes, ...]) -> bool:
    return any(word in head for word in words)


def load(path: Path, name: str, dynamicRange: float | None, show: bool) -> tuple[vtkMRMLNode, ...]:
    """Load a file; return its nodes: a sequence indexed by times (s), and its browser; for one frame, a volume.

    name: of the first node; empty: the file's. dynamicRange: see `formats.signals.to_decibels`. show: if False, no
    browser is created and no view changed. Asks before it installs packages that the file needs. Raises InputError
    and leaves nothing behind.
    """
    from Speckle2SelfLib import files

    if package := NEEDED.get(_format(path)):
        dependencies.ensure_reader(package)
    recording = files.read(path, dynamic_range=dynamicRange)
    scene = slicer.mrmlScene
    name = scene.GenerateUniqueName(name or path.stem)
    count = scene.GetNumberOfNodes()
    try:
        if len(recording.frames) > 1:
            return _addSequence(_sequence(recording, name), _rate(recording.times), show)
        return _addVolume(_volume(recording.frames[0], recording.spacing, name), show)
    except BaseException:
        for node in [scene.GetNthNode(number) for number in range(count, scene.GetNumberOfNodes())]:
            scene.RemoveNode(node)  # the sequence before its proxy, which would be created again
        raise


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect the core's warnings."""
    texts, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: texts.append(record.getMessage())
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)


def _volume(frame: np.ndarray, spacing: tuple[float, ...], name: str = "") -> vtkMRMLVolumeNode:
    """Return a volume, not in the scene, of one frame (H, W[, C]). spacing: (between frames, axial, lateral), mm."""
    node = slicer.vtkMRMLScalarVolumeNode() if frame.ndim == 2 else slicer.vtkMRMLVectorVolumeNode()
    kind = {"e": np.float32, "g": np.float64}.get(frame.dtype.char, frame.dtype.newbyteorder("="))  # type that VTK has
    image = vtk.vtkImageData()
    image.SetDimensions(frame.shape[1], frame.shape[0], 1)
    values = np.ascontiguousarray(frame, kind).reshape(-1, *frame.shape[2:])
    image.GetPointData().SetScalars(numpy_to_vtk(values, deep=True))
    node.SetAndObserveImageData(image)
    node.SetName(name)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.diag(UPRIGHT).ravel())
    node.SetIJKToRASMatrix(matrix)
    node.SetSpacing(spacing[::-1])
    return node


def _sequence(recording, name: str) -> vtkMRMLSequenceNode:
    """Return a sequence, not in the scene, of frames that are read from the disk one after the other."""
    from Speckle2SelfLib.files import release
    from Speckle2SelfLib.formats.base import sequence_times

    values, known = sequence_times(recording, len(recording.frames))
    if known and np.diff(recording.times).min() <= 0:  # index values must be unique
        values, known = [str(number) for number in range(len(values))], False
    sequence = slicer.vtkMRMLSequenceNode()
    sequence.SetName(name)
    sequence.SetIndexName("time" if known else "frame")
    sequence.SetIndexUnit("s" if known else "")
    if known:  # MRML treats times less than a millisecond apart as equal
        nearest = float(np.diff(recording.times).min())
        sequence.SetNumericIndexValueTolerance(min(sequence.GetNumericIndexValueTolerance(), nearest / 10))
    for value, frame in zip(values, recording.frames, strict=True):
        sequence.SetDataNodeAtValue(_volume(frame, recording.spacing), value)
        release(recording.frames)
    return sequence


def _rate(times: np.ndarray | None) -> float:
    """Return frames per second; without times 10, like Slicer."""
    return 10.0 if times is None or times[-1] <= 0 else (len(times) - 1) / float(times[-1])


def _addVolume(volume: vtkMRMLVolumeNode, show: bool) -> tuple[vtkMRMLNode, ...]:
    """Add a volume to the scene."""
    slicer.mrmlScene.AddNode(volume)
    volume.CreateDefaultDisplayNodes()
    if show:
        _show(volume)
    return (volume,)


def _addSequence(sequence: vtkMRMLSequenceNode, rate: float, show: bool) -> tuple[vtkMRMLNode, ...]:
    """Add a sequence to the scene, with a browser if it is to be shown."""
    slicer.mrmlScene.AddNode(sequence)
    if not show:
        return (sequence,)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", f"{sequence.GetName()} browser")
    browser.SetPlaybackRateFps(rate)
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    slicer.modules.sequences.showSequenceBrowser(browser)
    _show(browser.GetProxyNode(sequence))
    return sequence, browser


def _show(volume: vtkMRMLVolumeNode) -> None:
    """Show a volume in all slice views, as Slicer's readers do."""
    logic = slicer.app.applicationLogic()
    logic.GetSelectionNode().SetActiveVolumeID(volume.GetID())
    logic.PropagateVolumeSelection()


class FileReaderTest:
    """The part of the module's self-test that is about this reader; it needs only what Slicer bundles."""

    def test_FileReader(self):
        self.delayDisplay("A moving GIF becomes a sequence with times, and a damaged one nothing")
        from PIL import Image

        frames = (np.arange(3 * 40 * 60) % 251).astype(np.uint8).reshape(3, 40, 60)
        count = slicer.mrmlScene.GetNumberOfNodes()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "Recording.gif"
            first, *others = [Image.fromarray(frame) for frame in frames]
            first.save(path, save_all=True, append_images=others, duration=40)
            damaged = path.with_name("Damaged.gif")
            damaged.write_bytes(path.read_bytes()[:200])
            with self.assertRaises(RuntimeError):
                slicer.util.loadNodeFromFile(str(damaged), FILE_TYPE, {})
            self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)
            self.assertEqual(slicer.app.coreIOManager().fileType(str(path)), FILE_TYPE)
            sequence = slicer.util.loadNodeFromFile(str(path), None, {})
        self.assertEqual(sequence.GetIndexUnit(), "s")
        for number, frame in enumerate(frames):
            self.assertAlmostEqual(float(sequence.GetNthIndexValue(number)), 0.04 * number)
            volume = sequence.GetNthDataNode(number)
            self.assertTrue(np.array_equal(slicer.util.arrayFromVolume(volume)[0], frame))
        browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForSequenceNode(sequence)
        self.assertIsNotNone(browser.GetProxyNode(sequence))
        self.delayDisplay("Test passed")
