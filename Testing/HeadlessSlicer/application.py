"""`slicer.app`: the parts of qSlicerCoreApplication that scripts and scripted modules use without a window."""

from __future__ import annotations

import os
import tempfile
from types import SimpleNamespace

import slicer

from .io import CoreIOManager
from .modules import ModuleManager

# Logics of the wheel that make up the modules around ours, in the order in which they see the scene.
CORE_MODULES = {
    "Colors": "vtkMRMLColorLogic",
    "Units": "vtkSlicerUnitsLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
}


class Application:
    """The running application, without main window (as with `--no-main-window`)."""

    applicationName = "Slicer"
    majorVersion = 5
    minorVersion = 13

    def __init__(self, arguments: list[str], testing: bool):
        self._arguments = arguments
        self._testing = testing
        self._temporary = tempfile.TemporaryDirectory(prefix="Slicer-")
        self._options = SimpleNamespace(runPythonAndExit=True)
        self.exitStatus = 0  # read by the launcher; what exit() was called with
        self._scene, self._logic = slicer.vtkMRMLScene(), slicer.vtkSlicerApplicationLogic()
        self._prepareScene()
        self._moduleManager = ModuleManager(self._addLogics())
        self._ioManager = CoreIOManager(self)

    # What qSlicerCoreApplication::setMRMLScene and qSlicerLayoutManager do with a new scene.
    def _prepareScene(self) -> None:
        scene = self._scene
        scene.SetRootDirectory(os.getcwd())
        scene.RegisterNodeClass(slicer.vtkMRMLCommandLineModuleNode())
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        scene.AddNode(crosshair)
        self._logic.SetTemporaryPath(self.temporaryPath)
        self._logic.SetMRMLScene(scene)
        self._remote, self._data = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
        self._remote.SetMRMLScene(scene)
        self._remote.GetCacheManager().SetRemoteCacheDirectory(self.temporaryPath)
        self._data.SetMRMLApplicationLogic(self._logic)
        self._data.SetAndObserveDataIOManager(self._remote.GetDataIOManager())
        self._logic.SetMRMLSceneDataIO(scene, self._remote, self._data)
        self._layout = slicer.vtkMRMLLayoutLogic()
        self._layout.SetMRMLScene(scene)

    def _addLogics(self) -> dict:
        logics = {}
        for name, kind in CORE_MODULES.items():
            logics[name] = logic = getattr(slicer, kind)()
            logic.SetMRMLApplicationLogic(self._logic)
            logic.SetMRMLScene(self._scene)
            self._logic.SetModuleLogic(name, logic)
        self._resolveHierarchy()
        for event in (slicer.vtkMRMLScene.EndCloseEvent, slicer.vtkMRMLScene.EndImportEvent):
            self._scene.AddObserver(event, self._resolveHierarchy)
        return logics

    def _resolveHierarchy(self, caller=None, event=None) -> None:
        """There is always one subject hierarchy; closing a scene removes it, importing one may bring another."""
        slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(self._scene)

    @property
    def applicationVersion(self) -> str:
        return f"{self.majorVersion}.{self.minorVersion}.0"

    @property
    def temporaryPath(self) -> str:
        return self._temporary.name

    def mrmlScene(self):
        return self._scene

    def applicationLogic(self):
        return self._logic

    def moduleManager(self):
        return self._moduleManager

    def coreIOManager(self):
        return self._ioManager

    def ioManager(self):
        return self._ioManager

    def layoutManager(self):
        """None: there is no main window."""
        return

    def topLevelWidgets(self) -> list:
        """None are there without Qt."""
        return []

    def arguments(self) -> list[str]:
        return list(self._arguments)

    def commandOptions(self):
        return self._options

    def testingEnabled(self) -> bool:
        return self._testing

    def processEvents(self) -> None:
        """Lets queued events happen; without Qt there are none but those of MRML, which happen at once."""

    def translate(self, context: str, text: str) -> str:
        """The text as it is: the application runs in English."""
        return text

    def exit(self, status: int = 0) -> None:
        """Ends the application with this status once the running script is done, as Qt's event loop does."""
        self.exitStatus = status

    def quit(self) -> None:
        self.exit(0)
