"""The panel of Speckle2Self: its buttons are clicked, and the results are checked in the scene."""

import os
import signal
import sys

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")

FRAMES = np.random.default_rng(0).rayleigh(40, (12, 48, 56)).clip(0, 255).astype(np.uint8)


def choose(panel, node, model="lee", region="none"):
    """Choose an input and a fast filter as the user does."""
    panel.ui.inputSelector.setCurrentNode(node)
    panel.ui.modelSelector.currentText = model
    panel.ui.regionSelector.currentText = region


def apply(desk, panel):
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run is None)


@pytest.fixture
def done(desk, panel):
    """Return a cine that has been despeckled."""
    choose(panel, desk.cine())
    apply(desk, panel)
    return panel._parameterNode.outputNode


#
# Appearance
#


def test_every_control_explains_itself_and_nothing_is_cut_at_400_pixels(desk, panel):

    panel.ui.evaluateCollapsibleButton.collapsed = False
    desk.check_controls(panel, 400)
    panel.ui.evaluateCollapsibleButton.collapsed = True


def test_without_input_nothing_can_be_done(desk, panel):
    buttons = ("apply", "preview", "train", "sideBySide", "flicker", "difference", "evaluate", "export")
    assert not any(getattr(panel.ui, f"{name}Button").enabled for name in buttons)
    assert not panel.ui.liveCheckBox.enabled
    panel.ui.inputSelector.setCurrentNode(desk.volume())
    can = {name for name in buttons if getattr(panel.ui, f"{name}Button").enabled}
    assert can == {"apply", "preview", "train"}


CONTROLS = [
    ("regionSelector", "currentText", "none", "region"),
    ("showRegionCheckBox", "checked", True, "showRegion"),
    ("axisSelector", "currentText", "average", "axis"),
    ("modelSelector", "currentText", "srad", "model"),
    ("deviceSelector", "currentText", "cpu", "device"),
    ("strengthSlider", "value", 0.25, "strength"),
    ("gammaSlider", "value", 2.0, "gamma"),
    ("keepPartialCheckBox", "checked", True, "keepPartial"),
    ("filterSelector", "currentText", "nlm", "filter"),
]


@pytest.mark.parametrize("widget, name, value, parameter", CONTROLS)
def test_a_control_and_its_parameter_follow_each_other(desk, panel, widget, name, value, parameter):
    control, parameters = getattr(panel.ui, widget), panel._parameterNode
    former = getattr(parameters, parameter)
    setattr(control, name, value)
    assert getattr(parameters, parameter) == value
    setattr(parameters, parameter, former)
    assert getattr(control, name) == former


@pytest.mark.parametrize("widget, kind, parameter", [
    ("inputSelector", "vtkMRMLVectorVolumeNode", "inputNode"),
    ("outputSelector", "vtkMRMLSequenceNode", "outputNode"),
    ("regionNodeSelector", "vtkMRMLSegmentationNode", "regionNode"),
    ("tissueSelector", "vtkMRMLMarkupsROINode", "tissueNode"),
    ("lumenSelector", "vtkMRMLSegmentationNode", "lumenNode"),
])  # fmt: skip
def test_a_selector_and_its_parameter_follow_each_other(desk, panel, widget, kind, parameter):
    node = slicer.mrmlScene.AddNewNodeByClass(kind, "Node")
    getattr(panel.ui, widget).setCurrentNode(node)
    assert getattr(panel._parameterNode, parameter) is node
    setattr(panel._parameterNode, parameter, None)
    assert getattr(panel.ui, widget).currentNode() is None
    slicer.mrmlScene.RemoveNode(node)


#
# Apply
#


def test_apply_despeckles_into_a_node_next_to_the_input(desk, panel, done):
    assert done.GetName() == "Cine despeckled"
    assert done.GetNthIndexValue(3) == "0.30"
    assert desk.frames(done).std() < 0.8 * FRAMES.std()
    assert "12 frames" in panel.ui.statusLabel.text and "cpu" in panel.ui.statusLabel.text
    assert panel.ui.applyButton.visible and not panel.ui.cancelButton.visible
    assert np.array_equal(desk.frames(panel._parameterNode.inputNode), FRAMES)


def test_the_bundled_model_and_the_detected_region_are_the_defaults(desk, panel):
    assert (panel._parameterNode.model, panel._parameterNode.region) == ("default", "auto")
    panel.ui.inputSelector.setCurrentNode(desk.volume())
    assert "imulated" in panel.ui.modelDescriptionLabel.text
    apply(desk, panel)
    assert panel._parameterNode.outputNode.GetName() == "Liver despeckled"


def test_apply_again_fills_the_same_output(desk, panel, done):
    first, count = desk.frames(done), slicer.mrmlScene.GetNumberOfNodes()
    panel.ui.modelSelector.currentText = "median"
    apply(desk, panel)
    assert panel._parameterNode.outputNode is done and slicer.mrmlScene.GetNumberOfNodes() == count
    assert not np.array_equal(desk.frames(done), first)


def test_another_input_never_fills_the_former_ones_output(desk, panel, done):
    panel.ui.inputSelector.setCurrentNode(desk.volume())
    assert panel._parameterNode.outputNode is None


def test_progress_is_shown_and_cancel_leaves_the_scene_unchanged(desk, panel):
    choose(panel, desk.cine(np.kron(FRAMES, np.ones((1, 8, 8), np.uint8))), "nlm")
    before = desk.names()
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run.done > 0)
    assert panel.ui.progressBar.visible and panel.ui.progressBar.value > 0
    assert "of 12 frames" in panel.ui.statusLabel.text and "per second" in panel.ui.statusLabel.text
    panel.ui.cancelButton.click()
    desk.wait(lambda: panel.run is None, 5)
    assert "unchanged" in panel.ui.statusLabel.text
    assert desk.names() == before


def test_finished_frames_are_kept_after_cancel_if_asked_for(desk, panel):
    choose(panel, desk.cine(np.kron(FRAMES, np.ones((1, 8, 8), np.uint8))), "nlm")
    panel.ui.keepPartialCheckBox.checked = True
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run.done > 0)
    panel.ui.cancelButton.click()
    desk.wait(lambda: panel.run is None)
    output = panel._parameterNode.outputNode
    assert output.GetName() == "Cine despeckled (partial)" and 0 < output.GetNumberOfDataNodes() < 12
    panel.ui.modelSelector.currentText = "median"
    apply(desk, panel)
    assert panel._parameterNode.outputNode is output and output.GetNumberOfDataNodes() == 12
    assert not any("partial" in name for name in desk.names())


def test_a_killed_process_shows_one_message_and_the_next_apply_works(desk, panel):
    choose(panel, desk.cine(np.kron(FRAMES, np.ones((1, 8, 8), np.uint8))), "nlm")
    before = desk.names()
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run.done > 0)
    os.kill(panel.logic.worker.pid, signal.SIGKILL)
    desk.wait(lambda: panel.run is None, 5)
    assert "ended unexpectedly" in panel.ui.statusLabel.text and desk.names() == before
    panel.ui.modelSelector.currentText = "median"
    apply(desk, panel)
    assert panel._parameterNode.outputNode.GetName() == "Cine despeckled"


def test_nodes_that_cannot_be_despeckled_are_refused_in_one_clear_sentence(desk, panel):
    panel.ui.inputSelector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty"))
    panel.ui.applyButton.click()
    desk.rest()
    assert [kind for kind, _ in desk.asked] == ["message"]
    assert "'Empty'" in desk.asked[0][1] and "Traceback" not in desk.asked[0][1]
    assert panel.run is None and panel.ui.applyButton.enabled


def test_an_unchanged_output_is_reported(desk, panel):
    dots = np.where(np.arange(40 * 48).reshape(1, 40, 48) % 97, 0, 200).astype(np.uint8)
    choose(panel, desk.volume("Dots", dots), region="auto")
    apply(desk, panel)
    assert np.array_equal(slicer.util.arrayFromVolume(panel._parameterNode.outputNode), dots)
    assert "No ultrasound region was found" in panel.ui.statusLabel.text


def test_missing_packages_are_reported_before_anything_starts(desk, panel, monkeypatch):
    from Speckle2SelfSlicer import dependencies

    monkeypatch.setattr(dependencies, "find_spec", lambda name: None if name == "torch" else name)
    choose(panel, desk.volume())
    panel.ui.applyButton.click()
    desk.rest()
    assert len(desk.asked) == 1 and "PyTorch extension" in desk.asked[0][1]
    assert panel.run is None


@pytest.fixture
def without_torch(monkeypatch):
    """Makes torch missing, with the PyTorch extension there: `without_torch(f)` has it call f(what is installed)."""
    from Speckle2SelfSlicer import dependencies

    def make(install):
        there = set(dependencies.packages())
        logic = type("PyTorchUtilsLogic", (), {"installTorch": lambda self, askConfirmation: install(there)})
        extension = type(sys)("PyTorchUtils")
        extension.PyTorchUtilsLogic = logic
        monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
        monkeypatch.setattr(dependencies, "find_spec", lambda name: name if name in there else None)

    return make


def test_torch_that_was_just_installed_is_used_at_once(desk, panel, without_torch):
    without_torch(lambda there: there.add("torch"))
    choose(panel, desk.volume())
    apply(desk, panel)
    assert panel._parameterNode.outputNode.GetName() == "Liver despeckled" and not desk.asked


def test_pressing_buttons_during_an_installation_does_not_install_again(desk, panel, without_torch):
    """Slicer's pip lets events happen."""
    asked = []

    def install(there):
        asked.append(panel.ui.statusLabel.text)
        panel.ui.applyButton.click()
        panel.ui.previewButton.click()
        there.add("torch")

    without_torch(install)
    choose(panel, desk.volume())
    apply(desk, panel)
    assert len(asked) == 1 and "nstall" in asked[0]
    assert panel._parameterNode.outputNode.GetName() == "Liver despeckled"
    assert desk.asked and all("are being installed" in text for _, text in desk.asked)


def test_where_torch_is_declined_nothing_else_is_installed(desk, panel, monkeypatch, without_torch):
    from Speckle2SelfSlicer import dependencies

    without_torch(lambda there: None)
    monkeypatch.setattr(dependencies, "_install", lambda: pytest.fail("the others are installed all the same"))
    choose(panel, desk.volume())
    panel.ui.applyButton.click()
    assert len(desk.asked) == 1 and "torch" in desk.asked[0][1] and panel.run is None


#
# Look
#


def test_strength_and_gamma_change_the_output_without_another_run(desk, panel, done):
    panel.ui.strengthSlider.value = 0
    desk.wait(lambda: panel._relook is None)
    assert panel.run is None and np.array_equal(desk.frames(done), FRAMES)
    panel.ui.strengthSlider.value = 1
    panel.ui.gammaSlider.value = 2
    desk.wait(lambda: panel._relook is None)
    dark = desk.frames(done)
    panel.ui.gammaSlider.value = 1
    desk.wait(lambda: panel._relook is None)
    assert dark.mean() < desk.frames(done).mean()


#
# Region
#


def box(center, size):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    node.SetCenter(*center)
    node.SetSize(*size)
    return node


def test_only_a_given_region_is_changed_and_it_is_reused_for_the_next_recording(desk, panel):
    choose(panel, desk.volume(), region="given")
    assert panel.ui.regionNodeSelector.enabled
    panel.ui.regionNodeSelector.setCurrentNode(box((20, 20, 0), (20, 20, 4)))
    apply(desk, panel)
    changed = slicer.util.arrayFromVolume(panel._parameterNode.outputNode)[0] != FRAMES[0]
    rows, columns = np.nonzero(changed)
    assert rows.min() >= 10 and rows.max() <= 30 and columns.min() >= 10 and columns.max() <= 30
    panel.ui.inputSelector.setCurrentNode(desk.volume("Kidney", FRAMES[1:2]))
    panel.ui.regionNodeSelector.setCurrentNode(None)
    apply(desk, panel)
    again = slicer.util.arrayFromVolume(panel._parameterNode.outputNode)[0] != FRAMES[1]
    assert again.any() and not again[~np.pad(np.ones((21, 21), bool), ((10, 17), (10, 25)))].any()


def test_a_region_that_was_never_given_is_requested(desk, panel):
    choose(panel, desk.volume("Odd", FRAMES[:1, :40, :37]), region="given")
    panel.ui.applyButton.click()
    assert "Choose a segmentation or a box" in desk.asked[-1][1]


def test_the_region_is_outlined_before_and_after_apply(desk, panel):
    choose(panel, desk.cine(island()), region="auto")
    panel.ui.showRegionCheckBox.checked = True
    desk.wait(lambda: not panel.outline.searching)
    outline = slicer.util.getNode("Outline of the region")
    first = slicer.util.arrayFromVolume(outline)[0].astype(bool)
    assert first[30:70, 30:70].all() and not first[:15].any()
    apply(desk, panel)
    assert np.array_equal(slicer.util.arrayFromVolume(outline)[0].astype(bool), first)
    assert "Cine despeckled" in desk.names()
    panel.ui.showRegionCheckBox.checked = False
    composite = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceCompositeNode")
    assert composite.GetLabelVolumeID() is None and "Outline of the region" not in desk.names()
    panel.ui.showRegionCheckBox.checked = True
    assert composite.GetLabelVolumeID()
    slicer.util.selectModule("SpeckleTrain")
    assert composite.GetLabelVolumeID() is None, "it would look like the region that is trained on"
    slicer.util.selectModule("Speckle2Self")
    assert np.array_equal(slicer.util.array("Outline of the region")[0].astype(bool), first)


def island():
    """Return speckle in the middle of black frames."""
    frames = np.zeros((12, 96, 96), np.uint8)
    frames[:, 20:80, 20:80] = np.random.default_rng(1).rayleigh(40, (12, 60, 60)).clip(1, 255)
    return frames


def test_the_region_of_a_run_on_whole_frames_is_not_mistaken_for_a_detected_one(desk, panel):
    choose(panel, desk.cine(island()), "median")
    apply(desk, panel)
    panel.ui.regionSelector.currentText = "auto"
    panel.ui.showRegionCheckBox.checked = True
    desk.wait(lambda: not panel.outline.searching)
    assert not slicer.util.array("Outline of the region")[0][:15].any()
    panel.ui.liveCheckBox.click()
    desk.wait(lambda: panel.live.output is not None)
    assert not panel.live._stream.region[:15].any()


@pytest.mark.parametrize("axes", [("average", "average"), ("k", "j")])
def test_the_result_of_a_run_along_another_axis_does_not_keep_live_from_starting(desk, panel, axes):
    choose(panel, desk.volume("Volume", np.repeat(FRAMES, 2, 0)), "median", "auto")
    panel.ui.axisSelector.currentText = axes[0]
    apply(desk, panel)
    panel.ui.axisSelector.currentText = axes[1]
    panel.ui.liveCheckBox.click()
    assert not desk.asked
    desk.wait(lambda: panel.live.output is not None)


def test_the_region_is_detected_again_when_a_stream_changes_its_size(desk, panel):
    stream = desk.volume("Stream", island()[:1])
    choose(panel, stream, "median", "auto")
    apply(desk, panel)
    slicer.util.updateVolumeFromArray(stream, island()[1:2, 8:, 4:])
    panel.ui.liveCheckBox.click()
    panel.ui.showRegionCheckBox.checked = True
    desk.wait(lambda: not panel.outline.searching and panel.live.output is not None)
    assert not desk.asked and slicer.util.array("Outline of the region").shape == (1, 88, 92)
    panel.ui.showRegionCheckBox.checked = False
    panel.ui.showRegionCheckBox.checked = True
    slicer.util.updateVolumeFromArray(stream, island()[1:2])
    desk.wait(lambda: not panel.outline.searching)
    assert len(desk.asked) == 1 and "'Stream' has changed its size; show its region again." in desk.asked[0][1]


def test_the_outline_follows_a_box_that_is_moved(desk, panel):
    def outlined():
        return slicer.util.array("Outline of the region")[0]

    choose(panel, desk.volume(), region="given")
    given = box((36, 36, 0), (16, 16, 4))
    panel.ui.regionNodeSelector.setCurrentNode(given)
    panel.ui.showRegionCheckBox.checked = True
    assert outlined()[36, 36] and not outlined()[12, 12]
    given.SetCenter(12, 12, 0)
    desk.wait(lambda: outlined()[12, 12] and not outlined()[36, 36])
    given.SetCenter(900, 12, 0)
    desk.wait(lambda: "Outline of the region" not in desk.names())
    given.SetCenter(36, 36, 0)
    desk.wait(lambda: "Outline of the region" in desk.names())
    assert outlined()[36, 36] and not desk.asked, "off the image and back"
    panel.ui.showRegionCheckBox.checked = False
    given.SetCenter(36, 36, 0)
    desk.rest(0.7)
    assert "Outline of the region" not in desk.names()


#
# Preview and live
#


def test_the_preview_is_only_the_shown_frame_and_follows_the_look(desk, panel):
    choose(panel, desk.cine())
    browser = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetSelectedItemNumber(5)
    panel.ui.previewButton.click()
    desk.wait(lambda: not panel.live.waiting)
    output, stream = panel.live.output, panel.live._stream
    assert slicer.util.arrayFromVolume(output).shape == (1, 48, 56)
    assert "despeckled" not in " ".join(desk.names("vtkMRMLSequenceNode"))
    panel.ui.strengthSlider.value = 0
    desk.wait(lambda: not panel.live.waiting)
    assert np.array_equal(slicer.util.arrayFromVolume(output)[0], FRAMES[5])
    browser.SetSelectedItemNumber(8)
    desk.rest()
    assert np.array_equal(slicer.util.arrayFromVolume(output)[0], FRAMES[5]), "a preview does not follow"
    panel.ui.previewButton.click()
    desk.wait(lambda: not panel.live.waiting)
    assert np.array_equal(slicer.util.arrayFromVolume(output)[0], FRAMES[8])
    assert panel.live._stream is stream and panel.live.output is output
    panel.ui.modelSelector.currentText = "median"
    panel.ui.liveCheckBox.click()
    assert not panel.live.once and panel.live.output is output


@pytest.mark.parametrize("button", ["previewButton", "liveCheckBox"])
def test_preview_and_live_use_a_given_region(desk, panel, button):
    volume = desk.volume()
    choose(panel, volume, region="given")
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    panel.ui.regionNodeSelector.setCurrentNode(box)
    box.SetCenter(13.5, 23.5, 0)
    box.SetSize(28, 100, 10)
    getattr(panel.ui, button).click()
    desk.wait(lambda: panel.live.output is not None)
    after, before = (slicer.util.arrayFromVolume(node)[0] for node in (panel.live.output, volume))
    assert np.array_equal(after[:, 28:], before[:, 28:]) and (after[:, :28] != before[:, :28]).mean() > 0.5
    box.SetCenter(41.5, 23.5, 0)
    if button == "previewButton":
        desk.rest()
        assert (after[:, :28] != before[:, :28]).any(), "a preview does not update itself"
        panel.ui.previewButton.click()
    desk.wait(lambda: np.array_equal(after[:, :28], before[:, :28]) and (after[:, 28:] != before[:, 28:]).mean() > 0.5)
    assert not desk.asked


def test_live_is_off_if_it_cannot_start(desk, panel):
    choose(panel, desk.volume(), region="given")
    panel.ui.liveCheckBox.click()
    desk.rest()
    assert desk.asked and panel.live is None and not panel.ui.liveCheckBox.checked


def test_a_preview_whose_output_was_removed_is_created_again(desk, panel):
    choose(panel, desk.volume())
    panel.ui.previewButton.click()
    desk.wait(lambda: panel.live.output is not None)
    slicer.mrmlScene.RemoveNode(panel.live.output)
    panel.ui.previewButton.click()
    desk.wait(lambda: panel.live.hasOutput)
    slicer.mrmlScene.RemoveNode(panel.live.output)
    panel.ui.modelSelector.currentText = "median"
    desk.wait(lambda: panel.live.hasOutput)


def test_live_follows_the_recording_until_its_node_is_removed(desk, panel):
    choose(panel, desk.cine())
    panel.ui.strengthSlider.value = 0  # identifies the frame
    browser = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    panel.ui.liveCheckBox.click()
    for number in (3, 7, 11):
        browser.SetSelectedItemNumber(number)
        desk.wait(lambda number=number: panel.live.output is not None
                  and np.array_equal(slicer.util.arrayFromVolume(panel.live.output)[0], FRAMES[number]))  # fmt: skip
    assert "images per second" in panel.ui.liveLabel.text and " ms" in panel.ui.liveLabel.text
    slicer.mrmlScene.RemoveNode(panel.live.node)
    desk.wait(lambda: panel.live is None)
    assert not panel.ui.liveCheckBox.checked


def test_live_can_be_switched_off_and_the_output_is_kept(desk, panel):
    volume = desk.volume()
    choose(panel, volume)
    panel.ui.liveCheckBox.click()
    desk.wait(lambda: panel.live.output is not None)
    output = panel.live.output
    panel.ui.liveCheckBox.click()
    assert panel.live is None and output.GetScene() is slicer.mrmlScene
    slicer.util.updateVolumeFromArray(volume, FRAMES[2:3])
    desk.rest()


def test_live_follows_a_stream_of_encoded_images(desk, panel):
    """Video arrives through OpenIGTLink like this: each image is another frame of the same node."""

    def encoded(image):
        node, pixels = slicer.vtkMRMLStreamingVolumeNode(), slicer.vtkMRMLVectorVolumeNode()
        slicer.util.updateVolumeFromArray(pixels, np.repeat(image[None, ..., None], 3, -1))
        node.SetCodecFourCC("RV24")
        node.SetAndObserveImageData(pixels.GetImageData())
        assert node.EncodeImageData()
        return node.GetFrame()

    stream = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLStreamingVolumeNode", "US")
    stream.SetAndObserveFrame(encoded(FRAMES[0]))
    choose(panel, stream)
    panel.ui.strengthSlider.value = 0  # identifies the image
    panel.ui.liveCheckBox.click()
    for number in (0, 3, 7):
        stream.SetAndObserveFrame(encoded(FRAMES[number]))
        desk.wait(lambda: panel.live.output is not None)
        image = slicer.util.arrayFromVolume(panel.live.output)[0, ..., 0]
        desk.wait(lambda image=image, number=number: np.array_equal(image, FRAMES[number]))
    panel.ui.liveCheckBox.click()
    stream.SetAndObserveFrame(encoded(FRAMES[1]))
    desk.rest()


def test_live_reuses_its_output_when_switched_on_again_unless_that_was_renamed(desk, panel):
    """Other modules may have been given that volume, and each time another one would fill the scene."""

    def live(node):
        choose(panel, node, "median")
        panel.ui.liveCheckBox.click()
        desk.wait(lambda: panel.live.output is not None and not panel.live.waiting)
        output = panel.live.output
        panel.ui.liveCheckBox.click()
        return output

    liver, kidney = desk.volume(), desk.volume("Kidney", FRAMES[1:2])
    output = live(liver)
    slicer.util.updateVolumeFromArray(liver, FRAMES[2:3])
    before = slicer.util.arrayFromVolume(output).copy()
    assert live(liver) is output and not np.array_equal(slicer.util.arrayFromVolume(output), before)
    assert live(kidney) is not output
    output = live(liver)
    output.SetName("To be kept")
    assert live(liver) is not output
    output = live(liver)
    panel.ui.outputSelector.setCurrentNode(output)
    apply(desk, panel)
    assert live(liver) is not output, "the output of Apply is no longer used for live images"


def test_live_changes_the_views_once_and_not_at_every_image(desk, panel):
    volume, other = desk.volume(), desk.volume("Other", FRAMES[1:2])
    choose(panel, volume)
    panel.ui.liveCheckBox.click()
    desk.wait(lambda: panel.live.output is not None)
    assert composites()["Red"].GetForegroundVolumeID() == panel.live.output.GetID()
    slicer.util.setSliceViewerLayers(background=other, foreground=None)
    slicer.util.updateVolumeFromArray(volume, FRAMES[2:3])
    desk.wait(lambda: not panel.live.waiting)
    desk.rest()
    assert composites()["Red"].GetBackgroundVolumeID() == other.GetID(), "the user's later choice"
    panel.ui.liveCheckBox.click()


#
# Compare and evaluate
#


def composites():
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    return {node.GetLayoutName(): node for node in nodes}


def test_side_by_side_flicker_fade_and_difference(desk, panel, done):
    from Speckle2SelfSlicer import scene

    before, after = (scene.proxyOf(n).GetID() for n in (panel._parameterNode.inputNode, done))
    panel.ui.sideBySideButton.click()
    assert composites()["Red"].GetBackgroundVolumeID() == before
    assert composites()["Yellow"].GetBackgroundVolumeID() == after
    assert slicer.app.layoutManager().layout == slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView
    panel.ui.fadeSlider.value = 0.5
    assert composites()["Red"].GetForegroundVolumeID() == after
    assert composites()["Red"].GetForegroundOpacity() == 0.5
    panel.ui.flickerButton.click()
    seen = set()
    desk.wait(lambda: seen.add(composites()["Red"].GetForegroundOpacity()) or {0.0, 1.0} <= seen, 5)
    panel.ui.flickerButton.click()
    panel.ui.differenceButton.click()
    difference = slicer.util.getNode("Difference")
    assert composites()["Red"].GetBackgroundVolumeID() == difference.GetID()
    expected = FRAMES[0].astype(int) - desk.frames(done)[0]
    assert np.array_equal(slicer.util.arrayFromVolume(difference)[0], expected)


def test_a_recording_that_no_browser_shows_any_longer_is_reported_once_and_not_at_every_fade(desk, panel, done):
    slicer.mrmlScene.RemoveNode(slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode"))
    panel.ui.fadeSlider.value = 0.5
    panel.ui.flickerButton.click()
    desk.rest(0.8)
    assert not desk.asked
    panel.ui.sideBySideButton.click()
    assert "is not shown; choose" in desk.asked[0][1] and len(desk.asked) == 1


def test_figures_are_written_into_a_table_and_a_file(desk, panel, done, tmp_path):
    panel.ui.tissueSelector.addNode("vtkMRMLMarkupsROINode")
    assert panel._parameterNode.tissueNode.GetSize()[0] == pytest.approx(56 / 4)
    panel.ui.filterSelector.currentText = "median"
    panel.ui.evaluateButton.click()
    assert not desk.asked
    for word in ("SNR", "homogeneity", "input", "despeckled", "median"):
        assert word in panel.ui.evaluateLabel.text
    desk.answers["save"] = str(tmp_path / "figures.csv")
    panel.ui.exportButton.click()
    assert (tmp_path / "figures.csv").read_text().startswith("method,mean,std,SNR")


def test_when_the_output_is_removed_the_views_show_the_input_again(desk, panel, done):
    from Speckle2SelfSlicer import scene

    panel.ui.sideBySideButton.click()
    before = scene.proxyOf(panel._parameterNode.inputNode).GetID()
    slicer.mrmlScene.RemoveNode(scene.proxyOf(done))
    assert composites()["Yellow"].GetBackgroundVolumeID() == before
    slicer.mrmlScene.RemoveNode(done)
    desk.rest()
    panel.ui.strengthSlider.value = 0.5
    desk.rest()
    assert panel._parameterNode.outputNode is None


@pytest.mark.parametrize("after", ["alphabetically before", "last"])
def test_when_a_chosen_node_is_removed_no_other_is_chosen(desk, panel, after):
    """In Slicer, the selector would move to the next row: the next Apply would overwrite that volume."""
    others = [desk.volume("Another", FRAMES[1:2])] if after == "last" else []
    choose(panel, desk.volume())
    apply(desk, panel)
    output = panel._parameterNode.outputNode
    others += [] if after == "last" else [desk.volume("Another", FRAMES[1:2])]
    panel.ui.tissueSelector.addNode("vtkMRMLMarkupsROINode")
    boxes = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box"), panel._parameterNode.tissueNode
    slicer.mrmlScene.RemoveNode(output)
    slicer.mrmlScene.RemoveNode(boxes[1])
    assert panel._parameterNode.outputNode is None and panel._parameterNode.tissueNode is None
    assert panel.ui.outputSelector.currentNode() is None and panel.ui.tissueSelector.currentNode() is None
    apply(desk, panel)
    assert panel._parameterNode.outputNode.GetName().startswith("Liver despeckled")
    assert np.array_equal(slicer.util.arrayFromVolume(others[0]), FRAMES[1:2])
    slicer.mrmlScene.RemoveNode(panel._parameterNode.inputNode)
    assert panel._parameterNode.inputNode is None


def test_an_output_that_no_browser_shows_can_be_removed(desk, panel, done):
    slicer.mrmlScene.RemoveNode(slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode"))
    slicer.mrmlScene.RemoveNode(done)
    assert panel._parameterNode.outputNode is None


#
# Models
#


def test_a_model_file_is_imported_among_the_models(desk, panel, project):
    desk.answers["open"] = str(project / "Speckle2Self" / "Resources" / "Models" / "default.safetensors")
    panel.ui.modelFileButton.click()
    assert panel._parameterNode.model == "default 2" == panel.ui.modelSelector.currentText
    desk.answers["open"] = str(project / "README.md")
    panel.ui.modelFileButton.click()
    assert "not a model file" in desk.asked[-1][1] and panel._parameterNode.model == "default 2"


def test_the_card_of_every_model_can_be_shown(desk, panel):
    for model in panel.logic.models():
        panel.ui.modelSelector.currentText = model
        panel.ui.modelCardButton.click()
        assert desk.asked[-1] == ("dialog", f"Model card: {model}")
    assert "Trained on" in panel.logic.card("default")


#
# Scene and application
#


def test_a_saved_scene_restores_the_panel(desk, panel, done, tmp_path):
    panel.ui.strengthSlider.value = 0.5
    panel.ui.axisSelector.currentText = "k"
    desk.wait(lambda: panel._relook is None)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear()
    assert panel.ui.inputSelector.currentNode() is None and panel.ui.strengthSlider.value == 1
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    desk.rest()
    assert panel.ui.inputSelector.currentNode().GetName() == "Cine"
    assert panel.ui.outputSelector.currentNode().GetName() == "Cine despeckled"
    assert panel.ui.strengthSlider.value == 0.5
    assert (panel.ui.modelSelector.currentText, panel.ui.axisSelector.currentText) == ("lee", "k")


def test_an_imported_scene_changes_no_choice(desk, panel, done, tmp_path):
    other = slicer.vtkMRMLScene()
    other.AddNewNodeByClass("vtkMRMLTextNode", "Note")
    other.SetURL(str(tmp_path / "other.mrml"))
    assert other.Commit()
    before = panel.parameters()
    panel.ui.liveCheckBox.click()
    live = panel.live
    desk.wait(lambda: live.output is not None)
    slicer.util.loadScene(str(tmp_path / "other.mrml"))
    desk.rest()
    assert "Note" in desk.names() and panel.parameters() == before
    assert panel.ui.inputSelector.currentNode().GetName() == "Cine" and panel.live is live
    panel.ui.liveCheckBox.click()


@pytest.mark.parametrize("to", [None, "Liver"])
def test_a_run_whose_input_is_no_longer_chosen_completes(desk, panel, to):
    other = to and desk.volume(to)
    choose(panel, desk.cine(np.kron(FRAMES, np.ones((1, 8, 8), np.uint8))))
    panel.ui.applyButton.click()
    panel.ui.inputSelector.setCurrentNode(other)
    desk.wait(lambda: panel.run is None)
    assert panel.ui.applyButton.visible and not panel.ui.cancelButton.visible
    assert panel._parameterNode.outputNode is None, "what came is of another input"
    assert "Cine despeckled" in desk.names() and "12 frames" in panel.ui.statusLabel.text


def test_closing_the_scene_ends_a_run_and_its_process(desk, panel):
    choose(panel, desk.cine(np.kron(FRAMES, np.ones((1, 8, 8), np.uint8))), "nlm")
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run.done > 0)
    pid = panel.logic.worker.pid
    slicer.mrmlScene.Clear()
    assert panel.run is None and not os.path.exists(f"/proc/{pid}/stat")
    desk.rest()
    assert "Cine despeckled" not in desk.names() and panel._parameterNode is not None


def test_a_run_continues_while_another_module_is_open(desk, panel):
    choose(panel, desk.cine())
    panel.ui.applyButton.click()
    slicer.util.selectModule("SpeckleTrain")
    slicer.util.setSliceViewerLayers(background=desk.volume("Mine"))
    desk.wait(lambda: panel.run is None)
    desk.rest()
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        shown = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID())
        assert (shown.GetName(), composite.GetForegroundVolumeID()) == ("Mine", None), "the views are another module's"
    slicer.util.selectModule("Speckle2Self")
    assert panel.ui.outputSelector.currentNode().GetName() == "Cine despeckled"


def test_reloading_the_module_ends_its_run_and_leaves_a_panel_that_works(desk, panel):
    choose(panel, desk.cine(np.kron(FRAMES, np.ones((1, 8, 8), np.uint8))), "nlm")
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run.done > 0)
    pid = panel.logic.worker.pid
    panel.onReload()
    assert not os.path.exists(f"/proc/{pid}/stat")
    fresh = slicer.modules.Speckle2SelfWidget
    assert fresh is not panel and "Cine despeckled" not in desk.names()
    fresh.initializeParameterNode()
    fresh.ui.modelSelector.currentText = "median"
    apply(desk, fresh)
    assert fresh._parameterNode.outputNode.GetName() == "Cine despeckled"
