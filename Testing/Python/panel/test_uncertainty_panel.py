"""A model's uncertainty in the panel of Speckle2Self: colors over the views, and caution."""

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")
import torch  # noqa: E402

from Speckle2SelfLib import checkpoint  # noqa: E402
from Speckle2SelfLib.config import ModelConfig  # noqa: E402
from Speckle2SelfLib.look import DOUBTFUL, UNKNOWN  # noqa: E402
from Speckle2SelfLib.network import UNSURE, build  # noqa: E402

LEVEL = 2  # the color's number halfway between doubtful and unknown


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a file of a model that estimates an uncertainty halfway between doubtful and unknown."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "told"
    config = ModelConfig(width=8, uncertainty=True, uncertainty_scale=(DOUBTFUL + UNKNOWN) / 2 / UNSURE)
    network = build(config)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    checkpoint.save(path, config, network, {})
    return str(path)


def choose(panel, node, model):
    panel.ui.inputSelector.setCurrentNode(node)
    panel._parameterNode.model = model
    panel.ui.regionSelector.currentText = "none"


def apply(desk, panel):
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run is None)


def labels():
    """Return the label maps that slice views show, by the views' names."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    shown = {node.GetLayoutName(): slicer.mrmlScene.GetNodeByID(node.GetLabelVolumeID() or "") for node in nodes}
    return {name: slicer.util.arrayFromVolume(node) for name, node in shown.items() if node is not None}


def test_uncertain_places_are_colored_in_the_views_of_the_layout_until_the_box_is_unchecked(desk, panel, model):
    choose(panel, desk.volume(), model)
    panel.ui.showUncertaintyCheckBox.click()
    apply(desk, panel)
    assert set(labels()) == {"Red", "Yellow", "Green"}
    assert (labels()["Red"] == LEVEL).all()
    assert "Liver uncertainty" in desk.names("vtkMRMLScalarVolumeNode")
    panel.ui.showUncertaintyCheckBox.click()
    assert not labels() and not desk.names("vtkMRMLLabelMapVolumeNode")
    panel.ui.showUncertaintyCheckBox.click()
    assert (labels()["Red"] == LEVEL).all(), "without running the network again"


def test_a_second_apply_fills_the_same_node(desk, panel, model):
    choose(panel, desk.volume(), model)
    panel.ui.showUncertaintyCheckBox.click()
    for _ in range(2):
        apply(desk, panel)
    assert sum("uncertainty" in name for name in desk.names("vtkMRMLScalarVolumeNode")) == 1


def test_the_colors_follow_the_frame_that_is_shown(desk, panel, model):
    sequence = desk.cine()
    choose(panel, sequence, model)
    panel.ui.showUncertaintyCheckBox.click()
    apply(desk, panel)
    told = panel.result.uncertaintyNode
    slicer.util.arrayFromVolume(told.GetNthDataNode(5))[...] = 0
    (browser,) = slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode")
    browser.SetSelectedItemNumber(5)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    assert not labels()["Red"].any()
    browser.SetSelectedItemNumber(6)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    assert (labels()["Red"] == LEVEL).all()


def test_live_images_and_previews_are_also_colored(desk, panel, model):
    volume = desk.volume()
    choose(panel, volume, model)
    panel.ui.previewButton.click()
    desk.wait(lambda: panel.live.output is not None)
    assert not labels()
    panel.ui.showUncertaintyCheckBox.click()
    desk.wait(lambda: "Red" in labels())
    assert (labels()["Red"] == LEVEL).all()
    panel.ui.liveCheckBox.click()
    desk.wait(lambda: panel.live.output is not None and "Red" in labels())
    slicer.util.updateVolumeFromArray(volume, np.zeros((1, 48, 56), np.uint8))
    desk.wait(lambda: not labels()["Red"].any())
    panel.ui.liveCheckBox.click()
    assert not labels()


def test_a_label_map_of_the_user_is_kept(desk, panel, model):
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Mine")
    slicer.util.updateVolumeFromArray(mine, np.ones((1, 48, 56), np.uint8))
    composites = {n.GetLayoutName(): n for n in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")}
    composites["Red"].SetLabelVolumeID(mine.GetID())
    choose(panel, desk.volume(), model)
    panel.ui.showUncertaintyCheckBox.click()
    apply(desk, panel)
    assert (labels()["Red"] == 1).all() and (labels()["Yellow"] == LEVEL).all()
    panel.ui.showUncertaintyCheckBox.click()
    assert set(labels()) == {"Red"}


def test_another_module_finds_the_views_unchanged(desk, panel, model):
    choose(panel, desk.volume(), model)
    panel.ui.showUncertaintyCheckBox.click()
    apply(desk, panel)
    slicer.util.selectModule("SpeckleTrain")
    assert not labels()
    slicer.util.selectModule("Speckle2Self")
    assert (labels()["Red"] == LEVEL).all()


def test_caution_changes_the_output_at_once_where_the_uncertainty_is_known(desk, panel, model):
    choose(panel, desk.volume(), model)
    panel.ui.showUncertaintyCheckBox.click()
    apply(desk, panel)
    frame = slicer.util.arrayFromVolume(panel._parameterNode.inputNode).astype(float)

    def distance():
        return np.abs(slicer.util.arrayFromVolume(panel._parameterNode.outputNode) - frame).mean()

    before = distance()
    panel.ui.cautiousSlider.value = 1.0
    desk.wait(lambda: panel._relook is None)
    assert distance() == pytest.approx(before / 2, rel=0.1), "halfway between doubtful and unknown"
    panel.ui.cautiousSlider.value = 0.0
    desk.wait(lambda: panel._relook is None)
    assert distance() == before


def test_caution_without_a_known_uncertainty_asks_for_another_run(desk, panel, model):
    choose(panel, desk.volume(), model)
    apply(desk, panel)
    panel.ui.cautiousSlider.value = 1.0
    desk.wait(lambda: panel._relook is None)
    assert "Click Apply again" in panel.ui.statusLabel.text
    before = slicer.util.arrayFromVolume(panel._parameterNode.outputNode).copy()
    apply(desk, panel)
    assert not np.array_equal(slicer.util.arrayFromVolume(panel._parameterNode.outputNode), before)


def test_a_filter_is_not_asked_for_its_uncertainty(desk, panel, model):
    choose(panel, desk.volume(), model)
    panel.ui.showUncertaintyCheckBox.click()
    panel.ui.cautiousSlider.value = 0.5
    panel.ui.modelSelector.currentText = "median"
    assert not panel.ui.showUncertaintyCheckBox.enabled and not panel.ui.cautiousSlider.enabled
    apply(desk, panel)
    assert panel.result is not None and not labels()
