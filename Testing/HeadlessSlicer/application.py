"""`slicer.app`: the parts of qSlicerCoreApplication that scripts and scripted modules use without a window."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import slicer
import vtk

from . import complaints, dicom, launcher, sources
from .io import CoreIOManager
from .modules import ModuleManager

# Logics of the wheel for the modules around ours, in the order of their access to the scene.
CORE_MODULES = {
    "Colors": "vtkMRMLColorLogic",
    "Units": "vtkSlicerUnitsLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Models": "vtkSlicerModelsLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Texts": "vtkSlicerTextsLogic",
}

# Classes with a plugin, whose nodes get an item in the subject hierarchy unless they are hidden.
HIERARCHY = ["ScalarVolume", "Segmentation", "Transform", "Model", "Markups", "Table", "Text"]
HIERARCHY += ["PlotChart", "PlotSeries"]


class CommandOptions:
    """How the application was started."""

    def __init__(self, app):
        self._app, self.runPythonAndExit = app, True

    @property
    def testingEnabled(self) -> bool:
        return self._app.testingEnabled()


def temporaryFolder() -> tempfile.TemporaryDirectory:
    """Return a new folder that is removed at exit; remove folders that killed applications have left."""
    if os.name == "posix":  # elsewhere, the signal 0 ends the process
        for path in Path(tempfile.gettempdir()).glob("HeadlessSlicer-*-*"):
            with suppress(ValueError, PermissionError):  # another user's application
                try:
                    os.kill(int(path.name.split("-")[1]), 0)
                except ProcessLookupError:
                    shutil.rmtree(path, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"HeadlessSlicer-{os.getpid()}-")


class Application:
    """The running application; without main window (as with `--no-main-window`), or with one, which needs Qt."""

    applicationName = "Slicer"

    def __init__(self, arguments: list[str], testing: bool, window: bool, source: Path | None = None):
        self.majorVersion, self.minorVersion = sources.version(source) if source is not None else (5, 13)
        self._arguments = arguments
        self._testing = testing
        self._folder = temporaryFolder()
        os.mkdir(self.temporaryPath)
        self._options = CommandOptions(self)
        complaints.listen()
        launcher.install(Path(self._folder.name))
        self._dicomDatabase = slicer.dicomDatabase = dicom.DicomDatabase()
        self.exitStatus = 0  # argument of exit(), read by the launcher
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

        from . import dialogs, layout, pythonqt, selectors, widgets, window

        self._qt = QtWidgets.QApplication.instance() or QtWidgets.QApplication([self.applicationName])
        self._qt.setStyle("Fusion")
        self._qt.setApplicationName(self.applicationName)
        self._qt.setOrganizationName("SlicerStandIn")
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
        QtCore.QSettings.setPath(
            QtCore.QSettings.Format.IniFormat, QtCore.QSettings.Scope.UserScope, self.temporaryPath
        )
        pythonqt.install((dialogs, selectors, widgets, window, layout))
        self._wrap = pythonqt.wrap

    def _openWindow(self) -> None:
        from . import layout, window

        self._layoutManager = layout.qSlicerLayoutManager()
        self._mainWindow = window.qSlicerMainWindow(self._layoutManager)
        self._mainWindow.resize(1200, 900)
        self._mainWindow.show()

    def connect(self, signal: str, function) -> bool:
        """Call a function without arguments once the application has started: all modules loaded, window shown."""
        if signal != "startupCompleted()":
            raise ValueError(f"The application has no signal {signal} here.")
        self._onStarted.append(function)
        return True

    def _completeStartup(self) -> None:
        for function in self._onStarted:
            function()

    # Do what qSlicerCoreApplication::setMRMLScene and qSlicerLayoutManager do with a new scene.
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
        self._scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, self._addToHierarchy)
        self._scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, self._removeFromHierarchy)
        return logics

    def _resolveHierarchy(self, caller=None, event=None) -> None:
        """Keep exactly one subject hierarchy: closing a scene removes it, importing one may add another, and nodes
        without item."""
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(self._scene)
        for number in range(self._scene.GetNumberOfNodes()):
            node = self._scene.GetNthNode(number)
            if hierarchy.GetItemByDataNode(node) == 0:
                self._addItem(node)

    def _addItem(self, node) -> None:
        if not node.GetHideFromEditors() and any(node.IsA(f"vtkMRML{kind}Node") for kind in HIERARCHY):
            hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _addToHierarchy(self, caller, event, node) -> None:
        if not self._scene.IsImporting() and not node.IsA("vtkMRMLSubjectHierarchyNode"):
            self._addItem(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _removeFromHierarchy(self, caller, event, node) -> None:
        if self._scene.IsClosing() or node.IsA("vtkMRMLSubjectHierarchyNode"):
            return
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)
        if item := hierarchy.GetItemByDataNode(node):
            hierarchy.RemoveItem(item, False, False)

    @property
    def applicationVersion(self) -> str:
        return f"{self.majorVersion}.{self.minorVersion}.0"

    @property
    def temporaryPath(self) -> str:
        return os.path.join(self._folder.name, "temporary")

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

    def dicomDatabase(self):
        return self._dicomDatabase

    def layoutManager(self):
        """Return the layout manager; None without main window."""
        return self._wrap(self._layoutManager) if self._layoutManager is not None else None

    def topLevelWidgets(self) -> list:
        return [self._wrap(widget) for widget in self._qt.topLevelWidgets()] if self._qt is not None else []

    def setOverrideCursor(self, cursor) -> None:
        self._qt.setOverrideCursor(cursor)

    def restoreOverrideCursor(self) -> None:
        self._qt.restoreOverrideCursor()

    def settings(self):
        """Return the user's settings (QSettings): empty at first, in the temporary folder."""
        import qt

        return qt.QSettings()

    def arguments(self) -> list[str]:
        return list(self._arguments)

    def commandOptions(self):
        return self._options

    def testingEnabled(self) -> bool:
        return self._testing

    def processEvents(self) -> None:
        """Process queued events; without Qt, only MRML has events, and they happen at once."""
        if self._qt is not None:
            self._qt.processEvents()

    def translate(self, context: str, text: str) -> str:
        """Return the text unchanged: the application runs in English."""
        return text

    def exit(self, status: int = 0) -> None:
        """End the application with this status once the running script is done, as Qt's event loop does."""
        self.exitStatus = status

    def quit(self) -> None:
        self.exit(0)
