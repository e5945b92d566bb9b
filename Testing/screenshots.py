"""Draw screenshots of the panels with a real cine into build/screenshots: `make screenshots`.

Runs in the stand-in of the application: Testing/headless-slicer --main-window Testing/screenshots.py
"""

import os
import tempfile
import time
from pathlib import Path

os.environ["SPECKLE2SELF_HOME"] = tempfile.mkdtemp(prefix="speckle2self-")

import numpy as np
import slicer
from pydicom.data import get_testdata_file

from HeadlessSlicer import loaders, widgets

FOLDER = Path(__file__).resolve().parents[1] / "build" / "screenshots"


def wait(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        slicer.app.processEvents()
        time.sleep(0.005)


def rest(seconds: float = 0.3) -> None:
    end = time.monotonic() + seconds
    wait(lambda: time.monotonic() > end)


def save(name: str) -> None:
    rest()
    slicer.util.mainWindow().grab().save(str(FOLDER / f"{name}.png"))
    print(FOLDER / f"{name}.png")


def fit() -> None:
    rest()
    slicer.util.resetSliceViews()


def box(name, center, size):
    """Return a box on the cine; center and size in fractions of the image."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
    bounds = [0.0] * 6
    slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLVectorVolumeNode").GetRASBounds(bounds)
    low, high = np.array(bounds[::2]), np.array(bounds[1::2])
    node.SetCenter(*(high - np.array([*center, 0.5]) * (high - low)))
    node.SetSize(*(np.array([*size, 1.0]) * (high - low)))
    return node


def despeckling() -> None:
    slicer.util.selectModule("Speckle2Self")
    panel = slicer.modules.Speckle2SelfWidget
    save("empty")
    loaders.load(get_testdata_file("examples_ybr_color.dcm"))
    panel.ui.inputSelector.setCurrentNode(slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceNode"))
    panel.ui.showRegionCheckBox.checked = True
    fit()
    wait(lambda: not panel.outline.searching)
    panel.ui.applyButton.click()
    wait(lambda: panel.run.done > 8)
    save("running")
    wait(lambda: panel.run is None)
    panel.ui.showRegionCheckBox.checked = False
    panel.ui.sideBySideButton.click()
    fit()
    save("side_by_side")
    panel.ui.evaluateCollapsibleButton.collapsed = False
    for name in ("input", "model", "look"):
        getattr(panel.ui, f"{name}CollapsibleButton").collapsed = True
    panel.ui.tissueSelector.setCurrentNode(box("Tissue", (0.47, 0.25), (0.08, 0.06)))
    panel.ui.lumenSelector.setCurrentNode(box("Lumen", (0.57, 0.4), (0.06, 0.08)))
    panel.ui.filterSelector.currentText = "srad"
    panel.ui.evaluateButton.click()
    panel.ui.differenceButton.click()
    save("difference_and_figures")
    for name in ("input", "model", "look"):
        getattr(panel.ui, f"{name}CollapsibleButton").collapsed = False
    panel.ui.evaluateCollapsibleButton.collapsed = True


def training() -> None:
    panel = slicer.modules.Speckle2SelfWidget
    panel.ui.trainButton.click()
    train = slicer.modules.SpeckleTrainWidget
    train.ui.minutesSpinBox.value = 10
    train.ui.estimateButton.click()
    wait(lambda: train.estimate is None)
    train.ui.trainButton.click()
    wait(lambda: len(train.job.reports) > 3 or train.job.ended, 1200)
    train.ui.showButton.click()
    wait(lambda: train.job.ended or train.job.reports[-1]["step"] >= 150, 1200)
    fit()
    save("training")
    train.job.cancel()


FOLDER.mkdir(parents=True, exist_ok=True)
slicer.util.mainWindow().resize(1180, 860)
despeckling()
training()
for kind, text in widgets.asked:
    print(f"A {kind} came up: {text}")
slicer.app.moduleManager().unloadModules()
slicer.modules.SpeckleTrainWidget.logic.trainer.close()
