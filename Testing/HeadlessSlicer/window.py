"""The main window: the panel of one module at a time, and the selector of modules."""

from __future__ import annotations

import sys
from pathlib import Path

import slicer
from PySide6 import QtWidgets
from PySide6.QtCore import Property, Qt, Signal, Slot

from . import pythonqt
from .widgets import qMRMLWidget


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """The parent of a scripted module's panel; `self()` is the Python object."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._source, self._python, self._entered = "", None, False
        self.setLayout(QtWidgets.QVBoxLayout())

    isEntered = Property(bool, lambda self: self._entered)

    def setPythonSource(self, path: str) -> bool:
        """Create the class <file>Widget of a loaded module; its exceptions are passed on."""
        name = Path(path).stem
        self._source, self._python = path, getattr(sys.modules[name], f"{name}Widget")(pythonqt.wrap(self))
        setattr(slicer.modules, f"{name}Widget", self._python)
        return True

    def self(self):
        return self._python

    def setup(self) -> None:
        self._python.setup()

    def reload(self) -> None:
        self.setPythonSource(self._source)
        self.setup()

    def enter(self) -> None:
        self._entered = True
        self._python.enter()

    def exit(self) -> None:
        self._entered = False
        self._python.exit()


class qSlicerModuleSelectorToolBar(QtWidgets.QToolBar):
    """Show one module's panel at a time."""

    moduleSelected = Signal(str)

    def __init__(self, place, parent=None):
        super().__init__("Modules", parent)
        self._place, self._name = place, ""

    @Slot(str)
    def selectModule(self, name: str) -> None:
        module = slicer.app.moduleManager().module(name)
        if module is None:
            raise RuntimeError(f"There is no module '{name}'.")
        if name == self._name:
            return
        shown = self._place.widget()
        if shown is not None:
            shown.exit()
            self._place.takeWidget().setParent(None)
        panel = module.widgetRepresentation()._qt
        panel.setMRMLScene(slicer.mrmlScene)
        self._place.setWidget(panel)
        panel.show()
        panel.enter()
        self._name = name
        self.moduleSelected.emit(name)

    selectedModule = Property(str, lambda self: self._name, selectModule, notify=moduleSelected)


class qSlicerMainWindow(QtWidgets.QMainWindow):
    """Panel on the left, views on the right."""

    def __init__(self, layoutManager):
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setWindowTitle("3D Slicer (stand-in)")
        self._place = QtWidgets.QScrollArea()
        self._place.setWidgetResizable(True)
        self._place.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        dock = QtWidgets.QDockWidget()
        dock.setTitleBarWidget(QtWidgets.QWidget())
        dock.setWidget(self._place)
        self._place.setMinimumWidth(400)
        self.addDockWidget(Qt.DockWidgetArea.LeftDockWidgetArea, dock)
        self._selector = qSlicerModuleSelectorToolBar(self._place, self)
        self._selector.hide()
        self.setCentralWidget(layoutManager._views)
        self.statusBar()

    def moduleSelector(self):
        return self._selector
