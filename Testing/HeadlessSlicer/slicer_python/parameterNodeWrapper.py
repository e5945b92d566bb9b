"""`slicer.parameterNodeWrapper`: a vtkMRMLScriptedModuleNode seen as an object with typed members.

Members are written as the text parameters and node references that Slicer writes, so that a scene saved here
opens there. Modeled: bool, int, float, str, paths, enums, nodes, and unions of these with None. Lists, dicts
and packs are not; a member of such a type raises TypeError when the class is made. Members are bound to widgets by
`connectGui`: check boxes, checkable buttons, spin boxes, sliders, combo boxes, line edits and node selectors.
"""

from __future__ import annotations

import enum
import logging
import pathlib
import types
import typing
import weakref

import slicer

__all__ = [
    "Choice",
    "Default",
    "Exclude",
    "IsInstance",
    "Maximum",
    "Minimum",
    "NotNone",
    "Validator",
    "WithinRange",
    "isParameterNodeWrapper",
    "parameterNodeWrapper",
]


class Default:
    """An annotation: a member's initial value, or the function that returns it."""

    def __init__(self, value=None, *, generator=None):
        self._value, self._generator = value, generator

    @property
    def value(self):
        return self._generator() if self._generator else self._value


class Validator:
    """An annotation: a condition for a member's value; `validate` raises if it is not met."""

    def validate(self, value) -> None:
        raise NotImplementedError


class NotNone(Validator):
    def validate(self, value) -> None:
        if value is None:
            raise ValueError("Value must not be None")


class IsInstance(Validator):
    """Accept instances of the classes, and None."""

    def __init__(self, classtype):
        self.classtype = classtype

    def validate(self, value) -> None:
        if value is not None and not isinstance(value, self.classtype):
            raise TypeError(f"Value must be of type '{self.classtype}', is '{value}' of type '{type(value)}'")


class WithinRange(Validator):
    """Accept values between both limits, inclusive."""

    def __init__(self, minimum, maximum):
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within [{self.minimum}, {self.maximum}], is {value}")


class Minimum(Validator):
    def __init__(self, minimum):
        self.minimum = minimum

    def validate(self, value) -> None:
        if value < self.minimum:
            raise ValueError(f"Value must be at least {self.minimum}, is {value}")


class Maximum(Validator):
    def __init__(self, maximum):
        self.maximum = maximum

    def validate(self, value) -> None:
        if value > self.maximum:
            raise ValueError(f"Value must be at most {self.maximum}, is {value}")


class Choice(Validator):
    def __init__(self, choices):
        self.choices = choices

    def validate(self, value) -> None:
        if value not in self.choices:
            raise ValueError(f"Value is {value}, but must be one of {self.choices}")


class Exclude(Validator):
    def __init__(self, excludedValues):
        self.excludedValues = excludedValues

    def validate(self, value) -> None:
        if value in self.excludedValues:
            raise ValueError(f"Value is {value}, but must not be one of {self.excludedValues}")


#
# How members of each type are stored
#


class _Text:
    """A value that is one text parameter of the node."""

    def __init__(self, kind, accepted, default, encode=str, decode=None):
        self.kind, self.default = kind, default
        self.encode, self.decode = encode, decode or kind
        self.validators = [NotNone(), IsInstance(accepted)]

    def takes(self, kind) -> bool:
        return kind == self.kind

    def isIn(self, node, name) -> bool:
        return node.HasParameter(name)

    def write(self, node, name, value) -> None:
        node.SetParameter(name, self.encode(value))

    def read(self, node, name):
        return self.decode(node.GetParameter(name))

    def remove(self, node, name) -> None:
        node.UnsetParameter(name)


class _Number(_Text):
    def takes(self, kind) -> bool:  # in a union, the first number type accepts both
        return kind in (int, float)


class _Path(_Text):
    def takes(self, kind) -> bool:
        return issubclass(kind, pathlib.PurePath)


class _Enum(_Text):
    def takes(self, kind) -> bool:
        return issubclass(kind, enum.Enum)


class _None(_Text):
    """A marker for the value None; only as part of a union."""

    def __init__(self):
        super().__init__(type(None), type(None), None, lambda value: "True", lambda text: None)
        self.validators = []


class _Node:
    """A node reference, and an empty parameter of the same name, which distinguishes "no node" from "never set"."""

    default = None

    def __init__(self, kind):
        self.validators = [IsInstance(kind)]

    def takes(self, kind) -> bool:
        return issubclass(kind, slicer.vtkMRMLNode)

    def isIn(self, node, name) -> bool:
        return node.HasParameter(name)

    def write(self, node, name, value) -> None:
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, None if value is None else value.GetID())

    def read(self, node, name):
        return node.GetNodeReference(name)

    def remove(self, node, name) -> None:
        node.UnsetParameter(name)
        node.RemoveNodeReferenceIDs(name)


class _Union:
    """One of several types: only the parameter `<name>.<number of the type>` exists."""

    def __init__(self, options):
        self.options = options
        self.validators = []
        self.default = None if len(options) == 2 and isinstance(options[1], _None) else options[0].default

    def isIn(self, node, name) -> bool:
        return any(option.isIn(node, f"{name}.{i}") for i, option in enumerate(self.options))

    def _choose(self, value) -> int:
        problem = None
        for i, option in enumerate(self.options):
            if option.takes(type(value)):
                try:
                    _validate(option, value)
                    return i
                except (TypeError, ValueError) as error:
                    problem = error
        raise problem or TypeError(f"Unable to write value '{value}' of type '{type(value)}'")

    def write(self, node, name, value) -> None:
        chosen = self._choose(value)
        self.remove(node, name)
        self.options[chosen].write(node, f"{name}.{chosen}", value)

    def read(self, node, name):
        for i, option in enumerate(self.options):
            if option.isIn(node, f"{name}.{i}"):
                return option.read(node, f"{name}.{i}")
        raise KeyError(f"Unable to find value for name: {name}")

    def remove(self, node, name) -> None:
        for i, option in enumerate(self.options):
            option.remove(node, f"{name}.{i}")


def _validate(storage, value) -> None:
    for validator in storage.validators:
        validator.validate(value)


def _storage(annotated):
    """Return the storage of a (possibly Annotated) type, its validators added, and its other annotations."""
    kind, *annotations = typing.get_args(typing.Annotated[annotated, None])[:-1]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        storage = _Union([_storage(option)[0] for option in typing.get_args(kind)])
    elif kind is type(None):
        storage = _None()
    elif kind is bool:
        storage = _Text(bool, bool, False, lambda value: "True" if value else "False", "True".__eq__)
    elif kind in (int, float):
        storage = _Number(kind, (int, float) if kind is float else int, 0)
    elif kind is str:
        storage = _Text(str, str, "")
    elif isinstance(kind, type) and issubclass(kind, pathlib.PurePath):
        storage = _Path(kind, kind, kind())
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        storage = _Enum(kind, kind, next(iter(kind)), lambda value: value.name, lambda text: kind[text])
    elif isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
        storage = _Node(kind)
    else:
        raise TypeError(f"Parameters of type {kind} are not modeled.")
    storage.validators = [*storage.validators, *(a for a in annotations if isinstance(a, Validator))]
    return storage, [a for a in annotations if not isinstance(a, Validator)]


#
# The decorator
#


def parameterNodeWrapper(classtype=None):
    """Make a class of typed members an object over a parameter node: `Wrapper(parameterNode)`."""
    return _wrap if classtype is None else _wrap(classtype)


def isParameterNodeWrapper(classOrObj) -> bool:
    return getattr(classOrObj, "_is_parameter_node_wrapper", False)


class _Value:
    """The value of one member of one wrapper: read once, and again whenever the node reports a modification.

    Changes that the node does not report (its events are blocked, a node that it refers to is removed) are not
    seen. The observer lives as long as the wrapper.
    """

    def __init__(self, member, node, name: str):
        self._member, self._node, self._name, self._writing = member, node, name, False
        self.value = self._read()
        me = weakref.ref(self)
        self._tag = node.AddObserver("ModifiedEvent", lambda caller, event: me()._onModified())

    def __del__(self):
        if hasattr(self, "_tag"):
            self._node.RemoveObserver(self._tag)

    def _onModified(self) -> None:
        if not self._writing:
            self.value = self._read()

    def _read(self):
        storage = self._member.storage
        if not storage.isIn(self._node, self._name):  # the scene was closed in between
            storage.write(self._node, self._name, self._member.default.value)
        return storage.read(self._node, self._name)

    def write(self, value) -> None:
        _validate(self._member.storage, value)
        self._writing = True
        try:
            with slicer.util.NodeModify(self._node):
                self._member.storage.write(self._node, self._name, value)
                self.value = self._read()  # before observers are called
        finally:
            self._writing = False


class _Member:
    """One typed member, as a Python descriptor."""

    def __init__(self, name, annotated, assigned):
        self.name, self.kind = name, annotated
        self.storage, annotations = _storage(annotated)
        marked = [a for a in annotations if isinstance(a, Default)]
        if len(marked) > 1:
            raise ValueError(f"Multiple defaults found for {name}")
        others = [a for a in annotations if not isinstance(a, Default)]
        if assigned is not _Member:
            self.default, others = Default(assigned), annotations
        else:
            self.default = marked[0] if marked else Default(self.storage.default)
        if others:
            logging.warning(f"Unused annotations: {others}")

    def __get__(self, wrapper, owner=None):
        return self if wrapper is None else wrapper._values[self.name].value

    def __set__(self, wrapper, value):
        wrapper._values[self.name].write(value)


def _wrap(classtype):
    members = {}
    for name, annotated in typing.get_type_hints(classtype, include_extras=True).items():
        members[name] = _Member(name, annotated, getattr(classtype, name, _Member))
    reserved = {
        "allParameters": members,
        "_is_parameter_node_wrapper": True,
        "default": _default,
        "isCached": lambda self, name: bool(_member(self.allParameters, name)),
        "dataType": staticmethod(lambda name: _member(members, name).kind),
        "getValue": _getValue,
        "setValue": _setValue,
        "StartModify": lambda self: self.parameterNode.StartModify(),
        "EndModify": lambda self, wasModified: self.parameterNode.EndModify(wasModified),
        "AddObserver": lambda self, *arguments: self.parameterNode.AddObserver(*arguments),
        "RemoveObserver": lambda self, tag: self.parameterNode.RemoveObserver(tag),
        "Modified": lambda self: self.parameterNode.Modified(),
        "connectGui": _connectGui,
        "connectParametersToGui": _connectParametersToGui,
        "disconnectGui": _disconnectGui,
    }
    for name, value in reserved.items():
        if name in members or hasattr(classtype, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
        setattr(classtype, name, value)
    for name, member in members.items():
        setattr(classtype, name, member)
    classtype.__init__ = _initialise
    return classtype


def _initialise(self, parameterNode, prefix=None):
    self.parameterNode = parameterNode
    self._bound, self._nextTag, self._updatingGui, self._values = {}, 0, False, {}
    for name, member in self.allParameters.items():
        full = (prefix or "") + name
        if not member.storage.isIn(parameterNode, full):
            _validate(member.storage, member.default.value)
            member.storage.write(parameterNode, full, member.default.value)
        self._values[name] = _Value(member, parameterNode, full)


def _member(members, name) -> _Member:
    if name not in members:
        raise ValueError(f"Cannot find a parameter '{name}'; there are {', '.join(members)}.")
    return members[name]


def _default(self, name):
    return _member(self.allParameters, name).default


def _getValue(self, name):
    return _member(self.allParameters, name).__get__(self)


def _setValue(self, name, value):
    _member(self.allParameters, name).__set__(self, value)


#
# Binding to widgets
#


class _Connector:
    """A widget as the value of a member; `signal` reports its changes, `name` is the property with the value."""

    def __init__(self, widget, signal: str, name: str):
        self.widget, self.signal, self.name = widget, getattr(widget, signal), name

    def read(self):
        return getattr(self.widget, self.name)

    def write(self, value) -> None:
        setattr(self.widget, self.name, value)


class _ChoiceConnector(_Connector):
    def __init__(self, widget, choices):
        super().__init__(widget, "currentIndexChanged", "currentIndex")
        self.choices = choices
        widget.clear()
        for choice in choices:
            widget.addItem(str(choice))

    def read(self):
        return self.choices[self.widget.currentIndex]

    def write(self, value) -> None:
        if value not in self.choices:
            raise ValueError(f"Unable to find value {value} in choices {self.choices}")
        self.widget.currentIndex = self.choices.index(value)


class _NodeConnector(_Connector):
    def __init__(self, widget, kinds):
        super().__init__(widget, "currentNodeChanged", "")
        widget.nodeTypes = [kind.__name__ for kind in kinds]

    def read(self):
        return self.widget.currentNode()

    def write(self, value) -> None:
        self.widget.setCurrentNode(value)


def _connector(widget, annotated):
    """Return the binding of a widget to a type: the widget's exact class counts. Raises RuntimeError if there is
    none."""
    import ctk
    import qt

    kind, *annotations = typing.get_args(typing.Annotated[annotated, None])[:-1]
    among = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    nodes = [one for one in among if isinstance(one, type) and issubclass(one, slicer.vtkMRMLNode)]
    choices = next((a.choices for a in annotations if isinstance(a, Choice)), None)
    bounds = next((a for a in annotations if isinstance(a, WithinRange)), None)
    exact = type(widget)
    if kind is bool and exact is qt.QCheckBox:
        return _Connector(widget, "stateChanged", "checked")
    if kind is bool and exact is qt.QPushButton:
        widget.checkable = True
        return _Connector(widget, "toggled", "checked")
    numbers = {int: (qt.QSpinBox, qt.QSlider), float: (qt.QDoubleSpinBox, ctk.ctkSliderWidget)}
    if exact in numbers.get(kind, ()):
        if bounds is None and exact in (qt.QSlider, ctk.ctkSliderWidget):
            raise RuntimeError(f"Cannot have a connection to {exact.__name__} where the type is unbounded.")
        if bounds is not None:
            widget.minimum, widget.maximum = bounds.minimum, bounds.maximum
        return _Connector(widget, "valueChanged", "value")
    if exact is qt.QComboBox and kind in (int, float, str, bool):
        if choices is None:
            raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation to be used.")
        return _ChoiceConnector(widget, choices)
    if kind is str and exact is qt.QLineEdit:
        return _Connector(widget, "textChanged", "text")
    if exact is slicer.qMRMLNodeComboBox and nodes and set(among) <= {*nodes, type(None)}:
        return _NodeConnector(widget, nodes)
    raise RuntimeError(f"Unable to create GUI connector from datatype '{annotated}' to widget type '{exact}'.")


def _connectGui(self, gui) -> int:
    """Bind the widgets that have a property SlicerParameterName, children of a widget or members of an object."""
    import qt

    widgets = gui.findChildren(qt.QWidget) if isinstance(gui, qt.QWidget) else list(gui.__dict__.values())
    named = ((widget.property("SlicerParameterName"), widget) for widget in widgets)
    return self.connectParametersToGui({name: widget for name, widget in named if name})


def _connectParametersToGui(self, mapping) -> int:
    """Bind members to widgets, {name: widget}; return the tag for `disconnectGui`. The widgets show the members'
    values, and from then on each follows the other."""
    connectors = {name: _connector(widget, _member(self.allParameters, name).kind) for name, widget in mapping.items()}
    slots = {}
    for name, connector in connectors.items():
        connector.write(self.getValue(name))
        slots[name] = _follower(self, name, connector)
        connector.signal.connect(slots[name])
    tag, self._nextTag = self._nextTag, self._nextTag + 1
    self._bound[tag] = connectors, slots, self.AddObserver("ModifiedEvent", lambda caller, event: _updateGui(self))
    return tag


def _follower(self, name, connector):
    def follow():
        with slicer.util.NodeModify(self):
            if not self._updatingGui:
                self.setValue(name, connector.read())

    return follow


def _disconnectGui(self, tag) -> None:
    if tag in self._bound:
        connectors, slots, observer = self._bound.pop(tag)
        for name, connector in connectors.items():
            connector.signal.disconnect(slots[name])
        self.RemoveObserver(observer)


def _updateGui(self) -> None:
    if self._updatingGui:
        return
    self._updatingGui = True
    try:
        with slicer.util.NodeModify(self):
            for connectors, _slots, _observer in self._bound.values():
                for name, connector in connectors.items():
                    connector.write(self.getValue(name))
    finally:
        self._updatingGui = False
