"""The panel of SpeckleTrain: its buttons are clicked, real processes train, and the scene shows their progress."""

import json
import os
import signal
import time
import zipfile

import numpy as np
import pytest
import torch

from Speckle2SelfLib import checkpoint, library
from Speckle2SelfLib.config import Job, ModelConfig
from Speckle2SelfLib.network import build

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")

FRAMES = np.random.default_rng(0).rayleigh(40, (16, 64, 64)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def train(desk, monkeypatch):
    """Return the panel, with a home of its own that holds a small model `start`, and a cine in the scene."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from Speckle2SelfSlicer import training_data
    from Speckle2SelfSlicer.session import applicationSession
    from Speckle2SelfSlicer.trainer import Trainer

    def quick(*arguments, **options):  # the 400 anatomies of the preset need ten seconds
        few = {} if options["recipe"] == "published" or options["preset"] == "paper" else {"simulated": 20}
        return Job(*arguments, **few, **options)

    monkeypatch.setattr(training_data, "Job", quick)

    model = ModelConfig(width=4, grain=(0.75, 1.7))
    torch.manual_seed(6)  # some random networks make all of an image black
    library.own_path("start").parent.mkdir(parents=True)
    checkpoint.save(library.own_path("start"), model, build(model), {"description": "Small."})
    applicationSession().trainer = Trainer()
    desk.cine(FRAMES)
    slicer.util.selectModule("Speckle2Self")
    slicer.util.selectModule("SpeckleTrain")
    panel = slicer.modules.SpeckleTrainWidget
    panel.ui.regionSelector.currentText = "none"
    panel.ui.initSelector.currentText = "start"
    yield panel
    panel.logic.trainer.close()
    slicer.util.selectModule("Speckle2Self")
    applicationSession().trainer = None


def choose(panel):
    panel.ui.inputsSelector.check(slicer.util.getFirstNodeByClassByName("vtkMRMLSequenceNode", "Cine"))


def start(desk, panel, reports: int = 2):
    """Return a run that has reported something."""
    choose(panel)
    panel.ui.trainButton.click()
    desk.wait(lambda: panel.job.ended or len(panel.job.reports) >= reports)
    assert panel.job.state == "running", panel.job.message
    return panel.job


@pytest.mark.parametrize("name", ["runLabel", "estimateLabel", "dataLabel"])
def test_a_long_message_does_not_widen_the_panel(desk, train, name):
    label = getattr(train.ui, name)
    label.visible = True
    label.text = 12 * "Speckle measured: 1.7 x 3.6 pixels (down x across). "
    desk.rest()
    assert train.parent.minimumSizeHint.width() <= 400


def test_every_control_explains_itself_and_nothing_is_cut_at_400_pixels(desk, train):

    desk.check_controls(train, 400)


def test_nothing_can_be_started_without_data_and_the_data_are_counted(desk, train):
    for name in ("train", "estimate", "exportJob", "pause", "resume", "stop", "remove", "show"):
        assert not getattr(train.ui, f"{name}Button").enabled
    choose(train)
    assert "Cine (16 frames, 64 x 64)" in train.ui.dataLabel.text
    assert train.ui.trainButton.enabled and train.ui.estimateButton.enabled


def test_each_recording_is_listed_with_its_frames(desk, train, tmp_path):
    assert train.ui.dataLabel.text == "Check at least one volume or recording, or choose a folder."
    choose(train)
    volume = desk.volume("Kidney", FRAMES[:3, :40])
    train.ui.inputsSelector.check(volume)
    train.ui.heldOutSelector.check(desk.cine(FRAMES[:5], "Other"))
    for name in ("one.npy", "two.png", "notes.txt", ".hidden.npy"):
        (tmp_path / name).write_bytes(b"")
    train.ui.folderLineEdit.text = str(tmp_path)
    lines = ["Cine (16 frames, 64 x 64)", "Kidney (3 frames, 40 x 64)", "Other (5 frames, 64 x 64), held out"]
    total = "19 frames of the scene to train on."
    assert train.ui.dataLabel.text.splitlines() == [*lines, "Folder (2 files)", total]
    train.ui.folderLineEdit.text = str(tmp_path / "nowhere")
    assert "Folder (not found)" in train.ui.dataLabel.text
    for number in range(12):
        train.ui.inputsSelector.check(desk.volume(f"Volume {number}"))
    assert len(train.ui.dataLabel.text.splitlines()) == 10 and "and 8 more" in train.ui.dataLabel.text


def test_the_files_of_a_large_folder_are_counted_only_for_a_moment(tmp_path):
    from Speckle2SelfSlicer.trainer import count_files

    for number in range(4):
        (tmp_path / f"{number}.npy").write_bytes(b"")
    assert count_files(tmp_path) == (4, True) and count_files(tmp_path, 0) == (1, False)


def sector(count=16):
    """Return frames of an image within a dark margin, which a recording's region leaves out."""
    frames = np.zeros((count, 96, 96), np.uint8)
    frames[:, 20:80, 20:80] = np.random.default_rng(1).rayleigh(40, (count, 60, 60)).clip(1, 255)
    return frames


def outlined():
    """Return the pixels inside the outline; None if there is none."""
    composite = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    node = slicer.mrmlScene.GetNodeByID(composite.GetLabelVolumeID() or "")
    assert (node is None) == (slicer.mrmlScene.GetFirstNodeByName("Outline of the region") is None)
    return None if node is None else slicer.util.arrayFromVolume(node)[0].astype(bool)


def box(center, size, name="Box"):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
    node.SetCenter(*center)
    node.SetSize(*size)
    return node


def test_the_pixels_to_train_on_are_outlined(desk, train, tmp_path):
    sequence = desk.cine(sector(), "Sector")
    train.ui.inputsSelector.check(sequence)
    train.ui.showRegionCheckBox.checked = True
    assert outlined().all(), "no region: whole frames"
    train.ui.regionSelector.currentText = "auto"
    assert outlined() is None and "Detecting the region" in train.ui.dataLabel.text
    desk.wait(lambda: outlined() is not None)
    assert "Detecting the region" not in train.ui.dataLabel.text
    desk.answers["save"] = str(tmp_path / "run")
    train.ui.exportJobButton.click()
    from Speckle2SelfLib import region

    assert np.array_equal(outlined(), region.detect(np.load(tmp_path / "run" / "recording-1.npy")))
    assert 0.3 < outlined().mean() < 0.5
    train.ui.recipeSelector.currentText = "published"
    assert outlined().all(), "the published method needs whole frames"
    train.ui.recipeSelector.currentText = "preset"
    train.ui.regionSelector.currentText = "given"
    assert outlined() is None and "none was used" in train.ui.dataLabel.text
    assert "message" not in [kind for kind, _ in desk.asked]
    given = box((24, 24, 0), (32, 24, 4))
    train.ui.regionNodeSelector.setCurrentNode(given)
    desk.wait(lambda: outlined() is not None)
    desk.answers["save"] = str(tmp_path / "given")
    train.ui.exportJobButton.click()
    assert np.array_equal(outlined(), np.load(tmp_path / "given" / "region.npy") != 0)
    given.SetCenter(48, 48, 0)
    desk.wait(lambda: outlined()[40:50, 40:50].all())
    composite = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    assert slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID()).GetName() == "Sector"


def test_without_an_ultrasound_region_nothing_is_outlined_and_the_panel_says_what_to_do(desk, train):
    squares = np.kron(np.eye(2, dtype=np.uint8), np.full((1, 40, 40), 90, np.uint8))
    train.ui.inputsSelector.check(desk.volume("Flat", squares))
    train.ui.regionSelector.currentText = "auto"
    train.ui.showRegionCheckBox.checked = True
    desk.wait(lambda: "No ultrasound region was found" in train.ui.dataLabel.text)
    assert outlined() is None
    train.ui.regionSelector.currentText = "none"
    assert outlined().all() and "No ultrasound region" not in train.ui.dataLabel.text


def test_the_outline_is_of_the_chosen_recording_in_the_views(desk, train):
    choose(train)
    train.ui.inputsSelector.check(desk.cine(sector(), "Sector"))
    train.ui.showRegionCheckBox.checked = True
    assert outlined().shape == (64, 64)
    proxy = slicer.util.getFirstNodeByClassByName("vtkMRMLScalarVolumeNode", "Sector")
    slicer.util.setSliceViewerLayers(background=proxy)
    desk.wait(lambda: outlined().shape == (96, 96))


@pytest.mark.parametrize("way", ["option off", "another module", "scene closed", "recording removed", "curves shown"])
def test_the_outline_is_removed(desk, train, way):
    choose(train)
    if way == "curves shown":
        start(desk, train)
    train.ui.showRegionCheckBox.checked = True
    train.ui.regionSelector.currentText = "auto"
    desk.wait(lambda: outlined() is not None)
    if way == "option off":
        train.ui.showRegionCheckBox.checked = False
    elif way == "another module":
        slicer.util.selectModule("Speckle2Self")
    elif way == "scene closed":
        slicer.mrmlScene.Clear()
    elif way == "recording removed":
        slicer.mrmlScene.RemoveNode(slicer.util.getFirstNodeByClassByName("vtkMRMLSequenceNode", "Cine"))
    else:
        train.ui.showButton.click()
    assert outlined() is None
    desk.rest(0.3)
    assert outlined() is None and not train.outline.searching
    if way == "another module":
        slicer.util.selectModule("SpeckleTrain")
        desk.wait(lambda: outlined() is not None)


@pytest.mark.parametrize("kind", ["box", "segments"])
def test_a_given_region_is_used_for_a_recording_that_no_browser_shows(desk, train, tmp_path, kind):
    sequence = desk.cine(sector(), "Bare")
    item = sequence.GetNthDataNode(0)
    if kind == "box":
        given = box((24, 24, 0), (32, 24, 4))
    else:
        given = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segments")
        given.SetReferenceImageGeometryParameterFromVolumeNode(item)
        segment = given.GetSegmentation().AddEmptySegment("tissue")
        pixels = np.zeros((1, 96, 96), np.uint8)
        pixels[0, 12:37, 8:41] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(pixels, given, segment, item)
    for node in slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode"):
        if node.GetMasterSequenceNode() is sequence:
            slicer.mrmlScene.RemoveNode(node.GetProxyNode(sequence))
            slicer.mrmlScene.RemoveNode(node)
    train.ui.inputsSelector.check(sequence)
    train.ui.regionSelector.currentText = "given"
    train.ui.regionNodeSelector.setCurrentNode(given)
    train.ui.showRegionCheckBox.checked = True
    desk.wait(lambda: outlined() is not None)
    desk.answers["save"] = str(tmp_path / "run")
    train.ui.exportJobButton.click()
    assert [kind for kind, _ in desk.asked] == ["save"]
    mask = np.load(tmp_path / "run" / "region.npy") != 0
    expected = np.zeros((96, 96), bool)
    expected[12:37, 8:41] = True
    assert np.array_equal(mask, expected) and np.array_equal(outlined(), expected)


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


def test_an_imported_scene_and_a_removed_node_change_no_choice(desk, train, tmp_path):
    other = slicer.vtkMRMLScene()
    other.AddNewNodeByClass("vtkMRMLTextNode", "Note")
    other.SetURL(str(tmp_path / "other.mrml"))
    assert other.Commit()
    choose(train)
    boxes = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name) for name in ("One", "Two")]
    train.ui.regionNodeSelector.setCurrentNode(boxes[0])
    slicer.util.loadScene(str(tmp_path / "other.mrml"))
    desk.rest()
    assert "Note" in desk.names()
    assert [node.GetName() for node in train.ui.inputsSelector.checkedNodes()] == ["Cine"]
    assert train._parameterNode.regionNode is boxes[0] is train.ui.regionNodeSelector.currentNode()
    slicer.mrmlScene.RemoveNode(boxes[0])
    assert train._parameterNode.regionNode is None, "not the other box"


def test_a_folder_of_files_is_trained_on_and_exported(desk, train, tmp_path):
    files = tmp_path / "Doe^Jane"
    files.mkdir()
    np.save(files / "one.npy", FRAMES)
    desk.answers["folder"] = str(files)
    train.ui.folderButton.click()
    assert train.ui.folderLineEdit.text == str(files) and train.ui.trainButton.enabled
    desk.answers["save"] = str(tmp_path / "run")
    train.ui.exportJobButton.click()
    desk.wait(lambda: train.exporting is None)
    assert np.array_equal(np.load(tmp_path / "run" / "recording-1.npy"), FRAMES)
    assert "Jane" not in (tmp_path / "run" / "job.json").read_text()
    train.ui.trainButton.click()
    desk.wait(lambda: train.job.ended or train.job.reports)
    assert train.job.state == "running", train.job.message
    train.ui.folderLineEdit.text = str(tmp_path / "nowhere")
    train.ui.trainButton.click()
    assert "There is no file or folder" in desk.asked[-1][1]


def test_the_time_and_memory_of_a_run_are_estimated(desk, train):
    choose(train)
    train.ui.estimateButton.click()
    desk.wait(lambda: train.estimate is None)
    for words in ("frames to train on", "Speckle size", "steps", "min on cpu", "MB"):
        assert words in train.ui.estimateLabel.text
    assert not train.ui.correlationLabel.pixmap.isNull()
    assert train.ui.estimateLabel.visible and train.ui.correlationLabel.visible
    slicer.mrmlScene.Clear()
    assert not train.ui.estimateLabel.visible and not train.ui.correlationLabel.visible, "it was of another scene"


def test_curve_and_preview_are_in_the_scene_and_the_model_is_available(desk, train):
    job = start(desk, train)
    train.ui.showButton.click()
    desk.rest()  # plots and views are painted for the first time
    table = slicer.util.getNode(f"{job.name} curve")
    rows = table.GetNumberOfRows()
    taken = [desk.wait(lambda: table.GetNumberOfRows() > rows + 1)]
    loss = slicer.util.getNode(f"{job.name} loss")
    assert loss.GetNumberOfPlotSeriesNodes() >= 2
    assert loss.GetLegendFontSize() <= 10, "else the legend covers half of the curves"
    assert slicer.util.getNode(f"{job.name} true error").GetNumberOfPlotSeriesNodes() == 3, "errors"
    assert "per second" in train.ui.runLabel.text and train.ui.progressBar.value > 0
    before, after = (slicer.util.getNode(f"{job.name} held-out frame{end}") for end in ("", " despeckled"))
    composites = {c.GetLayoutName(): c for c in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")}
    assert composites["Red"].GetBackgroundVolumeID() == before.GetID()
    assert composites["Yellow"].GetBackgroundVolumeID() == after.GetID()
    train.ui.stopButton.click()
    taken += [desk.wait(lambda: job.ended), desk.wait(lambda: job.model in train.ui.runLabel.text)]
    assert job.state == "done" and job.model in library.own_models()
    assert max(taken) < 0.1, "nothing holds up the panel"
    job.worse = "structure 0.9900 -> 0.9000"
    train.showRun()
    assert "is worse than the model it started from: structure 0.9900" in train.ui.runLabel.text
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


def test_a_run_that_is_done_still_shows_its_last_preview(desk, train):
    choose(train)
    train.ui.stepsSpinBox.value = 3
    train.ui.trainButton.click()
    desk.wait(lambda: train.ui.runLabel.text and "Speckle measured" in train.ui.runLabel.text)
    desk.wait(lambda: train.job.ended)
    assert train.job.state == "done", train.job.message
    assert "Done" in train.ui.runLabel.text and (
        "The error on held-out" in train.ui.runLabel.text or "did not improve" in train.ui.runLabel.text
    )
    train.ui.showButton.click()
    for end in ("", " despeckled"):
        volume = slicer.util.getNode(f"{train.job.name} held-out frame{end}")
        assert volume.GetImageData() is not None and slicer.util.arrayFromVolume(volume).any()
    shown = [slicer.util.array(f"{train.job.name} held-out frame{end}")[0] for end in ("", " despeckled")]
    assert shown[0].std() > 5 and not np.array_equal(*shown)


def test_the_simulation_before_the_first_step_is_reported_and_can_be_paused(desk, train, monkeypatch):
    from Speckle2SelfSlicer import training_data

    monkeypatch.setattr(training_data, "Job", lambda *given, **options: Job(*given, **options, simulated=4000))
    choose(train)
    train.ui.trainButton.click()
    desk.wait(lambda: train.ui.progressBar.visible and train.ui.progressBar.value)
    assert "Simulating 4000 anatomies" in train.ui.runLabel.text
    assert train.ui.progressBar.maximum == 4000 and 0 < train.ui.progressBar.value < 4000
    train.ui.pauseButton.click()
    desk.wait(lambda: train.job.ended)
    assert train.ui.runLabel.text.startswith("Paused.\nStopped during simulation")
    assert train.ui.resumeButton.enabled and not train.ui.progressBar.visible


def test_a_color_dicom_cine_is_trained_on_paused_resumed_and_despeckled(desk, train):
    """Twenty seconds of training on the cine that comes with pydicom; these end, however slow the computer is."""
    from pydicom.data import get_testdata_file

    from HeadlessSlicer import loaders

    path = get_testdata_file("examples_ybr_color.dcm", download=False)
    if path is None:
        pytest.skip("this pydicom comes without its color cine")
    slicer.mrmlScene.Clear()
    loaders.load(path)
    cine = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceNode")
    train.ui.inputsSelector.check(cine)
    train.ui.initSelector.currentText = "start"
    train.ui.minutesSpinBox.value = 0.33
    train.ui.nameLineEdit.text = "Twenty seconds"
    assert "(30 frames, 240 x 320)" in train.ui.dataLabel.text and train._parameterNode.region == "auto"
    train.ui.trainButton.click()
    job = train.job
    desk.wait(lambda: job.ended or len(job.reports) >= 2)
    assert job.state == "running", job.message
    train.ui.showButton.click()
    before, after = (slicer.util.array(f"{job.name} held-out frame{end}") for end in ("", " despeckled"))
    assert before.shape == after.shape and min(before.shape[1:]) > 50 and before.std() > 5
    train.ui.pauseButton.click()
    desk.wait(lambda: job.ended)
    assert job.state == "stopped" and train.ui.runLabel.text.startswith("Paused")
    paused = job.reports[-1]["step"]
    train.ui.resumeButton.click()
    desk.wait(lambda: job.ended or job.reports[-1]["step"] > paused)
    desk.wait(lambda: job.ended)
    assert job.state == "done", job.message
    desk.rest(0.3)
    steps = slicer.util.arrayFromTableColumn(slicer.util.getNode(f"{job.name} curve"), "step")
    assert paused in steps[:-1] and list(steps) == sorted(set(steps)) and steps[-1] == job.reports[-1]["steps"]
    slicer.util.selectModule("Speckle2Self")
    panel = slicer.modules.Speckle2SelfWidget
    panel.ui.inputSelector.setCurrentNode(cine)
    panel.ui.modelSelector.currentText = "Twenty seconds"
    assert "30 frames" in panel.ui.modelDescriptionLabel.text or "recording" in panel.ui.modelDescriptionLabel.text
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run is None)
    output = panel._parameterNode.outputNode
    assert output.GetNumberOfDataNodes() == 30
    one, two = (slicer.util.arrayFromVolume(node.GetNthDataNode(9))[0].astype(float) for node in (cine, output))
    assert two.shape == (240, 320, 3) and np.abs(two - one).mean() > 0.5
    assert np.abs(np.diff(two, axis=1)).mean() < np.abs(np.diff(one, axis=1)).mean()


def test_a_scene_that_is_saved_during_a_run_shows_the_later_progress_when_it_is_loaded(desk, train, tmp_path):
    train.ui.stepsSpinBox.value = 100_000  # keeps it from ending in the meantime
    job = start(desk, train)
    train.ui.showButton.click()
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    reports = len(job.reports)
    desk.wait(lambda: len(job.reports) > reports)
    assert job.state == "running", "saving does not disturb it"
    with zipfile.ZipFile(tmp_path / "scene.mrb") as bundle:
        names = bundle.namelist()
        text = bundle.read(next(name for name in names if name.endswith(".mrml"))).decode()
    assert not [name for name in names if name.endswith((".part", ".state", ".safetensors", ".json", ".jsonl"))]
    for secret in (str(library.home()), str(job.folder), f'"{job._child.process.pid}"', "Child object"):
        assert secret not in text
    slicer.mrmlScene.Clear()
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    table = slicer.util.getNode(f"{job.name} curve")
    desk.wait(lambda: table.GetNumberOfRows() > reports)
    assert train.job is job and job.state == "running" and train.ui.pauseButton.enabled
    assert len(slicer.util.getNodesByClass("vtkMRMLTableNode")) == 1, "no second curve"
    slicer.mrmlScene.Clear()
    train.ui.stopButton.click()
    desk.wait(lambda: job.ended)
    assert job.state == "done", job.message
    slicer.util.selectModule("Speckle2Self")
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    slicer.util.selectModule("SpeckleTrain")
    desk.wait(lambda: slicer.util.getNode(f"{job.name} curve").GetNumberOfRows() == len(job.reports))
    assert train.ui.runLabel.text.startswith("Done")


def test_a_paused_run_resumes_where_it_was_even_after_a_restart_of_the_application(desk, train):
    from Speckle2SelfSlicer.session import applicationSession
    from Speckle2SelfSlicer.trainer import Trainer

    job = start(desk, train)
    train.ui.pauseButton.click()
    desk.wait(lambda: job.ended)
    assert job.state == "stopped" and train.ui.runLabel.text.startswith("Paused")
    step = job.reports[-1]["step"]
    applicationSession().trainer = Trainer()  # the application was started again
    slicer.util.selectModule("Speckle2Self")
    slicer.util.selectModule("SpeckleTrain")
    assert train.job is not job and train.job.name == job.name and train.ui.resumeButton.enabled
    train.ui.resumeButton.click()
    desk.wait(lambda: train.job.reports[-1]["step"] > step)
    steps = [report["step"] for report in train.job.reports]
    assert steps == sorted(set(steps))


def test_a_run_of_another_application_is_not_touched(desk, train):
    from Speckle2SelfSlicer.trainer import Trainer

    job = start(desk, train)
    train.ui.pauseButton.click()
    desk.wait(lambda: job.ended)
    other = Trainer()
    (run,) = other.unfinished_runs()
    other.resume(run)
    desk.wait(lambda: other.poll() or run.settings)
    for button in (train.ui.resumeButton, train.ui.stopButton, train.ui.removeButton):
        button.click()
        assert desk.asked.pop()[1] == f"The run '{job.name}' is active in another application; pause it there first."
    assert train.job is job and run.state == "running" and run.folder.exists()
    other.close()


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


def test_a_killed_process_shows_one_message_and_the_run_can_be_resumed_or_removed(desk, train):
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
    assert train.ui.runLabel.text.startswith("Queued") and not train.ui.stopButton.enabled
    train.ui.pauseButton.click()
    assert train.ui.runLabel.text == "Paused." and train.ui.resumeButton.enabled
    train.ui.resumeButton.click()
    assert second.state == "waiting"
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


def test_no_model_may_have_the_name_of_a_classical_filter(desk, train):
    choose(train)
    train.ui.nameLineEdit.text = " srad "
    train.ui.trainButton.click()
    assert "'srad' is a classical filter; choose another name for the model." in desk.asked[-1][1]
    assert train.job is None and not list(library.home().glob("runs/*"))


def test_an_imported_model_that_is_worse_than_its_start_is_reported(desk, train, tmp_path):
    model = ModelConfig(width=4, grain=(0.75, 1.7))
    card = {"figures_at_start": {"structure": 0.99}, "figures": {"structure": 0.9}}
    checkpoint.save(tmp_path / "model.safetensors", model, build(model), card)
    desk.answers["folder"] = str(tmp_path)
    train.ui.importResultButton.click()
    assert train.ui.modelSelector.currentText == "model"
    assert "'model' is worse than the model it started from: structure 0.9900 -> 0.9000" in desk.asked[-1][1]


def compare(train, card) -> None:
    """Compares a model of the user's that has this card."""
    model = ModelConfig(width=4, grain=(0.75, 1.7))
    checkpoint.save(library.own_path("mine"), model, build(model), card)
    train.fillModels()
    train.ui.modelSelector.currentText = "mine"
    train.ui.compareButton.click()


def test_a_model_is_compared_with_its_start_in_the_views(desk, train):
    choose(train)
    compare(train, {"start": "start", "figures": {"structure": 1.0}})
    assert "structure" in desk.asked[-1][1]
    desk.wait(lambda: train._comparison is None)
    composites = {c.GetLayoutName(): c for c in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")}
    shown = [slicer.mrmlScene.GetNodeByID(composites[name].GetBackgroundVolumeID()) for name in ("Red", "Yellow")]
    assert [node.GetName() for node in shown] == ["Cine by start", "Cine by mine"]
    shown[1].SetName("To be kept")
    kept = slicer.util.arrayFromVolume(shown[1]).copy()
    slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode").SetSelectedItemNumber(5)
    train.ui.compareButton.click()
    desk.wait(lambda: train._comparison is None)
    again = [slicer.mrmlScene.GetNodeByID(composites[name].GetBackgroundVolumeID()) for name in ("Red", "Yellow")]
    assert again[0] is shown[0] and again[1] is not shown[1] and again[1].GetName() == "Cine by mine"
    assert np.array_equal(slicer.util.arrayFromVolume(shown[1]), kept), "a renamed one is the user's"
    train.ui.inputsSelector.uncheck(slicer.util.getFirstNodeByClassByName("vtkMRMLSequenceNode", "Cine"))
    train.ui.inputsSelector.check(desk.cine(FRAMES[::-1]))
    train.ui.compareButton.click()
    desk.wait(lambda: train._comparison is None)
    names = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
    assert names.count("Cine by start") == 2, "another recording of the same name"
    count = slicer.mrmlScene.GetNumberOfNodes()
    train.ui.compareButton.click()
    desk.wait(lambda: train._comparison is None)
    assert slicer.mrmlScene.GetNumberOfNodes() == count


def test_a_model_that_cannot_be_compared_is_reported_without_showing_a_former_image(desk, train):
    choose(train)
    compare(train, {"start": "start", "figures": {"structure": 1.0}})
    desk.wait(lambda: train._comparison is None)
    train.ui.compareButton.click()
    for live in train._comparison.previews.values():
        live._stream._fail("It broke.")
    desk.wait(lambda: train._comparison is None)
    assert "It broke." in desk.asked[-1][1]


def test_a_comparison_names_the_images_of_its_figures_and_shows_the_text_of_a_card_as_text(desk, train):
    compare(train, {"figures": {"<img src=x>": 1.0}, "figures_are_of": "frames trained on"})
    assert "&lt;img" in desk.asked[-1][1] and "<img" not in desk.asked[-1][1]
    assert "frames trained on" in desk.asked[-1][1]


def test_a_run_is_exported_as_a_folder_with_recipe_steps_and_region(desk, train, tmp_path):
    choose(train)
    desk.answers["save"] = str(tmp_path / "run")
    train.ui.regionSelector.currentText = "given"
    train.ui.exportJobButton.click()
    assert "none was used" in desk.asked[-1][1] and not (tmp_path / "run").exists()
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


def test_writing_a_large_recording_does_not_block_the_panel(desk, train):
    """The recording is written in pieces, and writing can be abandoned in between without leaving anything."""
    large = desk.cine(np.random.default_rng(0).integers(0, 255, (100, 1000, 1000)).astype(np.uint8), "Large")
    folder = train.logic.trainer.folder
    for _ in range(2):
        choose(train)
        train.ui.inputsSelector.check(large)
        train.ui.trainButton.click()
        job = train.job
        assert job.preparation is not None and "written" in train.ui.runLabel.text
        assert not train.ui.resumeButton.enabled
        job.remove()
        assert job not in train.logic.trainer.jobs and not list(folder.glob("*Large*")), "nothing is left"
    pieces = []
    prepare = type(job).prepare

    def counted(one):
        started = time.process_time()
        prepare(one)
        pieces.append(time.process_time() - started)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(job), "prepare", counted)
        train.ui.trainButton.click()
        job = train.job
        desk.wait(lambda: job.preparation is None)
    assert pieces and max(pieces) < 0.1, "of processor time, as others may be at work"
    desk.wait(lambda: job.state == "running")
    written = [np.load(path, mmap_mode="r") for path in sorted(job.folder.glob("recording-*.npy"))]
    assert [len(frames) for frames in written] == [16, 100] and np.array_equal(written[1], desk.frames(large))


def test_exporting_a_large_recording_does_not_block_the_panel(desk, train, tmp_path):
    """The recording is written in pieces, files by another process, and the export can be abandoned in between."""
    large = np.random.default_rng(0).integers(0, 255, (100, 1000, 1000)).astype(np.uint8)
    (tmp_path / "files").mkdir()
    np.save(tmp_path / "files" / "one.npy", large[:40])
    train.ui.inputsSelector.check(desk.cine(large, "Large"))
    train.ui.folderLineEdit.text = str(tmp_path / "files")
    for way in ("abandoned", "completed"):
        desk.answers["save"] = str(tmp_path / way)
        desk.rest()
        pieces = [time.thread_time()]
        train.ui.exportJobButton.click()
        pieces[0] = time.thread_time() - pieces[0]
        job = train.exporting
        assert job is not None and not train.ui.exportJobButton.enabled
        train.ui.minutesSpinBox.value = 3
        assert not train.ui.exportJobButton.enabled, "only one at a time"
        poll = job.poll

        def counted():
            started = time.thread_time()
            ended = poll()  # noqa: B023
            pieces.append(time.thread_time() - started)  # noqa: B023
            return ended

        job.poll = counted
        desk.wait(lambda: len(pieces) > 3)  # noqa: B023
        assert not (tmp_path / way).exists(), "only complete"
        if way == "abandoned":
            train.endExport()  # also called when the panel is closed
            train.updatePanel()
        desk.wait(lambda: train.exporting is None)
        assert max(pieces) < 0.1, "of this thread's processor time, as others may be at work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["completed", "files", "home"]
    assert np.array_equal(np.load(tmp_path / "completed" / "recording-1.npy", mmap_mode="r"), large)
    assert np.array_equal(np.load(tmp_path / "completed" / "recording-2.npy", mmap_mode="r"), large[:40])
    assert [kind for kind, _ in desk.asked] == ["save", "save"] and train.ui.exportJobButton.enabled


def test_files_that_cannot_be_exported_show_one_message(desk, train, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "one.npy").write_bytes(b"no array")
    train.ui.folderLineEdit.text = str(tmp_path / "files")
    desk.answers["save"] = str(tmp_path / "run")
    train.ui.exportJobButton.click()
    desk.wait(lambda: train.exporting is None)
    assert "one.npy" in desk.asked[-1][1] and [kind for kind, _ in desk.asked] == ["save", "message"]
    desk.rest(0.3)
    assert len(desk.asked) == 2 and train.ui.exportJobButton.enabled
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "home"]
