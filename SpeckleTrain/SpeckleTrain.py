"""The module SpeckleTrain: trains a model on the recordings in the scene, without a clean image."""

import itertools
import logging
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Annotated

import numpy as np
import slicer
import vtk
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

from Speckle2SelfLib.config import PRESETS, RECIPES, Job
from Speckle2SelfLib.system import InputError
from Speckle2SelfSlicer import comparison, dependencies, scene
from Speckle2SelfSlicer.comparison import RegionNode
from Speckle2SelfSlicer.dependencies import shownErrors

RUN, ROLE = "SpeckleTrain.run", "SpeckleTrain.role"  # attributes of the nodes that show a run
COMPARED = "SpeckleTrain.compared"  # attribute of what a comparison made: its name then; and to which node it belongs
ROLES = {  # role -> class and title
    "table": ("vtkMRMLTableNode", "curve"),
    "loss": ("vtkMRMLPlotChartNode", "loss"),
    "figures": ("vtkMRMLPlotChartNode", "figures"),
    "before": ("vtkMRMLScalarVolumeNode", "held-out frame"),
    "after": ("vtkMRMLScalarVolumeNode", "held-out frame despeckled"),
}
FIGURES = ["homogeneity", "structure", "holes", "rms"]
HELD_OUT = "held-out "  # before the name of a term of the loss
COLOURS = [  # of curves; Okabe and Ito's, which colour-blind people tell apart, without the yellow
    (0.0, 0.45, 0.70), (0.84, 0.37, 0.0), (0.0, 0.62, 0.45), (0.8, 0.47, 0.65), (0.90, 0.60, 0.0), (0.34, 0.71, 0.91),
]  # fmt: skip
LISTED = 8  # recordings that the panel names; of more it gives the number
DEFAULTS = {
    "name": None, "heldOut": (), "recipe": None, "init": None, "steps": None, "minutes": None, "region": "auto",
    "device": "auto", "seed": 0,
}  # fmt: skip


class SpeckleTrain(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "SpeckleTrain"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Ultrasound")]
        self.parent.dependencies = ["Speckle2Self"]
        self.parent.contributors = ["Speckle2Self contributors"]
        self.parent.helpText = _(
            "<p>Trains a model for the module Speckle2Self on the ultrasound recordings in the scene. You need no "
            "clean image and no pairs: it learns from the recordings' own speckle, and, with the presets <i>adapt</i> "
            "and <i>standard</i>, beside them from simulated frames, whose truth is known. All happens on this "
            "computer; the model keeps nothing of whose recordings they were.</p>"
            "<p>A model shows what it has learned to expect: always compare with the input. It is not a medical device "
            "and not for diagnosis.</p>"
            "<p>The idea is that of Li, Navab, Jiang, <i>Speckle2Self: Self-Supervised Ultrasound Speckle "
            "Reduction Without Clean Data</i>, Medical Image Analysis 2025, 103755. Please cite it.</p>"
            '<p>See the <a href="https://github.com/Speckle2Self/SlicerSpeckle2Self#readme">documentation</a>.</p>'
        )
        self.parent.acknowledgementText = _(
            "This is an independent implementation. The method that it starts from was published by "
            "Xuesong Li, Nassir Navab and Zhongliang Jiang; their code is under the MIT licence."
        )


@parameterNodeWrapper
class SpeckleTrainParameterNode:
    """The panel's settings, saved with the scene; the chosen recordings are node references `inputs`, `heldOut`.

    folder - of recordings as files, to train on besides; empty: none.
    region - "auto": the imaged part of each recording; "none": whole frames; "given": what regionNode covers.
    regionNode - a segmentation or a box.
    showRegion - whether the region is outlined in the slice views.
    preset - how to train: "adapt" a model at hand, "standard" from nothing, "paper" as published.
    recipe - the preset's, or another.
    init - the model that "adapt" starts from.
    minutes, steps - to train for; 0: the preset's number of steps.
    device - what to compute on.
    name - of the model; empty: made from the data's name.
    """

    folder: str = ""
    region: Annotated[str, Choice(["auto", "none", "given"])] = "auto"
    regionNode: RegionNode
    showRegion: bool = False
    preset: Annotated[str, Choice(["adapt", "standard", "paper"])] = "adapt"
    recipe: Annotated[str, Choice(["preset", *RECIPES])] = "preset"
    init: str = "default"
    minutes: Annotated[float, WithinRange(0, 10000)] = 0.0
    steps: Annotated[int, WithinRange(0, 10000000)] = 0
    device: str = "auto"
    name: str = ""


class SpeckleTrainWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: the widgets of SpeckleTrain.ui, bound to the parameter node. Training happens in other processes; a
    timer takes what they report. Runs go on when the panel is left or the scene is closed."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self.estimate = None  # trainer.Estimate that goes on
        self._shown = None  # (run, number of its reports) that is shown in the scene
        self._told = set()  # runs whose end has been told
        self._compared = {}  # previews of the models that are compared
        self._outlined = self._wanted = None  # what the outline is of, and what it was to be of at the last look
        self._outlineError = ""
        self._folder = ("", "")  # the folder whose files were counted last, and what was found

    def setup(self) -> None:
        import qt

        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/SpeckleTrain.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = SpeckleTrainLogic()
        self.outline = comparison.Outline(slicer.util.getModuleLogic("Speckle2Self"), orWhole=True)
        self.ui.estimateLabel.visible = self.ui.correlationLabel.visible = False
        self.timer = qt.QTimer()
        self.timer.setInterval(100)
        self.timer.timeout.connect(self.onTimer)
        for event in (slicer.mrmlScene.EndCloseEvent, slicer.mrmlScene.EndImportEvent):
            self.addObserver(slicer.mrmlScene, event, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved)
        for name in (
            "estimate", "train", "pause", "resume", "stop", "remove", "show", "compare", "rename", "delete", "import",
            "export", "exportJob", "importResult", "folder",
        ):  # fmt: skip
            button = getattr(self.ui, f"{name}Button")
            button.connect("clicked()", getattr(self, f"on{name[0].upper()}{name[1:]}"))
        self.ui.inputsSelector.connect("checkedNodesChanged()", self.onNodesChecked)
        self.ui.heldOutSelector.connect("checkedNodesChanged()", self.onNodesChecked)
        self.ui.initSelector.connect("currentTextChanged(QString)", self.onInitSelected)
        self.ui.deviceSelector.connect("currentTextChanged(QString)", self.onDeviceSelected)
        self.ui.runSelector.connect("currentIndexChanged(int)", self.onRunSelected)
        self.ui.modelSelector.connect("currentIndexChanged(int)", self.onModelSelected)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        self.timer.stop()
        if self.estimate is not None:
            self.estimate.close()
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self) -> None:
        if not dependencies.missing():
            self.logic.trainer.unfinished()
        self._folder = ("", "")
        self.initializeParameterNode()
        self.fillRuns()
        self.reconnect()
        self.timer.start()

    def exit(self) -> None:
        self.setParameterNode(None)

    def onSceneStartClose(self, caller, event) -> None:
        self._shown, self._compared = None, {}
        self.setParameterNode(None)

    def onSceneStartImport(self, caller, event) -> None:
        """Lets go of the parameters: the node selectors empty themselves when an import ends."""
        self.setParameterNode(None)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller, event, node) -> None:
        """What is chosen and goes is chosen no more: the selector would take the next node."""
        if self._parameterNode and self._parameterNode.regionNode is node and not slicer.mrmlScene.IsClosing():
            self._parameterNode.regionNode = None

    def onSceneEndClose(self, caller, event) -> None:
        if self.parent.isEntered:
            self.initializeParameterNode()
            self.reconnect()

    def reconnect(self) -> None:
        """Goes on showing the run whose curve is in the scene, such as one that was loaded."""
        tables = {node.GetAttribute(RUN) for node in slicer.util.getNodesByClass("vtkMRMLTableNode")}
        job = next((job for job in self.logic.trainer.jobs if job.name in tables and job.reports), None)
        if job is not None and self._shown is None:
            self._shown = job, 0
            self.timer.start()

    #
    # Parameters
    #

    def initializeParameterNode(self) -> None:
        """Binds the panel to the scene's parameter node, which is made if there is none."""
        self.setParameterNode(SpeckleTrainParameterNode(self.logic.getParameterNode()))

    def setParameterNode(self, parameterNode) -> None:
        """Binds the panel to a parameter node, or to none."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.updatePanel)
        self._parameterNode = None
        if parameterNode is None:
            self.outline.hide()
            self._outlined = None
        else:
            for selector, role in ((self.ui.inputsSelector, "inputs"), (self.ui.heldOutSelector, "heldOut")):
                self.check(selector, _references(parameterNode.parameterNode, role))
            self._parameterNode = parameterNode
            self.fillModels()
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.updatePanel)
            self.updatePanel()

    def check(self, selector, nodes) -> None:
        """Checks these nodes of a selector and no others."""
        import qt

        for node in (*selector.checkedNodes(), *nodes):
            selector.setCheckState(node, qt.Qt.Checked if node in nodes else qt.Qt.Unchecked)

    def choose(self, nodes) -> None:
        """Chooses nodes to train on, alone; a proxy stands for its recording."""
        nodes = [scene.sequenceBehind(node) or node for node in nodes if node is not None]
        self.check(self.ui.inputsSelector, nodes)

    def onNodesChecked(self) -> None:
        if self._parameterNode:
            node = self._parameterNode.parameterNode
            for selector, role in ((self.ui.inputsSelector, "inputs"), (self.ui.heldOutSelector, "heldOut")):
                node.RemoveNodeReferenceIDs(role)
                for chosen in selector.checkedNodes():
                    node.AddNodeReferenceID(role, chosen.GetID())
            node.Modified()

    def onInitSelected(self, name) -> None:
        if self._parameterNode and name:
            self._parameterNode.init = name

    def onDeviceSelected(self, name) -> None:
        if self._parameterNode and name:
            self._parameterNode.device = name

    def fillModels(self) -> None:
        """The models and devices at hand."""
        from Speckle2SelfLib import library

        for selector, names, chosen in (
            (self.ui.initSelector, list(library.models()), self._parameterNode.init),
            (self.ui.modelSelector, list(library.own_models()), self.ui.modelSelector.currentText),
            (self.ui.deviceSelector, slicer.util.getModuleLogic("Speckle2Self").devices(), self._parameterNode.device),
        ):
            selector.blockSignals(True)
            selector.clear()
            selector.addItems(names)
            if chosen in names:
                selector.currentText = chosen
            selector.blockSignals(False)
        self.onModelSelected()

    def updatePanel(self, caller=None, event=None) -> None:
        parameters, nodes = self._parameterNode, self.data()
        self.showRegion()
        self.ui.dataLabel.text = self.description()
        for name in ("train", "estimate", "exportJob"):
            getattr(self.ui, f"{name}Button").enabled = bool(nodes)
        self.ui.regionNodeSelector.enabled = parameters.region == "given"
        self.ui.stepsSpinBox.enabled = not parameters.minutes
        self.ui.initSelector.enabled = parameters.preset == "adapt"
        for selector, chosen in ((self.ui.initSelector, parameters.init), (self.ui.deviceSelector, parameters.device)):
            selector.currentText = chosen

    def data(self) -> list:
        """What to train on: the checked nodes, and the folder."""
        folder = self._parameterNode.folder.strip()
        return [*self.ui.inputsSelector.checkedNodes(), *([Path(folder)] if folder else [])]

    def description(self) -> str:
        """The data, each with its frames, and what keeps the region from being outlined."""
        lines, total = [], 0
        for selector, words in ((self.ui.inputsSelector, ""), (self.ui.heldOutSelector, _(", held out"))):
            for node in selector.checkedNodes():
                frames, rows, columns = scene.size(node)
                total += frames if selector is self.ui.inputsSelector else 0
                size = _("{frames} frames, {rows} x {columns}").format(frames=frames, rows=rows, columns=columns)
                lines.append(f"{node.GetName()} ({size}){words}")
        if len(lines) > LISTED:
            lines[LISTED - 1 :] = [_("and {number} more").format(number=len(lines) - LISTED + 1)]
        folder = self._parameterNode.folder.strip()
        if folder != self._folder[0]:
            self._folder = folder, self.logic.files(folder)
        if folder:
            lines.append(_("Folder ({files})").format(files=self._folder[1]))
        if not self.data():
            lines.append(_("Check at least one volume or recording, or give a folder."))
        elif len(lines) > 1 and total:
            lines.append(_("In all {total} frames of the scene to train on.").format(total=total))
        if self.outline.searching:
            lines.append(_("The region is being looked for..."))
        return "\n".join([*lines, *([self._outlineError] if self._outlineError else [])])

    def toOutline(self):
        """What is to be outlined: the node, the region and its node, and when that was changed last; or None."""
        parameters = self._parameterNode
        nodes = self.ui.inputsSelector.checkedNodes()
        if not parameters.showRegion or not nodes:
            return None
        seen = [node for node in nodes if comparison.inViews(node)]
        region, given = parameters.region, parameters.regionNode if parameters.region == "given" else None
        recipe = PRESETS[parameters.preset].recipe if parameters.recipe == "preset" else parameters.recipe
        if region == "auto" and recipe == "published":
            region = "none"  # as `Speckle2SelfLib.runs` takes it
        return (seen or nodes)[0], region, given, comparison.changed(given) if given is not None else 0

    def showRegion(self) -> None:
        """Outlines what would be trained on, of the chosen recording that the slice views show, else of the first."""
        wanted = self.toOutline()
        if wanted == self._outlined:
            return
        self._outlined, self._outlineError = wanted, ""
        if wanted is None:
            self.outline.hide()
            return
        try:
            self.outline.show(*wanted[:3])
            volume = comparison.placed(wanted[0])
            if volume.GetScene() is slicer.mrmlScene and not comparison.inViews(volume):  # else no browser shows it
                slicer.util.setSliceViewerLayers(background=volume, foreground=None, fit=True)
        except InputError as error:
            self._outlineError = str(error)
        self.timer.start()

    def followRegion(self) -> None:
        """Brings the outline up to date: with what was found, with another recording in the views, with a box that was
        moved, once it rests."""
        wanted = self.toOutline()
        if self.outline.searching:
            try:
                self.outline.step()
            except InputError as error:
                self._outlineError = str(error)
            if not self.outline.searching:
                self.ui.dataLabel.text = self.description()
        elif wanted != self._outlined and wanted == self._wanted:
            self.showRegion()
            self.ui.dataLabel.text = self.description()
        self._wanted = wanted

    def onFolder(self) -> None:
        import qt

        folder = qt.QFileDialog.getExistingDirectory(None, _("Folder of recordings"), self._parameterNode.folder)
        if folder:
            self._parameterNode.folder = folder

    def options(self) -> dict:
        """The settings as `SpeckleTrainLogic.start` takes them."""
        parameters = self._parameterNode
        region = parameters.region
        return {
            "preset": parameters.preset,
            "recipe": None if parameters.recipe == "preset" else parameters.recipe,
            "name": parameters.name.strip() or None,
            "heldOut": list(self.ui.heldOutSelector.checkedNodes()),
            "init": parameters.init if parameters.preset == "adapt" else None,
            "minutes": parameters.minutes or None,
            "steps": (parameters.steps or None) if not parameters.minutes else None,
            "region": (parameters.regionNode or region) if region == "given" else region,
            "device": parameters.device,
        }

    #
    # Runs
    #

    def onTrain(self) -> None:
        with shownErrors(_("Training could not be started.")):
            job = self.logic.start(self.data(), **self.options())
            self.fillRuns(job)
            self.timer.start()

    def onEstimate(self) -> None:
        with shownErrors(_("The estimate could not be made.")):
            if self.estimate is not None:
                self.estimate.close()
            self.ui.estimateLabel.text = _("Measuring...")
            self.ui.estimateLabel.visible = True
            self.estimate = self.logic.estimate(self.data(), self.showEstimate, **self.options())
            self.timer.start()

    def showEstimate(self, found) -> None:
        """Shows what a run would take, or why that is unknown."""
        self.estimate = None
        if isinstance(found, InputError):
            self.ui.estimateLabel.text = str(found)
            return
        grains = ", ".join("{:.1f} x {:.1f}".format(*grain) for grain in found["grain"])
        self.ui.estimateLabel.text = _(
            "{frames} frames to train on, {held_out} held out. Speckle grain, down x across: {grains} pixels. {steps} "
            "steps take about {minutes:.1f} min on {device} and {memory} MB of memory."
        ).format(**{**found, "grains": grains})
        if found["correlation"]:
            self.ui.correlationLabel.setPixmap(_drawn(found["correlation"][0]))
            self.ui.correlationLabel.visible = True

    @property
    def job(self):
        """The chosen run; None where there is none."""
        jobs = self.logic.trainer.jobs
        number = self.ui.runSelector.currentIndex
        return jobs[number] if 0 <= number < len(jobs) else None

    def fillRuns(self, chosen=None) -> None:
        """The runs; `chosen` becomes the current one."""
        jobs, chosen = self.logic.trainer.jobs, chosen or self.job
        self.ui.runSelector.blockSignals(True)
        self.ui.runSelector.clear()
        self.ui.runSelector.addItems([job.name for job in jobs])
        self.ui.runSelector.currentIndex = jobs.index(chosen) if chosen in jobs else len(jobs) - 1
        self.ui.runSelector.blockSignals(False)
        self.showRun()

    def onRunSelected(self, number=0) -> None:
        self.showRun()

    def onTimer(self) -> None:
        """Takes what the runs reported."""
        self.logic.poll()
        job = self.job
        if self._shown is not None and self._shown[0] in self.logic.trainer.jobs:
            shown, count = self._shown
            if len(shown.reports) != count:
                self._shown = shown, len(shown.reports)
                self.logic.showProgress(shown)
        ended = {each for each in self.logic.trainer.jobs if each.state == "done"} - self._told
        if ended:
            self._told |= ended
            if self._parameterNode:
                self.fillModels()
        if job is not None:
            self.showRun()
        if self._outlined is not None:
            self.followRegion()
        if self._compared:
            with shownErrors(_("The models could not be compared.")):
                self.stepCompared()
        going = any(not each.ended for each in self.logic.trainer.jobs)
        if not going and self.estimate is None and not self._compared and self._outlined is None:
            self.timer.stop()

    def showRun(self) -> None:
        """State, progress and figures of the chosen run."""
        job = self.job
        state = job.state if job else ""
        last = job.reports[-1] if job and job.reports else {}
        simulated = job.simulated if state == "running" else None
        done, whole = simulated or (last.get("step", 0), last.get("steps", 100))
        self.ui.progressBar.visible = bool(simulated or last)
        self.ui.progressBar.maximum = whole
        self.ui.progressBar.value = done
        self.ui.pauseButton.enabled = state in ("waiting", "running")
        self.ui.resumeButton.enabled = bool(job and job.resumable)
        self.ui.stopButton.enabled = bool(job and job.stoppable)
        self.ui.removeButton.enabled = job is not None
        self.ui.showButton.enabled = bool(job and job.reports)
        words = {
            "": _("No run yet."), "waiting": _("Waits for its turn."), "running": _("Loading..."),
            "stopped": _("Paused."), "done": _("Done: the model '{model}' is at hand.").format(model=job and job.model),
            "failed": _("Failed."),
        }[state]  # fmt: skip
        if simulated:
            words = _("Simulating {whole} anatomies of this speckle's grain to learn from as well: {done} made").format(
                whole=whole, done=done
            )
        elif state == "running" and "rate" in last:
            words = _("Step {step} of {steps}, {rate:.1f} per second, {minutes:.1f} min left").format(
                **last, minutes=last.get("seconds_left", 0) / 60
            )
        if state == "done" and job.worse:
            words = _("Done, but '{model}' is worse than the model that it started from: {worse}.").format(
                model=job.model, worse=job.worse
            )
        elif job and job.message:
            words = f"{words} {job.message}"
        self.ui.runLabel.text = words
        self.ui.runLabel.setStyleSheet("color: #c0392b" if state == "failed" or (state == "done" and job.worse) else "")

    def onPause(self) -> None:
        self.job.stop()
        self.showRun()

    def onResume(self) -> None:
        with shownErrors(_("The run could not be resumed.")):
            self.logic.trainer.resume(self.job)
            self.timer.start()
            self.showRun()

    def onStop(self) -> None:
        with shownErrors(_("The run could not be ended.")):
            self.job.finish()
            self.timer.start()
            self.showRun()

    def onRemove(self) -> None:
        job = self.job
        if job.state != "done" and not slicer.util.confirmOkCancelDisplay(
            _("Remove the run '{name}'? What it has learned is lost.").format(name=job.name)
        ):
            return
        with shownErrors(_("The run could not be removed.")):
            job.cancel()
            self.logic.trainer.jobs.remove(job)
            self.fillRuns()

    def onShow(self) -> None:
        with shownErrors(_("The run could not be shown.")):
            self._parameterNode.showRegion = False  # it would lie on the preview
            nodes = self.logic.showProgress(self.job)
            self._shown = self.job, len(self.job.reports)
            slicer.modules.plots.logic().ShowChartInLayout(nodes["loss"])
            for name, role in (("Red", "before"), ("Yellow", "after")):
                composite = slicer.mrmlScene.GetNodeByID(f"vtkMRMLSliceCompositeNode{name}")
                composite.SetBackgroundVolumeID(nodes[role].GetID())
                composite.SetForegroundVolumeID(None)
                slicer.app.layoutManager().sliceWidget(name).sliceLogic().FitSliceToBackground()

    #
    # Models
    #

    def onModelSelected(self, number=0) -> None:
        chosen = bool(self.ui.modelSelector.currentText)
        for name in ("compare", "rename", "delete", "export"):
            getattr(self.ui, f"{name}Button").enabled = chosen

    def onCompare(self) -> None:
        with shownErrors(_("The models could not be compared.")):
            name = self.ui.modelSelector.currentText
            table = self.logic.compare(name)
            nodes = self.ui.heldOutSelector.checkedNodes() or self.ui.inputsSelector.checkedNodes()
            if nodes:
                with suppress(InputError):  # of a recording that no browser shows there are figures alone
                    self._compared = self.logic.previews(nodes[0], name)
                    self.timer.start()
            text, measuredOn = comparison.asHtml(table), table.GetAttribute("Speckle2Self.figuresAreOf")
            if measuredOn:
                text += "<p>{}</p>".format(escape(_("Measured on {frames}.").format(frames=measuredOn)))
            slicer.util.infoDisplay(text, windowTitle=table.GetName())

    def stepCompared(self) -> None:
        """Shows the previews of both models side by side once they are there."""
        slicer.util.getModuleLogic("Speckle2Self").worker.poll()
        for preview in self._compared.values():
            preview.step()
        if not any(preview.waiting for preview in self._compared.values()):
            compared, self._compared, outputs = self._compared, {}, []
            for name, preview in compared.items():
                preview.stop()
                if preview.state == "failed":
                    raise InputError(preview.message)
                if preview.output is not None:
                    _claim(preview.output, _previewTitle(preview.node, name), preview.node)
                    outputs.append(preview.output)
            if len(outputs) == 2:
                comparison.sideBySide(*outputs)

    def onRename(self) -> None:
        import qt

        name = self.ui.modelSelector.currentText
        to = qt.QInputDialog.getText(None, _("Rename"), _("Name of the model:"), qt.QLineEdit.Normal, name)
        if to and to != name:
            with shownErrors(_("The model could not be renamed.")):
                from Speckle2SelfLib import library

                library.rename(name, to)
                self.fillModels()
                self.ui.modelSelector.currentText = to

    def onDelete(self) -> None:
        name = self.ui.modelSelector.currentText
        if slicer.util.confirmOkCancelDisplay(_("Delete the model '{name}' for good?").format(name=name)):
            with shownErrors(_("The model could not be deleted.")):
                from Speckle2SelfLib import library

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
            with shownErrors(_("The model could not be imported.")):
                from Speckle2SelfLib import library

                name = self.logic.importModel(path)
                self.fillModels()
                self.ui.modelSelector.currentText = name
                worse = library.worse_than_start(library.card(name))
                if worse:
                    words = _("'{model}' is worse than the model that it started from: {worse}.")
                    slicer.util.warningDisplay(words.format(model=name, worse=worse))

    def onExport(self) -> None:
        import qt

        name = self.ui.modelSelector.currentText
        path = qt.QFileDialog.getSaveFileName(
            None, _("Export the model"), f"{name}.safetensors", _("Models (*.safetensors)")
        )
        if path:
            with shownErrors(_("The model could not be exported.")):
                from Speckle2SelfLib import library

                library.export(name, path)

    def onExportJob(self) -> None:
        import qt

        folder = qt.QFileDialog.getSaveFileName(None, _("New folder of the run"), "speckle-run", "")
        if folder:
            with shownErrors(_("The run could not be exported.")):
                options = {name: value for name, value in self.options().items() if name != "device"}
                self.logic.exportJob(self.data(), folder, **options)
                slicer.util.showStatusMessage(_("The run is in {folder}; start it there.").format(folder=folder), 5000)


def _references(node, role: str) -> list:
    """The nodes that a node refers to in a role."""
    found = (node.GetNthNodeReference(role, number) for number in range(node.GetNumberOfNodeReferences(role)))
    return [one for one in found if one is not None]


def _drawn(curves):
    """A picture of how alike pixels at a distance are, along the columns and along the rows."""
    import qt

    width, height = 320, 90
    picture = qt.QPixmap(width, height)
    picture.fill(qt.QColor("white"))
    pen = qt.QPainter(picture)
    pen.setPen(qt.QColor("#bbbbbb"))
    pen.drawLine(0, height // 2, width, height // 2)
    for curve, colour, words, place in zip(
        curves, ("#2471a3", "#ca6f1e"), (_("down"), _("across")), (60, 120), strict=True
    ):
        pen.setPen(qt.QColor(colour))
        points = [(4 + i * (width - 8) // max(1, len(curve) - 1), 4 + (1 - value) * (height - 8))
                  for i, value in enumerate(curve)]  # fmt: skip
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            pen.drawLine(int(x0), int(y0), int(x1), int(y1))
        pen.drawText(width - place, 14, words)
    pen.end()
    return picture


class SpeckleTrainLogic(ScriptedLoadableModuleLogic):
    """Trains models on nodes of the scene; to be used from the console as well.

        logic = slicer.util.getModuleLogic("SpeckleTrain")
        job = logic.start([slicer.util.getNode("Carotid")], preset="adapt")
        job.wait()
        job.model   # its name among the models of Speckle2Self

    trainer: what runs the jobs; for tests. Runs outlive the panel and the scene, and end with the application.
    """

    _trainer = None  # one for the application: it keeps the queue

    def __init__(self, trainer=None) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self._given = trainer

    @property
    def trainer(self):
        """The queue of training runs."""
        if self._given is not None:
            return self._given
        if SpeckleTrainLogic._trainer is None:
            from Speckle2SelfSlicer.trainer import Trainer

            SpeckleTrainLogic._trainer = Trainer()
        return SpeckleTrainLogic._trainer

    def start(
        self,
        nodes,
        preset: str = "adapt",
        name: str | None = None,
        heldOut=(),
        recipe: str | None = None,
        init: str | None = None,
        steps: int | None = None,
        minutes: float | None = None,
        region="auto",
        device: str = "auto",
        seed: int = 0,
        onReport=None,
    ):
        """Trains a model on volumes and recordings; returns the job at once.

        nodes: volumes, sequences, proxies of recordings, or their ids or names; a pathlib.Path is a file or a folder of
            files on disk, read by the training process. heldOut: the same, for validation
            alone; without, some frames or recordings are held out.
        preset: "adapt" (from a model at hand to these recordings, in minutes) and "standard" (from nothing) take
            frames with known truth, simulated with the recordings' grain, besides; "default" does, too, for very long,
            as for a model that is to be bundled; "paper" is the published method, on recordings alone.
        name: of the model; else it is made from the first node's.
        recipe, steps, minutes, seed: other than the preset's. init: the model to start from, a name or a file
            (adapt: "default").
        region: "auto": the imaged part of each recording; "none": whole frames; a segmentation or a box (ROI): what it
            covers of each recording, and of files if that is the same in all; "given": what was given last for this
            scanner and frames of this size.
        device: "auto", "cpu", "cuda", "mps".
        onReport: called from `poll` with (job, report), see `Speckle2SelfLib.runs.run`.

        The job has state, message, reports, model, worse; stop() and cancel(); wait() blocks until it has ended.
        Raises InputError with one sentence where there is nothing to train on. The nodes are only read.
        """
        dependencies.ensure()
        job, recordings, held, name, regions = self._job(
            nodes, preset, name, heldOut, recipe, init, steps, minutes, region, device, seed
        )
        logging.info(f"Training '{name}' on {len(recordings)} recordings.")
        return self.trainer.add(name, recordings, job, held, onReport, regions)

    def _job(self, nodes, preset, name, heldOut, recipe, init, steps, minutes, region, device, seed):
        from Speckle2SelfLib import library

        files = [node for node in nodes if isinstance(node, Path)]
        nodes = [node for node in nodes if not isinstance(node, Path)]
        nodes, heldOut = (_recordings(some) for some in (nodes, heldOut))
        if not nodes and not files:
            raise InputError("There is nothing to train on: choose at least one volume or recording.")
        for path in files:
            if not path.exists():
                raise InputError(f"There is no file or folder {path}.")
        for node in nodes:
            if node in heldOut:
                raise InputError(f"'{node.GetName()}' cannot be trained on and held out at once.")
        regions = self._regions([*nodes, *heldOut], region, files)
        if init is not None and str(init) not in library.models():
            if not Path(init).is_file():
                raise InputError(f"There is no model '{init}': neither a file nor a model at hand.")
            init = str(Path(init).resolve())  # the run starts in a folder of its own
        job = Job("", inputs=[path.resolve() for path in files], preset=preset, recipe=recipe, init=init, steps=steps,
                  minutes=minutes, region="auto" if regions else region, device=device, seed=seed,
                  report=2 if preset == "adapt" else 10)  # fmt: skip
        recordings, held = ([scene.frames(node) for node in some] for some in (nodes, heldOut))
        first = nodes[0].GetName() if nodes else files[0].stem
        return job, recordings, held, name or self.freeName(f"{first} {preset}"), regions

    def _regions(self, nodes, region, files) -> list:
        """The pixels (H, W) bool of each node that a region covers; none for "auto" and "none"."""
        from Speckle2SelfSlicer.trainer import alike

        if region in ("auto", "none"):
            return []
        if not nodes:
            raise InputError("A region needs a recording in the scene to lie on; of files alone take 'auto' or 'none'.")
        find = slicer.util.getModuleLogic("Speckle2Self").region
        given = None if region == "given" else scene.findRegion(region)
        regions = [find(node, given) for node in nodes]
        if files and not alike(regions):
            raise InputError(
                "The region is not the same in all recordings of the scene: train on the files by themselves."
            )
        return regions

    def freeName(self, wanted: str) -> str:
        """`wanted` made fit for a name, with a number where a model or an unfinished run has that name."""
        return self.trainer.free_name(wanted)

    def files(self, folder: str) -> str:
        """In words, how many files of a folder can be trained on; what is in them is not read."""
        from Speckle2SelfSlicer.trainer import count_files

        if not folder or not Path(folder).is_dir():
            return _("not found")
        number, complete = count_files(folder)
        words = _("{number} files") if complete else _("more than {number} files")
        return words.format(number=number)

    def poll(self) -> None:
        """Takes what the runs reported; the panel does it by a timer."""
        self.trainer.poll()

    def estimate(self, nodes, onDone, **options):
        """What a run would take, measured in a process of its own; `onDone` is called from `poll` with a dict (see
        `Speckle2SelfLib.runs.run`) or an InputError. Returns the job; options as those of `start`."""
        settings = {**DEFAULTS, "preset": "adapt", **options}
        job, recordings, held, _name, regions = self._job(nodes, **settings)
        dependencies.ensure()
        return self.trainer.estimate(recordings, job, held, onDone, regions)

    def exportJob(self, nodes, folder, **options) -> Path:
        """Writes a training run as a folder that runs wherever the core is installed: on one GPU, many, or a cluster.

        It holds the frames (without names or dates, but the images themselves), the settings, and scripts to start it.
        options: as those of `start`. The folder must not exist or be empty. Returns it.
        """
        from Speckle2SelfSlicer.trainer import export

        settings = {**DEFAULTS, "preset": "standard", **options}
        job, recordings, held, _name, regions = self._job(nodes, **settings)
        return export(Path(folder), recordings, job, held, regions)

    def importModel(self, path, name: str | None = None) -> str:
        """Takes a model file among the user's models: ours, the result of an exported run, or the authors' .pth.

        path: the file, or the folder of an exported run. Returns the model's name.
        """
        from Speckle2SelfLib import library

        path = Path(path)
        if path.is_dir():
            path = path / "model.safetensors"
            if not path.exists():
                raise InputError(f"There is no result in {path.parent} yet.")
        dependencies.ensure()
        return library.add(path, name)

    def previews(self, node, model: str) -> dict:
        """What a node shows now, despeckled by the model that `model` started from and by `model`: by name,
        `processing.Live` previews, whose `step` is to be called until they wait no more; the first is missing where
        that model is not at hand. Images of an earlier comparison are brought up to date, unless they were renamed."""
        from Speckle2SelfLib import library

        other, volume = slicer.util.getModuleLogic("Speckle2Self"), comparison.shown(scene.find(node))
        names = [name for name in (library.card(model).get("start"), model) if name in library.models()]
        kind = scene.VOLUMES.get(volume.GetClassName(), "")
        earlier = {name: _claimed(kind, _previewTitle(volume, name), volume) for name in names}
        return {name: other.live(volume, once=True, model=name, output=earlier[name]) for name in names}

    #
    # In the scene
    #

    def showProgress(self, job) -> dict:
        """Shows the job's curves and its preview in the scene. Called again, it brings the same nodes up to date.

        Returns them: `table`, `loss` and `figures` (charts), `before` and `after` (a held-out frame).
        """
        nodes = _runNodes(slicer.mrmlScene, job.name)
        _updateTable(nodes["table"], job.reports)
        _updateCharts(slicer.mrmlScene, job.name, nodes, job.reports)
        picture = job.picture()
        if picture is not None:
            _updatePreview(nodes, picture)
        return nodes

    def compare(self, model: str):
        """A table node: figures of merit of a trained model and of the one that it started from, on held-out frames.
        Called again, it brings the same table up to date, unless that was renamed."""
        from Speckle2SelfLib import checkpoint, library

        path = library.models().get(model)
        if path is None:
            raise InputError(f"There is no model '{model}'.")
        card = checkpoint.load(path)[2]
        start, end = card.get("figures_at_start") or {}, card.get("figures") or {}
        name = f"{model} compared"
        table = _claimed("vtkMRMLTableNode", name) or slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
        _claim(table, name)
        columns = (
            ("figure", list(end)), ("start", [start.get(name, "") for name in end]), ("trained", list(end.values())),
        )  # fmt: skip
        with slicer.util.NodeModify(table):
            table.RemoveAllColumns()
            for title, values in columns:
                column = vtk.vtkStringArray()
                column.SetName(title)
                for value in values:
                    column.InsertNextValue(f"{value:.4f}" if isinstance(value, float) else str(value))
                table.AddColumn(column)
        table.SetAttribute("Speckle2Self.figuresAreOf", str(card.get("figures_are_of", "")))
        return table


def _previewTitle(volume, model: str) -> str:
    return f"{volume.GetName()} by {model}"


def _claimed(kind: str, title: str, of=None):
    """The node that a comparison (of the node `of`) made and called so, and that nobody has renamed since; or None."""
    for node in slicer.util.getNodesByClass(kind) if kind else []:
        if node.GetName() == title == node.GetAttribute(COMPARED) and node.GetNodeReference(COMPARED) is of:
            return node
    return None


def _claim(node, title: str, of=None) -> None:
    """Names what a comparison has made, so that `_claimed` finds it."""
    node.SetName(title)
    node.SetAttribute(COMPARED, title)
    node.SetNodeReferenceID(COMPARED, of.GetID() if of is not None else None)


def _recordings(nodes) -> list:
    """The nodes, each once; a proxy stands for its sequence."""
    found = [scene.find(node) for node in nodes]
    there = [node for node in found if node is not None and node.GetScene() is not None]
    if len(there) < len(found):
        raise InputError("What was to be learnt from is no longer in the scene; choose it anew.")
    return list(dict.fromkeys(scene.sequenceBehind(node) or node for node in there))


#
# Curves and previews as nodes
#


def _runNodes(mrmlScene, name: str) -> dict:
    """The nodes that show a run, found by their attribute, or made."""
    return {role: _node(mrmlScene, kind, name, role, f"{name} {title}") for role, (kind, title) in ROLES.items()}


def _node(mrmlScene, kind: str, run: str, role: str, title: str):
    for number in range(mrmlScene.GetNumberOfNodesByClass(kind)):
        node = mrmlScene.GetNthNodeByClass(number, kind)
        if (node.GetAttribute(RUN), node.GetAttribute(ROLE)) == (run, role):
            return node
    node = mrmlScene.AddNewNodeByClass(kind, title)
    node.SetAttribute(RUN, run)
    node.SetAttribute(ROLE, role)
    return node


def _columns(reports: list[dict]) -> list[str]:
    """Names of the columns of a run's table, `step` first."""
    left_out = {"step", "steps", "rate", "seconds_left", "preview"}
    names = {name: None for report in reports for name, value in report.items() if isinstance(value, (int, float))}
    return ["step", *(name for name in names if name not in left_out)]


def _updateTable(node, reports: list[dict]) -> None:
    with slicer.util.NodeModify(node):
        node.RemoveAllColumns()
        for name in _columns(reports):
            column = vtk.vtkDoubleArray()
            column.SetName(name)
            for report in reports:
                column.InsertNextValue(report.get(name, float("nan")))
            node.AddColumn(column)


def _updateCharts(mrmlScene, run: str, nodes: dict, reports: list[dict]) -> None:
    """Series of a chart of the losses and of one of the figures of merit; a new series where a term turns up. Held-out
    values are circles, of their term's colour: VTK draws no line across the steps between them."""
    for role, names in (("loss", [n for n in _columns(reports)[1:] if n not in FIGURES]), ("figures", FIGURES)):
        chart, terms = nodes[role], list(dict.fromkeys(name.removeprefix(HELD_OUT) for name in names))
        for name in names:
            if name not in _columns(reports):
                continue
            series = _node(mrmlScene, "vtkMRMLPlotSeriesNode", run, name, name)
            if series.GetTableNode() is not nodes["table"]:
                series.SetAndObserveTableNodeID(nodes["table"].GetID())
                series.SetXColumnName("step")
                series.SetYColumnName(name)
                series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
                held = name.startswith(HELD_OUT) or role == "figures"
                series.SetMarkerStyle(series.MarkerStyleCircle if held else series.MarkerStyleNone)
                series.SetLineStyle(series.LineStyleNone if held else series.LineStyleSolid)
                series.SetColor(*COLOURS[terms.index(name.removeprefix(HELD_OUT)) % len(COLOURS)])
            if not chart.HasPlotSeriesNodeID(series.GetID()):
                chart.AddAndObservePlotSeriesNodeID(series.GetID())
        chart.SetTitle(f"{run}: {role}")
        chart.SetXAxisTitle("step")


def _updatePreview(nodes: dict, picture: np.ndarray) -> None:
    """The two halves of a preview (H, 2 W) as two volumes, each a frame."""
    for role, half in zip(("before", "after"), np.hsplit(picture, 2), strict=True):
        slicer.util.updateVolumeFromArray(nodes[role], np.ascontiguousarray(half[None]))
        nodes[role].SetIJKToRASDirections(-1, 0, 0, 0, -1, 0, 0, 0, 1)  # the first row on top, as in the picture
        nodes[role].CreateDefaultDisplayNodes()


class SpeckleTrainTest(ScriptedLoadableModuleTest):
    """Self-test: a small simulated recording is trained on for a few steps, and the model despeckles."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_Training()
        self.setUp()
        self.test_NothingToTrainOn()

    def test_Training(self):
        self.delayDisplay("A simulated recording is trained on")
        dependencies.ensure()
        from Speckle2SelfLib import library
        from Speckle2SelfLib.simulation import SimulationConfig, simulate

        frames = simulate(SimulationConfig((64, 64), 16, (1.3, 1.3), "organ"), np.random.default_rng(0)).frames
        volume = slicer.util.addVolumeFromArray(np.round(frames * 255).astype(np.uint8), name="Simulated")
        logic = SpeckleTrainLogic()
        job = logic.start([volume], preset="adapt", steps=4, name=logic.freeName("Self-test"), region="none")
        try:
            job.wait()
            self.assertEqual(job.state, "done", job.message)
            nodes = logic.showProgress(job)
            self.assertEqual(nodes["table"].GetNumberOfRows(), len(job.reports))
            self.assertIn(job.model, library.own_models())
        finally:
            job.cancel()
            if job.model:
                library.delete(job.model)
        self.delayDisplay("Test passed")

    def test_NothingToTrainOn(self):
        self.delayDisplay("An empty choice is refused")
        with self.assertRaises(InputError):
            SpeckleTrainLogic().start([])
