"""The module Speckle2Self: removes the speckle of ultrasound volumes and recordings in the scene."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import Annotated, Any, Union

import numpy as np
import slicer
import vtk
from slicer import (
    vtkMRMLNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSequenceNode,
    vtkMRMLStreamingVolumeNode,
    vtkMRMLVectorVolumeNode,
)
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from Speckle2SelfLib import library
from Speckle2SelfLib.config import AXES, FILTER_NAMES, DespeckleOptions
from Speckle2SelfLib.system import InputError
from Speckle2SelfSlicer import comparison, dependencies, regions, sample_data, scene
from Speckle2SelfSlicer.file_reader import FileReaderTest, Speckle2SelfFileReader  # noqa: F401, Slicer uses it
from Speckle2SelfSlicer.panel import Panel, WrapperCache, box, reporting_errors
from Speckle2SelfSlicer.panel_parts import APPLY_AGAIN, ComparePart, LivePart, UncertaintyPart
from Speckle2SelfSlicer.regions import RegionNode
from Speckle2SelfSlicer.session import Session, applicationSession

UltrasoundNode = Union[  # noqa: UP007, see regions.RegionNode
    vtkMRMLScalarVolumeNode, vtkMRMLVectorVolumeNode, vtkMRMLStreamingVolumeNode, vtkMRMLSequenceNode, None
]


class Speckle2Self(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "Speckle2Self"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Ultrasound")]
        self.parent.dependencies = ["Sequences", "Segmentations", "Markups"]
        self.parent.contributors = ["Speckle2Self contributors"]
        self.parent.helpText = _(
            "<p>Reduces the speckle of B-mode ultrasound in single images, recordings (sequences) in grey or color, "
            "and reconstructed volumes. The bundled model was trained only on simulated frames with known ground "
            "truth; no patient data was used. SpeckleTrain fine-tunes it on your own recordings, without any clean "
            "image. Only the imaged region is changed: text, scales and Doppler colors are preserved, and the input "
            "is never overwritten.</p>"
            "<p>It cannot restore what the scanner did not record, and it may mistake fine texture for speckle: always "
            "compare with the input. It is not a medical device and not for diagnosis.</p>"
            "<p>The idea is by Li, Navab and Jiang: <i>Speckle2Self: Self-Supervised Ultrasound Speckle "
            "Reduction Without Clean Data</i>, Medical Image Analysis 2025, 103755. Please cite it.</p>"
            '<p>See the <a href="https://github.com/Speckle2Self/SlicerSpeckle2Self#readme">documentation</a>.</p>'
        )
        self.parent.acknowledgementText = _(
            "This is an independent implementation. The method that it is based on, which learns only from speckled "
            "images, was published by Xuesong Li, Nassir Navab and Zhongliang Jiang; their code is under the MIT "
            "license."
        )
        slicer.app.connect("startupCompleted()", sample_data.register)


@parameterNodeWrapper
class Speckle2SelfParameterNode:
    """The panel's settings, saved with the scene.

    inputNode - the volume, recording, or proxy of a recording to despeckle.
    outputNode - an earlier output to replace; None: a new one.
    model - a bundled model, a filter, or a model file.
    region - "auto": only the imaged region; "none": the whole frame; "given": the pixels that regionNode covers.
    regionNode - a segmentation or a box.
    showRegion - whether the region is outlined in the slice views.
    axis - of 3D volumes: the slices to despeckle; "average": those of all three orientations.
    device - what to compute on.
    strength - 0: the input, to 1: the despeckled image.
    gamma - exponent on the despeckled grey values; above 1 darkens.
    cautious - how much of the input to keep where the model is uncertain, from 0 to all (1).
    showUncertainty - whether uncertain places are colored in the slice views.
    keepPartial - whether a canceled run keeps the finished frames.
    tissueNode, lumenNode - regions to measure figures of merit in.
    filter - a classical filter to compare with.
    """

    inputNode: UltrasoundNode
    outputNode: UltrasoundNode
    model: str = "default"
    region: Annotated[str, Choice(["auto", "none", "given"])] = "auto"
    regionNode: RegionNode
    showRegion: bool = False
    axis: Annotated[str, Choice(list(AXES))] = "auto"
    device: str = "auto"
    strength: Annotated[float, WithinRange(0, 1)] = 1.0
    gamma: Annotated[float, WithinRange(0.2, 5)] = 1.0
    cautious: Annotated[float, WithinRange(0, 1)] = 0.0
    showUncertainty: bool = False
    keepPartial: bool = False
    tissueNode: RegionNode
    lumenNode: RegionNode
    filter: Annotated[str, Choice(["none", *FILTER_NAMES])] = "none"


class Speckle2SelfWidget(LivePart, ComparePart, UncertaintyPart, Panel):
    """The panel: the widgets of Speckle2Self.ui, bound to the parameter node.

    Despeckling happens in the session's worker process; a timer fetches its results in short steps, so nothing freezes.
    """

    nodeParameters = ("inputNode", "outputNode", "regionNode", "tissueNode", "lumenNode")

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self.run = None  # the running processing.Run
        self.result = None  # processing.Result of the output, for changes of strength and gamma
        self._relook = None  # generator that updates the output's strength and gamma
        self._outlineTime = self._changeTime = 0  # times of the outlined node's last change, and of the latest one seen
        self._lastParameters = {}  # the last values, to find what changed
        self._describedModel = None  # model whose description is shown

    def setup(self) -> None:
        super().setup()
        self.build(Speckle2SelfLogic())
        self.outline = regions.Outline(self.session)
        self.timer = self.makeTimer(10, self.onTimer)
        self.followTimer = self.makeTimer(300, self.followRegion)  # no event reports every change of a segmentation
        self.setupLive()
        self.setupCompare()
        self.setupUncertainty()
        self.showHelp(strength=self.ui.strengthSlider, gamma=self.ui.gammaSlider, cautious=self.ui.cautiousSlider)
        self.ui.progressBar.visible = False
        self.ui.cancelButton.visible = False
        self.ui.modelSelector.connect("currentTextChanged(QString)", self.onModelSelected)
        self.ui.deviceSelector.connect("currentTextChanged(QString)", self.onDeviceSelected)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        self.endAll()
        super().cleanup()
        self.logic.close()

    def enter(self) -> None:
        super().enter()
        self.showRegion()
        self.showUncertainty()

    def exit(self) -> None:
        self.ui.flickerButton.checked = False
        self.hideOutline()
        self.overlay.hide()
        super().exit()

    def onSceneStartClose(self, caller=None, event=None) -> None:
        self.endAll()
        self.logic.close()
        super().onSceneStartClose()
        self.setStatus("")
        self.ui.evaluateLabel.text = ""

    def onSceneEndImport(self, caller=None, event=None) -> None:
        parameters = self._lastParameters
        super().onSceneEndImport()
        if self._parameterNode:
            self._lastParameters = parameters
            self.onParameters()  # the scene may have changed them

    def endAll(self) -> None:
        """End all running work; the scene is not changed."""
        self.endLive()
        self.ui.flickerButton.checked = False
        if self.run is not None:
            self.run.abandon()
        self.run = self._relook = None
        self.hideOutline()
        self.overlay.hide()
        self.forgetResult()
        self.timer.stop()
        self.showRunning()

    def forgetResult(self) -> None:
        if self.result is not None:
            self.result.release()
        self.result = self._relook = None

    #
    # Parameters
    #

    def parameters(self) -> dict:
        """Return the values of the parameter node, nodes as their ids."""
        values = {name: self._parameterNode.getValue(name) for name in self._parameterNode.allParameters}
        return {name: value.GetID() if hasattr(value, "GetID") else value for name, value in values.items()}

    def fillSelectors(self, parameterNode) -> None:
        """Fill the selectors with the available models and devices, and those of the parameter node."""
        self.fillSelector(self.ui.modelSelector, self.logic.models(), parameterNode.model)
        self.fillSelector(self.ui.deviceSelector, self.logic.devices(), parameterNode.device)
        self._lastParameters = {}
        self._describedModel = None

    def onParameters(self, caller=None, event=None) -> None:
        """React to changes by the panel or by a script."""
        now = self.parameters()
        changed = {name for name, value in now.items() if value != self._lastParameters.get(name)}
        self._lastParameters = now
        if not changed:
            return
        if "inputNode" in changed:
            self.endLive()
            self.forgetResult()
            if "outputNode" not in changed and now["outputNode"]:
                self._parameterNode.outputNode = None  # it belongs to the previous input
        self.updatePanel()
        if changed & {"strength", "gamma", "cautious"}:
            self.startRelook()
            if self.live is not None:
                self.live.setLook(**self.look())
                self.timer.start()
        if self.live is not None and (
            changed & {"model", "region", "regionNode", "axis", "device"}
            or self.live.hasUncertainty != self.showsUncertainty
        ):
            self.startLive(self.live.once)
        if changed & {"showRegion", "region", "regionNode", "axis", "inputNode"}:
            self.showRegion()
        if changed & {"showUncertainty", "inputNode", "outputNode"}:
            self.showUncertainty()

    def updatePanel(self) -> None:
        """Enable the widgets that can be used now, and describe the model."""
        parameters = self._parameterNode
        both = parameters.inputNode is not None and parameters.outputNode is not None
        self.ui.applyButton.enabled = parameters.inputNode is not None and self.run is None
        self.ui.applyButton.toolTip = (
            _("Despeckle the input into the output.") if parameters.inputNode else _("Choose an input first.")
        )
        self.ui.regionNodeSelector.enabled = parameters.region == "given"
        for widget in (self.ui.previewButton, self.ui.liveCheckBox, self.ui.trainButton):
            widget.enabled = parameters.inputNode is not None
        for widget in (self.ui.sideBySideButton, self.ui.flickerButton, self.ui.differenceButton, self.ui.fadeSlider):
            widget.enabled = both
        self.ui.evaluateButton.enabled = both and parameters.tissueNode is not None
        self.ui.exportButton.enabled = comparison.figures() is not None
        for selector, chosen in (
            (self.ui.modelSelector, parameters.model), (self.ui.deviceSelector, parameters.device),
        ):  # fmt: skip
            if selector.findText(chosen) < 0:
                selector.addItem(chosen)
            selector.currentText = chosen
        if self._describedModel != parameters.model:  # this reads the model's file
            self._describedModel = parameters.model
            self.ui.modelDescriptionLabel.text = self.logic.description(parameters.model)
            self.offerUncertainty(parameters.model)

    def setParameterNode(self, parameterNode) -> None:
        super().setParameterNode(parameterNode)
        if parameterNode:
            self._lastParameters = self.parameters()

    def onModelSelected(self, name: str) -> None:
        self.onModelOrDevice("model", name)

    def onDeviceSelected(self, name: str) -> None:
        self.onModelOrDevice("device", name)

    def onModelFile(self) -> None:
        import qt

        title = _("Import a model")
        path = qt.QFileDialog.getOpenFileName(self.parent, title, "", _("Models (*.safetensors *.pth);;All files (*)"))
        if path:
            with reporting_errors(_("The model could not be imported.")):
                dependencies.ensure()
                self._parameterNode.model = library.add(path)
                self.fillSelectors(self._parameterNode)
                self._lastParameters = self.parameters()
                self.updatePanel()

    def onModelCard(self) -> None:
        import qt

        dialog = qt.QDialog(slicer.util.mainWindow())
        dialog.windowTitle = _("Model card: {name}").format(name=self._parameterNode.model)
        text = qt.QTextBrowser(dialog)
        text.setMarkdown(self.logic.card(self._parameterNode.model))
        qt.QVBoxLayout(dialog).addWidget(text)
        dialog.resize(640, 640)
        with box():
            dialog.exec_()
        dialog.deleteLater()

    def onTrain(self) -> None:
        self.session.trainingNodes = [self._parameterNode.inputNode]  # SpeckleTrain uses it when it is entered
        slicer.util.selectModule("SpeckleTrain")

    #
    # Apply
    #

    def request(self) -> dict:
        """Return the options of despeckling that the panel shows."""
        parameters = self._parameterNode
        names = {each.name for each in fields(DespeckleOptions)} & set(parameters.allParameters)
        options = {name: parameters.getValue(name) for name in names}
        regionNode = parameters.regionNode if parameters.region == "given" else None
        return {
            **options, **self.look(), "region": regionNode or parameters.region, "uncertainty": self.showsUncertainty
        }  # fmt: skip

    def onApply(self) -> None:
        with reporting_errors(_("Despeckling failed."), cleanUp=lambda: self.setStatus("")):
            parameters = self._parameterNode
            self.endLive()
            self.setStatus(_("Installing Python packages...") if dependencies.missing_packages() else "")
            self.run = self.logic.start(
                parameters.inputNode, parameters.outputNode, keepPartial=parameters.keepPartial, **self.request()
            )
            self.setStatus(_("Reading..."))
            self.timer.start()
        self.showRunning()

    def onCancel(self) -> None:
        if self.run is not None:
            self.setStatus(_("Stopping..."))
            self.run.cancel()

    def onTimer(self) -> None:
        """Advance all running work by one time slice; never blocks. End failed work before showing its error."""
        with reporting_errors(_("Despeckling failed."), cleanUp=self.endAll):
            self.session.worker.poll()
        if self.run is not None:
            with reporting_errors(_("Despeckling failed."), cleanUp=self.run.abandon):
                self.run.step()
            self.showProgress()
        if self.run is not None and self.run.ended:
            self.finishRun()
        if self.outline.searching:
            with reporting_errors(_("The region cannot be shown."), cleanUp=self.hideOutline):
                self.outline.step()
        if self.live is not None:
            with reporting_errors(_("Live despeckling failed."), cleanUp=self.endLive):
                self.stepLive()
        if self._relook is not None:
            with reporting_errors(_("The output could not be updated."), cleanUp=self.endRelook):
                if next(self._relook, "done") == "done":
                    self._relook = None
        showing = self.live is not None and (self.live.waiting or not self.live.once)
        if not (self.run or showing or self.outline.searching or self._relook):
            self.timer.stop()

    def endRelook(self) -> None:
        self._relook = None

    def showRunning(self) -> None:
        """Show Apply, or Cancel and progress."""
        running = self.run is not None
        self.ui.applyButton.visible = not running
        self.ui.cancelButton.visible = self.ui.progressBar.visible = running
        if self._parameterNode:
            self.updatePanel()

    def showProgress(self) -> None:
        run = self.run
        self.ui.progressBar.maximum = run.total
        self.ui.progressBar.value = run.done
        if run.state == "despeckling":
            words = [_("{done} of {total} frames").format(done=run.done, total=run.total)]
            if run.done:
                words.append(_("{rate:.1f} per second").format(rate=run.rate))
            if run.seconds_left is not None:
                words.append(_("{seconds:.0f} s left").format(seconds=run.seconds_left))
            if run.device:
                words.append(_("on {device}").format(device=run.device))
            self.setStatus(", ".join(words))
        elif run.state == "writing":
            self.setStatus(_("Writing into the scene..."))

    def finishRun(self) -> None:
        """Use the result of a run that has ended."""
        run, self.run = self.run, None
        if run.state == "done":
            self.forgetResult()
            self.result = run.result
            name = run.result.node.GetName()
            seconds = _("{total} frames in {seconds:.1f} s on {device}").format(
                total=run.done, seconds=run.seconds, device=run.device
            )
            self.setStatus(f"{run.message} '{name}'" if run.message else f"'{name}': {seconds}.")
            parameters = self._parameterNode or self.logic.getParameterNode()  # another module may be open
            if self._parameterNode:  # otherwise the views belong to another module
                comparison.fade(run.recording.node, run.result.node, 1.0)
            self.ui.fadeSlider.value = 1.0
            if parameters.inputNode is not run.recording.node:  # another one was chosen in the meantime
                self.forgetResult()
            else:
                parameters.outputNode = run.result.node
            if self._parameterNode and self.result is not None:
                self._lastParameters = self.parameters()
                if any(getattr(run.options, name) != value for name, value in self.look().items()):
                    self.startRelook()
                self.showRegion()
                self.showUncertainty()
        elif run.state == "cancelled":
            self.setStatus(_("Canceled; the scene is unchanged."))
        else:
            self.setStatus(run.message, failed=True)
        self.showRunning()

    def setStatus(self, text: str, failed: bool = False) -> None:
        self.ui.statusLabel.text = text
        self.ui.statusLabel.setStyleSheet("color: #c0392b" if failed else "")

    def startRelook(self) -> None:
        """Apply strength, gamma and caution to the existing result; a restart uses the newest values."""
        parameters, result = self._parameterNode, self.result
        if result is not None and result.node is parameters.outputNode:
            look = self.look()
            if look["cautious"] and not result.hasUncertainty:
                self.setStatus(APPLY_AGAIN)
                look["cautious"] = 0.0
            self._relook = result.relook(**look)
            self.timer.start()

    def detectedRegion(self) -> np.ndarray | None:
        """Return the region (H, W) bool that the last run found in the whole input, if it would be found again."""
        parameters, result = self._parameterNode, self.result
        if result is None or parameters.region != "auto" or parameters.axis != result.automaticAxis:
            return None
        with suppress(InputError):  # a stream can change its size, or have no image for a moment
            if scene.frameSize(scene.referenceVolume(parameters.inputNode), result.axes[0]) == result.region.shape:
                return result.region
        return None

    def showRegion(self) -> None:
        """Outline the pixels to be despeckled, or remove the outline."""
        parameters, detected = self._parameterNode, self.detectedRegion()
        node, region = parameters.inputNode, parameters.region
        self.followTimer.stop()
        if not parameters.showRegion or node is None:
            self.outline.hide()
            return
        with reporting_errors(_("The region cannot be shown.")):
            if detected is not None:
                regions.showOutline(scene.referenceVolume(node), detected, self.result.axes[0])
            else:
                if region == "given" and parameters.regionNode is not None:
                    self._outlineTime = self._changeTime = regions.lastChange(parameters.regionNode)
                    self.followTimer.start()
                self.outline.show(node, region, parameters.regionNode, parameters.axis)
                self.timer.start()

    def hideOutline(self) -> None:
        self.followTimer.stop()
        self.outline.hide()

    def followRegion(self) -> None:
        """Outline a box or a segmentation again once it rests after a change, unless it has left the image."""
        parameters = self._parameterNode
        node = parameters.regionNode if parameters else None
        changed = regions.lastChange(node) if node is not None else self._outlineTime
        if changed != self._outlineTime and changed == self._changeTime:
            self._outlineTime = changed
            with suppress(InputError):
                self.outline.show(parameters.inputNode, "given", node, parameters.axis)
        self._changeTime = changed

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller, event, node: vtkMRMLNode) -> None:
        """Show the input again when its output is removed, and clear selections of the removed node."""
        parameters = self._parameterNode
        if parameters is not None and not slicer.mrmlScene.IsClosing():
            output = parameters.outputNode
            if output is not None and node in (output, scene.proxyOrNone(output)):
                comparison.restoreViews(node, scene.proxyOrNone(parameters.inputNode))
                self.ui.flickerButton.checked = False
                self.forgetResult()
        super().onNodeAboutToBeRemoved(caller, event, node)


class Speckle2SelfLogic(ScriptedLoadableModuleLogic):
    """Despeckle nodes of the scene, for the panel and for the Python console.

        logic = slicer.util.getModuleLogic("Speckle2Self")
        output = logic.process(slicer.util.getNode("Carotid"))

    `process` blocks until the output is complete; `start` and `live` return at once, for the panel.

    session: used instead of the application's; worker: instead of its worker process; both for tests.
    """

    def __init__(self, session: Session | None = None, worker: Any = None) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.session = session or (applicationSession() if worker is None else Session(worker))
        self.wrappers = WrapperCache(Speckle2SelfParameterNode)

    @property
    def worker(self):
        """Return the process that despeckles in the background; it starts when it is needed."""
        return self.session.worker

    def close(self) -> None:
        """End despeckling in the background, with all its processes."""
        self.session.closeWorker()

    def getParameterNode(self) -> Speckle2SelfParameterNode:
        return self.wrappers.of(super().getParameterNode())

    def models(self) -> list[str]:
        """Return the names that `process` accepts as `model`: the bundled models, the user's, the classical filters."""
        return self.session.models()

    def devices(self) -> list[str]:
        """Return names for `device`; more than these once the process in the background has reported them."""
        return self.session.devices()

    def description(self, model: str) -> str:
        """Return one sentence about a model of `models()`."""
        try:
            return str(library.card(model).get("description", ""))
        except InputError:
            return _("Classical filter, for comparison.") if model in self.models() else ""

    def card(self, model: str) -> str:
        """Return a model's card as Markdown: training data, figures, limits."""
        if model in library.bundled_models():
            return library.bundled_models()[model].with_name("README.md").read_text().split("\n---\n", 1)[-1].lstrip()
        try:
            card = library.card(model)
        except InputError:
            return self.description(model) or _("There is no model '{model}'.").format(model=model)
        rows = [f"| {name} | {value} |" for name, value in card.items() if name != "curve"]
        return "\n".join([f"# {model}", "", "| | |", "|---|---|", *rows])

    def region(self, node: vtkMRMLNode | str, regionNode: vtkMRMLNode | None = None, axis: str = "auto") -> np.ndarray:
        """Return the pixels (H, W) bool that a segmentation or a box (ROI) covers; see `Session.region`."""
        return self.session.region(node, regionNode, axis)

    def start(self, inputNode: vtkMRMLNode | str, outputNode: vtkMRMLNode | str | None = None, **options: Any):
        """Despeckle in the background; return a `processing.Run` at once. See `Session.start`."""
        return self.session.start(inputNode, outputNode, **options)

    def live(self, inputNode: vtkMRMLNode | str, output: vtkMRMLNode | None = None, **options: Any):
        """Despeckle a volume's image whenever it changes; return a `live.Live`. See `Session.live`."""
        return self.session.live(inputNode, output, **options)

    def process(
        self,
        inputNode: vtkMRMLNode | str,
        outputNode: vtkMRMLNode | str | None = None,
        model: str = "default",
        *,
        uncertainty: bool = False,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        **options: Any,
    ) -> vtkMRMLNode:
        """Despeckle a node into a new node `<input> despeckled`, or into a given one; `start`, and wait.

        inputNode: a scalar, vector or streaming volume (2D or 3D), a sequence of these, or a browser or its proxy,
            which mean the whole sequence; or the id or name of one.
        outputNode: an earlier output to replace; None: a new one. For a sequence it is a sequence; for a proxy,
            a sequence, the proxy of an earlier output, or a volume that becomes the proxy. Never the input.
        model: one of `models()` or a model file.
        uncertainty: add `<input> uncertainty` next to the output: one standard deviation of its error at each pixel, in
            its grey values, as a floating-point volume or a sequence in the same browser; for models that estimate it.
        progress: called with (frames done, frames).
        cancelled: called regularly; once it returns True, Cancelled is raised.
        options: further fields of `config.DespeckleOptions`:
            strength: 0 (the input) to 1 (the despeckled image).
            gamma: exponent on the despeckled grey values, 0.2 to 5; above 1 darkens.
            cautious: how much of the input to keep where the model is uncertain, 0 to 1; for models that estimate it.
            region: "auto" (detect the imaged region), "none" (whole frames), a segmentation or a box (ROI) or its id
                or name, "given" (the one used last for this scanner and frames of this size), or a bool array of a
                frame's size.
            axis: "K", "J" or "I": despeckle 3D volumes slice by slice along this axis; "auto": along the axis of
                acquisition, which has clearly the coarsest spacing, else K; "average": along all three, for
                reconstructed volumes, and average those in which an ultrasound region was found.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".

        Returns `outputNode` if given; else the new volume for a volume, the new sequence for a sequence, and its proxy
        for a proxy. Raises InputError (a ValueError) with one sentence on what is wrong and what to do. On an error,
        or when canceled, no node is left behind; the input never changes.
        """
        run = self.start(inputNode, outputNode, model=model, uncertainty=uncertainty, **options)
        node = run.wait(progress, cancelled)
        run.result.release()
        logging.info(f"Despeckled '{run.recording.name}' into '{node.GetName()}' in {run.seconds:.1f} s.")
        if run.message:
            logging.warning(run.message)
        return node


class Speckle2SelfTest(FileReaderTest, ScriptedLoadableModuleTest):
    """Self-test: a small simulated recording in the scene, by a filter and by the bundled model; files."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        for test in (self.test_Recording, self.test_EmptyVolume, self.test_FileReader):
            self.setUp()
            test()

    def test_Recording(self):
        if dependencies.missing_in_testing():
            self.delayDisplay("Skipped: Python packages are missing, and a test does not install any")
            return
        self.delayDisplay("A simulated recording is despeckled")
        dependencies.ensure()
        sequence, frames = self.simulatedRecording()
        logic = Speckle2SelfLogic()
        for model in ("median", "default"):
            output = logic.process(sequence, model=model, region="none")
            self.assertEqual(output.GetName().split("_")[0], "Simulated despeckled")
            self.assertEqual(output.GetNthIndexValue(1), "0.10")
            result = np.array([slicer.util.arrayFromVolume(output.GetNthDataNode(i))[0] for i in range(len(frames))])
            self.assertEqual(result.dtype, frames.dtype)
            roughness = [np.abs(np.diff(cine.astype(float), axis=2)).mean() for cine in (frames, result)]
            self.assertLess(roughness[1], 0.7 * roughness[0])
        self.delayDisplay("Test passed")

    def test_EmptyVolume(self):
        self.delayDisplay("A volume without image is refused")
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
        count = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaises(InputError):
            Speckle2SelfLogic().process(empty)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)
        self.delayDisplay("Test passed")

    def simulatedRecording(self):
        """Return a sequence node of three simulated frames, and these as (3, 96, 96) uint8."""
        from Speckle2SelfLib.simulation import SimulationConfig, simulate

        simulated = simulate(SimulationConfig(size=(96, 96), frames=3), np.random.default_rng(0))
        frames = np.round(255 * simulated.frames).astype(np.uint8)
        sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Simulated")
        volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Frame")
        for frame, value in zip(frames, ("0.05", "0.10", "0.15"), strict=True):
            slicer.util.updateVolumeFromArray(volume, frame[np.newaxis])
            sequence.SetDataNodeAtValue(volume, value)
        slicer.mrmlScene.RemoveNode(volume)
        return sequence, frames
