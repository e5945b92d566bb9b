"""The content of the views, by their pixels: recordings in any plane, in users' layouts, from every button."""

import numpy as np
import pytest

from Speckle2SelfLib import checkpoint, library
from Speckle2SelfLib.config import Job, ModelConfig
from Speckle2SelfLib.network import build

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")

FRAMES = np.random.default_rng(0).rayleigh(40, (3, 96, 128)).clip(1, 255).astype(np.uint8)
LAYOUTS = ["FourUp", "Conventional"]
PLANES = {  # directions of the columns, of the rows and across the frames, in RAS
    "axial": ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    "coronal": ((-1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "oblique": ((-0.8, 0.36, 0.48), (0, -0.8, 0.6), (0.6, 0.48, 0.64)),
}


def recording(desk, plane: str):
    """Return a cine of small pixels, far from the origin, in one of the planes."""
    import vtk

    sequence = desk.cine(FRAMES, plane)
    matrix = vtk.vtkMatrix4x4()
    for column, (direction, spacing) in enumerate(zip(PLANES[plane], (0.2, 0.2, 1.0), strict=True)):
        for row in range(3):
            matrix.SetElement(row, column, spacing * direction[row])
    for row, origin in enumerate((120.0, -80.0, 45.0)):
        matrix.SetElement(row, 3, origin)
    for number in range(sequence.GetNumberOfDataNodes()):
        sequence.GetNthDataNode(number).SetIJKToRASMatrix(matrix)
    for browser in slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode"):
        slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return sequence


def mapped() -> list[str]:
    from Speckle2SelfSlicer import views

    return [view.node.GetLayoutName() for view in views.viewsOfLayout()]


def filled(desk, names=("Red", "Yellow")) -> dict[str, float]:
    """Return how much of the area that a frame of this shape can fill in each view is lit; for a line, a tenth or
    less."""
    shares = {}
    for name in names:
        width, height = slicer.app.layoutManager().sliceWidget(name).mrmlSliceNode().GetDimensions()[:2]
        aspect = FRAMES.shape[2] / FRAMES.shape[1] * height / width
        shares[name] = desk.filled(name) / min(aspect, 1 / aspect)
    return shares


def turns() -> dict:
    """Return each view's orientation and content."""
    from Speckle2SelfSlicer import views

    found = {}
    for view in views.allViews():
        matrix = view.node.GetSliceToRAS()
        turned = [round(matrix.GetElement(row, column), 3) for row in range(3) for column in range(3)]
        found[view.node.GetLayoutName()] = turned
    return found


def apply(desk, panel, sequence):
    panel.ui.inputSelector.setCurrentNode(sequence)
    panel.ui.modelSelector.currentText = "median"
    panel.ui.regionSelector.currentText = "none"
    panel.ui.applyButton.click()
    desk.wait(lambda: panel.run is None)
    desk.rest()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("plane", PLANES)
def test_after_apply_side_by_side_and_difference_the_image_fills_the_views(desk, panel, layout, plane):
    desk.arrange(layout)
    before = turns()
    apply(desk, panel, recording(desk, plane))
    assert min(filled(desk, mapped()).values()) > 0.3, "Apply leaves no line"
    desk.arrange(layout)
    panel.ui.sideBySideButton.click()
    desk.rest()
    assert {"Red", "Yellow"} == set(mapped())
    assert min(filled(desk).values()) > 0.9, filled(desk)
    desk.arrange(layout)
    panel.ui.differenceButton.click()
    desk.rest()
    assert min(filled(desk, mapped()).values()) > 0.9, filled(desk, mapped())
    slicer.util.selectModule("SpeckleTrain")
    assert turns() == before, "the user's views are restored when the module is left"
    slicer.util.selectModule("Speckle2Self")


def test_a_preview_across_another_axis_is_an_image_in_every_view(desk, panel):
    desk.arrange("FourUp")
    before = turns()
    volume = desk.volume("Volume", np.repeat(np.repeat(FRAMES, 16, 0), 1, 1))
    panel.ui.inputSelector.setCurrentNode(volume)
    panel.ui.modelSelector.currentText = "median"
    panel.ui.regionSelector.currentText = "none"
    panel.ui.axisSelector.currentText = "j"
    panel.ui.previewButton.click()
    desk.wait(lambda: panel.live is not None and panel.live.hasOutput and not panel.live.waiting)
    desk.rest()
    from Speckle2SelfSlicer import views

    assert slicer.util.arrayFromVolume(panel.live.output).shape == (48, 1, 128)
    for view in views.viewsOfLayout():
        assert view.composite.GetForegroundVolumeID() == panel.live.output.GetID() and view.sees(panel.live.output)
    slicer.util.selectModule("SpeckleTrain")
    assert turns() == before
    slicer.util.selectModule("Speckle2Self")


@pytest.fixture
def train(desk):
    """Return the panel of SpeckleTrain, and two small models."""
    import torch

    from Speckle2SelfSlicer.session import applicationSession
    from Speckle2SelfSlicer.trainer import Trainer

    model = ModelConfig(width=4, grain=(0.75, 1.7))
    torch.manual_seed(6)
    library.own_path("start").parent.mkdir(parents=True)
    checkpoint.save(library.own_path("start"), model, build(model), {})
    checkpoint.save(library.own_path("mine"), model, build(model), {"start": "start", "figures": {"structure": 1.0}})
    applicationSession().trainer = Trainer()
    slicer.util.selectModule("Speckle2Self")
    slicer.util.selectModule("SpeckleTrain")
    yield slicer.modules.SpeckleTrainWidget
    slicer.util.selectModule("Speckle2Self")
    applicationSession().trainer = None


def finished(sequence, folder):
    """Return a run on a recording that is done, with its preview."""
    from imageio.v3 import imwrite

    from Speckle2SelfSlicer.trainer import TrainingJob

    run = TrainingJob(f"{sequence.GetName()} run", folder, Job("m.safetensors"))
    run.state, run.nodes, run.reports = "done", [sequence], [{"step": 1, "steps": 1, "consistency": 0.1}]
    run._picture = imwrite("<bytes>", np.hstack([FRAMES[1], FRAMES[1] // 2 + 1]), extension=".png")
    return run


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("plane", PLANES)
def test_show_fills_its_views_and_restores_them(desk, train, layout, plane, tmp_path):
    desk.arrange(layout)
    before = turns()
    train.logic.trainer.jobs.append(finished(recording(desk, plane), tmp_path))
    train.fillRuns()
    train.ui.showButton.click()
    desk.rest()
    assert min(filled(desk).values()) > 0.9, filled(desk)
    slicer.util.selectModule("Speckle2Self")
    assert turns() == before, "the user's views are restored when the module is left"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compare_fills_its_views(desk, train, layout):
    train.fillModels()
    train.ui.modelSelector.currentText = "mine"
    for plane in PLANES:
        desk.arrange(layout)
        for node in train.ui.inputsSelector.checkedNodes():
            train.ui.inputsSelector.uncheck(node)
        train.ui.inputsSelector.check(recording(desk, plane))
        train.ui.compareButton.click()
        desk.wait(lambda: train._comparison is None)
        desk.rest()
        assert set(mapped()) == {"Red", "Yellow"}
        assert min(filled(desk).values()) > 0.9, filled(desk)
