"""The widgets of CTK and Slicer that the panels use, in PySide6; `pythonqt` shows them as Slicer does.

Names, properties, slots and signals are theirs; a name that is not modeled raises.
"""

from __future__ import annotations

from typing import ClassVar
from xml.etree import ElementTree

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets
from PySide6.QtCore import Property, Qt, Signal

from .dialogs import asked  # noqa: F401, read by scripts
from .selectors import qMRMLCheckableNodeComboBox, qMRMLNodeComboBox


class QUiLoader(QtUiTools.QUiLoader):
    """Read .ui files with CTK's and Slicer's widgets; an unknown class, signal or slot raises."""

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
    """A widget that knows the scene."""

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
