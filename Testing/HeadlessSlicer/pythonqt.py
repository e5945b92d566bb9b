"""`qt`, `ctk` and Slicer's widgets as Python sees them in Slicer: PySide6 below, PythonQt's rules above.

A property is an attribute: it is read and set, never called. Slots and methods are called. A signal is connected by
`widget.clicked.connect(f)` or `widget.connect("clicked(bool)", f)`, the signature as Qt declares it. What an object
does not have can be neither read nor set. A slot that raises prints its traceback and the program continues;
`errors` keeps it. Lists are returned as tuples, methods accept no keywords, values of an enumeration belong to its
class (`qt.Qt.Checked`, not `qt.Qt.CheckState.Checked`), and values such as QPainter and QColor have methods only.
"""

from __future__ import annotations

import enum
import inspect
import sys
import traceback
from types import ModuleType

import shiboken6
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets
from PySide6.QtCore import QObject

errors: list[BaseException] = []  # raised by slots
_classes: dict[type, type] = {}  # class of PySide6 -> our class
_slots: dict[tuple, object] = {}  # (object, signal, callable) -> connected slot


def wrap(value):
    """Return a value of Qt as PythonQt returns it."""
    if _isQt(type(value)):
        return _class(type(value))._of(value)
    if isinstance(value, list | tuple):
        return tuple(wrap(item) for item in value)
    return value


def _isQt(kind: type) -> bool:
    """Return whether a class is Qt's, or derived from one; enumerations and flags are values of Python."""
    if issubclass(kind, enum.Enum | QtCore.SignalInstance):
        return False
    return any(base.__module__.startswith("PySide6.") for base in kind.__mro__)


def unwrap(value):
    """Return a value as Qt expects it."""
    if isinstance(value, Object):
        return value._qt
    if isinstance(value, _Meta):
        return value._kind
    if isinstance(value, list | tuple):
        return type(value)(unwrap(item) for item in value)
    if inspect.ismethod(value) or inspect.isfunction(value):
        return _slot(value)
    return value


def call(function, arguments, keywords):
    """Call a function of Qt; keywords are refused, as PythonQt does."""
    if keywords:
        raise ValueError(f"Called {function.__name__} with keyword arguments, but called slot does not support kwargs.")
    return wrap(function(*(unwrap(a) for a in arguments)))


def _slot(function):
    """Return a slot for Qt: it passes as many arguments as the function accepts, and prints exceptions."""
    code = getattr(function, "__code__", None)
    count = (
        None if code is None or code.co_flags & inspect.CO_VARARGS else code.co_argcount - inspect.ismethod(function)
    )

    def called(*arguments):
        try:
            function(*(wrap(argument) for argument in arguments[:count]))
        except Exception as error:
            errors.append(error)
            traceback.print_exc()

    return called


class Signal:
    """A signal of an object."""

    def __init__(self, owner, name: str, signature: str | None = None):
        signal = getattr(owner, name)
        types = signature[signature.index("(") + 1 : -1] if signature else None
        overloads = [m for m in _methods(owner) if m.split("(")[0] == name]
        self._signal = signal[types] if types is not None and len(overloads) > 1 and types else signal
        if types == "" and any(m != f"{name}()" for m in overloads):
            self._signal, self._silent = signal, True
        else:
            self._silent = False
        self._key = (shiboken6.getCppPointer(owner)[0], name)

    def connect(self, function) -> bool:
        """Call a function at every emission; connected twice, it is called twice."""
        if isinstance(function, Signal):
            self._signal.connect(function._signal)
            return True
        target = _slot((lambda: function()) if self._silent else function)
        _slots.setdefault((*self._key, function), []).append(target)
        self._signal.connect(target)
        return True

    def disconnect(self, function) -> bool:
        """Disconnect a function."""
        key = (*self._key, function)
        if key not in _slots:
            raise RuntimeError(f"{function} is not connected to {self._key[1]}")
        self._signal.disconnect(_slots[key].pop())
        if not _slots[key]:
            del _slots[key]  # the key keeps the function alive, and everything that it refers to
        return True

    def emit(self, *arguments) -> None:
        self._signal.emit(*(unwrap(argument) for argument in arguments))

    __call__ = emit


def _methods(owner, kind=QtCore.QMetaMethod.MethodType.Signal) -> list[str]:
    meta = owner.metaObject()
    methods = (meta.method(number) for number in range(meta.methodCount()))
    return [bytes(m.methodSignature()).decode() for m in methods if m.methodType() == kind]


class _Meta(type):
    """Static methods, enumerations and constants of a class of Qt."""

    def __getattr__(cls, name: str):
        kind = cls.__dict__.get("_kind")
        if name.startswith("_") or kind is None:
            raise AttributeError(name)
        found = inspect.getattr_static(kind, name, None)
        value = getattr(kind, name, None)
        if value is None:
            raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")
        if isinstance(value, type) and issubclass(value, enum.Enum):
            return _Enumeration(value)
        if isinstance(found, staticmethod) or (callable(value) and not isinstance(value, type)):
            return lambda *arguments, **keywords: call(value, arguments, keywords)
        return value


class _Enumeration:
    """The type of an enumeration, which converts numbers to values; the named values belong to its class."""

    def __init__(self, kind: type):
        self._kind = kind

    def __call__(self, value):
        return self._kind(value)

    def __getattr__(self, name: str):
        raise AttributeError(f"type object '{self._kind.__name__}' has no attribute '{name}'; its class has it")


class Object(metaclass=_Meta):
    """An object or value of Qt."""

    __slots__ = ("__weakref__", "_qt")
    _kind: type = None

    def __init__(self, *arguments, **keywords):
        made = self._kind(*(unwrap(argument) for argument in arguments))
        object.__setattr__(self, "_qt", made)
        for name, value in keywords.items():
            setattr(self, name, value)

    @classmethod
    def _of(cls, value):
        new = cls.__new__(cls)
        object.__setattr__(new, "_qt", value)
        return new

    def __eq__(self, other):
        if isinstance(other, Object) and not isinstance(self._qt, QObject):
            return self._qt == other._qt
        return (isinstance(other, Object) and self._qt is other._qt) or (
            isinstance(other, Object)
            and shiboken6.isValid(self._qt)
            and shiboken6.isValid(other._qt)
            and shiboken6.getCppPointer(self._qt)[0] == shiboken6.getCppPointer(other._qt)[0]
        )  # fmt: skip

    def __hash__(self):
        return hash(shiboken6.getCppPointer(self._qt)[0]) if shiboken6.isValid(self._qt) else 0

    def __add__(self, other):
        return wrap(self._qt + unwrap(other))

    def __sub__(self, other):
        return wrap(self._qt - unwrap(other))

    def __bool__(self):
        return shiboken6.isValid(self._qt)

    def __repr__(self):
        return f"<{type(self).__name__} of {self._qt!r}>"

    def _property(self, name: str):
        if not isinstance(self._qt, QObject):
            return None
        meta = self._qt.metaObject()
        number = meta.indexOfProperty("objectName" if name == "name" else name)
        return meta.property(number) if number >= 0 else None

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if not shiboken6.isValid(self._qt):
            raise ValueError(f"Trying to access attribute {name} of a destroyed {type(self).__name__} object")
        found = self._property(name)
        if found is not None:
            return wrap(self._qt.property(found.name()))
        value = getattr(self._qt, name, None)
        if isinstance(value, QtCore.SignalInstance):
            return Signal(self._qt, name)
        if name == "exec_" and hasattr(self._qt, "exec"):
            value = self._qt.exec
        if value is None or name.startswith("_") or not callable(value):
            raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")
        return lambda *arguments, **keywords: call(value, arguments, keywords)

    def __setattr__(self, name: str, value) -> None:
        found, kind = self._property(name), type(self).__name__
        if found is None:
            raise AttributeError(
                f"Attribute '{name}' does not exist and creation of new attributes on {kind} is not allowed"
            )
        if not found.isWritable():
            raise AttributeError(f"Property '{name}' of {kind} is not writable")
        value = unwrap(value)
        expected = found.metaType().name()
        fits = {"bool": (bool, int), "int": (int,), "double": (int, float), "QString": (str,)}.get(expected)
        if fits and not isinstance(value, fits):
            given = type(value).__name__
            raise TypeError(
                f"Property '{name}' of type '{expected}' does not accept an object of type {given} ({value})"
            )
        self._qt.setProperty(found.name(), value)

    def connect(self, signature: str, function) -> bool:
        """Connect a function to a signal, named with its types as Qt declares them: "clicked(bool)"."""
        return self._signal(signature).connect(function)

    def disconnect(self, signature: str, function) -> bool:
        """Disconnect a function from a signal."""
        return self._signal(signature).disconnect(function)

    def _signal(self, signature: str) -> Signal:
        declared = getattr(self._qt, "declared", {})  # signals of Slicer's own widgets, with types that are not Qt's
        name = signature.split("(")[0]
        if signature not in (*_methods(self._qt), *declared):
            known = [s for s in (*declared, *_methods(self._qt)) if s.split("(")[0] == name]
            raise ValueError(f"{type(self).__name__} has no signal {signature}; it has {known or 'none of that name'}")
        return Signal(self._qt, declared.get(signature, name), None if signature in declared else signature)

    def delete(self) -> None:
        shiboken6.delete(self._qt)

    def className(self) -> str:
        return type(self).__name__


def _class(kind: type) -> type:
    """Return our class for a class of PySide6 or of `widgets`."""
    if kind not in _classes:
        bases = tuple(_class(base) for base in kind.__bases__ if base is not object and base.__module__ != "Shiboken")
        more = {"__del__": _mustHaveEnded} if kind is QtGui.QPainter else {}
        _classes[kind] = _Meta(kind.__name__, bases or (Object,), {"_kind": kind, "__slots__": (), **more})
    return _classes[kind]


def _mustHaveEnded(painter) -> None:
    """Report a painter that was not ended: outliving its paint device would crash the application."""
    if shiboken6.isValid(painter._qt) and painter._qt.isActive():
        painter._qt.end()
        errors.append(RuntimeError("A QPainter was not ended: call end() before its paint device is used."))


class _Module(ModuleType):
    """`qt` or `ctk`."""

    def __init__(self, name: str, sources):
        super().__init__(name)
        self.__dict__["_sources"] = sources

    def __getattr__(self, name: str):
        for source in self._sources:
            value = getattr(source, name, None)
            if value is not None and not name.startswith("_"):
                break
        else:
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        if isinstance(value, type) and _isQt(value):
            value = _class(value)
        self.__dict__[name] = value
        return value


def install(modules) -> None:
    """Make `import qt` and `import ctk` work, and put Slicer's widgets into `slicer`, all from `modules`."""
    import slicer

    replaced, ctk, known = ModuleType("replaced"), ModuleType("ctk"), {}
    for module in modules:
        known.update({name: value for name, value in vars(module).items() if isinstance(value, type)})
    for name, kind in known.items():
        if name.startswith(("qMRML", "qSlicer")):
            setattr(slicer, name, _class(kind))
        elif name.startswith("ctk"):
            setattr(ctk, name, kind)
        elif name.startswith("Q") and kind.__module__.startswith(__package__):
            setattr(replaced, name, kind)
    sys.modules["qt"] = slicer.qt = _Module("qt", [replaced, QtWidgets, QtGui, QtCore, QtUiTools])
    sys.modules["ctk"] = slicer.ctk = _Module("ctk", [ctk])
