"""The common state of both modules: the process that despeckles, the queue of training runs, the models and devices."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any

import numpy as np
import slicer
from slicer import vtkMRMLNode

from Speckle2SelfLib import library
from Speckle2SelfLib.config import FILTER_NAMES

from . import dependencies, regions, scene
from .live import Live
from .processing import Run
from .trainer import Trainer
from .worker import Worker

PACKAGES = ("Speckle2SelfLib", "Speckle2SelfSlicer")  # next to the modules; Slicer's Reload does not reload them
MODULES = ("Speckle2Self", "SpeckleTrain")


class Session:
    """Despeckles nodes of the scene in the background, and holds the training runs.

    worker, trainer: used instead of a `Worker` and a `Trainer`, which are created when needed; for tests.
    """

    def __init__(self, worker: Worker | None = None, trainer: Trainer | None = None) -> None:
        self._worker, self._trainer = worker, trainer
        self.trainingNodes: list[vtkMRMLNode] = []  # nodes chosen in Speckle2Self for SpeckleTrain, which clears this

    @property
    def worker(self) -> Worker:
        """Return the process that despeckles in the background; it starts when it is needed."""
        if self._worker is None:
            self._worker = Worker()
        return self._worker

    @property
    def trainer(self) -> Trainer:
        """Return the queue of training runs."""
        if self._trainer is None:
            self._trainer = Trainer()
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self._trainer = trainer

    @property
    def training(self) -> bool:
        """Return whether a run is training or queued."""
        return self._trainer is not None and any(not job.ended for job in self._trainer.jobs)

    def closeWorker(self) -> None:
        """End despeckling in the background, with all its processes."""
        if self._worker is not None:
            self._worker.close()

    def models(self) -> list[str]:
        """Return the names of the bundled models, the user's and the classical filters."""
        return [*library.models(), *FILTER_NAMES]

    def devices(self) -> list[str]:
        """Return names for `device`; more of them once the process in the background has reported its devices."""
        names = self._worker.devices if self._worker is not None else []
        return ["auto", *(names or ["cpu"])]

    def region(self, node: vtkMRMLNode | str, regionNode: vtkMRMLNode | None = None, axis: str = "auto") -> np.ndarray:
        """Return the pixels (H, W) bool that a segmentation or a box (ROI) covers.

        regionNode: None: the region used last for this scanner and frames of this size. Raises InputError.
        """
        return regions.pixels(scene.find(node), regionNode, axis)

    def start(
        self, inputNode: vtkMRMLNode | str, outputNode: vtkMRMLNode | str | None = None, keepPartial: bool = False,
        onlyRegion: bool = False, uncertainty: bool = False, **options: Any,
    ) -> Run:  # fmt: skip
        """Despeckle in the background; return a `processing.Run` at once, whose `step` must be called regularly.

        keepPartial: when canceled, keep the finished frames as `<input> despeckled (partial)`. onlyRegion: detect the
        region, and write nothing. uncertainty: also write that of the output, see `Run`. options: fields of
        `config.DespeckleOptions`, where region may also be a segmentation, a box (ROI) or pixels. Raises InputError.
        """
        nodes = scene.find(inputNode), scene.find(outputNode)
        scene.Recording.of(nodes[0])  # check the node before the options
        options["region"] = regions.resolve(nodes[0], options.get("region", "auto"), options.get("axis", "auto"))
        given = {"keepPartial": keepPartial, "onlyRegion": onlyRegion, "uncertainty": uncertainty}
        run = Run(self.worker, *nodes, **given, **options)
        dependencies.ensure()  # only for input that can be used; the process starts later
        return run

    def live(
        self, inputNode: vtkMRMLNode | str, output: vtkMRMLNode | None = None, once: bool = False,
        uncertainty: bool = False, **options: Any,
    ) -> Live:  # fmt: skip
        """Despeckle a volume's image whenever it changes, into `<input> live`; return a `live.Live`, whose `step` must
        be called regularly.

        once: only the current image. output: that of an earlier call. uncertainty: see `Live`. options: as those of
        `start`; edits of a segmentation or a box as `region` take effect at once. Raises InputError.
        """
        dependencies.ensure()
        node, view = scene.find(inputNode), slicer.mrmlScene.GetNodeByID("vtkMRMLSliceNodeRed")
        regionNode = regions.nodeOf(options.get("region", "auto"))
        options["region"] = regions.resolve(node, options.get("region", "auto"), options.get("axis", "auto"))
        output = scene.find(output)
        given = {"once": once, "output": output, "regionNode": regionNode, "uncertainty": uncertainty}
        return Live(self.worker, node, sliceNode=view, **given, **options)


_applicationSession: Session | None = None


def applicationSession() -> Session:
    """Return the application's session, which both modules hold and which outlives their panels."""
    global _applicationSession
    if _applicationSession is None:
        _applicationSession = Session()
    return _applicationSession


def reloadModules(name: str) -> None:
    """Reload a module. If no training runs, reload both modules and the packages next to them, so that all code is
    equally new; otherwise only the module's own file, because a run keeps the code that it was started with."""
    if applicationSession().training:
        logging.info("A training run is active: the packages next to the modules are not reloaded.")
        slicer.util.reloadScriptedModule(name)
        return
    applicationSession().closeWorker()
    for package in [each for each in sys.modules if each.split(".")[0] in PACKAGES]:
        del sys.modules[package]
    importlib.invalidate_caches()
    for each in MODULES:
        if each == name or hasattr(slicer.modules, each.lower()):
            slicer.util.reloadScriptedModule(each)
