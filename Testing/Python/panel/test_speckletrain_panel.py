"""The panel of SpeckleTrain: its buttons are clicked, real processes train, and the scene shows how it goes."""

import json
import os
import signal

import numpy as np
import pytest

from Speckle2SelfLib import checkpoint, library
from Speckle2SelfLib.config import ModelConfig
from Speckle2SelfLib.network import build

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")

FRAMES = np.random.default_rng(0).rayleigh(40, (16, 64, 64)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def train(desk, monkeypatch):
    """The panel, with a home of its own in which there is a small model `start`, and a cine in the scene."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from Speckle2SelfSlicer.trainer import Trainer
    from SpeckleTrain import SpeckleTrainLogic

    model = ModelConfig(width=4, grain=(0.75, 1.7))
    library.own_path("start").parent.mkdir(parents=True)
    checkpoint.save(library.own_path("start"), model, build(model), {"description": "Small."})
    SpeckleTrainLogic._trainer = Trainer()
    desk.cine(FRAMES)
    slicer.util.selectModule("Speckle2Self")
    slicer.util.selectModule("SpeckleTrain")
    panel = slicer.modules.SpeckleTrainWidget
    panel.ui.regionSelector.currentText = "none"
    panel.ui.initSelector.currentText = "start"
    yield panel
    panel.logic.trainer.close()
    slicer.util.selectModule("Speckle2Self")
    SpeckleTrainLogic._trainer = None


def choose(panel):
    panel.ui.inputsSelector.check(slicer.util.getFirstNodeByClassByName("vtkMRMLSequenceNode", "Cine"))


def start(desk, panel, reports: int = 2):
    """A run that has reported something."""
    choose(panel)
    panel.ui.trainButton.click()
    desk.wait(lambda: panel.job.ended or len(panel.job.reports) >= reports)
    assert panel.job.state == "running", panel.job.message
    return panel.job


def test_every_control_explains_itself_and_nothing_is_cut_at_400_pixels(desk, train):
    import qt

    desk.rest()
    assert train.parent.minimumSizeHint.width() <= 400
    for name, widget in train.ui.__dict__.items():
        kind = type(widget)
        if not issubclass(kind, qt.QWidget) or kind in (qt.QLabel, slicer.qMRMLWidget) or not widget.visible:
            continue
        if name.endswith("CollapsibleButton") or name.startswith("qt_"):
            continue
        assert widget.toolTip, f"{name} has no tooltip"
        assert widget.mapTo(train.parent, qt.QPoint(widget.width, 0)).x() <= train.parent.width, f"{name} is cut"


def test_nothing_can_be_started_without_data_and_the_data_are_counted(desk, train):
    for name in ("train", "estimate", "exportJob", "pause", "resume", "stop", "remove", "show"):
        assert not getattr(train.ui, f"{name}Button").enabled
    choose(train)
    assert train.ui.dataLabel.text == "Chosen: 1, with 16 frames in the scene."
    assert train.ui.trainButton.enabled and train.ui.estimateButton.enabled


def test_the_data_come_from_the_other_panel(desk, train):
    slicer.util.selectModule("Speckle2Self")
    panel = slicer.modules.Speckle2SelfWidget
    panel.ui.inputSelector.setCurrentNode(slicer.util.getFirstNodeByClassByName("vtkMRMLSequenceNode", "Cine"))
    panel.ui.trainButton.click()
    assert [node.GetName() for node in train.ui.inputsSelector.checkedNodes()] == ["Cine"]
    assert train.ui.trainButton.enabled


def test_choices_are_kept_in_the_scene(desk, train, tmp_path):
    choose(train)
    train.ui.minutesSpinBox.value = 3
    train.ui.nameLineEdit.text = "Mine"
    train.ui.presetSelector.currentText = "standard"
    train.ui.recipeSelector.currentText = "published"
    train.ui.stepsSpinBox.value = 70
    train.ui.regionSelector.currentText = "given"
    train.ui.regionNodeSelector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box"))
    assert train.ui.regionNodeSelector.enabled and not train.ui.initSelector.enabled
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    assert (train.ui.minutesSpinBox.value, train.ui.nameLineEdit.text) == (0, "")
    assert train.ui.recipeSelector.currentText == "preset" and not train.ui.regionNodeSelector.enabled
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert (train.ui.minutesSpinBox.value, train.ui.nameLineEdit.text) == (3, "Mine")
    assert (train.ui.recipeSelector.currentText, train.ui.stepsSpinBox.value) == ("published", 70)
    assert train.ui.regionNodeSelector.currentNode().GetName() == "Box"
    assert [node.GetName() for node in train.ui.inputsSelector.checkedNodes()] == ["Cine"]


def test_a_folder_of_files_is_trained_on_and_exported(desk, train, tmp_path):
    files = tmp_path / "Doe^Jane"
    files.mkdir()
    np.save(files / "one.npy", FRAMES)
    desk.answers["folder"] = str(files)
    train.ui.folderButton.click()
    assert train.ui.folderLineEdit.text == str(files) and train.ui.trainButton.enabled
    desk.answers["save"] = str(tmp_path / "run")
    train.ui.exportJobButton.click()
    assert np.array_equal(np.load(tmp_path / "run" / "recording-1.npy"), FRAMES)
    assert "Jane" not in (tmp_path / "run" / "job.json").read_text()
    train.ui.trainButton.click()
    desk.wait(lambda: train.job.ended or train.job.reports)
    assert train.job.state == "running", train.job.message
    train.ui.folderLineEdit.text = str(tmp_path / "nowhere")
    train.ui.trainButton.click()
    assert "There is no file or folder" in desk.asked[-1][1]


def test_what_a_run_would_take_is_told(desk, train):
    choose(train)
    train.ui.estimateButton.click()
    desk.wait(lambda: train.estimate is None)
    for words in ("frames to train on", "grain", "steps", "min on cpu", "MB"):
        assert words in train.ui.estimateLabel.text
    assert not train.ui.correlationLabel.pixmap.isNull()


def test_curve_and_preview_fill_the_scene_and_the_model_is_at_hand(desk, train):
    job = start(desk, train)
    train.ui.showButton.click()
    table = slicer.util.getNode(f"{job.name} curve")
    rows = table.GetNumberOfRows()
    desk.wait(lambda: table.GetNumberOfRows() > rows + 1)
    assert slicer.util.getNode(f"{job.name} loss").GetNumberOfPlotSeriesNodes() >= 2
    assert "per second" in train.ui.runLabel.text and train.ui.progressBar.value > 0
    before, after = (slicer.util.getNode(f"{job.name} held-out frame{end}") for end in ("", " despeckled"))
    composites = {c.GetLayoutName(): c for c in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")}
    assert composites["Red"].GetBackgroundVolumeID() == before.GetID()
    assert composites["Yellow"].GetBackgroundVolumeID() == after.GetID()
    train.ui.stopButton.click()
    desk.wait(lambda: job.ended)
    assert job.state == "done" and job.model in library.own_models()
    desk.wait(lambda: job.model in train.ui.runLabel.text)
    train.ui.modelSelector.currentText = job.model
    train.ui.compareButton.click()
    assert "trained" in desk.asked[-1][1]
    slicer.util.selectModule("Speckle2Self")
    panel = slicer.modules.Speckle2SelfWidget
    assert panel.ui.modelSelector.findText(job.model) >= 0
    panel.ui.inputSelector.setCurrentNode(slicer.util.getFirstNodeByClassByName("vtkMRMLSequenceNode", "Cine"))
    panel.ui.regionSelector.currentText = "none"
    panel.ui.modelSelector.currentText = job.model
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run is None)
    assert panel._parameterNode.outputNode.GetName() == "Cine despeckled"


def test_a_paused_run_goes_on_where_it_was_even_after_the_application(desk, train):
    from Speckle2SelfSlicer.trainer import Trainer
    from SpeckleTrain import SpeckleTrainLogic

    job = start(desk, train)
    train.ui.pauseButton.click()
    desk.wait(lambda: job.ended)
    assert job.state == "stopped" and train.ui.runLabel.text.startswith("Paused")
    step = job.reports[-1]["step"]
    SpeckleTrainLogic._trainer = Trainer()  # the application was started anew
    slicer.util.selectModule("Speckle2Self")
    slicer.util.selectModule("SpeckleTrain")
    assert train.job is not job and train.job.name == job.name and train.ui.resumeButton.enabled
    train.ui.resumeButton.click()
    desk.wait(lambda: train.job.reports[-1]["step"] > step)
    steps = [report["step"] for report in train.job.reports]
    assert steps == sorted(set(steps))


def test_closing_the_scene_and_leaving_the_panel_do_not_stop_a_run(desk, train):
    job = start(desk, train)
    train.ui.showButton.click()
    slicer.mrmlScene.Clear()
    slicer.util.selectModule("Speckle2Self")
    reports = len(job.reports)
    desk.wait(lambda: len(job.reports) > reports)
    assert job.state == "running" and f"{job.name} curve" not in desk.names()
    slicer.util.selectModule("SpeckleTrain")
    assert train.job is job and train.ui.pauseButton.enabled


def test_a_killed_process_is_one_message_and_the_run_can_be_resumed_or_removed(desk, train):
    job = start(desk, train)
    os.kill(job._child.process.pid, signal.SIGKILL)
    desk.wait(lambda: job.ended)
    desk.wait(lambda: "unexpectedly" in train.ui.runLabel.text)
    assert job.state == "failed"
    train.ui.removeButton.click()
    assert "is lost" in desk.asked[-1][1]
    assert job not in train.logic.trainer.jobs and not job.folder.exists()


def test_two_runs_queue(desk, train):
    first = start(desk, train)
    train.ui.nameLineEdit.text = "Second"
    train.ui.trainButton.click()
    second = train.job
    assert second.name == "Second" and second.state == "waiting"
    assert train.ui.runLabel.text.startswith("Waits")
    first.cancel()
    desk.wait(lambda: second.state == "running")


def test_models_are_renamed_exported_imported_and_deleted(desk, train, tmp_path):
    train.ui.modelSelector.currentText = "start"
    desk.answers["text"] = "mine"
    train.ui.renameButton.click()
    assert train.ui.modelSelector.currentText == "mine" and list(library.own_models()) == ["mine"]
    desk.answers["save"] = str(tmp_path / "out.safetensors")
    train.ui.exportButton.click()
    assert (tmp_path / "out.safetensors").exists()
    desk.answers["question"] = 0
    train.ui.deleteButton.click()
    assert list(library.own_models()) == ["mine"], "cancelled"
    desk.answers.pop("question")
    train.ui.deleteButton.click()
    assert not library.own_models() and not train.ui.deleteButton.enabled
    desk.answers["open"] = str(tmp_path / "out.safetensors")
    train.ui.importButton.click()
    assert train.ui.modelSelector.currentText == "out"


def test_a_model_is_compared_with_its_start_in_the_views(desk, train):
    choose(train)
    model = ModelConfig(width=4, grain=(0.75, 1.7))
    checkpoint.save(library.own_path("mine"), model, build(model), {"start": "start", "figures": {"structure": 1.0}})
    train.fillModels()
    train.ui.modelSelector.currentText = "mine"
    train.ui.compareButton.click()
    assert "structure" in desk.asked[-1][1]
    desk.wait(lambda: not train._compared)
    composites = {c.GetLayoutName(): c for c in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")}
    shown = [slicer.mrmlScene.GetNodeByID(composites[name].GetBackgroundVolumeID()) for name in ("Red", "Yellow")]
    assert [node.GetName() for node in shown] == ["Cine by start", "Cine by mine"]


def test_a_run_is_exported_as_a_folder_with_recipe_steps_and_region(desk, train, tmp_path):
    choose(train)
    desk.answers["save"] = str(tmp_path / "run")
    train.ui.regionSelector.currentText = "given"
    train.ui.exportJobButton.click()
    assert "none was given" in desk.asked[-1][1] and not (tmp_path / "run").exists()
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    box.SetCenter(-24, 0, 0)
    box.SetSize(48, 200, 10)
    train.ui.regionNodeSelector.setCurrentNode(box)
    train.ui.recipeSelector.currentText = "published"
    train.ui.presetSelector.currentText = "standard"
    train.ui.stepsSpinBox.value = 70
    train.ui.exportJobButton.click()
    assert {"job.json", "run.sh", "run.slurm"} <= {path.name for path in (tmp_path / "run").iterdir()}
    job = json.loads((tmp_path / "run" / "job.json").read_text())
    assert (job["recipe"], job["steps"], job["region"]) == ("published", 70, "region.npy")
    mask = np.load(tmp_path / "run" / "region.npy")
    assert mask.shape == (64, 64) and 0 < mask.sum() < mask.size
    train.ui.exportJobButton.click()
    assert "is not empty" in desk.asked[-1][1]
    desk.answers["folder"] = str(tmp_path / "run")
    train.ui.importResultButton.click()
    assert "no result" in desk.asked[-1][1]
