"""Parts of the panels: preview and live images, comparison of output and input, the user's models, and export of
runs."""

from __future__ import annotations

from contextlib import suppress
from html import escape
from pathlib import Path

import slicer
from slicer import vtkMRMLNode, vtkMRMLVolumeNode
from slicer.i18n import tr as _

from Speckle2SelfLib import library
from Speckle2SelfLib.system import InputError

from . import comparison, regions, scene, uncertainty, views
from .panel import box, confirm, reporting_errors

APPLY_AGAIN = _("Click Apply again to estimate the uncertainty of the output.")


class LivePart:
    """Preview and live images."""

    def setupLive(self) -> None:
        self.live = None  # the running processing.Live, or the preview that is shown
        self._lastLive = None  # the last processing.Live, and the original name of its output
        self._outputInViews = False  # whether the views show its output
        self.ui.liveLabel.visible = False
        self.ui.liveCheckBox.connect("toggled(bool)", self.onLiveToggled)

    def onPreview(self) -> None:
        live = self.live
        if live is not None and live.once and live.hasOutput:
            with reporting_errors(_("The preview failed.")):  # region, grey values and grain are known already
                live.refresh()
                self._outputInViews = False
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
        """End live images or the preview; their output is kept."""
        live, self.live = self.live, None
        if live is not None:
            live.stop()
            if live.hasUncertainty:
                self.overlay.hide()
            self._lastLive = (live, live.output.GetName()) if live.hasOutput else None
        self.ui.liveCheckBox.checked = False
        self.ui.liveLabel.visible = False

    def startLive(self, once: bool) -> None:
        """Start a preview or live stream, replacing the current one and reusing its output node."""
        former, self.live = self.live, None
        if former is not None:
            former.stop()
        with reporting_errors(_("Live despeckling failed.")):
            parameters, request = self._parameterNode, self.request()
            if self.detectedRegion() is not None and parameters.axis != "average":
                request["region"] = self.detectedRegion()  # detected in the whole recording, not in one frame
            output = former.output if former is not None and former.hasOutput else self.lastOutput()
            self.live = self.logic.live(parameters.inputNode, once=once, output=output, **request)
            self._outputInViews = False
            self.timer.start()

    def lastOutput(self) -> vtkMRMLVolumeNode | None:
        """Return the output of the last live images or preview of this input; None if there is none, or if the user
        has renamed it or chosen it as the output of Apply."""
        live, name = self._lastLive or (None, "")
        parameters = self._parameterNode
        if live is None or not live.hasOutput or live.node is not scene.proxyOrNone(parameters.inputNode):
            return None
        isUsers = live.output.GetName() != name or live.output is parameters.outputNode
        return None if isUsers else live.output

    def stepLive(self) -> None:
        live = self.live
        if live.step():
            if live.uncertainty is not None:
                self.overlay.show(live.uncertainty, live.output)
            if not self._outputInViews:  # only once: afterwards the views are the user's
                self._outputInViews = True
                comparison.fade(live.node, live.output, self.ui.fadeSlider.value)
            words = _("{latency:.0f} ms").format(latency=live.latency)
            if not live.once:
                words += _(", {rate:.0f} images per second, {dropped} dropped").format(
                    rate=live.rate, dropped=live.dropCount
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


class ComparePart:
    """Views of input and output, and figures of merit."""

    def setupCompare(self) -> None:
        self.flickerTimer = self.makeTimer(600, self.flicker)
        self.ui.flickerButton.connect("toggled(bool)", self.onFlickerToggled)
        self.ui.fadeSlider.connect("valueChanged(double)", self.onFade)
        for selector in (self.ui.tissueSelector, self.ui.lumenSelector):
            selector.connect("nodeAddedByUser(vtkMRMLNode*)", self.onBoxAdded)

    def onSideBySide(self) -> None:
        with reporting_errors(_("The views could not be set.")):
            comparison.sideBySide(self._parameterNode.inputNode, self._parameterNode.outputNode)

    def onFade(self, share: float) -> None:
        if self._parameterNode and self._parameterNode.inputNode and self._parameterNode.outputNode:
            with suppress(InputError):  # a sequence without browser would cause a message at each step
                comparison.fade(self._parameterNode.inputNode, self._parameterNode.outputNode, share)

    def onFlickerToggled(self, on: bool) -> None:
        if on:
            self.flickerTimer.start()
        else:
            self.flickerTimer.stop()

    def flicker(self) -> None:
        self.ui.fadeSlider.value = 0.0 if self.ui.fadeSlider.value > 0.5 else 1.0

    def onDifference(self) -> None:
        with reporting_errors(_("The difference could not be computed.")):
            node = comparison.difference(self._parameterNode.inputNode, self._parameterNode.outputNode)
            views.showInViews(node)

    def onBoxAdded(self, node: vtkMRMLNode) -> None:
        """Place a new box in the middle of the image."""
        if node.IsA("vtkMRMLMarkupsROINode") and self._parameterNode.inputNode is not None:
            regions.placeBox(node, self._parameterNode.inputNode)

    def onEvaluate(self) -> None:
        parameters = self._parameterNode
        with reporting_errors(_("The figures could not be measured."), waitCursor=True):
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
            with reporting_errors(_("The figures could not be exported.")):
                comparison.writeTable(comparison.figures(), path)


class UncertaintyPart:
    """Colors over uncertain places of the output, and the controls that need a model that estimates its uncertainty."""

    def setupUncertainty(self) -> None:
        self.overlay = uncertainty.Overlay()
        self._estimatesUncertainty = False  # whether the chosen model does

    def offerUncertainty(self, model: str) -> None:
        """Enable the controls for a model that estimates its uncertainty."""
        self._estimatesUncertainty = library.estimates_uncertainty(model)
        for widget in (self.ui.cautiousSlider, self.ui.showUncertaintyCheckBox):
            widget.enabled = self._estimatesUncertainty

    @property
    def showsUncertainty(self) -> bool:
        """Return whether the uncertainty is to be shown, and the chosen model estimates it."""
        return self._estimatesUncertainty and self._parameterNode.showUncertainty

    def look(self) -> dict[str, float]:
        """Return the parameters that change an output without the network; caution only for a model that allows it."""
        parameters = self._parameterNode
        cautious = parameters.cautious if self._estimatesUncertainty else 0.0
        return {"strength": parameters.strength, "gamma": parameters.gamma, "cautious": cautious}

    def showUncertainty(self) -> None:
        """Color uncertain places of the output in the slice views, or remove the colors."""
        parameters = self._parameterNode
        node = uncertainty.mapOf(parameters.outputNode)
        if not parameters.showUncertainty:
            self.overlay.hide()
        elif node is not None:
            with reporting_errors(_("The uncertainty cannot be shown.")):
                self.overlay.follow(node)
        elif self.live is None:
            self.overlay.hide()
            if self._estimatesUncertainty and parameters.outputNode is not None and self.run is None:
                self.setStatus(APPLY_AGAIN)


class ModelsPart:
    """The user's models: compare, rename, delete, import, export."""

    def setupModels(self) -> None:
        self._comparison = None  # the running curves.Comparison
        self.ui.modelSelector.connect("currentIndexChanged(int)", self.onModelSelected)

    def onModelSelected(self, number=0) -> None:
        chosen = bool(self.ui.modelSelector.currentText)
        for name in ("compare", "rename", "delete", "export"):
            getattr(self.ui, f"{name}Button").enabled = chosen

    def onCompare(self) -> None:
        with reporting_errors(_("The models could not be compared.")):
            name = self.ui.modelSelector.currentText
            table = self.logic.compare(name)
            text, measuredOn = comparison.asHtml(table), table.GetAttribute("Speckle2Self.figuresAreOf")
            if measuredOn:
                text += "<p>{}</p>".format(escape(_("Measured on {frames}.").format(frames=measuredOn)))
            with box():
                slicer.util.infoDisplay(text, windowTitle=table.GetName())
            nodes = self.ui.heldOutSelector.checkedNodes() or self.ui.inputsSelector.checkedNodes()
            if nodes:
                with suppress(InputError):  # a recording without browser has only figures
                    self._comparison = self.logic.previews(nodes[0], name)
                    self.timer.start()

    def endComparison(self) -> None:
        self._comparison = None

    def stepComparison(self) -> None:
        """Show the previews of both models side by side once they are complete."""
        self.session.worker.poll()
        if self._comparison.step():
            complete, self._comparison = self._comparison, None
            complete.show()

    def onRename(self) -> None:
        import qt

        name = self.ui.modelSelector.currentText
        to = qt.QInputDialog.getText(None, _("Rename"), _("Model name:"), qt.QLineEdit.Normal, name)
        if to and to != name:
            with reporting_errors(_("The model could not be renamed.")):
                library.rename(name, to)
                self.fillModels()
                self.ui.modelSelector.currentText = to

    def onDelete(self) -> None:
        name = self.ui.modelSelector.currentText
        if confirm(_("Delete the model '{name}' permanently?").format(name=name)):
            with reporting_errors(_("The model could not be deleted.")):
                library.delete(name)
                self.fillModels()

    def onImport(self) -> None:
        import qt

        path = qt.QFileDialog.getOpenFileName(
            None, _("Import a model"), "", _("Models (*.safetensors *.pth);;All files (*)")
        )
        self.importModel(path)

    def onImportResult(self) -> None:
        import qt

        self.importModel(qt.QFileDialog.getExistingDirectory(None, _("Folder of the exported run")))

    def importModel(self, path: str) -> None:
        if path:
            with reporting_errors(_("The model could not be imported.")):
                name = self.logic.importModel(path)
                self.fillModels()
                self.ui.modelSelector.currentText = name
                worse = library.worse_than_start(library.card(name))
                if worse:
                    words = _("'{model}' is worse than the model it started from: {worse}.")
                    with box():
                        slicer.util.warningDisplay(words.format(model=name, worse=worse))

    def onExport(self) -> None:
        import qt

        name = self.ui.modelSelector.currentText
        path = qt.QFileDialog.getSaveFileName(
            None, _("Export the model"), f"{name}.safetensors", _("Models (*.safetensors)")
        )
        if path:
            with reporting_errors(_("The model could not be exported.")):
                library.export(name, path)


class ExportPart:
    """Training runs as folders for other machines, written in the background."""

    exporting = None  # the exporting.Export that is being written

    def onExportJob(self) -> None:
        import qt

        folder = qt.QFileDialog.getSaveFileName(None, _("New folder of the run"), "speckle-run", "")
        if folder:
            with reporting_errors(_("The run could not be exported.")):
                options = {name: value for name, value in self.options().items() if name != "device"}
                self.exporting = self.logic.startExport(self.data(), folder, self.showExportResult, **options)
                self.ui.exportJobButton.enabled = False
                slicer.util.showStatusMessage(_("Writing the run to {folder}...").format(folder=folder))
                self.logic.poll()  # a small run is complete now
                self.timer.start()

    def showExportResult(self, result: Path | Exception) -> None:
        """Report that a run is exported, or why it is not."""
        self.exporting = None
        slicer.util.showStatusMessage("")
        self.ui.exportJobButton.enabled = bool(self._parameterNode and self.data())
        with reporting_errors(_("The run could not be exported.")):
            if isinstance(result, Exception):
                raise result
            slicer.util.showStatusMessage(_("The run is in {folder}; start it there.").format(folder=result), 5000)

    def endExport(self) -> None:
        """Abandon a run that is being written."""
        exporting, self.exporting = self.exporting, None
        if exporting is not None:
            exporting.close()
