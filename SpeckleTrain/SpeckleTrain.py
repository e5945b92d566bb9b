"""The module SpeckleTrain: trains a model on the recordings in the scene, without a clean image."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
)
from vtk.util.numpy_support import vtk_to_numpy

from Speckle2SelfLib.config import InputError, Job
from Speckle2SelfSlicer import dependencies, scene

RUN, ROLE = "SpeckleTrain.run", "SpeckleTrain.role"  # attributes of the nodes that show a run
ROLES = {  # role -> class and title
    "table": ("vtkMRMLTableNode", "curve"),
    "loss": ("vtkMRMLPlotChartNode", "loss"),
    "figures": ("vtkMRMLPlotChartNode", "figures"),
    "before": ("vtkMRMLScalarVolumeNode", "held-out frame"),
    "after": ("vtkMRMLScalarVolumeNode", "held-out frame despeckled"),
}
FIGURES = ["homogeneity", "structure", "holes", "rms"]
DEFAULTS = {
    "name": None, "heldOut": (), "recipe": None, "init": None, "steps": None, "minutes": None, "region": "auto",
    "device": "auto", "seed": 0,
}  # fmt: skip


class SpeckleTrain(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "SpeckleTrain"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Ultrasound")]
        self.parent.dependencies = []
        self.parent.contributors = ["Speckle2Self contributors"]
        self.parent.helpText = _(
            "<p>Trains a model for the module Speckle2Self on the ultrasound recordings in the scene. It needs no "
            "clean image and no pairs: it learns from the speckle itself. All happens on this computer; the model "
            "keeps nothing of whose recordings they were.</p>"
            "<p>A model shows what it has learned to expect: always compare with the input. It is not a medical device "
            "and not for diagnosis.</p>"
            "<p>The idea is that of Li, Navab, Jiang, <i>Speckle2Self: Self-Supervised Ultrasound Speckle "
            "Reduction Without Clean Data</i>, Medical Image Analysis 2025, 103755. Please cite it.</p>"
        )
        self.parent.acknowledgementText = _(
            "This is an independent implementation. The method that it starts from was published by "
            "Xuesong Li, Nassir Navab and Zhongliang Jiang; their code is under the MIT licence."
        )


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
        if trainer is not None:
            SpeckleTrainLogic._trainer = trainer

    @property
    def trainer(self):
        """The queue of training runs."""
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
        region: str = "auto",
        device: str = "auto",
        seed: int = 0,
        onReport=None,
    ):
        """Trains a model on volumes and recordings; returns the job at once.

        nodes: volumes, sequences, proxies of recordings, or their ids or names. heldOut: the same, for validation
            alone; without, some frames or recordings are held out.
        preset: "adapt" (from a model at hand to these recordings: minutes), "standard", "paper" (the published method).
        name: of the model; else it is made from the first node's.
        recipe, steps, minutes, seed: other than the preset's. init: the model to start from (adapt: "default").
        region: "auto": the imaged part of each recording; "none": whole frames.
        device: "auto", "cpu", "cuda", "mps".
        onReport: called from `poll` with (job, report), see `Speckle2SelfLib.runs.run`.

        The job has state, message, reports, model, worse; stop() and cancel(); wait() blocks until it has ended.
        Raises InputError with one sentence where there is nothing to train on. The nodes are only read.
        """
        dependencies.ensure()
        job, recordings, held, name = self._job(
            nodes, preset, name, heldOut, recipe, init, steps, minutes, region, device, seed
        )
        logging.info(f"Training '{name}' on {len(recordings)} recordings.")
        return self.trainer.add(name, recordings, job, held, onReport)

    def _job(self, nodes, preset, name, heldOut, recipe, init, steps, minutes, region, device, seed):
        nodes, heldOut = ([scene.find(node) for node in some] for some in (nodes, heldOut))
        if not nodes:
            raise InputError("There is nothing to train on: choose at least one volume or recording.")
        both = {node.GetName() for node in nodes} & {node.GetName() for node in heldOut}
        if both:
            raise InputError(f"'{both.pop()}' cannot be trained on and held out at once.")
        job = Job("", preset=preset, recipe=recipe, init=init, steps=steps, minutes=minutes, region=region,
                  device=device, seed=seed, report=2 if preset == "adapt" else 10)  # fmt: skip
        recordings, held = ([scene.frames(node) for node in some] for some in (nodes, heldOut))
        return job, recordings, held, name or self.freeName(f"{nodes[0].GetName()} {preset}")

    def freeName(self, wanted: str) -> str:
        """`wanted`, with a number where a model or an unfinished run has that name."""
        from Speckle2SelfLib import library
        from Speckle2SelfSlicer.trainer import slug

        taken = {slug(job.name) for job in self.trainer.jobs if job.state != "done"}
        name, number = library.free_name(wanted), 1
        while slug(name) in taken:
            number += 1
            name = library.free_name(f"{wanted} {number}")
        return name

    def poll(self) -> None:
        """Takes what the runs reported; the panel does it by a timer."""
        self.trainer.poll()

    def estimate(self, nodes, onDone, **options):
        """What a run would take, measured in a process of its own; `onDone` is called from `poll` with a dict (see
        `Speckle2SelfLib.runs.run`) or an InputError. Returns the job; options as those of `start`."""
        settings = {**DEFAULTS, "preset": "adapt", **options}
        job, recordings, held, _name = self._job(nodes, **settings)
        dependencies.ensure()
        return self.trainer.estimate(recordings, job, held, onDone)

    def exportJob(self, nodes, folder, **options) -> Path:
        """Writes a training run as a folder that runs wherever the core is installed: on one GPU, many, or a cluster.

        It holds the frames (without names or dates, but the images themselves), the settings, and scripts to start it.
        options: as those of `start`. The folder must not exist or be empty. Returns it.
        """
        from Speckle2SelfSlicer.trainer import export

        settings = {**DEFAULTS, "preset": "standard", **options}
        job, recordings, held, _name = self._job(nodes, **settings)
        return export(Path(folder), recordings, job, held)

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
        if job.preview.exists():
            _updatePreview(nodes, job.preview)
        return nodes

    def compare(self, model: str):
        """A table node: figures of merit of a trained model and of the one that it started from, on held-out frames."""
        from Speckle2SelfLib import checkpoint, library

        path = library.models().get(model)
        if path is None:
            raise InputError(f"There is no model '{model}'.")
        card = checkpoint.load(path)[2]
        start, end = card.get("figures_at_start") or {}, card.get("figures") or {}
        table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", f"{model} compared")
        columns = (
            ("figure", list(end)), ("start", [start.get(name, "") for name in end]), ("trained", list(end.values())),
        )  # fmt: skip
        for title, values in columns:
            column = vtk.vtkStringArray()
            column.SetName(title)
            for value in values:
                column.InsertNextValue(f"{value:.4f}" if isinstance(value, float) else str(value))
            table.AddColumn(column)
        table.SetAttribute("Speckle2Self.figuresAreOf", str(card.get("figures_are_of", "")))
        return table


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
    """Series of a chart of the losses and of one of the figures of merit; a new series where a term turns up."""
    for role, names in (("loss", [n for n in _columns(reports)[1:] if n not in FIGURES]), ("figures", FIGURES)):
        chart = nodes[role]
        for name in names:
            if name not in _columns(reports):
                continue
            series = _node(mrmlScene, "vtkMRMLPlotSeriesNode", run, name, name)
            if series.GetTableNode() is not nodes["table"]:
                series.SetAndObserveTableNodeID(nodes["table"].GetID())
                series.SetXColumnName("step")
                series.SetYColumnName(name)
                series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
                held = name.startswith("held-out") or role == "figures"
                series.SetMarkerStyle(series.MarkerStyleCircle if held else series.MarkerStyleNone)
                series.SetLineStyle(slicer.vtkMRMLPlotSeriesNode.LineStyleSolid)
                series.SetUniqueColor()
            if not chart.HasPlotSeriesNodeID(series.GetID()):
                chart.AddAndObservePlotSeriesNodeID(series.GetID())
        chart.SetTitle(f"{run}: {'loss' if role == 'loss' else 'held-out frames'}")
        chart.SetXAxisTitle("step")


def _updatePreview(nodes: dict, path: Path) -> None:
    """The two halves of the preview picture as two volumes, each a frame."""
    reader = vtk.vtkPNGReader()
    reader.SetFileName(str(path))
    reader.Update()
    image = reader.GetOutput()
    if image.GetNumberOfPoints() == 0:
        return
    columns, rows, _one = image.GetDimensions()
    pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns)
    for role, half in zip(("before", "after"), np.hsplit(pixels[::-1], 2), strict=True):  # VTK's rows begin below
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
