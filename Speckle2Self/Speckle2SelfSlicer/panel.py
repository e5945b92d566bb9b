"""The parts that both panels share: parameter node, scene events, timers, buttons, and errors shown once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import slicer
import vtk
from slicer import vtkMRMLNode
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic, ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from Speckle2SelfLib.config import DespeckleOptions, help_of
from Speckle2SelfLib.system import InputError

from . import session, views
from .words import translate_sentence

WIDGETS, FOLLOWING = -1.0, -2.0  # priorities of observers of a parameter node; those of wrappers have 0


class _Boxes:
    """The number of open message boxes: events, and therefore timers, continue while one is shown."""

    open = 0


@contextmanager
def box() -> Iterator[None]:
    """Suspend the timers of our panels while a message box is shown."""
    _Boxes.open += 1
    try:
        yield
    finally:
        _Boxes.open -= 1


@contextmanager
def reporting_errors(
    message: str, waitCursor: bool = False, cleanUp: Callable[[], None] | None = None
) -> Iterator[None]:
    """Show errors to the user: an `InputError` as is, anything else as `message` with details.

    The code after the `with` block runs in any case, so that no panel is left in an intermediate state. cleanUp: called
    after an error, before it is shown.
    """
    failed = False
    try:
        with slicer.util.tryWithErrorDisplay(message, waitCursor=waitCursor):
            try:
                yield
            except Exception as error:
                failed = True
                _Boxes.open += 1
                if cleanUp is not None:
                    cleanUp()
                if not isinstance(error, InputError):
                    raise
                slicer.util.errorDisplay(translate_sentence(str(error)))
    except Exception:
        logging.exception(message)
    finally:
        _Boxes.open -= failed


def confirm(question: str) -> bool:
    """Return whether the user agrees."""
    with box():
        return slicer.util.confirmOkCancelDisplay(question)


class Panel(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """A module's panel: the widgets of its .ui file, bound to the logic's parameter node.

    A subclass has `onParameters`, called when a parameter was changed; `updatePanel`; and a slot `onTrain` for each
    button `trainButton`. nodeParameters: parameters that become None when their node is removed; else the selector
    would choose the next node.
    """

    nodeParameters: tuple[str, ...] = ()

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None  # while the panel is entered
        self._connected = None  # the wrapper that the widgets show, the tag and the observers of that connection
        self._timers: list = []

    def build(self, logic: ScriptedLoadableModuleLogic) -> None:
        """Create the widgets and connect buttons and scene events."""
        self.logic, self.session = logic, logic.session
        widget = slicer.util.loadUI(self.resourcePath(f"UI/{self.moduleName}.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        for event, slot in (
            ("StartClose", self.onSceneStartClose), ("EndClose", self.onSceneEndClose),
            ("StartImport", self.onSceneStartImport), ("EndImport", self.onSceneEndImport),
            ("NodeAboutToBeRemoved", self.onNodeAboutToBeRemoved),
        ):  # fmt: skip
            self.addObserver(slicer.mrmlScene, getattr(slicer.mrmlScene, f"{event}Event"), slot)
        for name, button in vars(self.ui).items():
            slot = f"on{name[0].upper()}{name[1:].removesuffix('Button')}"
            if name.endswith("Button") and hasattr(self, slot):
                button.connect("clicked()", getattr(self, slot))

    def makeTimer(self, milliseconds: int, step: Callable[[], None]):
        """Return a timer, not started, whose `step` is not called while a message box is open, nor after an error."""
        import qt

        timer = qt.QTimer()

        def guarded() -> None:
            if not _Boxes.open:  # an unexpected error would recur in each step
                with reporting_errors(_("Background processing has stopped."), cleanUp=timer.stop):
                    step()

        timer.setInterval(milliseconds)
        timer.timeout.connect(guarded)
        self._timers.append(timer)
        return timer

    def showHelp(self, **widgets) -> None:
        """Set tool tips from the help of the options of despeckling: option=widget."""
        for name, widget in widgets.items():
            text = help_of(DespeckleOptions, name)
            widget.toolTip = f"{text[0].upper()}{text[1:]}."

    def cleanup(self) -> None:
        for timer in self._timers:
            timer.stop()
        self.setParameterNode(None)
        self.disconnectGui()
        self.removeObservers()

    def onReload(self) -> None:
        """Reload the module, and the packages next to it if possible."""
        session.reloadModules(self.moduleName)

    #
    # The parameter node
    #

    def enter(self) -> None:
        self.initializeParameterNode()

    def exit(self) -> None:
        views.restore()
        self.setParameterNode(None)

    def initializeParameterNode(self) -> None:
        """Bind the panel to the scene's parameter node; create it if there is none."""
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameterNode) -> None:
        """Bind the panel to a parameter node, or to none.

        The widgets remain connected to a node that the panel only leaves.
        """
        if self._parameterNode:
            node = self._parameterNode.parameterNode  # the mixin stores observed nodes, not wrappers
            self.removeObserver(node, vtk.vtkCommand.ModifiedEvent, self.onParameters)
        self._parameterNode = None
        if parameterNode is None:
            return
        self.fillSelectors(parameterNode)
        if self._connected is None or self._connected[0] is not parameterNode:
            self.disconnectGui()
            self._connected = parameterNode, *self.connectGui(parameterNode)
            self.translateChoices()
        self._parameterNode = parameterNode
        node = parameterNode.parameterNode
        self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.onParameters, priority=FOLLOWING)
        self.updatePanel()

    def connectGui(self, parameterNode) -> tuple[int, list[int]]:
        """Bind the widgets to the parameters; return the tag of the connection, and those of its observers.

        A wrapper caches values, and reads them again when the node is modified. Its observers come first, so that
        widgets and panel see the values set by another wrapper or a script, not the earlier ones.
        """
        tags = []

        def addObserver(event, callback: Callable, *_priority: float) -> int:
            tags.append(parameterNode.parameterNode.AddObserver(event, callback, WIDGETS))
            return tags[-1]

        parameterNode.AddObserver = addObserver  # the wrapper's own would leave it behind in Slicer 5.10
        try:
            return parameterNode.connectGui(self.ui), tags
        finally:
            del parameterNode.AddObserver

    def translateChoices(self) -> None:
        """Translate the entries of the selectors, which connecting them has filled with their values."""
        words = {
            "auto": _("auto"), "none": _("none"), "given": _("given"), "average": _("average"), "preset": _("preset"),
            "adapt": _("adapt"), "standard": _("standard"), "paper": _("paper"), "published": _("published"),
        }  # fmt: skip
        for selector in (widget for widget in vars(self.ui).values() if hasattr(widget, "setItemText")):
            if selector.property("SlicerParameterName"):
                for number in range(selector.count):
                    text = selector.itemText(number)
                    selector.setItemText(number, words.get(text, text))

    def disconnectGui(self) -> None:
        """Separate the widgets from the parameters."""
        connected, self._connected = self._connected, None
        if connected is not None:
            parameterNode, tag, observers = connected
            parameterNode.disconnectGui(tag)
            for observer in observers:
                parameterNode.RemoveObserver(observer)

    def fillSelectors(self, parameterNode) -> None:
        """Fill selectors that are not bound to a parameter."""

    def updatePanel(self) -> None:
        """Enable the widgets that can be used now."""

    def onParameters(self, caller=None, event=None) -> None:
        """React to a change of the parameters, by the panel or by a script."""
        self.updatePanel()

    def onModelOrDevice(self, parameter: str, name: str) -> None:
        """Store the choice of a selector that is not bound to its parameter because its entries change."""
        if self._parameterNode and name:
            self._parameterNode.setValue(parameter, name)

    def fillSelector(self, selector, names: list[str], chosen: str, keep: bool = True) -> None:
        """Fill a selector without signals; keep: `chosen` is an entry even if it is not one of the names."""
        blocked = selector.blockSignals(True)
        selector.clear()
        selector.addItems(names if chosen in names or not keep else [*names, chosen])
        if keep or chosen in names:
            selector.currentText = chosen
        selector.blockSignals(blocked)

    #
    # The scene
    #

    def releaseParameters(self) -> None:
        """Release the parameters while node selectors are emptied and nodes referred to by parameters are added."""
        self.setParameterNode(None)
        self.disconnectGui()
        self.logic.wrappers.forget()

    def onSceneStartClose(self, caller=None, event=None) -> None:
        self.releaseParameters()

    def onSceneEndClose(self, caller=None, event=None) -> None:
        if self.parent.isEntered:
            self.enter()

    def onSceneStartImport(self, caller=None, event=None) -> None:
        self.releaseParameters()

    def onSceneEndImport(self, caller=None, event=None) -> None:
        self.releaseParameters()
        if self.parent.isEntered:
            self.enter()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller, event, node: vtkMRMLNode) -> None:
        """Clear the selections of a node that is removed: the selector would choose the next node."""
        connected = self._connected and self._connected[0]
        if connected is not None and not slicer.mrmlScene.IsClosing():
            for name in self.nodeParameters:
                if connected.getValue(name) is node:
                    connected.setValue(name, None)


class WrapperCache:
    """Keep one parameter node wrapper for a node: in Slicer each wrapper observes its node as long as the node
    lives."""

    def __init__(self, kind: type) -> None:
        self._kind, self._wrapper = kind, None

    def of(self, node: slicer.vtkMRMLScriptedModuleNode):
        """Return the node's wrapper."""
        closed = not node.GetParameterCount()  # closing the scene has emptied it: a new wrapper fills in the defaults
        if self._wrapper is None or self._wrapper.parameterNode is not node or closed:
            self._wrapper = self._kind(node)
        return self._wrapper

    def forget(self) -> None:
        """Create a new wrapper the next time: after an import, the old one has values from before the nodes existed."""
        self._wrapper = None
