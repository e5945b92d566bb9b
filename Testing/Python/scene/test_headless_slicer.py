"""The stand-in of Slicer's application: what it provides, how strict it is, and how recordings reach the scene."""

import enum
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Annotated, ClassVar, Optional, Union

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402
from slicer.parameterNodeWrapper import (  # noqa: E402
    Choice,
    Default,
    Minimum,
    WithinRange,
    isParameterNodeWrapper,
    parameterNodeWrapper,
)
from slicer.ScriptedLoadableModule import (  # noqa: E402
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from HeadlessSlicer import loaders, views  # noqa: E402

pytestmark = pytest.mark.usefixtures("slicer_app")
CINE = np.arange(3 * 6 * 8, dtype=np.uint8).reshape(3, 6, 8)


def nodes_of(kind):
    return slicer.util.getNodesByClass(kind)


def voxels(sequence, number):
    return slicer.util.arrayFromVolume(sequence.GetNthDataNode(number))[0]


def index_values(sequence):
    return [sequence.GetNthIndexValue(i) for i in range(sequence.GetNumberOfDataNodes())]


def cine_file(folder, array=CINE):
    path = folder / "cine.npy"
    np.save(path, array)
    return path


# The application


def test_the_scene_starts_with_the_same_nodes_as_in_slicer():
    for identity in (
        "vtkMRMLSelectionNodeSingleton",
        "vtkMRMLInteractionNodeSingleton",
        "vtkMRMLCrosshairNodedefault",
        "vtkMRMLSliceNodeRed",
        "vtkMRMLColorTableNodeGrey",
        "vtkMRMLUnitNodeApplicationLength",
    ):
        assert slicer.mrmlScene.GetNodeByID(identity) is not None
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode") is not None
    assert slicer.mrmlScene is slicer.app.mrmlScene()
    assert slicer.mrmlScene is slicer.app.applicationLogic().GetMRMLScene()


def test_there_is_always_one_subject_hierarchy(tmp_path):
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    assert len(nodes_of("vtkMRMLSubjectHierarchyNode")) == 1
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert len(nodes_of("vtkMRMLSubjectHierarchyNode")) == 1


@pytest.mark.parametrize("name", ["pauseRender", "isInstalled", "nonsense"])
def test_attributes_that_are_not_modeled_raise(name):
    with pytest.raises(AttributeError, match=name):
        getattr(slicer.app, name)


def test_an_unknown_module_raises():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = slicer.modules.nonsense
    with pytest.raises(RuntimeError, match="Could not find module with name 'Nonsense'"):
        slicer.util.getModule("Nonsense")


def test_our_module_has_all_its_names():
    module = slicer.modules.speckle2self
    assert slicer.util.getModule("Speckle2Self") is module
    assert slicer.util.modulePath("Speckle2Self") == module.path
    assert module.path.endswith("Speckle2Self.py")
    assert slicer.moduleNames.Speckle2Self == "Speckle2Self"
    assert "Speckle2Self" in slicer.util.moduleNames()
    assert slicer.modules.Speckle2SelfInstance.parent is module
    assert module.title == "Speckle2Self"
    with pytest.raises(AttributeError):
        module.titel = "a slip"


def test_the_logic_is_created_once_and_kept():
    logic = slicer.util.getModuleLogic("Speckle2Self")
    assert type(logic).__name__ == "Speckle2SelfLogic"
    assert slicer.util.getModuleLogic(slicer.modules.speckle2self) is logic
    assert slicer.modules.speckle2self.logic().GetClassName() == "vtkSlicerScriptedLoadableModuleLogic"


def test_the_logics_of_core_modules_are_the_real_ones():
    assert slicer.util.getModuleLogic("Sequences").GetClassName() == "vtkSlicerSequencesLogic"
    assert slicer.modules.volumes.logic().GetClassName() == "vtkSlicerVolumesLogic"
    assert slicer.modules.volumes.logic().GetMRMLScene() is slicer.mrmlScene


def test_errors_are_shown_and_raised_again(caplog, monkeypatch):
    monkeypatch.setattr(slicer.app, "_testing", False)
    with pytest.raises(ValueError, match="broken"), slicer.util.tryWithErrorDisplay("It failed."):
        raise ValueError("broken")
    assert "It failed.\n\nbroken" in caplog.text


def test_temporary_folders_lie_in_the_applications_folder():
    folder = slicer.util.tempDirectory()
    assert os.path.isdir(folder)
    assert os.path.dirname(folder) == slicer.app.temporaryPath
    assert slicer.util.settingsValue("Developer/DeveloperMode", 7) == 7


# Logic and self-test classes


class ThingLogic(ScriptedLoadableModuleLogic):
    pass


def test_a_logic_has_one_parameter_node_which_it_finds_again():
    node = ThingLogic().getParameterNode()
    assert node.GetClassName() == "vtkMRMLScriptedModuleNode"
    assert (node.GetAttribute("ModuleName"), node.GetSingletonTag()) == ("Thing", "Thing")
    assert ThingLogic().getParameterNode() is node
    assert ThingLogic().getAllParameterNodes() == [node]


def test_a_logic_may_have_many_parameter_nodes():
    logic = ThingLogic()
    logic.isSingletonParameterNode = False
    first = logic.getParameterNode()
    second = slicer.mrmlScene.AddNode(logic.createParameterNode())
    assert logic.getParameterNode() is first
    assert logic.getAllParameterNodes() == [first, second]
    assert first.GetName() != second.GetName()


def test_a_self_test_runs_each_of_its_tests():
    class ThingTest(ScriptedLoadableModuleTest):
        done: ClassVar[list] = []

        def setUp(self):
            self.done.append("setUp")

        def test_one(self):
            self.delayDisplay("one")
            self.done.append("one")

        def test_two(self):
            self.done.append("two")

    ThingTest().runTest()
    assert ThingTest.done == ["setUp", "one", "setUp", "two"]


# Parameter nodes


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


@parameterNodeWrapper
class Parameters:
    count: int
    factor: Annotated[float, WithinRange(0, 1)] = 0.5
    kind: Annotated[str, Choice(["a", "b"])] = "a"
    on: bool = True
    folder: pathlib.Path
    colour: Colour
    size: Annotated[int, Minimum(1), Default(4)]
    volume: slicer.vtkMRMLScalarVolumeNode
    either: Union[slicer.vtkMRMLSequenceNode, slicer.vtkMRMLScalarVolumeNode, None]  # noqa: UP007
    limit: Optional[float]  # noqa: UP045


def parameters():
    node = ThingLogic().getParameterNode()
    return Parameters(node), node


def test_members_have_their_defaults():
    p, _ = parameters()
    assert (p.count, p.factor, p.kind, p.on, p.size) == (0, 0.5, "a", True, 4)
    assert (p.folder, p.colour) == (pathlib.Path(), Colour.RED)
    assert (p.volume, p.either, p.limit) == (None, None, None)
    assert isParameterNodeWrapper(p)


def test_members_are_stored_as_slicer_stores_them():
    p, node = parameters()
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode")
    p.factor, p.on, p.colour, p.folder = 1, False, Colour.GREEN, pathlib.Path("a/b")
    p.volume = p.either = volume
    p.limit = 2.5
    stored = {name: node.GetParameter(name) for name in node.GetParameterNames()}
    assert stored == {
        "count": "0",
        "factor": "1",
        "kind": "a",
        "on": "False",
        "folder": str(pathlib.Path("a/b")),
        "colour": "GREEN",
        "size": "4",
        "volume": "",
        "either.1": "",
        "limit.0": "2.5",
    }
    assert node.GetNodeReferenceID("volume") == node.GetNodeReferenceID("either.1") == volume.GetID()
    p.either = p.limit = None
    assert {"either.2", "limit.1"} < set(node.GetParameterNames())
    assert not node.HasParameter("either.1")
    assert node.GetNodeReferenceID("either.1") is None


def test_another_wrapper_over_the_node_sees_the_same_values():
    p, node = parameters()
    p.kind = "b"
    assert Parameters(node).kind == "b"
    assert Parameters(node, prefix="other.").kind == "a"
    assert node.GetParameter("other.kind") == "a"


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("count", 1.5, TypeError),
        ("count", None, ValueError),
        ("factor", 1.01, ValueError),
        ("kind", "c", ValueError),
        ("on", 1, TypeError),
        ("size", 0, ValueError),
        ("volume", "US", TypeError),
        ("either", 3, TypeError),
        ("limit", "high", TypeError),
    ],
)
def test_a_wrong_value_is_refused_and_the_old_one_kept(name, value, error):
    p, _ = parameters()
    before = getattr(p, name)
    with pytest.raises(error):
        setattr(p, name, value)
    assert getattr(p, name) == before


def test_a_change_is_announced_once_with_the_new_value():
    p, _ = parameters()
    seen = []
    tag = p.AddObserver("ModifiedEvent", lambda caller, event: seen.append(p.either))
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    p.either = volume
    p.RemoveObserver(tag)
    assert seen == [volume]


def test_values_are_reached_by_name():
    p, _ = parameters()
    p.setValue("count", 3)
    assert p.getValue("count") == p.count == 3
    assert p.default("size").value == 4
    assert Parameters.dataType("on") is bool
    with pytest.raises(ValueError, match="nonsense"):
        p.getValue("nonsense")


@pytest.mark.skipif("SLICER_SOURCE" in os.environ, reason="Slicer's own layer stores lists; ours does not model them")
def test_types_that_cannot_be_stored_are_refused_with_the_class():
    with pytest.raises(TypeError, match="list"):

        @parameterNodeWrapper
        class WithList:
            names: list[str]


def test_a_reserved_name_is_refused_with_the_class():
    with pytest.raises(ValueError, match="reserved"):

        @parameterNodeWrapper
        class WithReservedName:
            default: int


def test_parameters_are_restored_with_the_saved_scene(tmp_path):
    p, _ = parameters()
    p.volume = slicer.util.addVolumeFromArray(CINE, name="US")
    p.factor = 0.25
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    again, _ = parameters()
    assert again.factor == 0.25
    assert again.volume.GetName() == "US"
    assert np.array_equal(slicer.util.arrayFromVolume(again.volume), CINE)


# Files


def test_saving_into_a_missing_folder_fails_with_a_message(tmp_path, caplog):
    assert not slicer.util.saveScene(str(tmp_path / "none" / "scene.mrb"))
    assert "not writeable" in caplog.text


def test_a_volume_is_saved_and_loaded_by_its_real_storage(tmp_path):
    volume = slicer.util.addVolumeFromArray(CINE, name="US")
    assert slicer.util.saveNode(volume, str(tmp_path / "us.nrrd"))
    again = slicer.util.loadVolume(str(tmp_path / "us.nrrd"))
    assert again.GetName() == "us"
    assert np.array_equal(slicer.util.arrayFromVolume(again), CINE)
    active = slicer.app.applicationLogic().GetSelectionNode().GetActiveVolumeID()
    assert active == again.GetID()


def test_a_sequence_file_is_loaded_with_browser_and_proxy(tmp_path):
    sequence = loaders.load(cine_file(tmp_path))
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVolumeSequenceStorageNode")
    storage.SetFileName(str(tmp_path / "cine.seq.nrrd"))
    assert storage.WriteData(sequence)
    slicer.mrmlScene.Clear()
    again = slicer.util.loadSequence(str(tmp_path / "cine.seq.nrrd"))
    assert index_values(again) == ["0", "1", "2"]
    assert np.array_equal(voxels(again, 2), CINE[2])
    (browser,) = nodes_of("vtkMRMLSequenceBrowserNode")
    assert browser.GetProxyNode(again).IsA("vtkMRMLScalarVolumeNode")


def test_the_type_of_a_nrrd_file_is_found_in_its_header(tmp_path):
    head = "NRRD0004\ntype: uint8\ndimension: {}\nkinds: {}\n\n"
    manager = slicer.app.coreIOManager()
    for dimension, kinds, kind in (
        (4, "domain domain domain list", "SequenceFile"),
        (4, "vector domain domain domain", "VolumeFile"),
        (3, "domain domain domain", "VolumeFile"),
    ):
        (tmp_path / "x.nrrd").write_text(head.format(dimension, kinds))
        assert manager.fileType(str(tmp_path / "x.nrrd")) == kind


@pytest.mark.parametrize("name", ["none.mha", "text.mha", "text.dcm", "text.npy", "text.igs.mha", "empty.nrrd"])
def test_unreadable_files_are_reported_in_one_sentence(tmp_path, capfd, name):
    (tmp_path / "text.mha").write_text("no image")
    (tmp_path / "text.dcm").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "text.igs.mha").write_text("no image")
    (tmp_path / "empty.nrrd").write_text("")
    with pytest.raises(ValueError, match=name) as error:
        loaders.load(tmp_path / name)
    assert str(error.value).count("\n") == 0
    assert capfd.readouterr().err == ""
    assert nodes_of("vtkMRMLVolumeNode") == nodes_of("vtkMRMLSequenceNode") == []


def test_an_array_without_frames_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2, 5\)"):
        loaders.load(cine_file(tmp_path, np.zeros((2, 2, 2, 5))))


# Recordings


def test_a_dicom_cine_is_a_sequence_of_color_volumes_turned_upright():
    import pydicom.examples

    path = pydicom.examples.get_path("ybr_color")
    sequence = loaders.load(path)
    assert sequence.GetName() == "1: US [16117]"
    assert (sequence.GetIndexName(), sequence.GetIndexUnit()) == ("frame", "")
    assert index_values(sequence)[:3] == ["0", "1", "2"]
    (browser,) = nodes_of("vtkMRMLSequenceBrowserNode")
    assert browser.GetName() == "1: US [16117] browser"
    volume = browser.GetProxyNode(sequence)
    assert volume.GetClassName() == "vtkMRMLVectorVolumeNode"
    assert volume.GetSpacing()[2] == 1
    assert volume.GetSpacing()[0] == pytest.approx(0.5105, abs=1e-4)
    assert volume.GetAttribute("DICOM.instanceUIDs") == str(pydicom.examples.ybr_color.SOPInstanceUID)
    to_ras = vtk.vtkMatrix4x4()
    volume.GetIJKToRASDirectionMatrix(to_ras)
    assert [to_ras.GetElement(i, i) for i in range(3)] == [-1, -1, 1]
    frame = pydicom.examples.ybr_color.pixel_array[29]
    if not hasattr(pydicom.Dataset, "set_pixel_data"):  # pydicom 2.4, as in Slicer 5.10, converts nothing
        frame = pydicom.pixel_data_handlers.convert_color_space(frame, "YBR_FULL", "RGB")
    assert np.array_equal(voxels(sequence, 29), frame)


def test_a_dicom_cine_has_times_where_the_reader_reports_them(monkeypatch):
    import pydicom.examples

    monkeypatch.setattr(loaders, "_dicomFrames", lambda path, grey: (CINE, 40.0))
    sequence = loaders.load(pydicom.examples.get_path("ybr_color"))
    assert (sequence.GetIndexName(), sequence.GetIndexUnit()) == ("time", "s")
    assert index_values(sequence) == ["0.000", "0.040", "0.080"]
    (browser,) = nodes_of("vtkMRMLSequenceBrowserNode")
    assert browser.GetPlaybackRateFps() == 25


def test_a_grey_dicom_image_is_a_sequence_of_scalar_volumes(tmp_path):
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, UltrasoundMultiFrameImageStorage, generate_uid

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = UltrasoundMultiFrameImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Modality, data.SeriesDescription = "US", "Carotid"
    data.PhotometricInterpretation, data.SamplesPerPixel = "MONOCHROME2", 1
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.NumberOfFrames, data.Rows, data.Columns = CINE.shape
    data.PixelData = CINE.tobytes()
    if hasattr(data, "set_pixel_data"):
        data.save_as(tmp_path / "grey.dcm", enforce_file_format=True)
    else:  # pydicom 2.4, as in Slicer 5.10
        data.is_little_endian, data.is_implicit_VR = True, False
        data.save_as(tmp_path / "grey.dcm", write_like_original=False)
    sequence = loaders.load(tmp_path / "grey.dcm")
    assert sequence.GetName() == "US Carotid"
    assert sequence.GetNthDataNode(0).GetClassName() == "vtkMRMLScalarVolumeNode"
    assert np.array_equal(voxels(sequence, 1), CINE[1])


def tracked_file(folder, orientation="MF"):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(CINE)
    image.SetMetaData("UltrasoundImageOrientation", orientation)
    for number, (time, x) in enumerate((("10.5", 1), ("10.6000004", 2), ("10.75", 3))):
        field = f"Seq_Frame{number:04}_"
        image.SetMetaData(field + "ProbeToTrackerTransform", f"1 0 0 {x} 0 1 0 0 0 0 1 0 0 0 0 1")
        image.SetMetaData(field + "ProbeToTrackerTransformStatus", "OK")
        image.SetMetaData(field + "Timestamp", time)
    path = folder / "tracked.igs.mha"
    sitk.WriteImage(image, str(path))
    return path


def test_a_tracked_recording_is_images_and_transforms_in_one_browser(tmp_path):
    images = loaders.load(tracked_file(tmp_path))
    assert images.GetName() == "tracked-Image-Seq"
    assert (images.GetIndexName(), images.GetIndexUnit()) == ("time", "s")
    assert index_values(images) == ["10.5", "10.6", "10.75"]
    assert images.GetNthDataNode(2).GetName() == "Image_2"
    assert np.array_equal(voxels(images, 1), CINE[1])
    (browser,) = nodes_of("vtkMRMLSequenceBrowserNode")
    assert browser.GetName() == "tracked"
    assert browser.GetMasterSequenceNode() is images
    transforms = slicer.mrmlScene.GetFirstNodeByName("tracked-ProbeToTracker-Seq")
    browser.SetSelectedItemNumber(2)
    probe = browser.GetProxyNode(transforms)
    assert probe.GetMatrixTransformToParent().GetElement(0, 3) == 3


def test_a_tracked_recording_is_turned_to_the_usual_orientation(tmp_path):
    images = loaders.load(tracked_file(tmp_path, "UN"))
    assert np.array_equal(voxels(images, 0), CINE[0, ::-1, ::-1])


def test_real_tracked_recordings_keep_all_frames(shared_data):
    images = loaders.load(shared_data / "plus" / "BoneUltrasound_L14.igs.mha")
    assert images.GetNumberOfDataNodes() == 21
    assert index_values(images)[0] == "232.542"
    names = [node.GetName() for node in nodes_of("vtkMRMLSequenceNode")]
    assert "BoneUltrasound_L14-StylusToTracker-Seq" in names


# Pictures


def test_a_slice_view_shows_the_image_upright_in_its_window():
    ramp = np.zeros((1, 40, 60), np.uint8)
    ramp[0, :20] = 200  # above
    ramp[0, :, 30:] //= 2  # right
    volume = slicer.util.addVolumeFromArray(ramp)
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevel(200, 100)
    seen = views.sliceView(volume, (120, 80))
    assert seen.shape == (80, 120, 3)
    assert abs(int(seen[20, 30, 0]) - 255) <= 1
    assert abs(int(seen[20, 90, 1]) - 128) <= 1
    assert seen[60, 60].tolist() == [0, 0, 0]


def test_a_closer_view_is_centered_where_requested():
    image = np.zeros((1, 40, 60), np.uint8)
    image[0, 10, 45] = 255
    seen = views.sliceView(slicer.util.addVolumeFromArray(image), (60, 40), 4, (45 / 59, 10 / 39))
    bright = np.argwhere(seen[..., 0] > 100)
    assert np.allclose(bright.mean(0), (20, 30), atol=1)
    assert 3 <= np.ptp(bright[:, 0]) <= 9  # one pixel, four times as large


def test_two_volumes_are_arranged_side_by_side():
    pair = [slicer.util.addVolumeFromArray(CINE, name=name) for name in ("one", "two")]
    views.arrange(pair)
    shown = {node.GetLayoutName(): node for node in nodes_of("vtkMRMLSliceCompositeNode")}
    assert [shown[name].GetBackgroundVolumeID() for name in ("Red", "Yellow")] == [v.GetID() for v in pair]


# The launcher


def launch(project, *arguments, **environment):
    command = [str(project / "Testing" / "headless-slicer"), *map(str, arguments)]
    environment = {**os.environ, "HEADLESS_SLICER_PYTHON": sys.executable, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", timeout=60)


def test_a_script_runs_as_in_slicer(project, tmp_path):
    (tmp_path / "beside.py").write_text("value = 5")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, beside\n"
        "print(__name__, __file__ == sys.argv[0], sys.argv[1:], beside.value, vtk.vtkObject.__name__)\n"
        "print(slicer.mrmlScene.GetClassName(), slicer.modules.speckle2self.name)\n"
        "slicer.util.exit(3)\n"
        "print('still here')\n"
    )
    done = launch(project, script, "a", "--b")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "__main__ True ['a', '--b'] 5 vtkObject",
        "vtkMRMLScene Speckle2Self",
        "still here",
    ]
    assert done.returncode == 3


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_nothing_is_left_in_the_temporary_folder(project, tmp_path):
    """At its end, an application removes its own files; a killed one leaves them to the next."""
    script, temporary = tmp_path / "script.py", tmp_path / "temporary"
    temporary.mkdir()
    script.write_text("import os, sys\nprint(slicer.app.temporaryPath)\nos.kill(os.getpid(), int(sys.argv[1]))")
    assert launch(project, script, signal.SIGKILL.value, TMPDIR=str(temporary)).returncode != 0
    (left,) = temporary.iterdir()
    mine, running = temporary / "HeadlessSlicer-of-mine", temporary / f"HeadlessSlicer-{os.getpid()}-x"
    mine.mkdir()
    running.mkdir()
    done = launch(project, script, 0, TMPDIR=str(temporary))
    assert done.returncode == 0 and done.stdout.startswith(str(temporary))
    assert not left.exists() and set(temporary.iterdir()) == {mine, running}


def test_without_a_window_qt_is_not_available(project, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "print(slicer.app.layoutManager(), slicer.app.topLevelWidgets(), slicer.util.mainWindow())\n"
        "from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget\n"
        "ScriptedLoadableModuleWidget()"
    )
    done = launch(project, script)
    assert done.stdout == "None [] None\n"
    assert "ModuleNotFoundError: No module named 'qt'" in done.stderr


def test_other_module_folders_replace_ours(project, tmp_path):
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "Other.py").write_text(
        "from slicer.ScriptedLoadableModule import *\n"
        "class Other(ScriptedLoadableModule):\n"
        "    def __init__(self, parent):\n        super().__init__(parent)\n        parent.title = 'Other'\n"
        "class OtherWidget(ScriptedLoadableModuleWidget):\n    pass\n"
        "class OtherLogic(ScriptedLoadableModuleLogic):\n    pass\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "print(slicer.util.getModuleLogic('Other').moduleName, hasattr(slicer.modules, 'speckle2self'))\n"
        "raise KeyError('the end')"
    )
    done = launch(project, "--additional-module-paths", modules, script)
    assert done.stdout == "Other False\n"
    assert "KeyError: 'the end'" in done.stderr
    assert done.returncode == 1


def test_a_missing_system_library_is_reported_in_one_line_with_its_package(project, tmp_path):
    (tmp_path / "slicer.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')"
    )
    script = tmp_path / "script.py"
    script.write_text("")
    done = launch(project, script, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "libGL.so.1" in done.stderr
    assert "apt-get install" in done.stderr


# Slicer's own Python layer


def test_a_checkout_of_slicer_replaces_our_python_layer(project, tmp_path):
    python = tmp_path / "Base" / "Python" / "slicer"
    shutil.copytree(project / "Testing" / "HeadlessSlicer" / "slicer_python", python)
    (python / "util.py").write_text(pathlib.Path(slicer.util.__file__).read_text() + "\nmark = 'the checkout'\n")
    (tmp_path / "CMakeLists.txt").write_text('set(Slicer_VERSION_MAJOR "5")\nset(Slicer_VERSION_MINOR "12")\n')
    (tmp_path / "script.py").write_text(
        "import slicer.i18n, slicer.parameterNodeWrapper, slicer.ScriptedLoadableModule\n"
        "parts = slicer.util, slicer.i18n, slicer.parameterNodeWrapper, slicer.ScriptedLoadableModule\n"
        "print(slicer.util.mark, slicer.app.applicationVersion)\n"
        f"print(all(part.__file__.startswith({str(python)!r}) for part in parts))\n"
    )
    done = launch(project, "--main-window", tmp_path / "script.py", SLICER_SOURCE=str(tmp_path))
    assert done.stdout.splitlines() == ["the checkout 5.12.0", "True"]


def test_a_folder_that_is_not_a_checkout_is_reported_in_one_line(project, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("print('started')")
    done = launch(project, "--main-window", script, SLICER_SOURCE=str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1 and "SLICER_SOURCE" in done.stderr
