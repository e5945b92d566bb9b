"""`slicer.modules`: the wheel's logics as core modules, and the scripted modules of a module folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import slicer


class CoreModule:
    """A C++ module: its name and its real logic."""

    def __init__(self, name: str, logic):
        self.name = self.title = name
        self._logic = logic

    def logic(self):
        return self._logic


class qSlicerScriptedLoadableModule:
    """A scripted module as the application keeps it; `parent` of the Python class. Unknown attributes raise."""

    __slots__ = (
        "_logic",
        "_module",
        "_widget",
        "acknowledgementText",
        "associatedNodeTypes",
        "categories",
        "contributors",
        "dependencies",
        "helpText",
        "hidden",
        "icon",
        "index",
        "name",
        "path",
        "title",
        "widgetRepresentationCreationEnabled",
    )

    def __init__(self, path: Path, module: ModuleType):
        self.name, self.path, self._module = path.stem, str(path), module
        self.title = self.helpText = self.acknowledgementText = ""
        self.categories, self.contributors, self.dependencies = [], [], []
        self.associatedNodeTypes, self.hidden, self.index, self.icon = [], False, -1, None
        self.widgetRepresentationCreationEnabled = hasattr(module, f"{self.name}Widget")
        self._logic = self._widget = None

    def logic(self):
        """The C++ logic, which holds nothing; the Python logic is the widget's: `slicer.util.getModuleLogic`."""
        if self._logic is None:
            self._logic = slicer.vtkSlicerScriptedLoadableModuleLogic()
            self._logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
            self._logic.SetMRMLScene(slicer.mrmlScene)
        return self._logic

    def widgetRepresentation(self):
        """The module's widget, made on first use and then kept; None for a module without widget class."""
        if self._widget is None and self.widgetRepresentationCreationEnabled:
            kind = slicer.qSlicerScriptedLoadableModuleWidget
            if kind is LogicOnly:
                self._widget = LogicOnly(self.name, self._module)
            else:
                self._widget = kind()
                self._widget.setPythonSource(self.path)
                self._widget.setup()
                self._widget.setMRMLScene(slicer.mrmlScene)
        return self._widget


class LogicOnly:
    """Stands for a module's widget where the application runs without Qt: of what `setup` makes, only `logic`."""

    def __init__(self, name: str, module: ModuleType):
        self._python = SimpleNamespace(logic=getattr(module, f"{name}Logic")())

    def self(self):
        return self._python


class ModuleManager:
    """Finds, loads and names the modules."""

    def __init__(self, logics: dict):
        slicer.qSlicerScriptedLoadableModule = qSlicerScriptedLoadableModule
        if not hasattr(slicer, "qSlicerScriptedLoadableModuleWidget"):
            slicer.qSlicerScriptedLoadableModuleWidget = LogicOnly
        for name in ("modules", "moduleNames"):
            package = ModuleType(f"slicer.{name}")
            sys.modules[package.__name__] = package
            setattr(slicer, name, package)
        self._modules, self._slots = {}, []
        for name, logic in logics.items():
            self._add(CoreModule(name, logic))

    def _add(self, module) -> None:
        self._modules[module.name] = module
        setattr(slicer.modules, module.name.lower(), module)
        setattr(slicer.moduleNames, module.name, module.name)

    def load(self, folders: list[Path]) -> None:
        """Loads each .py file that lies directly in a folder, as a module of its name.

        A file without a class of its name is an error, as in the application.
        """
        for folder in folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"There is no module folder '{folder}'.")
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
        for path in (path for folder in folders for path in sorted(folder.glob("*.py"))):
            module = self._source(path)
            parent = qSlicerScriptedLoadableModule(path, module)
            instance = getattr(module, path.stem)(parent)
            self._add(parent)
            setattr(slicer.modules, f"{path.stem}Instance", instance)
            if hasattr(instance, "setup"):
                instance.setup()

    def _source(self, path: Path) -> ModuleType:
        module = sys.modules.get(path.stem)
        if not hasattr(module, path.stem):
            spec = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
        if not hasattr(module, path.stem):
            raise RuntimeError(f"class {path.stem} was not found in file {path}")
        return module

    def module(self, name: str):
        """The module of that name, or None."""
        return self._modules.get(name)

    def connect(self, signal: str, function) -> bool:
        """Calls a function before a module is unloaded."""
        if signal != "moduleAboutToBeUnloaded(QString)":
            raise ValueError(f"The module manager has no signal {signal} here.")
        self._slots.append(function)
        return True

    def disconnect(self, signal: str, function) -> bool:
        self._slots.remove(function)
        return True

    def unloadModules(self) -> None:
        """What the application does before it ends: every module's panel is told."""
        for name in reversed(self._modules):
            for function in list(self._slots):
                function(name)

    def modulesNames(self) -> list[str]:
        return list(self._modules)

    def factoryManager(self):
        return SimpleNamespace(loadedModuleNames=self.modulesNames)
