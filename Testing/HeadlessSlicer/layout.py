"""The layout manager with its slice views and plot view."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import slicer
import vtk
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Qt, Signal, Slot

from .views import pixels


class qMRMLSliceWidget(QtWidgets.QWidget):
    """A slice view, painted by Slicer's own slice pipeline."""

    def __init__(self, name: str, parent=None):
        super().__init__(parent)
        self._viewName, self._logic = name, slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self.setMinimumSize(60, 60)

    def sliceLogic(self):
        node = _sliceNodes().get(self._viewName)
        if self._logic.GetSliceNode() is not node:
            self._logic.SetSliceNode(node)
        return self._logic

    def mrmlSliceNode(self):
        return self.sliceLogic().GetSliceNode()

    def fitSliceToBackground(self) -> None:
        self.sliceLogic().FitSliceToBackground()

    def filled(self) -> float:
        """Return the fraction of the view filled by the box around non-black pixels; for tests, not in Slicer."""
        image = pixels(self.sliceLogic()) if self.mrmlSliceNode() is not None else None
        lit = np.argwhere(image.max(-1) > 0) if image is not None else ()
        return float(np.prod(np.ptp(lit, 0) + 1) / np.prod(image.shape[:2])) if len(lit) else 0.0

    def resizeEvent(self, event) -> None:
        """Resize as Slicer does: the visible height is kept, the width follows the window."""
        if self.mrmlSliceNode() is not None:
            self.sliceLogic().ResizeSliceNode(event.size().width(), event.size().height())

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
    """A plot view: the lines and circles of the chart selected in the layout, drawn by this class."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setMinimumSize(60, 60)

    def mrmlPlotViewNode(self):
        return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLPlotViewNode")

    def _series(self) -> list:
        """Return (name, color, whether in circles instead of a line, points (N, 2)) of each series."""
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
        chart = self.mrmlPlotViewNode().GetPlotChartNode()
        left, top, wide, tall = 76, 26, self.width() - 96, self.height() - 72
        pen.drawRect(left, top, wide, tall)
        pen.drawText(left, 18, chart.GetTitle())
        pen.drawText(left + wide // 2 - 12, top + tall + 34, chart.GetXAxisTitle())
        pen.save()
        pen.translate(14, top + tall)
        pen.rotate(-90)
        pen.drawText(0, 0, chart.GetYAxisTitle())
        pen.restore()
        for share in (0, 0.5, 1):
            x, y = low + share * span
            pen.drawText(int(left + share * wide) - 12, top + tall + 16, f"{x:.3g}")
            pen.drawText(24, int(top + (1 - share) * tall) + 4, f"{y:.3g}")
        pen.setRenderHint(QtGui.QPainter.RenderHint.Antialiasing)
        legend = max(pen.fontMetrics().horizontalAdvance(line[0]) for line in lines) + 32  # inside, as VTK draws it
        for number, (name, color, circles, values) in enumerate(lines):
            pen.setPen(QtGui.QPen(QtGui.QColor.fromRgbF(*color), 2))
            places = [left, top + tall] + (values - low) / span * [wide, -tall]
            places = [QtCore.QPointF(*place) for place in places]
            x, y = left + wide - legend, top + 16 * (number + 1)
            if circles:
                for place in (*places, QtCore.QPointF(x + 8, y - 4)):
                    pen.drawEllipse(place, 4, 4)
            else:
                pen.drawPolyline(QtGui.QPolygonF(places))
                pen.drawLine(x, y - 4, x + 16, y - 4)
            pen.drawText(x + 22, y, name)


class qSlicerLayoutManager(QtCore.QObject):
    """Arranges the views of the scene as the layout's own description says; 3D views and tables are empty places."""

    layoutChanged = Signal(int)

    def __init__(self):
        super().__init__()
        self._views, self._slices, self._described = QtWidgets.QWidget(), {}, None
        self._plot = qMRMLPlotWidget(self._views)
        line = QtWidgets.QVBoxLayout(self._views)
        line.setContentsMargins(0, 0, 0, 0)
        self._arrange()
        self._node().AddObserver("ModifiedEvent", lambda caller, event: self._arrange())

    def _node(self):
        return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")

    def _arrange(self) -> None:
        self._findSlices()
        described = self._node().GetCurrentLayoutDescription()
        if not described or described == self._described:  # empty while the scene is closed
            return
        self._described = described
        for view in (*self._slices.values(), self._plot):
            view.hide()
            view.setParent(self._views)
        old = self._views.layout().takeAt(0)
        if old is not None:
            old.widget().deleteLater()
        shown = set()
        part = self._part(ElementTree.fromstring(described), shown)
        self._views.layout().addWidget(part)
        part.show()
        for node in slicer.util.getNodesByClass("vtkMRMLAbstractViewNode"):
            node.SetMappedInLayout(f"{node.GetClassName()} {node.GetSingletonTag()}" in shown)

    def _part(self, element, shown: set) -> QtWidgets.QWidget:
        """Return the widget of a layout or view of the description; add its views to `shown`."""
        if element.tag == "view":
            return self._view(element, shown)
        if element.get("type") == "tab":
            part = QtWidgets.QTabWidget()
            for item in element:
                part.addTab(self._part(item[0], shown), item.get("name", ""))
            return part
        part = QtWidgets.QWidget()
        line = QtWidgets.QVBoxLayout(part) if element.get("type") == "vertical" else QtWidgets.QHBoxLayout(part)
        line.setContentsMargins(0, 0, 0, 0)
        line.setSpacing(2)
        for item in element:
            line.addWidget(self._part(item[0], shown), int(item.get("splitSize", 1)))
        return part

    def _view(self, element, shown: set) -> QtWidgets.QWidget:
        kind, name = element.get("class"), element.get("singletontag")
        shown.add(f"{kind} {name}")
        if kind == "vtkMRMLSliceNode":
            view = self._slices[name]
        elif kind == "vtkMRMLPlotViewNode":
            view = self._plot
        else:
            return QtWidgets.QFrame()
        view.setVisible(True)
        return view

    def _findSlices(self) -> None:
        """Create a widget for each slice view of the scene, shown or not, as in the application."""
        for name in _sliceNodes():
            if name not in self._slices:
                self._slices[name] = qMRMLSliceWidget(name, self._views)
                self._slices[name].hide()
            self._slices[name].sliceLogic()
        slicer.app.applicationLogic().SetSliceLogics(self.mrmlSliceLogics())

    def _current(self) -> int:
        return self._node().GetViewArrangement()

    @Slot(int)
    def setLayout(self, layout: int) -> None:
        self._node().SetViewArrangement(layout)
        self._arrange()
        self.layoutChanged.emit(layout)

    layout = Property(int, _current, setLayout, notify=layoutChanged)

    def sliceViewNames(self) -> list[str]:
        return list(_sliceNodes())

    def sliceWidget(self, name: str):
        """Return the view of that name; None if the scene has none."""
        self._findSlices()
        return self._slices[name] if name in _sliceNodes() else None

    def resetSliceViews(self) -> None:
        for name in _sliceNodes():
            self.sliceWidget(name).fitSliceToBackground()

    def plotWidget(self, number: int):
        return self._plot

    def mrmlSliceLogics(self):
        logics = vtk.vtkCollection()
        for view in self._slices.values():
            logics.AddItem(view.sliceLogic())
        return logics

    def mrmlScene(self):
        return slicer.mrmlScene


def _sliceNodes() -> dict:
    """Return the slice nodes of the views in the main window, by name."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    return {node.GetLayoutName(): node for node in nodes if node.GetParentLayoutNode() is None}
