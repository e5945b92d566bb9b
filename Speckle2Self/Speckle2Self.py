"""The module Speckle2Self: removes the speckle of ultrasound volumes and recordings in the scene."""

import logging
import time
from contextlib import suppress
from typing import Annotated, Union

import numpy as np
import slicer
import vtk
from slicer import (
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
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from Speckle2SelfLib.config import FILTER_NAMES
from Speckle2SelfLib.system import Cancelled, InputError
from Speckle2SelfSlicer import comparison, dependencies, sample_data, scene
from Speckle2SelfSlicer.comparison import RegionNode
from Speckle2SelfSlicer.dependencies import shownErrors

UltrasoundNode = Union[  # noqa: UP007, see comparison.RegionNode
    vtkMRMLScalarVolumeNode, vtkMRMLVectorVolumeNode, vtkMRMLStreamingVolumeNode, vtkMRMLSequenceNode, None
]


class Speckle2Self(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "Speckle2Self"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Ultrasound")]
        self.parent.dependencies = []
        self.parent.contributors = ["Speckle2Self contributors"]
        self.parent.helpText = _(
            "<p>Reduces the speckle of B-mode ultrasound: of single images, of recordings (sequences) in "
            "grey or colour, and of reconstructed volumes. The bundled model learned from simulated frames "
            "whose expected grey values are known, and from no patient's image; SpeckleTrain adapts it to "
            "recordings of your own, of which no clean image is needed. Only the imaged region is changed; "
            "text, scales and Doppler colours stay as they are, and the input is never overwritten.</p>"
            "<p>It cannot bring back what the scanner did not record, and fine texture may be taken for "
            "speckle: always compare with the input. It is not a medical device and not for "
            "diagnosis.</p>"
            "<p>The idea is that of Li, Navab, Jiang, <i>Speckle2Self: Self-Supervised Ultrasound Speckle "
            "Reduction Without Clean Data</i>, Medical Image Analysis 2025, 103755. Please cite it.</p>"
            '<p>See the <a href="https://github.com/Speckle2Self/SlicerSpeckle2Self#readme">documentation</a>.</p>'
        )
        self.parent.acknowledgementText = _(
            "This is an independent implementation. The method that it starts from, which learns from speckled "
            "images alone, was published by Xuesong Li, Nassir Navab and Zhongliang Jiang; their code is under "
            "the MIT licence."
        )
        slicer.app.connect("startupCompleted()", sample_data.register)


@parameterNodeWrapper
class Speckle2SelfParameterNode:
    """The panel's settings, saved with the scene.

    inputNode - the volume, recording, or proxy of a recording to despeckle.
    outputNode - an earlier output to replace; None: a new one.
    model - a bundled model, a filter, or a model file.
    region - "auto": only the imaged region; "none": the whole frame; "given": what regionNode covers.
    regionNode - a segmentation or a box.
    showRegion - whether the region is outlined in the slice views.
    axis - of 3D volumes: the slices to despeckle; "average": those of all three orientations.
    device - what to compute on.
    strength - 0: the input, to 1: the despeckled image.
    gamma - exponent on the despeckled grey values; above 1 darkens.
    keepPartial - whether a cancelled run leaves the frames that were done.
    tissueNode, lumenNode - where figures of merit are measured.
    filter - a classical filter to compare with.
    """

    inputNode: UltrasoundNode
    outputNode: UltrasoundNode
    model: str = "default"
    region: Annotated[str, Choice(["auto", "none", "given"])] = "auto"
    regionNode: RegionNode
    showRegion: bool = False
    axis: Annotated[str, Choice(["auto", "k", "j", "i", "average"])] = "auto"
    device: str = "auto"
    strength: Annotated[float, WithinRange(0, 1)] = 1.0
    gamma: Annotated[float, WithinRange(0.2, 5)] = 1.0
    keepPartial: bool = False
    tissueNode: RegionNode
    lumenNode: RegionNode
    filter: Annotated[str, Choice(["none", *FILTER_NAMES])] = "none"


class Speckle2SelfWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: the widgets of Speckle2Self.ui, bound to the parameter node.

    What takes time happens in the logic's worker process; a timer takes it on in pieces, so that nothing freezes.
    """

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self.run = None  # processing.Run that goes on
        self.live = None  # processing.Live that goes on, or the preview that is shown
        self._ended = None  # processing.Live that was the last one, and the name of its output then
        self._faded = False  # whether the views show its output
        self.result = None  # processing.Result of the output, for the look
        self._relook = None  # steps of bringing the output's look up to date
        self._outlined = self._rested = 0  # when what is outlined was changed, and at the look before
        self._seen = {}  # parameters at the last look, to see what changed

    def setup(self) -> None:
        import qt

        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/Speckle2Self.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = Speckle2SelfLogic()
        self.outline = comparison.Outline(self.logic)
        self.timer = qt.QTimer()
        self.timer.setInterval(10)
        self.timer.timeout.connect(self.onTimer)
        self.followTimer = qt.QTimer()  # as no event tells of every change of a segmentation or a box
        self.followTimer.setInterval(300)
        self.followTimer.timeout.connect(self.followRegion)
        self.flickerTimer = qt.QTimer()
        self.flickerTimer.setInterval(600)
        self.flickerTimer.timeout.connect(self.onFlicker)
        self.ui.progressBar.visible = False
        self.ui.cancelButton.visible = False
        self.ui.liveLabel.visible = False
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved)
        for button, slot in (
            (self.ui.applyButton, self.onApply),
            (self.ui.cancelButton, self.onCancel),
            (self.ui.previewButton, self.onPreview),
            (self.ui.modelFileButton, self.onImportModel),
            (self.ui.modelCardButton, self.onModelCard),
            (self.ui.trainButton, self.onTrain),
            (self.ui.sideBySideButton, self.onSideBySide),
            (self.ui.differenceButton, self.onDifference),
            (self.ui.evaluateButton, self.onEvaluate),
            (self.ui.exportButton, self.onExport),
        ):
            button.connect("clicked()", slot)
        self.ui.liveCheckBox.connect("toggled(bool)", self.onLiveToggled)
        self.ui.flickerButton.connect("toggled(bool)", self.onFlickerToggled)
        self.ui.fadeSlider.connect("valueChanged(double)", self.onFade)
        self.ui.modelSelector.connect("currentTextChanged(QString)", self.onModelSelected)
        self.ui.deviceSelector.connect("currentTextChanged(QString)", self.onDeviceSelected)
        for selector in (self.ui.tissueSelector, self.ui.lumenSelector):
            selector.connect("nodeAddedByUser(vtkMRMLNode*)", self.onBoxAdded)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        self.endAll()
        self.setParameterNode(None)
        self.removeObservers()
        self.logic.close()

    def enter(self) -> None:
        self.initializeParameterNode()
        self.showRegion()

    def exit(self) -> None:
        self.ui.flickerButton.checked = False
        self.hideOutline()
        self.setParameterNode(None)

    def onSceneStartClose(self, caller, event) -> None:
        self.endAll()
        self.logic.close()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        if self.parent.isEntered:
            self.enter()

    def onSceneStartImport(self, caller, event) -> None:
        """Lets go of the parameters: the node selectors empty themselves when an import ends."""
        self.setParameterNode(None)

    def onSceneEndImport(self, caller, event) -> None:
        if self.parent.isEntered:
            seen = self._seen
            self.enter()
            self._seen = seen
            self.onParameters()  # the scene may have brought other ones

    def endAll(self) -> None:
        """Ends what goes on; the scene stays as it is."""
        self.endLive()
        self.ui.flickerButton.checked = False
        if self.run is not None:
            self.run.abandon()
        self.run = self._relook = None
        self.hideOutline()
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

    def initializeParameterNode(self) -> None:
        """Binds the panel to the scene's parameter node, which is made if there is none."""
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameterNode) -> None:
        """Binds the panel to a parameter node, or to none."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameters)
        self._parameterNode = parameterNode
        if self._parameterNode:
            self.fillSelectors()
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self._seen = self.parameters()
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameters)
            self.updatePanel()

    def parameters(self) -> dict:
        """What the parameter node holds, nodes as their ids."""
        values = {name: self._parameterNode.getValue(name) for name in self._parameterNode.allParameters}
        return {name: value.GetID() if hasattr(value, "GetID") else value for name, value in values.items()}

    def fillSelectors(self) -> None:
        """The models and devices at hand; those of the parameter node are among them, there or not."""
        for selector, names, chosen in (
            (self.ui.modelSelector, self.logic.models(), self._parameterNode.model),
            (self.ui.deviceSelector, self.logic.devices(), self._parameterNode.device),
        ):
            selector.blockSignals(True)
            selector.clear()
            selector.addItems(names if chosen in names else [*names, chosen])
            selector.currentText = chosen
            selector.blockSignals(False)

    def onParameters(self, caller=None, event=None) -> None:
        """Follows what changed, by the panel or by a script."""
        now = self.parameters()
        changed = {name for name, value in now.items() if value != self._seen.get(name)}
        self._seen = now
        if not changed:
            return
        if "inputNode" in changed:
            self.endLive()
            self.forgetResult()
            if "outputNode" not in changed and now["outputNode"]:
                self._parameterNode.outputNode = None  # it belongs to the former input
        if changed & {"strength", "gamma"}:
            self.startRelook()
            if self.live is not None:
                self.live.look(now["strength"], now["gamma"])
                self.timer.start()
        if changed & {"model", "region", "regionNode", "axis", "device"} and self.live is not None:
            self.startLive(self.live.once)
        if changed & {"showRegion", "region", "regionNode", "axis", "inputNode"}:
            self.showRegion()
        self.updatePanel()

    def updatePanel(self) -> None:
        """What can be done, and what the model is."""
        parameters = self._parameterNode
        both = parameters.inputNode is not None and parameters.outputNode is not None
        self.ui.applyButton.enabled = parameters.inputNode is not None and self.run is None
        self.ui.applyButton.toolTip = (
            _("Despeckles the input into the output.") if parameters.inputNode else _("Choose an input first.")
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
        self.ui.modelDescriptionLabel.text = self.logic.description(parameters.model)

    def onModelSelected(self, name) -> None:
        if self._parameterNode and name:
            self._parameterNode.model = name

    def onDeviceSelected(self, name) -> None:
        if self._parameterNode and name:
            self._parameterNode.device = name

    def onImportModel(self) -> None:
        import qt

        title = _("Import a model")
        path = qt.QFileDialog.getOpenFileName(self.parent, title, "", _("Models (*.safetensors *.pth);;All files (*)"))
        if path:
            with shownErrors(_("The model could not be imported.")):
                dependencies.ensure()
                from Speckle2SelfLib import library

                self._parameterNode.model = library.add(path)
                self.fillSelectors()

    def onModelCard(self) -> None:
        import qt

        dialog = qt.QDialog(slicer.util.mainWindow())
        dialog.windowTitle = _("Model card: {name}").format(name=self._parameterNode.model)
        text = qt.QTextBrowser(dialog)
        text.setMarkdown(self.logic.card(self._parameterNode.model))
        qt.QVBoxLayout(dialog).addWidget(text)
        dialog.resize(640, 640)
        dialog.exec_()
        dialog.deleteLater()

    def onTrain(self) -> None:
        node = self._parameterNode.inputNode
        slicer.util.selectModule("SpeckleTrain")
        slicer.util.getModuleWidget("SpeckleTrain").choose([node])

    #
    # Apply
    #

    def request(self) -> dict:
        """The options of despeckling that the panel shows."""
        parameters = self._parameterNode
        options = {name: parameters.getValue(name) for name in ("model", "axis", "device", "strength", "gamma")}
        given = parameters.regionNode if parameters.region == "given" else None
        return {**options, "region": given or parameters.region}

    def onApply(self) -> None:
        with shownErrors(_("Despeckling failed.")):
            parameters = self._parameterNode
            self.endLive()
            self.setStatus(_("Installing Python packages...") if dependencies.missing() else "")
            self.run = self.logic.start(
                parameters.inputNode, parameters.outputNode, keepPartial=parameters.keepPartial, **self.request()
            )
            self.setStatus(_("Reading..."))
            self.timer.start()
        if self.run is None:
            self.setStatus("")
        self.showRunning()

    def onCancel(self) -> None:
        if self.run is not None:
            self.setStatus(_("Stopping..."))
            self.run.cancel()

    def onTimer(self) -> None:
        """Takes everything on that goes on, for a moment; never waits."""
        self.logic.worker.poll()
        if self.run is not None:
            with shownErrors(_("Despeckling failed.")):
                self.run.step()
            self.showProgress()
            if self.run.ended:
                self.finishRun()
        if self.outline.searching:
            with shownErrors(_("The region cannot be shown.")):
                self.outline.step()
        if self.live is not None:
            self.stepLive()
        if self._relook is not None:
            with shownErrors(_("The output could not be brought up to date.")):
                if next(self._relook, "done") == "done":
                    self._relook = None
        showing = self.live is not None and (self.live.waiting or not self.live.once)
        if not (self.run or showing or self.outline.searching or self._relook):
            self.timer.stop()

    def showRunning(self) -> None:
        """Apply, or Cancel and progress."""
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
        """What a run that has ended leaves."""
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
            comparison.fade(run.source.node, run.result.node, 1.0)
            self.ui.fadeSlider.value = 1.0
            if parameters.inputNode is not run.source.node:  # another one was chosen meanwhile
                self.forgetResult()
            else:
                parameters.outputNode = run.result.node
            if self._parameterNode and self.result is not None:
                self._seen = self.parameters()
                if (run.look["strength"], run.look["gamma"]) != (self._seen["strength"], self._seen["gamma"]):
                    self.startRelook()
                self.showRegion()
        elif run.state == "cancelled":
            self.setStatus(_("Cancelled; the scene is unchanged."))
        else:
            self.setStatus(run.message, failed=True)
        self.showRunning()

    def setStatus(self, text: str, failed: bool = False) -> None:
        self.ui.statusLabel.text = text
        self.ui.statusLabel.setStyleSheet("color: #c0392b" if failed else "")

    def startRelook(self) -> None:
        """Strength and gamma on the result that is there; a restart takes the newest values."""
        if self.result is not None and self.result.node is self._parameterNode.outputNode:
            self._relook = self.result.relook(self._parameterNode.strength, self._parameterNode.gamma)
            self.timer.start()

    def found(self):
        """The region (H, W) bool that the last run found in the whole input, as it would be found again; else None."""
        parameters, result = self._parameterNode, self.result
        if result is None or parameters.region != "auto" or parameters.axis != result.found:
            return None
        with suppress(InputError):  # a stream can change its size, or have no image for a moment
            if comparison.frameSize(comparison.placed(parameters.inputNode), result.axes[0]) == result.region.shape:
                return result.region
        return None

    def showRegion(self) -> None:
        """Outlines what is despeckled, or takes the outline away."""
        parameters, found = self._parameterNode, self.found()
        node, region = parameters.inputNode, parameters.region
        self.followTimer.stop()
        if not parameters.showRegion or node is None:
            self.outline.hide()
            return
        with shownErrors(_("The region cannot be shown.")):
            if found is not None:
                comparison.showRegion(comparison.placed(node), found, self.result.axes[0])
            else:
                if region == "given" and parameters.regionNode is not None:
                    self._outlined = self._rested = comparison.changed(parameters.regionNode)
                    self.followTimer.start()
                self.outline.show(node, region, parameters.regionNode, parameters.axis)
                self.timer.start()

    def hideOutline(self) -> None:
        self.followTimer.stop()
        self.outline.hide()

    def followRegion(self) -> None:
        """Outlines a box or a segmentation anew once it rests after a change; not where it has left the image."""
        parameters = self._parameterNode
        node = parameters.regionNode if parameters else None
        changed = comparison.changed(node) if node is not None else self._outlined
        if changed != self._outlined and changed == self._rested:
            self._outlined = changed
            with suppress(InputError):
                self.outline.show(parameters.inputNode, "given", node, parameters.axis)
        self._rested = changed

    #
    # Preview and live
    #

    def onPreview(self) -> None:
        live = self.live
        if live is not None and live.once and live.hasOutput:
            with shownErrors(_("The preview failed.")):  # region, grey values and grain are known already
                live.refresh()
                self._faded = False
                self.timer.start()
        else:
            self.startLive(once=True)

    def onLiveToggled(self, on: bool) -> None:
        if on:
            try:
                self.startLive(once=False)
            finally:
                self.ui.liveCheckBox.checked = self.live is not None
        else:
            self.endLive()

    def endLive(self) -> None:
        """Ends live images, or the preview; their output stays."""
        live, self.live = self.live, None
        if live is not None:
            live.stop()
            self._ended = (live, live.output.GetName()) if live.hasOutput else None
        self.ui.liveCheckBox.checked = False
        self.ui.liveLabel.visible = False

    def startLive(self, once: bool) -> None:
        """Starts a preview or live images, in place of those that there are, or were last, and into their output."""
        former, self.live = self.live, None
        if former is not None:
            former.stop()
        with shownErrors(_("Live despeckling failed.")):
            parameters, request = self._parameterNode, self.request()
            if self.found() is not None and parameters.axis != "average":
                request["region"] = self.found()  # in the whole recording, not in one frame
            output = former.output if former is not None and former.hasOutput else self.lastOutput()
            self.live, self._faded = self.logic.live(parameters.inputNode, once=once, output=output, **request), False
            self.timer.start()

    def lastOutput(self):
        """The output of the last live images or preview of this input; None where there is none, or the user has taken
        it: renamed it, or chosen it as the output of Apply."""
        live, name = self._ended or (None, "")
        parameters = self._parameterNode
        if live is None or not live.hasOutput or live.node is not comparison.seen(parameters.inputNode):
            return None
        taken = live.output.GetName() != name or live.output is parameters.outputNode
        return None if taken else live.output

    def stepLive(self) -> None:
        live = self.live
        if live.step():
            if not self._faded:  # once: the views are the user's
                self._faded = True
                comparison.fade(live.node, live.output, self.ui.fadeSlider.value)
            words = _("{latency:.0f} ms").format(latency=live.latency)
            if not live.once:
                words += _(", {rate:.0f} images per second, {dropped} dropped").format(
                    rate=live.rate, dropped=live.dropped
                )
            self.ui.liveLabel.visible = True
            self.ui.liveLabel.text = _("'{name}': {words}, on {device}").format(
                name=live.output.GetName(), words=words, device=live.device
            )
        if live.state != "running":
            self.endLive()
            if live.message:
                self.ui.liveLabel.visible = True
                self.ui.liveLabel.text = live.message

    #
    # Compare and evaluate
    #

    def onSideBySide(self) -> None:
        with shownErrors(_("The views could not be set.")):
            comparison.sideBySide(self._parameterNode.inputNode, self._parameterNode.outputNode)

    def onFade(self, share: float) -> None:
        if self._parameterNode and self._parameterNode.inputNode and self._parameterNode.outputNode:
            with suppress(InputError):  # of what no browser shows; a message at each step would be too many
                comparison.fade(self._parameterNode.inputNode, self._parameterNode.outputNode, share)

    def onFlickerToggled(self, on: bool) -> None:
        if on:
            self.flickerTimer.start()
        else:
            self.flickerTimer.stop()

    def onFlicker(self) -> None:
        self.ui.fadeSlider.value = 0.0 if self.ui.fadeSlider.value > 0.5 else 1.0

    def onDifference(self) -> None:
        with shownErrors(_("The difference could not be made.")):
            node = comparison.difference(self._parameterNode.inputNode, self._parameterNode.outputNode)
            slicer.util.setSliceViewerLayers(background=node, foreground=None)

    def onBoxAdded(self, node) -> None:
        """A new box lies in the middle of the image, to be moved from there."""
        if node.IsA("vtkMRMLMarkupsROINode") and self._parameterNode.inputNode is not None:
            comparison.placeBox(node, comparison.shown(self._parameterNode.inputNode))

    def onEvaluate(self) -> None:
        parameters = self._parameterNode
        with shownErrors(_("The figures could not be measured."), waitCursor=True):
            table, _chart = comparison.evaluate(
                parameters.inputNode, parameters.outputNode, parameters.tissueNode, parameters.lumenNode,
                parameters.filter,
            )  # fmt: skip
            self.ui.evaluateLabel.text = comparison.asHtml(table)
        self.updatePanel()

    def onExport(self) -> None:
        import qt

        path = qt.QFileDialog.getSaveFileName(self.parent, _("Export figures"), "figures.csv", "CSV (*.csv)")
        if path:
            with shownErrors(_("The figures could not be exported.")):
                comparison.writeTable(comparison.figures(), path)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller, event, node) -> None:
        """Where an output goes, the views show the input again. What is chosen and goes is chosen no more: the selector
        would take the next node."""
        parameters = self._parameterNode
        if parameters is None or slicer.mrmlScene.IsClosing():
            return
        output = parameters.outputNode
        if output is not None and node in (output, comparison.seen(output)):
            comparison.restoreViews(node, comparison.seen(parameters.inputNode))
            self.ui.flickerButton.checked = False
            self.forgetResult()
        for name in ("inputNode", "outputNode", "regionNode", "tissueNode", "lumenNode"):
            if parameters.getValue(name) is node:
                parameters.setValue(name, None)


class Speckle2SelfLogic(ScriptedLoadableModuleLogic):
    """Despeckles nodes of the scene; to be used from the console and from other modules as well.

        logic = slicer.util.getModuleLogic("Speckle2Self")
        output = logic.process(slicer.util.getNode("Carotid"))

    `process` blocks until the output is there; `start` and `live` work in the background, as the panel does.

    despeckle: what is called in place of `Speckle2SelfLib.despeckling.despeckle`, with the same arguments;
    for tests.
    """

    def __init__(self, despeckle=None) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self._despeckle = despeckle
        self._worker = None

    @property
    def worker(self):
        """The process that despeckles in the background; it starts when it is needed."""
        if self._worker is None:
            from Speckle2SelfSlicer.worker import Worker

            self._worker = Worker()
        return self._worker

    def close(self) -> None:
        """Ends what works in the background, with all its processes."""
        if self._worker is not None:
            self._worker.close()

    def getParameterNode(self):
        return Speckle2SelfParameterNode(super().getParameterNode())

    def models(self) -> list[str]:
        """Names that `process` takes as `model`: the bundled models first, the user's, the classical filters."""
        from Speckle2SelfLib import library

        return [*library.models(), *FILTER_NAMES]

    def devices(self) -> list[str]:
        """Names for `device`; more than these once the process in the background has told what is there."""
        names = self._worker.devices if self._worker is not None else []
        return ["auto", *(names or ["cpu"])]

    def description(self, model: str) -> str:
        """One sentence about a model of `models()`."""
        from Speckle2SelfLib import library

        try:
            return str(library.card(model).get("description", ""))
        except InputError:
            return _("Classical filter, to compare with.") if model in self.models() else ""

    def card(self, model: str) -> str:
        """What is known of a model, as Markdown: what it was trained on, figures, limits."""
        from Speckle2SelfLib import library

        if model in library.bundled_models():
            return library.bundled_models()[model].with_suffix(".md").read_text()
        try:
            card = library.card(model)
        except InputError:
            return self.description(model) or _("There is no model '{model}'.").format(model=model)
        rows = [f"| {name} | {value} |" for name, value in card.items() if name != "curve"]
        return "\n".join([f"# {model}", "", "| | |", "|---|---|", *rows])

    def region(self, node, regionNode=None, axis: str = "auto"):
        """The pixels (H, W) bool that a segmentation or a box (ROI) covers, for `region` of the other functions.

        regionNode: None: what was given last for this scanner and frames of this size. Raises InputError.
        """
        volume = comparison.placed(scene.find(node))
        axis = comparison.axisOf(volume, axis)
        if regionNode is None:
            return comparison.rememberedRegion(volume, comparison.frameSize(volume, axis))
        region = comparison.frameMask(volume, regionNode, axis)
        comparison.rememberRegion(volume, region)
        return region

    def _regionNode(self, region="auto", **_):
        """The node that the `region` of `process` is; None for all that is none. Raises InputError."""
        if isinstance(region, str) and region not in ("auto", "none", "given"):
            return scene.findRegion(region)
        return region if isinstance(region, vtk.vtkObject) else None

    def _settled(self, node, region="auto", axis: str = "auto", **_):
        """The `region` of `process` as "auto", "none" or pixels (H, W). Raises InputError."""
        regionNode = self._regionNode(region)
        if regionNode is not None or (isinstance(region, str) and region == "given"):
            return self.region(node, regionNode, axis)
        if not (region is None or isinstance(region, str)) and axis.lower() == "average":
            raise InputError("axis='average' takes no region array: frames of three orientations differ in size.")
        return region

    def start(self, inputNode, outputNode=None, keepPartial: bool = False, onlyRegion: bool = False, **options):
        """Despeckles in the background; returns a `processing.Run` at once, whose `step` is to be called now and then.

        options: model, strength, gamma, region, axis, device, as those of `process`. keepPartial: when cancelled, the
        frames that are done stay as `<input> despeckled (partial)`. Raises InputError.
        """
        dependencies.ensure()
        from Speckle2SelfSlicer.processing import Run

        nodes = scene.find(inputNode), scene.find(outputNode)
        options["region"] = self._settled(nodes[0], **options)
        return Run(self.worker, *nodes, keepPartial=keepPartial, onlyRegion=onlyRegion, **options)

    def live(self, inputNode, output=None, once: bool = False, **options):
        """Despeckles what a volume shows whenever it changes, into `<input> live`; returns a `processing.Live`, whose
        `step` is to be called now and then.

        once: only what it shows now. output: of an earlier call. options: as those of `start`; a segmentation or a box
        as `region` is followed where it is changed. Raises InputError.
        """
        dependencies.ensure()
        from Speckle2SelfSlicer.processing import Live

        node, view = scene.find(inputNode), slicer.mrmlScene.GetNodeByID("vtkMRMLSliceNodeRed")
        regionNode = self._regionNode(**options)
        options["region"] = self._settled(node, **options)
        output = scene.find(output)
        return Live(self.worker, node, sliceNode=view, once=once, output=output, regionNode=regionNode, **options)

    def process(
        self,
        inputNode,
        outputNode=None,
        model="default",
        strength: float = 1.0,
        gamma: float = 1.0,
        region="auto",
        axis: str = "auto",
        device: str = "auto",
        progress=None,
        cancelled=None,
    ):
        """Despeckles a node into a new node `<input> despeckled`, or into a given one.

        inputNode: a scalar, vector or streaming volume (2D or 3D), a sequence of these, or a browser or its proxy,
            which stand for the whole sequence; or the id or name of one.
        outputNode: an earlier output to replace; None: a new one. For a sequence it is a sequence; for a proxy,
            a sequence, the proxy of an earlier output, or a volume that becomes the proxy. Never the input.
        model: one of `models()`, a model file, or a function of frames (N, H, W), float32 in [0, 1].
        strength: 0 (the input) to 1 (the despeckled image).
        gamma: exponent on the despeckled grey values, 0.2 to 5; above 1 darkens.
        region: "auto" (the imaged region is found), "none" (whole frames), a segmentation or a box (ROI) or its id or
            name, "given" (what was given last for this scanner and frames of this size), or a bool array of a
            frame's size.
        axis: "K", "J" or "I": 3D volumes are despeckled slice by slice along this axis; "auto": along the axis
            of acquisition, the one with clearly the coarsest spacing, else K; "average": along all three, for
            reconstructed volumes, and the mean taken of those in which something looks like ultrasound.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        progress: called with (frames done, frames).
        cancelled: asked now and then; once it returns True, Cancelled is raised.

        Returns `outputNode` if given; else the new volume for a volume, the new sequence for a sequence, and
        its proxy for a proxy. Raises InputError (a ValueError) with one sentence on what is wrong and what to
        do. On an error, or when cancelled, no node is left behind; the input never changes.
        """
        from Speckle2SelfLib import volumes

        inputNode, outputNode = scene.find(inputNode), scene.find(outputNode)
        source = scene.source(inputNode)
        scene.checkOutput(source, outputNode)
        stack = scene.read(source)
        axes = volumes.slicing_axes(stack.shape[1:4], source.spacing, axis)
        region = self._settled(inputNode, region, axis)
        started = time.perf_counter()
        despeckle = self._engine(model, strength, gamma, region, device, cancelled)
        result = volumes.process(stack, axes, despeckle, progress)
        del stack
        if cancelled and cancelled():
            raise Cancelled
        node = scene.write(source, result, outputNode)
        seconds = time.perf_counter() - started
        logging.info(f"Despeckled '{inputNode.GetName()}' into '{node.GetName()}' in {seconds:.1f} s.")
        return node

    def _engine(self, model, strength, gamma, region, device, cancelled):
        """The despeckling of frames with everything settled but its progress."""
        despeckle = self._despeckle
        if despeckle is None:
            dependencies.ensure()
            from Speckle2SelfLib.despeckling import despeckle
            from Speckle2SelfLib.filters import FILTERS

            model = FILTERS.get(model, model) if isinstance(model, str) else model
        region = None if isinstance(region, str) and region == "none" else region

        def run(frames, progress):
            return despeckle(
                frames,
                model,
                region=region,
                strength=strength,
                gamma=gamma,
                device=device,
                progress=progress,
                cancelled=cancelled,
            )

        return run


class Speckle2SelfTest(ScriptedLoadableModuleTest):
    """Self-test: a small simulated recording in the scene, by a filter and by the bundled model."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_Recording()
        self.setUp()
        self.test_EmptyVolume()

    def test_Recording(self):
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
        """A sequence node of three simulated frames, and these as (3, 96, 96) uint8."""
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
