"""Films and arrays that are dropped on *Add data*: sequences with times in a browser, and nothing on a failure."""

import sys
import tomllib

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.io import savemat

slicer = pytest.importorskip("slicer")
av = pytest.importorskip("av")
h5py = pytest.importorskip("h5py")
import vtk  # noqa: E402

from HeadlessSlicer import complaints, readers  # noqa: E402
from Speckle2SelfLib import files  # noqa: E402
from Speckle2SelfLib.formats import FORMATS, base  # noqa: E402
from Speckle2SelfLib.formats.base import Recording  # noqa: E402
from Speckle2SelfSlicer import dependencies, file_reader  # noqa: E402

pytestmark = pytest.mark.usefixtures("slicer_app", "no_complaints")
FRAMES = np.random.default_rng(0).integers(1, 255, (5, 34, 50)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(1, 255, (5, 34, 50, 3)).astype(np.uint8)
TIMES = np.arange(5) * 0.04
KIND = "UltrasoundRecordingFile"


@pytest.fixture
def no_complaints():
    """Forget the errors of earlier tests."""
    complaints.heard.clear()


def written(path, frames=FRAMES, times=TIMES, **changes):
    """Return a file as the core writes it."""
    files.write(path, frames, Recording(frames, path.parent / "in", "DICOM", sequence=True, times=times, **changes))
    return path


def matlab(path, frames=FRAMES):
    savemat(path, {"frames": np.moveaxis(frames, 0, -1)})
    return path


def animation(path, frames=FRAMES):
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others, duration=40, loop=0, lossless=True)
    return path


def array(path, frames=FRAMES):
    np.save(path, frames)
    return path


MADE = {
    "cine.mkv": written, "cine.mp4": written, "cine.mov": written, "cine.avi": written, "cine.gif": animation,
    "cine.webp": animation, "cine.npy": array, "cine.npz": written, "cine.mat": matlab, "cine.h5": written,
}  # fmt: skip


def nodes():
    kinds = ("vtkMRMLSequenceNode", "vtkMRMLSequenceBrowserNode", "vtkMRMLVolumeNode", "vtkMRMLStorageNode",
             "vtkMRMLVolumeDisplayNode", "vtkMRMLTransformNode")  # fmt: skip
    return [node for kind in kinds for node in slicer.util.getNodesByClass(kind)]


def shown(sequence):
    volumes = [sequence.GetNthDataNode(i) for i in range(sequence.GetNumberOfDataNodes())]
    return np.stack([slicer.util.arrayFromVolume(volume)[0] for volume in volumes])


def index_values(sequence):
    return [float(sequence.GetNthIndexValue(i)) for i in range(sequence.GetNumberOfDataNodes())]


@pytest.mark.parametrize("name", MADE)
def test_a_dropped_file_is_a_sequence_with_times_in_a_browser(tmp_path, name):
    path = str(MADE[name](tmp_path / name))
    manager = slicer.app.coreIOManager()
    assert manager.fileType(path) == KIND and manager.fileDescriptions(path)[0] == "Ultrasound recording"
    sequence = slicer.util.loadNodeFromFile(path)
    assert sequence.IsA("vtkMRMLSequenceNode") and sequence.GetName() == "cine"
    assert np.array_equal(shown(sequence), FRAMES)
    timed = name not in ("cine.npy", "cine.npz", "cine.mat")
    assert (sequence.GetIndexName(), sequence.GetIndexUnit()) == (("time", "s") if timed else ("frame", ""))
    assert index_values(sequence) == pytest.approx(TIMES if timed else range(5))
    (browser,) = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")
    assert browser.GetMasterSequenceNode() is sequence and browser.GetName() == "cine browser"
    assert browser.GetPlaybackRateFps() == pytest.approx(25 if timed else 10)
    proxy = browser.GetProxyNode(sequence)
    assert slicer.app.applicationLogic().GetSelectionNode().GetActiveVolumeID() == proxy.GetID()
    browser.SetSelectedItemNumber(3)
    assert np.array_equal(slicer.util.arrayFromVolume(proxy)[0], FRAMES[3])
    assert not complaints.heard


@pytest.mark.parametrize("name", ["cine.mkv", "cine.webp", "cine.npy"])
def test_color_recordings_are_vector_volumes(tmp_path, name):
    sequence = slicer.util.loadNodeFromFile(str(MADE[name](tmp_path / name, COLOUR)))
    assert np.array_equal(shown(sequence), COLOUR)
    assert sequence.GetDataNodeClassName() == "vtkMRMLVectorVolumeNode"


@pytest.mark.parametrize("name", ["cine.mkv", "cine.gif", "cine.npy", "cine.mat"])
def test_a_single_frame_is_a_volume(tmp_path, name):
    volume = slicer.util.loadNodeFromFile(str(MADE[name](tmp_path / name, FRAMES[:1])))
    assert volume.IsA("vtkMRMLScalarVolumeNode") and np.array_equal(slicer.util.arrayFromVolume(volume), FRAMES[:1])
    assert volume.GetDisplayNode() and not slicer.util.getNodesByClass("vtkMRMLSequenceNode")
    assert slicer.app.applicationLogic().GetSelectionNode().GetActiveVolumeID() == volume.GetID()


def test_frames_lie_upright_with_their_pixel_size(tmp_path):
    sequence = slicer.util.loadNodeFromFile(str(written(tmp_path / "cine.h5", spacing=(1.0, 0.25, 0.5))))
    volume = sequence.GetNthDataNode(4)
    assert volume.GetSpacing() == pytest.approx((0.5, 0.25, 1))
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASDirectionMatrix(matrix)
    assert [matrix.GetElement(i, i) for i in range(3)] == [-1, -1, 1], "as Slicer's importer of DICOM turns them"


def test_frames_of_five_thousand_a_second_are_all_kept(tmp_path):
    path = written(tmp_path / "cine.h5", times=np.arange(5) / 5000)
    sequence = slicer.util.loadNodeFromFile(str(path))
    assert np.array_equal(shown(sequence), FRAMES) and index_values(sequence) == pytest.approx(np.arange(5) / 5000)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    (again,) = slicer.util.getNodesByClass("vtkMRMLSequenceNode")
    assert np.array_equal(shown(again), FRAMES) and index_values(again) == pytest.approx(np.arange(5) / 5000)


def test_times_that_two_frames_share_become_numbers(tmp_path):
    sequence = slicer.util.loadNodeFromFile(str(written(tmp_path / "cine.h5", times=np.array([0, 1, 1, 2, 3.0]))))
    assert sequence.GetIndexName() == "frame" and index_values(sequence) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", [">u2", ">f4", "f2", "g", "i8", "u8", "i1"])
def test_values_of_every_type_equal_those_of_the_file(tmp_path, kind):
    frames = (FRAMES // 2).astype(kind)
    sequence = slicer.util.loadNodeFromFile(str(array(tmp_path / "cine.npy", frames)))
    assert np.array_equal(shown(sequence), FRAMES // 2)


def test_the_name_and_the_display_are_requested_as_from_other_readers(tmp_path):
    path = str(array(tmp_path / "cine.npy"))
    (sequence,) = slicer.util.loadNodesFromFile(path, KIND, {"name": "Liver", "show": False})
    assert sequence.GetName() == "Liver" and not slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")
    assert slicer.util.loadNodeFromFile(path, KIND, {"name": "Liver"}).GetName() == "Liver_1"


def test_signals_become_decibels_with_a_message_to_the_user(tmp_path):
    signals = np.random.default_rng(0).normal(size=(3, 64, 48, 2)) @ [1, 1j]
    np.save(tmp_path / "iq.npy", signals)
    messages = slicer.vtkMRMLMessageCollection()
    properties = {"fileName": str(tmp_path / "iq.npy"), "dynamicRange": 40.0}
    assert slicer.app.coreIOManager().loadNodes(KIND, properties, None, messages)
    (sequence,) = slicer.util.getNodesByClass("vtkMRMLSequenceNode")
    assert shown(sequence).min() == -40 and shown(sequence).max() == 0
    assert messages.GetNumberOfMessagesOfType(vtk.vtkCommand.WarningEvent) == 1
    assert "converted to decibels, 40 dB below the largest" in messages.GetNthMessageText(0)


def test_a_loaded_film_is_despeckled_and_saved_with_the_scene(tmp_path):
    sequence = slicer.util.loadNodeFromFile(str(written(tmp_path / "cine.mkv")))
    output = slicer.util.getModuleLogic("Speckle2Self").process(sequence, model="median", region="none")
    expected = shown(output)
    assert index_values(output) == index_values(sequence) and not np.array_equal(expected, FRAMES)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    again = {node.GetName(): node for node in slicer.util.getNodesByClass("vtkMRMLSequenceNode")}
    assert np.array_equal(shown(again["cine"]), FRAMES) and index_values(again["cine"]) == pytest.approx(TIMES)
    assert np.array_equal(shown(again["cine despeckled"]), expected)


def test_the_self_test_in_slicer_passes_and_fails_where_the_reader_is_wrong(monkeypatch):
    from Speckle2Self import Speckle2SelfTest

    test, right = Speckle2SelfTest(), file_reader._volume
    test.setUp()
    test.test_FileReader()
    monkeypatch.setattr(file_reader, "_volume", lambda frame, *arguments: right(frame[::-1], *arguments))
    with pytest.raises(AssertionError):
        test.test_FileReader()
    complaints.heard.clear()


#
# Slicer's own formats are left to Slicer
#


def test_files_that_slicer_itself_loads_are_left_to_it(tmp_path):
    transform = sitk.AffineTransform(3)
    for suffix in (".h5", ".mat", ".tfm"):
        sitk.WriteTransform(transform, str(tmp_path / f"transform{suffix}"))
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES), str(tmp_path / "image.nrrd"))
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES[0]), str(tmp_path / "image.png"))
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES), str(tmp_path / "image.tif"))
    sitk.WriteImage(sitk.GetImageFromArray(FRAMES), str(tmp_path / "image.hdf5"), imageIO="HDF5ImageIO")
    manager = slicer.app.coreIOManager()
    for path in tmp_path.iterdir():
        kind = "TransformFile" if path.name.startswith("transform") else "VolumeFile"
        if path.suffix == ".hdf5":
            kind = "TransformFile"  # the name that Slicer's own readers use
        assert manager.fileType(str(path)) == kind, path.name
    loaded = slicer.util.loadNodeFromFile(str(tmp_path / "transform.h5"))
    assert loaded.IsA("vtkMRMLTransformNode")


def test_streams_with_transforms_are_left_to_the_extension_that_reads_them(tmp_path):
    path = tmp_path / "cine.mkv"
    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libvpx-vp9", rate=25)
            stream.height, stream.width, stream.pix_fmt = 34, 50, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(COLOUR[0], format="rgb24")))
            container.mux(stream.encode(None))
    except ValueError:
        pytest.skip("this PyAV does not write VP9")
    assert file_reader.confidence(path) == 0.52 < 0.54 < file_reader.confidence(written(tmp_path / "other.mkv"))
    assert slicer.app.coreIOManager().fileType(str(path)) == KIND, "where that extension is not there"


def test_other_files_with_our_suffixes_are_not_claimed(tmp_path):
    manager = slicer.app.coreIOManager()
    for suffixes in file_reader.SUFFIXES.values():
        for suffix in suffixes:
            path = tmp_path / f"text{suffix}"
            path.write_text("no film")
            assert KIND not in {reader.fileType() for reader in manager._byConfidence(str(path))}
    assert manager.fileType(str(tmp_path / "none.avi")) == "NoFile"


def test_every_suffix_of_these_formats_is_offered():
    offered = {suffix for suffixes in file_reader.SUFFIXES.values() for suffix in suffixes}
    assert offered == {suffix for one in FORMATS if one.name in file_reader.NEEDED for suffix in one.suffixes}


#
# Failures
#


def refused(path, match):
    """Return the message for a file that cannot be loaded; nothing of it may be left."""
    before = nodes()
    with pytest.raises(RuntimeError, match=match) as error:
        slicer.util.loadNodeFromFile(str(path), KIND)
    assert nodes() == before
    lines = [line for line in str(error.value).splitlines()[1:] if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("name", [name for name in MADE if name != "cine.mov"])
def test_a_damaged_file_is_one_sentence_and_leaves_nothing(tmp_path, name):
    path = MADE[name](tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(path) in refused(path, "Failed to load node from file")


def test_an_array_that_is_not_a_recording_is_refused(tmp_path):
    refused(array(tmp_path / "cine.npy", np.zeros((2, 3, 4, 5))), r"an array of shape \(2, 3, 4, 5\)")


def test_a_failure_in_the_scene_leaves_nothing(tmp_path, monkeypatch):
    def fail(browser):
        raise RuntimeError("no tool bar")

    monkeypatch.setattr(slicer.modules.sequences, "showSequenceBrowser", fail, raising=True)
    assert "cannot be loaded (RuntimeError('no tool bar'))" in refused(array(tmp_path / "cine.npy"), "see the log")


def test_too_little_memory_is_one_sentence(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise MemoryError

    path = array(tmp_path / "cine.npy")
    monkeypatch.setattr(file_reader, "numpy_to_vtk", fail)
    refused(path, "not enough memory")


#
# Packages
#


@pytest.fixture
def without(monkeypatch):
    """Simulate a Slicer without a package: keep the requests, and answer."""
    asked, there = [], {"answer": False, "lacking": {"av", "h5py"}}
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)  # Slicer before 5.11 has none
    monkeypatch.setattr(dependencies, "find_spec", lambda name: None if name in there["lacking"] else name)

    def confirm(question, title):
        asked.append(question)
        return there["answer"]

    def install(requirements):
        asked.append(requirements)
        there["lacking"].difference_update(line.split(">=")[0] for line in requirements)

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", confirm)
    monkeypatch.setattr(slicer.util, "pip_install", install)
    return asked, there


@pytest.mark.parametrize("name, package", [("cine.mkv", "av>=12"), ("cine.h5", "h5py>=3.10")])
def test_a_package_is_requested_only_when_a_file_needs_it(tmp_path, without, name, package):
    asked, there = without
    path = MADE[name](tmp_path / name)
    slicer.util.loadNodeFromFile(str(array(tmp_path / "other.npy")))
    slicer.util.loadNodeFromFile(str(animation(tmp_path / "other.gif")))
    assert slicer.app.coreIOManager().fileType(str(path)) == KIND
    assert not asked
    refused(path, f"needs the Python package {package.split('>')[0]}; load the file again and agree")
    assert asked == [f"Speckle2Self needs to install {package}. Install now?"]
    there["answer"] = True
    assert np.array_equal(shown(slicer.util.loadNodeFromFile(str(path))), FRAMES)
    assert asked[2:] == [[package]]


def test_a_package_that_cannot_be_installed_is_one_sentence(tmp_path, without, monkeypatch):
    from subprocess import CalledProcessError

    def fail(requirements):
        raise CalledProcessError(1, ["pip"])

    without[1]["answer"] = True
    monkeypatch.setattr(slicer.util, "pip_install", fail)
    refused(written(tmp_path / "cine.avi"), "Speckle2Self cannot run without av: Command .* exit status 1")


def test_newer_slicer_versions_ask_themselves(tmp_path, without, monkeypatch):
    asked, packaging = [], type(sys)("slicer.packaging")

    def pip_ensure(requirements, requester):
        asked.append((requirements, requester))
        raise RuntimeError("User declined package installation")

    packaging.pip_ensure = pip_ensure
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    refused(written(tmp_path / "cine.avi"), "cannot run without av: User declined package installation")
    assert asked == [(["av>=12"], "Speckle2Self")]


def test_the_packages_match_the_extras(project):
    extras = tomllib.loads((project / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(dependencies.READERS.values()) == sorted([*extras["films"], *extras["hdf5"]])


def test_arrays_and_animations_are_read_with_what_slicer_bundles(project):
    import subprocess

    code = f"""
import sys
for name in ("torch", "tifffile", "imageio", "skimage", "safetensors", "av", "h5py", "nibabel"):
    sys.modules[name] = None
sys.path.insert(0, {str(project / "Speckle2Self")!r})
import Speckle2SelfLib.files
"""
    python = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([sys.prefix + "/bin/python" if sys.platform != "win32" else python, "-c", code], check=True)


def test_a_film_on_the_disk_is_read_frame_by_frame(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "LARGE", 2**10)
    released = []
    monkeypatch.setattr(files, "release", lambda frames: released.append(type(frames)))
    sequence = slicer.util.loadNodeFromFile(str(written(tmp_path / "cine.mkv")))
    assert np.array_equal(shown(sequence), FRAMES) and released == [np.memmap] * 5


#
# The stand-in's readers are as strict as Slicer's
#


def scripted(**methods):
    kind = type("OurFileReader", (), {"__init__": lambda self, parent: setattr(self, "parent", parent), **methods})
    return readers.qSlicerScriptedFileReader("our.py", kind)


@pytest.mark.parametrize("methods, call, nothing", [
    ({"extensions": lambda self: ("*.mft",)}, lambda one: one.extensions(), ()),
    ({"canLoadFile": lambda self, path: 1}, lambda one: one.canLoadFile("x"), False),
    ({"canLoadFileConfidence": lambda self, path: 1}, lambda one: one.canLoadFileConfidence("x"), 0.0),
    ({"load": lambda self, properties: None}, lambda one: one.load({}), False),
    ({"load": lambda self, properties: 1 / 0}, lambda one: one.load({}), False),
])  # fmt: skip
def test_answers_of_another_type_are_ignored_and_logged(methods, call, nothing):
    complaints.heard.clear()
    assert call(scripted(**methods)) == nothing
    assert complaints.heard
    complaints.heard.clear()


def test_the_parent_of_a_reader_has_only_the_attributes_that_slicers_has():
    reader = scripted()
    with pytest.raises(AttributeError):
        reader.nodes = []
    for nodes in ("vtkMRMLSequenceNode1", [3]):
        with pytest.raises(TypeError):
            reader.loadedNodes = nodes
    reader.loadedNodes = ["vtkMRMLSequenceNode1"]
    assert reader.loadedNodes == ("vtkMRMLSequenceNode1",)
    with pytest.raises(ValueError, match="QString"):
        reader.supportedNameFilters(slicer)


def test_a_reader_without_a_confidence_gets_the_confidence_of_the_suffix(tmp_path):
    path = tmp_path / "X.SEQ.MFT"
    path.touch()
    reader = scripted(extensions=lambda self: ["Ours (*.mft *.seq.mft)", "All (*)"])
    assert reader.canLoadFileConfidence(str(path)) == pytest.approx(0.58)
    assert reader.supportedNameFilters(str(path)) == ("Ours (*.mft *.seq.mft)", "All (*)")
    assert reader.canLoadFileConfidence(str(tmp_path / "none.mft")) == 0
    assert scripted().fileType() == "" and scripted().load({}) is False


def test_messages_of_a_reader_begin_with_the_file(tmp_path):
    messages = slicer.vtkMRMLMessageCollection()
    (tmp_path / "x.mha").write_text("no image")
    assert not slicer.app.coreIOManager().loadNodes("NoFile", {"fileName": "none.mft"}, None, messages)
    assert messages.GetNthMessageText(0) == "Loading none.mft -  load failed."
    with pytest.raises(AttributeError, match="not modeled"):
        slicer.app.coreIOManager().loadNodes("TableFile", {"fileName": "none.csv"})
