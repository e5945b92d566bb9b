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
    "Plots": "vtkSlicerPlotsLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
}


class Application:
    """The running application; without main window (as with `--no-main-window`), or with one, which takes Qt."""

    applicationName = "Slicer"
    majorVersion = 5
    minorVersion = 13

    def __init__(self, arguments: list[str], testing: bool, window: bool):
        self._arguments = arguments
        self._testing = testing
        self._temporary = tempfile.TemporaryDirectory(prefix="Slicer-")
        self._options = SimpleNamespace(runPythonAndExit=True)
        self.exitStatus = 0  # read by the launcher; what exit() was called with
        self._scene, self._logic = slicer.vtkMRMLScene(), slicer.vtkSlicerApplicationLogic()
        self._prepareScene()
        self._moduleManager = ModuleManager(self._addLogics())
        self._ioManager = CoreIOManager(self)
        self._qt = self._layoutManager = self._mainWindow = None
        self._onStarted = []
        if window:
            self._startQt()

    def _startQt(self) -> None:
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
        from PySide6 import QtCore, QtWidgets

        from . import pythonqt, widgets

        self._qt = QtWidgets.QApplication.instance() or QtWidgets.QApplication([self.applicationName])
        self._qt.setStyle("Fusion")
        self._qt.setApplicationName(self.applicationName)
        self._qt.setOrganizationName("SlicerStandIn")
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
        QtCore.QSettings.setPath(
            QtCore.QSettings.Format.IniFormat, QtCore.QSettings.Scope.UserScope, self.temporaryPath
        )
        pythonqt.install(widgets)
        self._wrap = pythonqt.wrap

    def _openWindow(self) -> None:
        from . import widgets

        self._layoutManager = widgets.qSlicerLayoutManager()
        self._mainWindow = widgets.qSlicerMainWindow(self._layoutManager)
        self._mainWindow.resize(1200, 900)
        self._mainWindow.show()

    def connect(self, signal: str, function) -> bool:
        """Calls a function without arguments once the application has started: all modules loaded, window shown."""
        if signal != "startupCompleted()":
            raise ValueError(f"The application has no signal {signal} here.")
        self._onStarted.append(function)
        return True

    def _completeStartup(self) -> None:
        for function in self._onStarted:
            function()

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
        """The layout manager; None without main window."""
        return self._wrap(self._layoutManager) if self._layoutManager is not None else None

    def topLevelWidgets(self) -> list:
        return [self._wrap(widget) for widget in self._qt.topLevelWidgets()] if self._qt is not None else []

    def setOverrideCursor(self, cursor) -> None:
        self._qt.setOverrideCursor(cursor)

    def restoreOverrideCursor(self) -> None:
        self._qt.restoreOverrideCursor()

    def settings(self):
        """The user's settings (QSettings): empty at first, in the temporary folder."""
        import qt

        return qt.QSettings()

    userSettings = settings

    def arguments(self) -> list[str]:
        return list(self._arguments)

    def commandOptions(self):
        return self._options

    def testingEnabled(self) -> bool:
        return self._testing

    def processEvents(self) -> None:
        """Lets queued events happen; without Qt there are none but those of MRML, which happen at once."""
        if self._qt is not None:
            self._qt.processEvents()

    def translate(self, context: str, text: str) -> str:
        """The text as it is: the application runs in English."""
        return text

    def exit(self, status: int = 0) -> None:
        """Ends the application with this status once the running script is done, as Qt's event loop does."""
        self.exitStatus = status

    def quit(self) -> None:
        self.exit(0)
