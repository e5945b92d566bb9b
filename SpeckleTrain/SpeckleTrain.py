"""The module SpeckleTrain: trains a model on the recordings in the scene, without clean images."""

import logging
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import slicer
from slicer import vtkMRMLNode, vtkMRMLTableNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)

from Speckle2SelfLib import library
from Speckle2SelfLib.config import PRESETS, RECIPES, WHOLE_FRAMES
from Speckle2SelfLib.system import InputError
from Speckle2SelfSlicer import curves, dependencies, regions, scene, training_data, views
from Speckle2SelfSlicer.panel import Panel, WrapperCache, confirm, reporting_errors
from Speckle2SelfSlicer.panel_parts import ExportPart, ModelsPart
from Speckle2SelfSlicer.regions import RegionNode
from Speckle2SelfSlicer.session import Session, applicationSession

LISTED = 8  # recordings that the panel lists; it only counts further ones


class SpeckleTrain(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "SpeckleTrain"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Ultrasound")]
        self.parent.dependencies = ["Speckle2Self", "Sequences", "Segmentations", "Markups", "Plots"]
        self.parent.contributors = ["Speckle2Self contributors"]
        self.parent.helpText = _(
            "<p>Trains a model for the module Speckle2Self on the ultrasound recordings in the scene. No clean images "
            "or image pairs are needed: with <i>adapt</i> and <i>standard</i>, the recordings are despeckled and "
            "covered with new speckle like their own, so that the ground truth is known. Everything runs on this "
            "computer; the model stores nothing that identifies the recordings.</p>"
            "<p>A model shows what it has learned to expect: always compare with the input. It is not a medical device "
            "and not for diagnosis.</p>"
            "<p>The idea is by Li, Navab and Jiang: <i>Speckle2Self: Self-Supervised Ultrasound Speckle "
            "Reduction Without Clean Data</i>, Medical Image Analysis 2025, 103755. Please cite it.</p>"
            '<p>See the <a href="https://github.com/Speckle2Self/SlicerSpeckle2Self#readme">documentation</a>.</p>'
        )
        self.parent.acknowledgementText = _(
            "This is an independent implementation of an idea by Xuesong Li, Nassir Navab and Zhongliang Jiang."
        )


@parameterNodeWrapper
class SpeckleTrainParameterNode:
    """The panel's settings, saved with the scene; the chosen recordings are node references `inputs`, `heldOut`.

    folder - of recordings as files, to train on as well; empty: none.
    region - "auto": the imaged part of each recording; "none": whole frames; "given": the pixels that regionNode
    covers. regionNode - a segmentation or a box. showRegion - whether the region is outlined in the slice views. preset
    - how to train: "adapt" an existing model, "standard" from scratch, "paper" as published. recipe - the preset's, or
    another. init - the model that "adapt" starts from. minutes, steps - to train for; 0: the preset's number of steps.
    device - what to compute on. name - of the model; empty: made from the data's name.
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


class SpeckleTrainWidget(ExportPart, ModelsPart, Panel):
    """The panel: the widgets of SpeckleTrain.ui, bound to the parameter node. Training happens in other processes; a
    timer reads their reports. Runs continue when the panel is left, reloaded, or the scene is closed."""

    nodeParameters = ("regionNode",)

    def __init__(self, parent=None) -> None:
        super().__init__(parent)
        self.estimate = None  # the running trainer.Estimate
        self._shownRun = None  # (run, number of its reports) that is shown in the scene
        self._finishedRuns = set()  # runs whose model is listed
        self._outlineData = None  # the outlined data
        self._nextOutlineData = None  # the data to outline, at the timer's last step
        self._outlineError = ""
        self._folder = ("", "")  # the folder whose files were counted last, and the result

    def setup(self) -> None:
        super().setup()
        self.build(SpeckleTrainLogic())
        self.outline = regions.Outline(self.session)
        self.hideEstimate()
        self.timer = self.makeTimer(100, self.onTimer)
        self.ui.inputsSelector.connect("checkedNodesChanged()", self.onNodesChecked)
        self.ui.heldOutSelector.connect("checkedNodesChanged()", self.onNodesChecked)
        self.ui.initSelector.connect("currentTextChanged(QString)", self.onInitSelected)
        self.ui.deviceSelector.connect("currentTextChanged(QString)", self.onDeviceSelected)
        self.ui.runSelector.connect("currentIndexChanged(int)", self.onRunSelected)
        self.setupModels()
        self.initializeParameterNode()
        self.fillRuns()

    def cleanup(self) -> None:
        if self.estimate is not None:
            self.estimate.close()
        self.endExport()
        super().cleanup()

    def enter(self) -> None:
        if not dependencies.missing_packages():
            self.logic.trainer.unfinished_runs()
        self._folder = ("", "")
        super().enter()
        nodes, self.session.trainingNodes = self.session.trainingNodes, []
        if nodes:
            self.choose(nodes)
        self.fillRuns()
        self.reconnect()
        self.timer.start()

    def onSceneStartClose(self, caller=None, event=None) -> None:
        self._shownRun = self._comparison = None
        super().onSceneStartClose()
        self.hideEstimate()

    def onSceneEndClose(self, caller=None, event=None) -> None:
        if self.parent.isEntered:
            self.initializeParameterNode()
            self.reconnect()

    def onSceneEndImport(self, caller=None, event=None) -> None:
        self.releaseParameters()
        self.onSceneEndClose()

    def reconnect(self) -> None:
        """Continue to show the run whose curve is in the scene, such as one that was loaded."""
        tables = {node.GetAttribute(curves.RUN) for node in slicer.util.getNodesByClass("vtkMRMLTableNode")}
        job = next((job for job in self.logic.trainer.jobs if job.name in tables and job.reports), None)
        if job is not None and self._shownRun is None:
            self._shownRun = job, 0
            self.timer.start()

    #
    # Parameters
    #

    def setParameterNode(self, parameterNode) -> None:
        super().setParameterNode(parameterNode)
        if parameterNode is None:
            self.outline.hide()
            self._outlineData = None

    def fillSelectors(self, parameterNode) -> None:
        for selector, role in ((self.ui.inputsSelector, "inputs"), (self.ui.heldOutSelector, "heldOut")):
            self.check(selector, training_data.references(parameterNode.parameterNode, role))
        self.fillModels(parameterNode)

    def check(self, selector, nodes: list[vtkMRMLNode]) -> None:
        """Check these nodes of a selector, and only these."""
        import qt

        for node in (*selector.checkedNodes(), *nodes):
            selector.setCheckState(node, qt.Qt.Checked if node in nodes else qt.Qt.Unchecked)

    def choose(self, nodes: list[vtkMRMLNode]) -> None:
        """Choose only these nodes to train on; a proxy stands for its recording."""
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

    def onInitSelected(self, name: str) -> None:
        self.onModelOrDevice("init", name)

    def onDeviceSelected(self, name: str) -> None:
        self.onModelOrDevice("device", name)

    def fillModels(self, parameterNode=None) -> None:
        """Fill the selectors with the available models and devices."""
        parameters = parameterNode or self._parameterNode
        for selector, names, chosen in (
            (self.ui.initSelector, list(library.models()), parameters.init),
            (self.ui.modelSelector, list(library.own_models()), self.ui.modelSelector.currentText),
            (self.ui.deviceSelector, self.session.devices(), parameters.device),
        ):
            self.fillSelector(selector, names, chosen, keep=False)
        self.onModelSelected()

    def updatePanel(self) -> None:
        parameters, nodes = self._parameterNode, self.data()
        self.showRegion()
        self.ui.dataLabel.text = self.description()
        self.ui.trainButton.enabled = self.ui.estimateButton.enabled = bool(nodes)
        self.ui.exportJobButton.enabled = bool(nodes) and self.exporting is None
        self.ui.regionNodeSelector.enabled = parameters.region == "given"
        self.ui.stepsSpinBox.enabled = not parameters.minutes
        self.ui.initSelector.enabled = parameters.preset == "adapt"
        for selector, chosen in ((self.ui.initSelector, parameters.init), (self.ui.deviceSelector, parameters.device)):
            selector.currentText = chosen

    def data(self) -> list:
        """Return the data to train on: the checked nodes, and the folder."""
        folder = self._parameterNode.folder.strip()
        return [*self.ui.inputsSelector.checkedNodes(), *([Path(folder)] if folder else [])]

    def description(self) -> str:
        """Return a list of the data with their frames, and why the region cannot be outlined."""
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
            lines.append(_("Check at least one volume or recording, or choose a folder."))
        elif len(lines) > 1 and total:
            lines.append(_("{total} frames of the scene to train on.").format(total=total))
        if self.outline.searching:
            lines.append(_("Detecting the region..."))
        return "\n".join([*lines, *([self._outlineError] if self._outlineError else [])])

    def outlineData(self) -> tuple | None:
        """Return the data to outline: the node, the region and its node, and the time of its last change."""
        parameters = self._parameterNode
        nodes = self.ui.inputsSelector.checkedNodes()
        if not parameters.showRegion or not nodes:
            return None
        visible = [node for node in nodes if views.isInViews(node)]
        region, given = parameters.region, parameters.regionNode if parameters.region == "given" else None
        recipe = PRESETS[parameters.preset].recipe if parameters.recipe == "preset" else parameters.recipe
        if region == "auto" and recipe in WHOLE_FRAMES:
            region = "none"
        return (visible or nodes)[0], region, given, regions.lastChange(given) if given is not None else 0

    def showRegion(self) -> None:
        """Outline the pixels used for training, on the chosen recording in the slice views, else on the first one."""
        data = self.outlineData()
        if data == self._outlineData:
            return
        self._outlineData, self._outlineError = data, ""
        if data is None:
            self.outline.hide()
            return
        try:
            self.outline.show(*data[:3])
            volume = scene.referenceVolume(data[0])
            if volume.GetScene() is slicer.mrmlScene and not views.isInViews(volume):  # otherwise no browser shows it
                views.showInViews(volume)
        except InputError as error:
            self._outlineError = str(error)
        self.timer.start()

    def followRegion(self) -> None:
        """Update the outline: with a detected region, for another recording in the views, or for a box that was moved,
        once it rests."""
        data = self.outlineData()
        if self.outline.searching:
            try:
                self.outline.step()
            except InputError as error:
                self._outlineError = str(error)
            if not self.outline.searching:
                self.ui.dataLabel.text = self.description()
        elif data != self._outlineData and data == self._nextOutlineData:
            self.showRegion()
            self.ui.dataLabel.text = self.description()
        self._nextOutlineData = data

    def onFolder(self) -> None:
        import qt

        folder = qt.QFileDialog.getExistingDirectory(None, _("Folder of recordings"), self._parameterNode.folder)
        if folder:
            self._parameterNode.folder = folder

    def options(self) -> dict:
        """Return the settings as arguments of `SpeckleTrainLogic.start`."""
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
        with reporting_errors(_("Training could not be started.")):
            job = self.logic.start(self.data(), **self.options())
            self.fillRuns(job)
            self.timer.start()

    def onEstimate(self) -> None:
        with reporting_errors(_("The estimate failed.")):
            if self.estimate is not None:
                self.estimate.close()
            self.ui.estimateLabel.text = _("Measuring...")
            self.ui.estimateLabel.visible = True
            self.estimate = self.logic.estimate(self.data(), self.showEstimate, **self.options())
            self.timer.start()

    def hideEstimate(self) -> None:
        """Hide the estimate for another scene."""
        self.ui.estimateLabel.visible = self.ui.correlationLabel.visible = False

    def showEstimate(self, found: dict | InputError) -> None:
        """Show the estimated time and memory of a run, or why they are unknown."""
        self.estimate = None
        if isinstance(found, InputError):
            self.ui.estimateLabel.text = str(found)
            return
        grains = ", ".join("{:.1f} x {:.1f}".format(*grain) for grain in found["grain"])
        simulating = max(0.0, found["minutes"] - found["steps"] / found["rate"] / 60)
        self.ui.estimateLabel.text = _(
            "{frames} frames to train on, {held_out} held out. Speckle size, down x across: {grains} pixels. About "
            "{minutes:.1f} min on {device}, with {memory} MB: {simulating:.1f} min of simulation, then {steps} steps."
        ).format(**found, grains=grains, simulating=simulating)
        if found["correlation"]:
            self.ui.correlationLabel.setPixmap(curves.correlationPicture(found["correlation"][0]))
            self.ui.correlationLabel.visible = True

    @property
    def job(self):
        """Return the chosen run; None if there is none."""
        jobs = self.logic.trainer.jobs
        number = self.ui.runSelector.currentIndex
        return jobs[number] if 0 <= number < len(jobs) else None

    def fillRuns(self, chosen=None) -> None:
        """List the runs; `chosen` becomes the current one."""
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
        """Process the reports of the runs."""
        self.logic.poll()
        if self._shownRun is not None and self._shownRun[0] in self.logic.trainer.jobs:
            run, count = self._shownRun
            if len(run.reports) != count:
                self._shownRun = run, len(run.reports)
                with reporting_errors(_("The run could not be shown."), cleanUp=self.endProgress):
                    self.logic.showProgress(run)
        ended = {each for each in self.logic.trainer.jobs if each.state == "done"} - self._finishedRuns
        if ended:
            self._finishedRuns |= ended
            if self._parameterNode:
                self.fillModels()
        if self.job is not None:
            self.showRun()
        if self._outlineData is not None:
            with reporting_errors(_("The region cannot be shown."), cleanUp=self.outline.hide):
                self.followRegion()
        if self._comparison is not None:
            with reporting_errors(_("The models could not be compared."), cleanUp=self.endComparison):
                self.stepComparison()
        if not self.session.training and not (self.estimate or self.exporting or self._comparison or self._outlineData):
            self.timer.stop()

    def endProgress(self) -> None:
        self._shownRun = None

    def showRun(self) -> None:
        """Show state, progress and figures of the chosen run."""
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
        self.ui.runLabel.text = self.runInWords(job) if job else _("No run yet.")
        self.ui.runLabel.setStyleSheet("color: #c0392b" if state == "failed" or (state == "done" and job.worse) else "")

    def runInWords(self, job) -> str:
        """Return the state of a run, for the user."""
        last = job.reports[-1] if job.reports else {}
        if job.state == "done" and job.worse:
            words = _("Done, but '{model}' is worse than the model it started from: {worse}.")
            return words.format(model=job.model, worse=job.worse) + job.message.partition(f"{job.worse}.")[2]
        words = {
            "waiting": _("Queued."), "running": _("Loading..."), "stopped": _("Paused."),
            "done": _("Done: the model '{model}' is available.").format(model=job.model), "failed": _("Failed."),
        }[job.state]  # fmt: skip
        if job.state == "running" and job.simulated:
            words = _(
                "Simulating {whole} anatomies with this speckle size as further training data: {done} done"
            ).format(done=job.simulated[0], whole=job.simulated[1])
        elif job.state == "running" and "rate" in last:
            words = _("Step {step} of {steps}, {rate:.1f} per second, {minutes:.1f} min left").format(
                **last, minutes=last.get("seconds_left", 0) / 60
            )
        return f"{words}\n{job.message}" if job.message else words

    def onPause(self) -> None:
        self.job.pause()
        self.showRun()

    def onResume(self) -> None:
        with reporting_errors(_("The run could not be resumed.")):
            self.job.resume()
            self.timer.start()
            self.showRun()

    def onStop(self) -> None:
        with reporting_errors(_("The run could not be ended.")):
            self.job.stop()
            self.timer.start()
            self.showRun()

    def onRemove(self) -> None:
        job, question = self.job, _("Remove the run '{name}'? What it has learned is lost.")
        if job.state != "done" and not confirm(question.format(name=job.name)):
            return
        with reporting_errors(_("The run could not be removed.")):
            job.remove()
            self.fillRuns()

    def onShow(self) -> None:
        with reporting_errors(_("The run could not be shown.")):
            self._parameterNode.showRegion = False  # it would cover the preview
            nodes = self.logic.showProgress(self.job)
            self._shownRun = self.job, len(self.job.reports)
            known = nodes["errors"].GetNumberOfPlotSeriesNodes()
            slicer.modules.plots.logic().ShowChartInLayout(nodes["errors" if known else "loss"])
            for name, role in (("Red", "before"), ("Yellow", "after"), ("Green", "uncertainty")):
                if role in nodes:
                    views.showInViews(nodes[role], (name,))


class SpeckleTrainLogic(ScriptedLoadableModuleLogic):
    """Train models on nodes of the scene, for the panel and for the Python console.

        logic = slicer.util.getModuleLogic("SpeckleTrain")
        job = logic.start([slicer.util.getNode("Carotid")], preset="adapt")
        job.wait()
        job.model   # its name among the models of Speckle2Self

    trainer: the queue of runs, instead of the application's; for tests. Runs outlive the panel and the scene, and end
    with the application.
    """

    def __init__(self, trainer: Any = None, session: Session | None = None) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.session = session or (applicationSession() if trainer is None else Session(trainer=trainer))
        self.wrappers = WrapperCache(SpeckleTrainParameterNode)

    def getParameterNode(self) -> SpeckleTrainParameterNode:
        return self.wrappers.of(super().getParameterNode())

    @property
    def trainer(self):
        """Return the queue of training runs."""
        return self.session.trainer

    def start(self, nodes: Any, preset: str = "adapt", *, onReport=None, **options: Any):
        """Train a model on volumes and recordings; return the job at once.

        nodes: volumes, sequences, proxies of recordings, or their ids or names, one or a list; a pathlib.Path is a
            file or a folder of files on disk, read by the training process.
        preset: "adapt" (fine-tune an existing model on these recordings, in minutes) and "standard" (train from
            scratch) also use simulated frames with the recordings' speckle size and known truth; "default" does as
            well, and takes very long: it made the bundled model; "paper" is the published method, only on recordings.
        options:
            heldOut: as nodes, used only for validation; without, some frames or recordings are held out.
            name: of the model; else it is made from the first node's.
            recipe, steps, minutes, seed: other than the preset's.
            init: the model to start from, a name or a file (adapt: "default").
            region: "auto": the imaged part of each recording; "none": whole frames; a segmentation or a box (ROI): the
                pixels that it covers in each recording, and in files if they are the same in all; "given": the one
                used last for this scanner and frames of this size.
            device: "auto", "cpu", "cuda", "mps".
        onReport: called from `poll` with (job, report), see `Speckle2SelfLib.runs.run`.

        The job has state, message, reports, model, worse; pause(), resume(), stop(), remove() and cancel(); wait()
        blocks until it has ended. Raises InputError with one sentence if there is nothing to train on. The nodes are
        only read.
        """
        data = training_data.gather(self.session, nodes, preset=preset, **options)
        dependencies.ensure()
        name = data.name or self.freeName(f"{data.title} {preset}")
        logging.info(f"Training '{name}' on {len(data.recordings)} recordings.")
        job = self.trainer.add(name, data.recordings, data.job, data.heldOut, onReport, data.regions)
        job.nodes = data.nodes
        return job

    def freeName(self, wanted: str) -> str:
        """Return `wanted` as a valid name, with a number if a model or an unfinished run has that name."""
        return self.trainer.free_name(wanted)

    def files(self, folder: str) -> str:
        """Return in words how many files of a folder can be trained on; their content is not read."""
        from Speckle2SelfSlicer.trainer import count_files

        if not folder or not Path(folder).is_dir():
            return _("not found")
        number, complete = count_files(folder)
        words = _("{number} files") if complete else _("more than {number} files")
        return words.format(number=number)

    def poll(self) -> None:
        """Process the reports of the runs; the panel calls this from a timer."""
        self.trainer.poll()

    def estimate(self, nodes: list, onDone, **options: Any):
        """Measure the time and memory of a run in a separate process; return the job.

        onDone: called from `poll` with a dict (see `Speckle2SelfLib.runs.run`) or an InputError. options: as those of
        `start`.
        """
        data = training_data.gather(self.session, nodes, **options)
        dependencies.ensure()
        return self.trainer.estimate(data.recordings, data.job, data.heldOut, onDone, data.regions)

    def exportJob(self, nodes: list, folder: str | Path, **options: Any) -> Path:
        """Write a training run as a folder that runs wherever the core is installed: on one GPU, many, or a cluster.

        It holds the frames (without names or dates, but the images themselves), the settings, and scripts to start it.
        options: as those of `start`. The folder must not exist or be empty. Returns it when it is complete.
        """
        from Speckle2SelfSlicer.exporting import export

        data = training_data.gather(self.session, nodes, **{"preset": "standard", **options})
        return export(Path(folder), data.recordings, data.job, data.heldOut, data.regions)

    def startExport(self, nodes: list, folder: str | Path, onDone, **options: Any):
        """Do `exportJob` in the background; return the job, which `close()` cancels.

        onDone: called from `poll` with the folder, or with an exception. Raises InputError if it cannot begin.
        """
        data = training_data.gather(self.session, nodes, **{"preset": "standard", **options})
        return self.trainer.export(Path(folder), data.recordings, data.job, data.heldOut, onDone, data.regions)

    def importModel(self, path: str | Path, name: str | None = None) -> str:
        """Copy a model file to the user's models: ours, the result of an exported run, or the authors' .pth.

        path: the file, or the folder of an exported run. Returns the model's name.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "model.safetensors"
            if not path.exists():
                raise InputError(f"There is no result in {path.parent} yet.")
        dependencies.ensure()
        return library.add(path, name)

    def showProgress(self, job) -> dict:
        """Show the job's curves and its preview in the scene. Called again, it updates the same nodes.

        Returns them: `table`, `loss`, `errors` and `figures` (charts), `before` and `after` (a held-out frame), and,
        of models that estimate it, `uncertainty` (% of the grey range).
        """
        return curves.showRun(job)

    def compare(self, model: str) -> vtkMRMLTableNode:
        """Return a table node with figures of merit of a trained model and of the one it started from, on held-out
        frames. Called again, it updates the same table, unless that was renamed."""
        return curves.comparisonTable(model)

    def previews(self, node: vtkMRMLNode | str, model: str) -> curves.Comparison:
        """Despeckle a node's current image by the model that `model` started from and by `model`."""
        return curves.Comparison(self.session, node, model)


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
        if dependencies.missing_in_testing():
            self.delayDisplay("Skipped: Python packages are missing, and a test does not install any")
            return
        self.delayDisplay("A simulated recording is trained on")
        dependencies.ensure()
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
