"""The stand-in of Slicer's application where the real one surprises: code that passes here must run there."""

import logging
import os
import shutil
import signal
import subprocess
import sys
from typing import Annotated

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
import ctk  # noqa: E402
import qt  # noqa: E402
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper  # noqa: E402
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic  # noqa: E402

from HeadlessSlicer import complaints, dialogs, pythonqt  # noqa: E402

pytestmark = pytest.mark.usefixtures("slicer_app")
SCALAR, VECTOR = "vtkMRMLScalarVolumeNode", "vtkMRMLVectorVolumeNode"


@pytest.fixture
def heard():
    """Return the errors and warnings in Slicer's log."""
    complaints.heard.clear()
    yield complaints.heard
    complaints.heard.clear()


@pytest.fixture
def shown(monkeypatch):
    """Return the boxes that are shown outside of testing mode."""
    monkeypatch.setattr(slicer.app, "_testing", False)
    for kept in (dialogs.asked, dialogs.answers, pythonqt.errors):
        kept.clear()
    yield dialogs.asked
    for kept in (dialogs.asked, dialogs.answers, pythonqt.errors):
        kept.clear()


def volume(name="US", kind=SCALAR):
    return slicer.mrmlScene.AddNewNodeByClass(kind, name)


#
# The launcher of child processes
#


def launched(code, **keywords):
    command = [shutil.which("PythonSlicer"), "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **keywords)


def test_child_processes_are_started_by_a_program_on_the_path():
    assert shutil.which("PythonSlicer") == sys.executable
    assert os.path.basename(sys.executable) == "PythonSlicer"


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_the_launcher_passes_exit_codes_on(code):
    done = launched(f"raise SystemExit({code})")
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
def test_a_killed_child_is_reported_as_exit_code_1(name):
    done = launched(f"import os, signal\nos.kill(os.getpid(), signal.{name})")
    assert done.returncode == 1
    assert done.stderr.endswith("exit abnormally - Report the problem.\n")


def test_the_launcher_passes_standard_input_and_output_on():
    done = launched("import sys\nprint(sys.stdin.read()[::-1], end='')", input="abc")
    assert done.stdout == "cba"


def test_killing_only_the_launcher_leaves_the_child_and_killing_the_group_does_not():
    code = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    for whole in (False, True):
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        child = int(process.stdout.readline())
        assert child != process.pid
        (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
        if whole:
            assert process.stdout.read() == b""  # the pipe closes, so the child has ended
        else:
            os.kill(child, signal.SIGKILL)  # while it exists
        process.stdout.close()


def test_a_process_of_qt_is_started_the_same_way():
    process = qt.QProcess()
    process.start(shutil.which("PythonSlicer"), ["-c", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"])
    assert process.waitForFinished(20000)
    assert process.exitCode() == 1
    assert b"exit abnormally" in process.readAllStandardError().data()


#
# Boxes
#


def test_timers_run_while_a_box_is_open(shown):
    ticks, timer = [], qt.QTimer()
    timer.setInterval(1)
    timer.timeout.connect(lambda: ticks.append(len(shown)))
    timer.start()
    slicer.util.infoDisplay("Look.")
    timer.stop()
    assert ticks.count(1) > 2  # after the box came up, before the user closed it


def test_an_error_is_shown_with_timers_running_and_raised_again(shown):
    order, timer = [], qt.QTimer()
    timer.setSingleShot(True)
    timer.timeout.connect(lambda: order.append("timer"))
    with pytest.raises(ValueError, match="broken"), slicer.util.tryWithErrorDisplay("It failed."):
        timer.start(1)
        raise ValueError("broken")
    order.append("raised")
    assert order == ["timer", "raised"]
    assert shown == [("message", "It failed.\n\nbroken")]


def test_a_step_of_a_timer_may_open_a_second_box_over_the_first(shown):
    timer = qt.QTimer()
    timer.timeout.connect(lambda: slicer.util.errorDisplay("Second."))
    timer.start(1)
    slicer.util.errorDisplay("First.")
    timer.stop()
    assert [text for _, text in shown][:2] == ["First.", "Second."]


def test_file_dialogs_let_timers_run_and_return_the_users_choice(shown):
    ticks, timer = [], qt.QTimer()
    timer.timeout.connect(lambda: ticks.append(1))
    timer.start(1)
    dialogs.answers["save"] = "/tmp/figures.csv"
    assert qt.QFileDialog.getSaveFileName(None, "Export") == "/tmp/figures.csv"
    timer.stop()
    assert ticks


#
# PythonQt
#


def test_lists_of_nodes_widgets_and_texts_are_tuples():
    selector = slicer.qMRMLCheckableNodeComboBox()
    selector.nodeTypes = [SCALAR]
    selector.setMRMLScene(slicer.mrmlScene)
    node = volume()
    selector.setCheckState(node, qt.Qt.Checked)
    assert selector.checkedNodes() == (node,)
    assert selector.nodeTypes == (SCALAR,)
    assert selector.uncheckedNodes() == ()
    assert isinstance(selector.children(), tuple)
    assert isinstance(slicer.app.layoutManager().sliceViewNames(), tuple)


def test_methods_refuse_keywords():
    with pytest.raises(ValueError, match="does not support kwargs"):
        qt.QLabel().setText(text="a")
    assert qt.QLabel(text="a").text == "a"


def test_values_of_an_enumeration_belong_to_its_class():
    assert qt.QMessageBox.Ok == qt.QMessageBox.StandardButton(qt.QMessageBox.Ok)
    with pytest.raises(AttributeError, match="its class has it"):
        _ = qt.QMessageBox.StandardButton.Ok
    with pytest.raises(AttributeError, match="its class has it"):
        _ = qt.Qt.CheckState.Checked


def test_a_painter_has_only_methods_and_must_be_ended():
    picture = qt.QPixmap(8, 6)
    picture.fill(qt.QColor("white"))
    pen = qt.QPainter(picture)
    with pytest.raises(AttributeError):
        pen.width = 3
    with pytest.raises(TypeError), pen:
        pass
    pen.setPen(qt.QColor("#ff0000"))
    pen.drawLine(0, 0, 7, 0)
    pen.end()
    assert picture.toImage().pixelColor(3, 0).name() == "#ff0000"
    pythonqt.errors.clear()
    pen = qt.QPainter(picture)
    del pen
    (error,) = pythonqt.errors
    pythonqt.errors.clear()
    assert "end()" in str(error)


#
# Selectors of nodes
#


@pytest.fixture
def selector():
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = [SCALAR, VECTOR]
    selector.noneEnabled = True
    selector.setMRMLScene(slicer.mrmlScene)
    yield selector
    selector.setMRMLScene(None)


def rows(selector):
    box = selector._qt._box
    return [box.itemText(number) for number in range(box.count())]


def click(selector, text):
    selector._qt._chosen(rows(selector).index(text))


def test_rows_below_the_nodes_are_actions(selector):
    volume("US")
    scalar, vector = (f"Create new {slicer.mrmlScene.GetTypeDisplayNameByClassName(kind)}" for kind in (SCALAR, VECTOR))
    assert rows(selector) == ["None", "US", "", scalar, vector, "Delete current node"]
    selector.renameEnabled = True
    selector.removeEnabled = False
    assert rows(selector)[3:] == ["Rename current node", scalar, f"{scalar} as...", vector, f"{vector} as..."]
    assert selector.nodeCount() == 1


def test_a_row_that_deletes_removes_the_node_from_the_scene(selector):
    node = volume("US")
    selector.setCurrentNode(node)
    click(selector, "Delete current node")
    assert slicer.mrmlScene.GetFirstNodeByName("US") is None
    assert selector.currentNode() is None


def test_a_row_that_creates_signals_twice_in_the_oldest_release(selector, monkeypatch):
    added = []
    selector.connect("nodeAddedByUser(vtkMRMLNode*)", added.append)
    monkeypatch.setattr(slicer.app, "minorVersion", 12)
    click(selector, "Create new Volume")
    assert [node.GetClassName() for node in added] == [SCALAR]
    assert selector.currentNode() is added[0]
    monkeypatch.setattr(slicer.app, "minorVersion", 10)
    click(selector, "Create new Volume")
    assert added[1:] == [selector.currentNode()] * 2


def test_a_base_name_set_before_the_node_types_is_lost(selector, heard):
    early = slicer.qMRMLNodeComboBox()
    early.baseName = "Box"
    assert len(heard) == 1 and "no node types have been set yet" in heard[0]
    early.nodeTypes = [SCALAR]
    assert early.baseName == ""
    early.baseName = "Box"
    early.setMRMLScene(slicer.mrmlScene)
    assert early.addNode().GetName() == "Box"


def test_properties_of_a_ui_file_are_set_in_its_order(tmp_path, heard):
    name = '<property name="baseName"><string>Box</string></property>'
    kinds = f'<property name="nodeTypes"><stringlist><string>{SCALAR}</string></stringlist></property>'
    for number, order in enumerate((name + kinds, kinds + name)):
        path = tmp_path / f"{number}.ui"
        path.write_text(
            '<ui version="4.0"><class>Panel</class><widget class="qMRMLWidget" name="Panel">'
            '<layout class="QVBoxLayout">'
            f'<item><widget class="qMRMLNodeComboBox" name="box">{order}</widget></item></layout></widget></ui>'
        )
        ui = slicer.util.childWidgetVariables(slicer.util.loadUI(str(path)))
        assert ui.box.baseName == ("", "Box")[number]
    assert len(heard) == 1


def test_the_rows_follow_the_scene_in_batch_processing(selector):
    slicer.mrmlScene.StartState(slicer.mrmlScene.BatchProcessState)
    node = volume("US")
    assert selector.nodeCount() == 1
    selector.setCurrentNode(node)
    slicer.mrmlScene.RemoveNode(node)
    assert selector.currentNode() is None
    slicer.mrmlScene.EndState(slicer.mrmlScene.BatchProcessState)


def test_a_choice_made_before_the_scene_is_set_is_kept():
    early, node = slicer.qMRMLNodeComboBox(), volume()
    early.nodeTypes = [SCALAR]
    early.noneEnabled = True
    early.setCurrentNode(node)
    assert early.currentNode() is None
    early.setMRMLScene(slicer.mrmlScene)
    assert early.currentNode() is node


def test_the_removal_of_a_checked_node_is_noticed_with_the_next_change():
    selector, told = slicer.qMRMLCheckableNodeComboBox(), []
    selector.nodeTypes = [SCALAR]
    selector.setMRMLScene(slicer.mrmlScene)
    assert not (selector.addEnabled or selector.removeEnabled)
    first, second = volume("one"), volume("two")
    selector.connect("checkedNodesChanged()", lambda: told.append(selector.checkedNodes()))
    selector.setCheckState(first, qt.Qt.Checked)
    selector.setCheckState(first, qt.Qt.Checked)
    assert told == [(first,)]
    slicer.mrmlScene.RemoveNode(first)
    assert selector.checkedNodes() == () and len(told) == 1
    second.Modified()
    assert told[1:] == [()]


#
# Parameter nodes
#


@parameterNodeWrapper
class Parameters:
    factor: Annotated[float, WithinRange(0, 1)] = 0.5
    volume: slicer.vtkMRMLScalarVolumeNode


class ThingLogic(ScriptedLoadableModuleLogic):
    pass


def test_values_are_cached_until_the_node_signals_that_it_was_modified():
    node = ThingLogic().getParameterNode()
    one, two = Parameters(node), Parameters(node)
    with slicer.util.NodeModify(node):
        one.factor = 0.25
        assert (one.factor, two.factor) == (0.25, 0.5)
    assert two.factor == 0.25
    node.DisableModifiedEventOn()
    node.SetParameter("factor", "0.75")
    assert one.factor == 0.25
    node.DisableModifiedEventOff()
    node.Modified()
    assert one.factor == 0.75
    assert Parameters(node).isCached("factor")


def test_a_later_observer_is_called_first_and_still_sees_the_old_value():
    node = ThingLogic().getParameterNode()
    wrapper = Parameters(node)
    seen = []
    tag = wrapper.AddObserver("ModifiedEvent", lambda caller, event: seen.append(wrapper.factor))
    node.SetParameter("factor", "0.125")
    wrapper.RemoveObserver(tag)
    assert (seen, wrapper.factor) == ([0.5], 0.125)


def test_gui_tags_count_from_0():
    wrapper = Parameters(ThingLogic().getParameterNode())
    boxes = [qt.QDoubleSpinBox() for _ in range(2)]
    tags = [wrapper.connectParametersToGui({"factor": box}) for box in boxes]
    assert tags == [0, 1]
    wrapper.disconnectGui(0)
    boxes[0].value = 0.75
    assert wrapper.factor == 0.5
    boxes[1].value = 0.25
    assert wrapper.factor == 0.25
    assert wrapper.connectParametersToGui({"factor": boxes[0]}) == 2


#
# Modules
#


MODULE = """
import slicer
from slicer.ScriptedLoadableModule import *
class {name}(ScriptedLoadableModule):
    def __init__(self, parent):
        super().__init__(parent)
        parent.title = "{name}"
        parent.dependencies = {dependencies}
        print("made {name}")
    def setup(self):
        print("loaded {name}")
"""


def loaded(tmp_path, capsys, **dependencies):
    """Load modules with these dependencies; return what happened."""
    for name, needed in dependencies.items():
        (tmp_path / f"{name}.py").write_text(MODULE.format(name=name, dependencies=needed))
    slicer.app.moduleManager().load([tmp_path])
    sys.path.remove(str(tmp_path))
    return capsys.readouterr().out.splitlines()


def test_all_modules_are_created_before_the_first_is_loaded_and_after_their_dependencies(tmp_path, capsys):
    said = loaded(tmp_path, capsys, StrictA=["StrictB", "Sequences"], StrictB=[])
    assert said == ["made StrictA", "made StrictB", "loaded StrictB", "loaded StrictA"]


@pytest.mark.parametrize("needed", [["Nonsense"], ["sequences"]])
def test_a_module_whose_dependency_is_missing_or_misspelled_is_refused(tmp_path, capsys, heard, needed):
    name = f"StrictRefused{needed[0]}"
    assert loaded(tmp_path, capsys, **{name: needed}) == [f"made {name}"]
    assert not hasattr(slicer.modules, name.lower()) and name not in slicer.util.moduleNames()
    assert len(heard) == 1 and needed[0] in heard[0]


def test_a_modules_folder_comes_last_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(sys.path)
    slicer.app.moduleManager().load([tmp_path])
    assert sys.path == [*before, str(tmp_path)]


def test_properties_of_a_module_are_qt_properties():
    module = slicer.modules.sampledata
    assert module.categories == ("Informatics",)
    with pytest.raises(TypeError, match="title"):
        module.title = None
    with pytest.raises(TypeError, match="dependencies"):
        module.dependencies = "Sequences"


def test_reload_reads_only_the_module_file_and_no_package(tmp_path, capsys):
    (tmp_path / "strictbeside").mkdir()
    beside = tmp_path / "strictbeside" / "__init__.py"
    beside.write_text("value = 1")
    text = MODULE.format(name="StrictReload", dependencies=[]) + (
        "import strictbeside\n"
        "class StrictReloadWidget(ScriptedLoadableModuleWidget):\n"
        "    kept = []\n"
        "    def setup(self):\n"
        "        super().setup()\n"
        "        self.seen = strictbeside.value\n"
    )
    (tmp_path / "StrictReload.py").write_text(text)
    slicer.app.moduleManager().load([tmp_path])
    slicer.util.getModuleWidget("StrictReload").kept.append(1)
    beside.write_text("value = 2  # longer")
    slicer.util.reloadScriptedModule("StrictReload")
    widget = slicer.modules.StrictReloadWidget
    assert widget.seen == 1  # the package is the old one
    assert widget.kept == []  # class attributes are new
    sys.path.remove(str(tmp_path))


def test_sample_data_keeps_what_modules_register_once():
    from SampleData import SampleDataLogic

    for _ in range(2):
        SampleDataLogic.registerCustomSampleDataSource(
            category="Strict", sampleName="Cine", uris="file:///a.nrrd", fileNames="a.nrrd", nodeNames="Cine"
        )
    (source,) = SampleDataLogic.sampleDataSourcesByCategory("Strict")
    assert (source.uris, source.nodeNames, source.checksums) == (["file:///a.nrrd"], ["Cine"], [None])
    with pytest.raises(ValueError, match="same length"):
        SampleDataLogic.registerCustomSampleDataSource(category="Strict", uris=["a", "b"], fileNames=["a"])
    slicer.modules.sampleDataSources.pop("Strict")


#
# Python packages
#


@pytest.fixture
def packaging():
    """`slicer.packaging`, which 5.10 has not."""
    return pytest.importorskip("slicer.packaging")


def test_nothing_is_installed_in_testing_mode(packaging, caplog, monkeypatch):
    monkeypatch.setattr(packaging, "pip_install", lambda *_, **__: pytest.fail("it installs"))
    monkeypatch.setattr(slicer.app, "_testing", True)
    with caplog.at_level(logging.INFO):
        packaging.pip_ensure("strict-nonsense>=2", requester="Speckle2Self")
    assert "skipping pip_ensure for [strict-nonsense>=2]" in caplog.text


def test_the_user_is_asked_once_before_packages_are_installed(packaging, monkeypatch, shown, tmp_path):
    (tmp_path / "requirements.txt").write_text("# comment\nnumpy>=1\nstrict-nonsense>=2\n")
    wanted, installed = packaging.load_requirements(tmp_path / "requirements.txt"), []
    assert packaging.pip_check(wanted[0]) and not packaging.pip_check(wanted[1])
    monkeypatch.setattr(packaging, "pip_install", lambda what, **_: installed.append(what))
    packaging.pip_ensure(wanted, requester="Speckle2Self")
    assert installed == [["strict-nonsense>=2"]]
    assert [kind for kind, _ in shown] == ["question"]
    dialogs.answers["question"] = qt.QMessageBox.Cancel
    with pytest.raises(RuntimeError, match="declined"):
        packaging.pip_ensure(wanted, requester="Speckle2Self")
    assert len(installed) == 1


#
# DICOM database and subject hierarchy
#


def test_a_closed_dicom_database_logs_an_error(heard):
    assert slicer.dicomDatabase is slicer.app.dicomDatabase()
    assert not slicer.dicomDatabase.isOpen
    assert slicer.dicomDatabase.instanceValue("1.2", "0008,0070") == ""
    assert len(heard) == 1 and "closed" in heard[0]
    slicer.dicomDatabase.openWith({("1.2", "0008,0070"): "Maker"})
    assert slicer.dicomDatabase.isOpen
    assert slicer.dicomDatabase.instanceValue("1.2", "0008,0070") == "Maker"
    slicer.dicomDatabase.closeDatabase()
    assert len(heard) == 1


def hierarchy():
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)


def test_new_nodes_have_an_item_in_the_subject_hierarchy(tmp_path):
    node = volume("US")
    assert hierarchy().GetItemName(hierarchy().GetItemByDataNode(node)) == "US"
    hidden = slicer.vtkMRMLScalarVolumeNode()
    hidden.SetHideFromEditors(True)
    slicer.mrmlScene.AddNode(hidden)
    sequence = volume("Cine", "vtkMRMLSequenceNode")
    assert hierarchy().GetItemByDataNode(hidden) == hierarchy().GetItemByDataNode(sequence) == 0
    slicer.mrmlScene.RemoveNode(node)
    assert hierarchy().GetItemChildWithName(hierarchy().GetSceneItemID(), "US") == 0
    volume("US")
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    assert slicer.util.loadScene(str(tmp_path / "scene.mrb")) is None
    again = slicer.util.getNode("US")
    items = slicer.util.getSubjectHierarchyItemChildren()
    assert [hierarchy().GetItemDataNode(item) for item in items].count(again) == 1


#
# Views
#


def test_the_application_starts_with_four_views_and_one_is_axial():
    manager = slicer.app.layoutManager()
    layouts = slicer.vtkMRMLLayoutNode
    for layout in (
        layouts.SlicerLayoutInitialView,
        layouts.SlicerLayoutFourUpView,
        layouts.SlicerLayoutConventionalView,
    ):
        manager.setLayout(layout)
        views = {name: manager.sliceWidget(name).mrmlSliceNode() for name in manager.sliceViewNames()}
        assert {name: view.GetOrientation() for name, view in views.items()} == {
            "Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal",
        }  # fmt: skip
        assert all(view.IsViewVisibleInLayout() for view in views.values())
        assert all(manager.sliceWidget(name).visible for name in views)
    manager.setLayout(layouts.SlicerLayoutOneUpRedSliceView)
    assert [name for name in views if manager.sliceWidget(name).visible] == ["Red"]
    assert [name for name, view in views.items() if view.IsMappedInLayout()] == ["Red"]
    manager.setLayout(layouts.SlicerLayoutInitialView)


def test_an_unknown_view_name_returns_none():
    assert slicer.app.layoutManager().sliceWidget("Purple") is None


def test_a_frame_is_a_line_in_a_view_that_is_not_axial():
    frame = slicer.util.addVolumeFromArray(np.tile(np.arange(0, 240, 4, np.uint8), (1, 40, 1)))
    slicer.util.setSliceViewerLayers(background=frame, fit=True)
    manager = slicer.app.layoutManager()
    filled = {name: manager.sliceWidget(name).filled() for name in ("Red", "Yellow", "Green")}
    assert filled["Red"] > 0.5
    assert max(filled["Yellow"], filled["Green"]) < 0.1


def test_the_orientation_reformat_is_an_error_in_the_log(heard):
    view = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode()
    view.SetOrientation("Reformat")
    assert len(heard) == 1 and "invalid orientation preset name" in heard[0]
    assert view.GetOrientation() == "Axial"


def test_a_resized_view_keeps_its_vertical_field_of_view():
    widget = slicer.app.layoutManager().sliceWidget("Red")
    view = widget.mrmlSliceNode()
    widget.resize(200, 100)
    view.SetFieldOfView(80, 40, 1)
    widget.resize(100, 100)
    assert view.GetFieldOfView()[:2] == pytest.approx((40, 40))


def test_a_ctk_widget_that_is_not_modeled_cannot_be_created():
    with pytest.raises((AttributeError, NotImplementedError), match="ctkRangeWidget"):
        ctk.ctkRangeWidget()
