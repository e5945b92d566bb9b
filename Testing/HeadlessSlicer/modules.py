"""`slicer.modules`: the wheel's logics as core modules, and the scripted modules of a module folder."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import slicer

from . import readers
from .complaints import complain


class CoreModule:
    """A C++ module: its name and its real logic."""

    def __init__(self, name: str, logic):
        self.name = self.title = name
        self._logic = logic

    def logic(self):
        return self._logic


class SequencesModule(CoreModule):
    """The module Sequences, without its tool bar."""

    def showSequenceBrowser(self, browser) -> bool:
        """Show a browser in the tool bar."""
        if browser is None or not browser.IsA("vtkMRMLSequenceBrowserNode"):
            raise ValueError(f"Could not find matching overload for given arguments: {browser!r}")
        return True


def _property(name: str, kind: type):
    """Return a property of Qt: a wrong type is refused, and lists are handed out as tuples."""

    def set_(self, value):
        fits = kind is object or isinstance(value, kind | (list if kind is tuple else kind))
        if not fits or (kind is tuple and not all(isinstance(item, str) for item in value)):
            raise TypeError(f"Property '{name}' of qSlicerScriptedLoadableModule does not accept {value!r}")
        self._values[name] = tuple(value) if kind is tuple else value

    return property(lambda self: self._values[name], set_)


class qSlicerScriptedLoadableModule:
    """A scripted module as the application keeps it; `parent` of the Python class. Unknown attributes raise."""

    __slots__ = ("_logic", "_module", "_values", "_widget", "name", "path")

    def __init__(self, path: Path, module: ModuleType):
        self.name, self.path, self._module = path.stem, str(path), module
        self._values = {
            "title": "", "helpText": "", "acknowledgementText": "", "categories": (), "contributors": (),
            "dependencies": (), "associatedNodeTypes": (), "hidden": False, "index": -1, "icon": None,
            "widgetRepresentationCreationEnabled": hasattr(module, f"{self.name}Widget"),
        }  # fmt: skip
        self._logic = self._widget = None

    title, helpText = _property("title", str), _property("helpText", str)
    acknowledgementText = _property("acknowledgementText", str)
    categories, contributors = _property("categories", tuple), _property("contributors", tuple)
    dependencies, associatedNodeTypes = _property("dependencies", tuple), _property("associatedNodeTypes", tuple)
    hidden, index, icon = _property("hidden", bool), _property("index", int), _property("icon", object)
    widgetRepresentationCreationEnabled = _property("widgetRepresentationCreationEnabled", bool)

    def logic(self):
        """Return the empty C++ logic; the Python logic is the widget's: `slicer.util.getModuleLogic`."""
        if self._logic is None:
            self._logic = slicer.vtkSlicerScriptedLoadableModuleLogic()
            self._logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
            self._logic.SetMRMLScene(slicer.mrmlScene)
        return self._logic

    def widgetRepresentation(self):
        """Return the module's widget, made on first use and then kept; None for a module without widget class."""
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
    """A module's widget in an application without Qt, with only the `logic` that `setup` creates."""

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
            self._add((SequencesModule if name == "Sequences" else CoreModule)(name, logic))

    def _add(self, module) -> None:
        self._modules[module.name] = module
        setattr(slicer.modules, module.name.lower(), module)
        setattr(slicer.moduleNames, module.name, module.name)

    def load(self, folders: list[Path]) -> None:
        """Load each .py file directly in a folder as a module of its name: all are instantiated before the
        first is loaded, and each is loaded after those that it depends on.

        A file without a class of its name is an error, as in the application. A module whose dependency is missing,
        or not under that name, is refused with a warning.
        """
        for folder in folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"There is no module folder '{folder}'.")
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
        waiting = {}
        for path in sorted((path for folder in folders for path in folder.glob("*.py")), key=lambda path: path.stem):
            module = self._source(path)
            parent = qSlicerScriptedLoadableModule(path, module)
            instance = getattr(module, path.stem)(parent)
            setattr(slicer.modules, f"{path.stem}Instance", instance)
            waiting[parent.name] = parent, instance
        for name in waiting:
            self._load(name, waiting)

    def _load(self, name: str, waiting: dict) -> bool:
        if name in self._modules:
            return True
        if name not in waiting:
            return False
        parent, instance = waiting[name]
        for dependency in parent.dependencies:
            if not self._load(dependency, waiting):
                complain(f'When loading module "{name}", the dependency "{dependency}" failed to be loaded.')
                return False
        if not parent.title:
            complain(f'Failed to retrieve module title corresponding to module name: "{name}"')
            return False
        self._add(parent)
        if (reader := readers.scripted(parent.path, parent._module, name)) is not None:
            slicer.app.ioManager().registerIO(reader)
        if hasattr(instance, "setup"):
            instance.setup()
        return True

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
        """Return the module of that name, or None."""
        return self._modules.get(name)

    def connect(self, signal: str, function) -> bool:
        """Call a function before a module is unloaded."""
        if signal != "moduleAboutToBeUnloaded(QString)":
            raise ValueError(f"The module manager has no signal {signal} here.")
        self._slots.append(function)
        return True

    def disconnect(self, signal: str, function) -> bool:
        self._slots.remove(function)
        return True

    def unloadModules(self) -> None:
        """Clean up every module's panel, as the application does before it ends."""
        for name in reversed(self._modules):
            for function in list(self._slots):
                function(name)

    def modulesNames(self) -> tuple[str, ...]:
        return tuple(self._modules)

    def factoryManager(self):
        return SimpleNamespace(loadedModuleNames=self.modulesNames)
