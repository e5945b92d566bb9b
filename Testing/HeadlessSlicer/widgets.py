"""The widgets of CTK and Slicer that the panels use, in PySide6; `pythonqt` shows them as Slicer does.

Names, properties, slots and signals are theirs, as far as they are here; a name that is not here raises. Message boxes
and file dialogs never wait: `asked` keeps what they would have shown, and `answers` says what the user does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets
from PySide6.QtCore import Property, Qt, Signal, Slot

from . import pythonqt
from .views import pixels

REPLACED = ("QUiLoader", "QFileDialog", "QInputDialog", "QDialog", "QMessageBox")
asked: list[tuple[str, str]] = []  # (kind, text) of what would have waited for the user
answers: dict[str, object] = {}  # kind -> what the user answers: a button, a file, a text


def _ask(kind: str, text: str, default):
    asked.append((kind, text))
    return answers.get(kind, default)


class QDialog(QtWidgets.QDialog):
    """Does not wait."""

    def exec(self):
        self.show()
        QtWidgets.QApplication.processEvents()
        result = _ask("dialog", self.windowTitle(), QtWidgets.QDialog.DialogCode.Accepted)
        self.hide()
        return result


class QMessageBox(QtWidgets.QMessageBox):
    """Does not wait."""

    def exec(self):
        kind = "question" if self.icon() == QtWidgets.QMessageBox.Icon.Question else "message"
        return _ask(kind, self.text(), QtWidgets.QMessageBox.StandardButton.Ok)


class ctkMessageBox(QMessageBox):
    """A message box that can be told not to come again; here it always comes."""

    dontShowAgainSettingsKey = Property(str, lambda self: "", lambda self, key: None)


class QFileDialog(QtWidgets.QFileDialog):
    """The static functions, as PythonQt gives them: a path, empty when cancelled."""

    @staticmethod
    def getOpenFileName(parent=None, caption="", directory="", filter=""):
        return _ask("open", caption, "")

    @staticmethod
    def getSaveFileName(parent=None, caption="", directory="", filter=""):
        return _ask("save", caption, "")

    @staticmethod
    def getExistingDirectory(parent=None, caption="", directory=""):
        return _ask("folder", caption, "")


class QInputDialog(QtWidgets.QInputDialog):
    """The static function, as PythonQt gives it: a text, empty when cancelled."""

    @staticmethod
    def getText(parent, title, label, mode=None, text=""):
        return _ask("text", title, "")


class QUiLoader(QtUiTools.QUiLoader):
    """Reads .ui files with CTK's and Slicer's widgets; an unknown class, signal or slot raises."""

    def __init__(self, parent=None):
        super().__init__(parent)
        for kind in (ctkCollapsibleButton, ctkSliderWidget, qMRMLWidget, qMRMLNodeComboBox, qMRMLCheckableNodeComboBox):
            self.registerCustomWidget(kind)

    def load(self, file, parent=None):
        tree = ElementTree.fromstring(bytes(file.readAll()))
        connections = tree.find("connections")
        made = [] if connections is None else list(connections)
        for connection in made:
            connections.remove(connection)
        known = {*self.availableWidgets()}
        for widget in tree.iter("widget"):
            if widget.get("class") not in known:
                raise RuntimeError(f"There is no widget class {widget.get('class')}.")
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(tree))
        buffer.open(QtCore.QBuffer.OpenModeFlag.ReadOnly)
        root = super().load(buffer, parent)
        for connection in made:
            self._connect(root, *(connection.findtext(part) for part in ("sender", "signal", "receiver", "slot")))
        return root

    def _connect(self, root, sender, signal, receiver, slot):
        names = {root.objectName(): root, **{w.objectName(): w for w in root.findChildren(QtWidgets.QWidget)}}
        sender, receiver = names[sender], names[receiver]
        if signal not in sender.declared or not hasattr(receiver, slot.split("(")[0]):
            raise RuntimeError(f"{signal} of the .ui file cannot be connected to {slot}.")
        getattr(sender, sender.declared[signal]).connect(getattr(receiver, slot.split("(")[0]))


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    """A titled box that opens and closes."""

    contentsCollapsed = Signal(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._collapsed, self._hidden = False, []
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(0, self._header(), 0, 0)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Minimum, QtWidgets.QSizePolicy.Policy.Preferred)
        self.toggled.connect(lambda checked: self._collapse(not checked))

    def _header(self) -> int:
        return self.fontMetrics().height() + 10

    def _collapse(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        children = [c for c in self.children() if isinstance(c, QtWidgets.QWidget)]
        if collapsed:
            self._hidden = [child for child in children if not child.isHidden()]
        for child in self._hidden:
            child.setVisible(not collapsed)
        self.setMaximumHeight(self._header() if collapsed else 16777215)
        self.setChecked(not collapsed)
        self.updateGeometry()
        self.contentsCollapsed.emit(collapsed)

    collapsed = Property(bool, lambda self: self._collapsed, _collapse, notify=contentsCollapsed)
    flat = Property(bool, lambda self: False, lambda self, flat: None)

    def sizeHint(self):
        header = QtCore.QSize(self.fontMetrics().horizontalAdvance(self.text()) + 40, self._header())
        return header if self._collapsed or self.layout() is None else header.expandedTo(self.layout().totalSizeHint())

    def minimumSizeHint(self):
        header = QtCore.QSize(60, self._header())
        return (
            header if self._collapsed or self.layout() is None else header.expandedTo(self.layout().totalMinimumSize())
        )

    def hitButton(self, position) -> bool:
        return position.y() < self._header()

    def paintEvent(self, event):
        pen, palette = QtGui.QPainter(self), self.palette()
        box = QtCore.QRect(0, 0, self.width() - 1, self._header() - 3)
        pen.setPen(palette.color(QtGui.QPalette.ColorRole.Mid))
        pen.setBrush(palette.color(QtGui.QPalette.ColorRole.Button))
        pen.drawRoundedRect(box, 3, 3)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(6, (box.height() - 10) // 2, 10, 10)
        kind = QtWidgets.QStyle.PrimitiveElement
        closed = kind.PE_IndicatorArrowRight if self._collapsed else kind.PE_IndicatorArrowDown
        self.style().drawPrimitive(closed, arrow, pen, self)
        pen.setPen(palette.color(QtGui.QPalette.ColorRole.ButtonText))
        pen.drawText(box.adjusted(24, 0, -4, 0), Qt.AlignmentFlag.AlignVCenter, self.text())


class ctkSliderWidget(QtWidgets.QWidget):
    """A slider and a spin box of one number."""

    valueChanged = Signal(float)
    declared: ClassVar = {"valueChanged(double)": "valueChanged"}

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(Qt.Orientation.Horizontal, self)
        self._slider.setRange(0, 1000)
        self._box = QtWidgets.QDoubleSpinBox(self)
        self._box.setRange(0, 99)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._slider)
        row.addWidget(self._box)
        self._box.valueChanged.connect(self._moved)
        self._slider.sliderMoved.connect(lambda position: self._box.setValue(self._number(position)))

    def _number(self, position: int) -> float:
        return self._box.minimum() + (self._box.maximum() - self._box.minimum()) * position / 1000

    def _place(self) -> None:
        span = self._box.maximum() - self._box.minimum()
        self._slider.setValue(round(1000 * (self._box.value() - self._box.minimum()) / span) if span else 0)

    def _moved(self, value: float) -> None:
        self._place()
        self.valueChanged.emit(value)

    def _set(name):
        getter, setter = name, f"set{name[0].upper()}{name[1:]}"

        def set_(self, value):
            getattr(self._box, setter)(value)
            self._place()

        kind = int if name == "decimals" else float
        return Property(kind, lambda self: getattr(self._box, getter)(), set_)

    value, minimum, maximum, singleStep, decimals = map(_set, ("value", "minimum", "maximum", "singleStep", "decimals"))


class qMRMLWidget(QtWidgets.QWidget):
    """A widget that is told of the scene."""

    mrmlSceneChanged = Signal(object)
    declared: ClassVar = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


class qMRMLNodeComboBox(QtWidgets.QWidget):
    """Chooses one of the nodes of some classes; grey without scene."""

    currentNodeChanged = Signal(object)
    currentNodeChangedBool = Signal(bool)
    currentNodeIDChanged = Signal(str)
    nodeAddedByUser = Signal(object)
    declared: ClassVar = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged",
        "currentNodeChanged(bool)": "currentNodeChangedBool",
        "nodeAddedByUser(vtkMRMLNode*)": "nodeAddedByUser",
    }
    _events = ("NodeAddedEvent", "NodeRemovedEvent", "EndBatchProcessEvent", "EndCloseEvent")

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene, self._tags, self._current, self._watched, self._leaving = None, [], None, {}, None
        self._box = QtWidgets.QComboBox(self)
        self._box.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self._box)
        self._box.activated.connect(self._chosen)
        self.setEnabled(False)
        self._settings = {
            "nodeTypes": [], "noneEnabled": False, "addEnabled": True, "removeEnabled": True, "renameEnabled": False,
            "editEnabled": False, "showHidden": False, "showChildNodeTypes": True, "selectNodeUponCreation": True,
            "noneDisplay": "None", "baseName": "",
        }  # fmt: skip

    def _setting(name, kind):
        def set_(self, value):
            self._settings[name] = value
            self._fill()

        return Property(kind, lambda self: self._settings[name], set_)

    nodeTypes = _setting("nodeTypes", "QStringList")
    noneEnabled, addEnabled = _setting("noneEnabled", bool), _setting("addEnabled", bool)
    removeEnabled = _setting("removeEnabled", bool)
    renameEnabled, editEnabled = _setting("renameEnabled", bool), _setting("editEnabled", bool)
    showHidden, showChildNodeTypes = _setting("showHidden", bool), _setting("showChildNodeTypes", bool)
    selectNodeUponCreation = _setting("selectNodeUponCreation", bool)
    noneDisplay, baseName = _setting("noneDisplay", str), _setting("baseName", str)

    def mrmlScene(self):
        return self._scene

    def setMRMLScene(self, scene) -> None:
        if scene is self._scene:
            return
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene, self._tags = scene, []
        if scene is not None:
            self._tags = [scene.AddObserver(getattr(scene, event), self._onScene) for event in self._events]
            self._tags.append(scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._onLeaving, -10.0))
            self._tags.append(scene.AddObserver(scene.EndImportEvent, self._onImported))
        self.setEnabled(scene is not None)
        self._fill()

    def _onScene(self, caller, event) -> None:
        self._leaving = None
        if not caller.IsBatchProcessing():
            self._fill()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onLeaving(self, caller, event, node) -> None:
        """The chosen node's row goes before the node does, and the one that comes in its place is chosen."""
        if caller.IsBatchProcessing() or node not in self._nodes():
            return
        row, self._leaving = self._nodes().index(node), node
        if node is self._current:
            rest = self._nodes()
            self._select(rest[min(row, len(rest) - 1)] if rest else None)

    def _onImported(self, caller, event) -> None:
        """All rows go, and come again with the imported nodes'."""
        if self._settings["noneEnabled"]:
            self._select(None)
        self._fill()

    def _accepts(self, node) -> bool:
        if node.GetHideFromEditors() and not self._settings["showHidden"]:
            return False
        kinds = self._settings["nodeTypes"]
        if self._settings["showChildNodeTypes"]:
            return any(node.IsA(kind) for kind in kinds)
        return node.GetClassName() in kinds

    def _nodes(self) -> list:
        if self._scene is None:
            return []
        nodes = (self._scene.GetNthNode(number) for number in range(self._scene.GetNumberOfNodes()))
        return [node for node in nodes if node is not self._leaving and self._accepts(node)]

    def _fill(self) -> None:
        nodes = self._nodes()
        for node in list(self._watched):
            if node not in nodes:
                node.RemoveObserver(self._watched.pop(node))
        for node in nodes:
            if node not in self._watched:
                self._watched[node] = node.AddObserver("ModifiedEvent", lambda *_: self._list())
        if self._current is not None and self._current not in nodes:
            self._select(None if self._settings["noneEnabled"] or not nodes else nodes[0])
        elif self._current is None and nodes and not self._settings["noneEnabled"]:
            self._select(nodes[0])
        self._list()

    def _list(self) -> None:
        self._box.blockSignals(True)
        self._box.clear()
        if self._settings["noneEnabled"]:
            self._box.addItem(self._settings["noneDisplay"], None)
        for node in self._nodes():
            self._box.addItem(node.GetName(), node.GetID())
        self._box.setCurrentIndex(self._box.findData(self.currentNodeID) if self._current else 0)
        self._box.blockSignals(False)

    def _chosen(self, index: int) -> None:
        self.setCurrentNodeID(self._box.itemData(index) or "")

    def _select(self, node) -> None:
        if node is self._current:
            return
        self._current = node
        self._list()
        self.currentNodeChanged.emit(node)
        self.currentNodeChangedBool.emit(node is not None)
        self.currentNodeIDChanged.emit(self.currentNodeID)

    def currentNode(self):
        return self._current

    def setCurrentNode(self, node) -> None:
        if isinstance(node, str):
            self.setCurrentNodeID(node)
        else:
            self._select(node if node is not None and self._accepts(node) else None)

    def setCurrentNodeID(self, identifier: str) -> None:
        self.setCurrentNode(self._scene.GetNodeByID(identifier) if self._scene and identifier else None)

    def addNode(self, nodeClass: str = ""):
        """Makes a node, as the user does by "Create new"; returns it."""
        if not self._settings["addEnabled"]:
            raise RuntimeError("Nodes cannot be made here.")
        kind = nodeClass or self._settings["nodeTypes"][0]
        node = self._scene.AddNewNodeByClass(kind, self._settings["baseName"])
        if self._settings["selectNodeUponCreation"]:
            self._select(node)
        self.nodeAddedByUser.emit(node)
        return node

    def setCurrentNodeIndex(self, index: int) -> None:
        self._select(self._nodes()[index])

    def nodeCount(self) -> int:
        return len(self._nodes())

    def nodeFromIndex(self, index: int):
        return self._nodes()[index]

    def _currentID(self) -> str:
        return self._current.GetID() or "" if self._current is not None else ""

    currentNodeID = Property(str, _currentID, setCurrentNodeID, notify=currentNodeIDChanged)


class qMRMLCheckableNodeComboBox(qMRMLNodeComboBox):
    """Chooses any number of nodes."""

    checkedNodesChanged = Signal()

    def __init__(self, parent=None):
        super().__init__(parent)
        self._checked: list = []

    def _onImported(self, caller, event) -> None:
        checked, self._checked = self._checked, []
        super()._onImported(caller, event)
        if checked:
            self.checkedNodesChanged.emit()

    def _fill(self) -> None:
        super()._fill()
        gone = [node for node in self._checked if node not in self._nodes()]
        for node in gone:
            self._checked.remove(node)
        if gone:
            self.checkedNodesChanged.emit()

    def _list(self) -> None:
        super()._list()
        names = ", ".join(node.GetName() for node in getattr(self, "_checked", ()))
        self._box.setPlaceholderText(names or "None")
        self._box.setCurrentIndex(-1)

    def checkedNodes(self) -> list:
        return list(self._checked)

    def uncheckedNodes(self) -> list:
        return [node for node in self._nodes() if node not in self._checked]

    def noneChecked(self) -> bool:
        return not self._checked

    def allChecked(self) -> bool:
        return not self.uncheckedNodes()

    def checkState(self, node):
        return Qt.CheckState.Checked if node in self._checked else Qt.CheckState.Unchecked

    def setCheckState(self, node, state) -> None:
        wanted = state == Qt.CheckState.Checked
        if node in self._nodes() and wanted != (node in self._checked):
            self._checked = [
                n for n in self._nodes() if (n in self._checked and n is not node) or (n is node and wanted)
            ]
            self._list()
            self.checkedNodesChanged.emit()

    def check(self, node) -> None:
        self.setCheckState(node, Qt.CheckState.Checked)

    def uncheck(self, node) -> None:
        self.setCheckState(node, Qt.CheckState.Unchecked)


#
# The window
#


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """What a scripted module's panel lies in; `self()` is the Python object."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._source, self._python, self._entered = "", None, False
        self.setLayout(QtWidgets.QVBoxLayout())

    isEntered = Property(bool, lambda self: self._entered)

    def pythonSource(self) -> str:
        return self._source

    def setPythonSource(self, path: str) -> bool:
        """Makes the class <file>Widget of a loaded module; what it raises is raised."""
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
    """Shows one module's panel at a time."""

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


class qMRMLSliceWidget(QtWidgets.QWidget):
    """A slice view, painted by Slicer's own slice pipeline."""

    def __init__(self, name: str, parent=None):
        super().__init__(parent)
        self._viewName, self._logic = name, slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self.setMinimumSize(60, 60)

    def sliceLogic(self):
        node = slicer.mrmlScene.GetNodeByID(f"vtkMRMLSliceNode{self._viewName}")
        if self._logic.GetSliceNode() is not node:
            self._logic.SetSliceNode(node)
        return self._logic

    def mrmlSliceNode(self):
        return self.sliceLogic().GetSliceNode()

    def mrmlSliceCompositeNode(self):
        return self.sliceLogic().GetSliceCompositeNode()

    def fitSliceToBackground(self) -> None:
        self.sliceLogic().FitSliceToBackground()

    def resizeEvent(self, event) -> None:
        node, size = self.mrmlSliceNode(), event.size()
        if node is not None:
            wide, tall, deep = node.GetFieldOfView()
            old = node.GetDimensions()
            node.SetDimensions(size.width(), size.height(), 1)
            scale = max(wide / max(old[0], 1), tall / max(old[1], 1))
            node.SetFieldOfView(scale * size.width(), scale * size.height(), deep)

    def paintEvent(self, event) -> None:
        pen = QtGui.QPainter(self)
        pen.fillRect(self.rect(), Qt.GlobalColor.black)
        if self.mrmlSliceNode() is None:
            return
        image = pixels(self.sliceLogic())
        if image is not None:
            rows, columns, _ = image.shape
            picture = QtGui.QImage(image.tobytes(), columns, rows, 3 * columns, QtGui.QImage.Format.Format_RGB888)
            pen.drawImage(0, 0, picture)
        red, green, blue = (round(255 * part) for part in self.mrmlSliceNode().GetLayoutColor())
        pen.fillRect(0, 0, self.width(), 4, QtGui.QColor(red, green, blue))


class qMRMLPlotWidget(QtWidgets.QWidget):
    """A plot view: the lines and circles of the chart that is selected in the layout, drawn by ourselves."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setMinimumSize(60, 60)

    def mrmlPlotViewNode(self):
        return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLPlotViewNode")

    def _series(self) -> list:
        """(name, colour, whether in circles instead of a line, points (N, 2)) of each series."""
        view = self.mrmlPlotViewNode()
        chart = view.GetPlotChartNode() if view is not None else None
        found = []
        for number in range(chart.GetNumberOfPlotSeriesNodes() if chart is not None else 0):
            series = chart.GetNthPlotSeriesNode(number)
            table = series.GetTableNode()
            names = series.GetXColumnName(), series.GetYColumnName()
            columns = [table and table.GetTable().GetColumnByName(name) for name in names]
            if all(columns):
                points = np.stack([[c.GetTuple1(i) for i in range(c.GetNumberOfTuples())] for c in columns], 1)
                circles = series.GetLineStyle() == series.LineStyleNone
                found.append((series.GetName(), series.GetColor(), circles, points[np.isfinite(points).all(1)]))
        return [line for line in found if len(line[-1])]

    def paintEvent(self, event) -> None:
        pen = QtGui.QPainter(self)
        pen.fillRect(self.rect(), Qt.GlobalColor.white)
        lines = self._series()
        if not lines:
            pen.end()
            return
        points = np.concatenate([line[-1] for line in lines])
        low, span = points.min(0), np.maximum(np.ptp(points, 0), 1e-9)
        left, top, wide, tall = 60, 26, self.width() - 220, self.height() - 60
        pen.drawRect(left, top, wide, tall)
        pen.drawText(left, 18, self.mrmlPlotViewNode().GetPlotChartNode().GetTitle())
        for share in (0, 0.5, 1):
            x, y = low + share * span
            pen.drawText(int(left + share * wide) - 12, top + tall + 16, f"{x:.3g}")
            pen.drawText(4, int(top + (1 - share) * tall) + 4, f"{y:.3g}")
        pen.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
        for number, (name, colour, circles, values) in enumerate(lines):
            pen.setPen(QtGui.QPen(QtGui.QColor.fromRgbF(*colour), 2))
            places = [left, top + tall] + (values - low) / span * [wide, -tall]
            places = [QtCore.QPointF(*place) for place in places]
            beside = left + wide + 10, top + 16 * (number + 1)
            if circles:
                for place in (*places, QtCore.QPointF(beside[0] + 8, beside[1] - 4)):
                    pen.drawEllipse(place, 4, 4)
            else:
                pen.drawPolyline(QtGui.QPolygonF(places))
                pen.drawLine(beside[0], beside[1] - 4, beside[0] + 16, beside[1] - 4)
            pen.drawText(beside[0] + 22, beside[1], name)


class qSlicerLayoutManager(QtCore.QObject):
    """Arranges slice views in a row, a plot view below; layouts that are not in SHOWN have the red view alone."""

    layoutChanged = Signal(int)
    SHOWN: ClassVar = {
        "SlicerLayoutSideBySideView": ("Red", "Yellow"),
        "SlicerLayoutFourUpView": ("Red", "Yellow", "Green"),
        "SlicerLayoutFourUpPlotView": ("Red", "Yellow", "Plot"),
        "SlicerLayoutConventionalPlotView": ("Red", "Yellow", "Plot"),
    }

    def __init__(self):
        super().__init__()
        self._views = QtWidgets.QWidget()
        rows, row = QtWidgets.QVBoxLayout(self._views), QtWidgets.QHBoxLayout()
        for line in (rows, row):
            line.setContentsMargins(0, 0, 0, 0)
            line.setSpacing(2)
        rows.addLayout(row)
        self._slices = {name: qMRMLSliceWidget(name) for name in ("Red", "Yellow", "Green")}
        for view in self._slices.values():
            row.addWidget(view)
        self._plot = qMRMLPlotWidget()
        rows.addWidget(self._plot)
        self._arrange()
        self._node().AddObserver("ModifiedEvent", lambda caller, event: self._arrange())

    def _node(self):
        return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")

    def _arrange(self) -> None:
        shown = {getattr(slicer.vtkMRMLLayoutNode, name): views for name, views in self.SHOWN.items()}
        for view in self._slices.values():
            view.sliceLogic()
        for name, view in {**self._slices, "Plot": self._plot}.items():
            view.setVisible(name in shown.get(self._current(), ("Red",)))

    def _current(self) -> int:
        return self._node().GetViewArrangement()

    @Slot(int)
    def setLayout(self, layout: int) -> None:
        self._node().SetViewArrangement(layout)
        self._arrange()
        self.layoutChanged.emit(layout)

    layout = Property(int, _current, setLayout, notify=layoutChanged)

    def sliceViewNames(self) -> list[str]:
        return list(self._slices)

    def sliceWidget(self, name: str):
        return self._slices.get(name)

    def resetSliceViews(self) -> None:
        for view in self._slices.values():
            view.fitSliceToBackground()

    def plotWidget(self, number: int):
        return self._plot

    def mrmlSliceLogics(self):
        logics = vtk.vtkCollection()
        for view in self._slices.values():
            logics.AddItem(view.sliceLogic())
        return logics

    def mrmlScene(self):
        return slicer.mrmlScene
