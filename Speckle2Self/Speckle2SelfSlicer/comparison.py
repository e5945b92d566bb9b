"""Compare a result with its input: views side by side or faded, difference, figures of merit. Uses only MRML."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
import slicer
import vtk
from slicer import vtkMRMLNode, vtkMRMLPlotChartNode, vtkMRMLScalarVolumeNode, vtkMRMLTableNode, vtkMRMLVolumeNode
from slicer.i18n import tr as _

from Speckle2SelfLib import metrics
from Speckle2SelfLib.grey import luminance
from Speckle2SelfLib.system import InputError, replace_file

from . import scene, views
from .regions import voxelsInside
from .scene import Recording, proxyOf, proxyOrNone, voxelsOf

ROLE = "Speckle2Self.role"  # attribute of the nodes created here, to find them again
DIFFERENT = _("'{}' and '{}' differ in size; choose an output of this input.")
CHARTED = {"snr": (0.2, 0.5, 0.8), "cnr": (0.9, 0.6, 0.2)}  # figures that the chart shows as bars, and their colors


#
# Views
#


def sideBySide(before: vtkMRMLNode, after: vtkMRMLNode) -> None:
    """Show the input in the red and the output in the yellow slice view, linked and on the plane of the frames.

    `views.restore` restores the user's views. Raises InputError for a sequence that no browser shows.
    """
    axis = _facedAxis(before)
    before, after = proxyOf(before), proxyOf(after)
    views.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView)
    for view in (pair := views.viewsOfLayout(("Red", "Yellow"))):
        view.composite.SetLinkedControl(False)
    views.showInViews(before, ("Red",), axis)
    views.showInViews(after, ("Yellow",), axis)
    if len(pair) == 2:  # the same slice; each view keeps the aspect of its field of view
        red, yellow = pair
        yellow.node.GetSliceToRAS().DeepCopy(red.node.GetSliceToRAS())
        yellow.node.UpdateMatrices()
    for view in pair:
        view.composite.SetLinkedControl(True)


def _facedAxis(node: vtkMRMLNode) -> int | None:
    """Return the axis of (K, J, I) across which a node's frames are cut; None if that is unknown."""
    try:
        return Recording.of(node).axis()
    except InputError:
        return None


def fade(before: vtkMRMLNode, after: vtkMRMLNode, share: float) -> None:
    """Fade between input and output in the slice views of the layout; share: 0 the input, 1 the output.

    Views with a foreground of the user are left unchanged. Views in which a single slice would be a line are turned to
    it, until `views.restore`. Raises InputError like `sideBySide`.
    """
    before, after = proxyOf(before), proxyOf(after)
    for view in views.viewsOfLayout():
        if not view.hasUserForeground or view.composite.GetForegroundVolumeID() == after.GetID():
            views.turnToSlice(view, after)
            view.setVolumes(before.GetID(), after.GetID(), share)


def restoreViews(removed: vtkMRMLNode, replacement: vtkMRMLVolumeNode | None) -> None:
    """Let slice views that show `removed`, a volume or its sequence, show `replacement`."""
    removedIds = {node.GetID() for node in (removed, proxyOrNone(removed)) if node is not None}
    back = replacement.GetID() if replacement is not None else None
    for view in views.allViews():
        if view.composite.GetForegroundVolumeID() in removedIds:
            view.setVolumes(view.composite.GetBackgroundVolumeID())
        if view.composite.GetBackgroundVolumeID() in removedIds:
            view.composite.SetBackgroundVolumeID(back)


def difference(before: vtkMRMLNode, after: vtkMRMLNode) -> vtkMRMLScalarVolumeNode:
    """Return a volume, input minus output of the frames shown now, with a fixed window of a quarter of the range around
    0.

    Raises InputError if the sizes differ, or like `sideBySide`.
    """
    before, after, one, two = _pair(before, after)
    dtype = voxelsOf(before).dtype
    span = float(np.iinfo(dtype).max) if dtype == np.uint8 else float(np.ptp(one[np.isfinite(one)])) or 1.0
    node = _nodeOfRole("vtkMRMLScalarVolumeNode", "difference", "Difference")
    slicer.util.updateVolumeFromArray(node, one - two)
    scene.placeLike(node, before)
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().AutoWindowLevelOff()
    node.GetDisplayNode().SetWindowLevel(span / 4, 0)
    return node


def _pair(before: vtkMRMLNode, after: vtkMRMLNode) -> tuple:
    """Return the volumes that show two nodes, and their grey values (K, J, I) float32. Raises InputError if sizes
    differ."""
    before, after = proxyOf(before), proxyOf(after)
    one, two = luminance(voxelsOf(before)), luminance(voxelsOf(after))
    if one.shape != two.shape:
        raise InputError(DIFFERENT.format(before.GetName(), after.GetName()))
    return before, after, one, two


#
# Figures
#


def evaluate(
    before: vtkMRMLNode, after: vtkMRMLNode, tissueNode: vtkMRMLNode | None, lumenNode: vtkMRMLNode | None = None,
    filterName: str = "none",
) -> tuple[vtkMRMLTableNode, vtkMRMLPlotChartNode]:  # fmt: skip
    """Measure the frames shown now, before and after, and with a classical filter; return a table and a chart.

    tissueNode: a box, or a segmentation, whose first segment is used; lumenNode: a box, or a segmentation, whose last
    segment is used, for contrast. Definitions: `Speckle2SelfLib.metrics`. Raises InputError.
    """
    from Speckle2SelfLib.filters import FILTERS

    before, after, one, two = _pair(before, after)
    tissue = voxelsInside(before, tissueNode, "first")
    lumen = voxelsInside(before, lumenNode, "last") if lumenNode is not None else None
    finite = np.isfinite(one) & np.isfinite(two)
    low, high = (float(f(one[finite])) if finite.any() else 0.0 for f in (np.min, np.max))
    if high <= low:
        raise InputError(_("'{before}' is constant; there is nothing to measure.").format(before=before.GetName()))
    axis, number = _sliceToMeasure(*(mask & finite for mask in (tissue, lumen) if mask is not None))
    cut = lambda x: np.take(x, number, axis)  # noqa: E731
    image, result = ((cut(np.where(finite, x, low)) - low) / (high - low) * 255 for x in (one, two))
    frames = {"input": image, "despeckled": result}
    if filterName in FILTERS:
        frames[filterName] = FILTERS[filterName](image[None].astype(np.float32) / 255)[0] * 255
    inTissue, inLumen = (None if mask is None else cut(mask & finite) for mask in (tissue, lumen))
    figures = {
        name: metrics.measure(image, frame, inTissue, inLumen, values=frame[inTissue]) for name, frame in frames.items()
    }
    table = _table(figures)
    return table, _chart(table)


def _sliceToMeasure(*masks: np.ndarray) -> tuple[int, int]:
    """Return the axis of (K, J, I) with the fewest slices, and the slice where the masks overlap most. Raises
    InputError."""
    axis = int(np.argmin(masks[0].shape))
    others = tuple(i for i in range(3) if i != axis)
    counts = np.prod([mask.sum(others) for mask in masks], axis=0)
    number = int(np.argmax(counts))
    if not counts[number]:
        raise InputError(_("The chosen regions contain no finite voxels, or do not share a slice; move them."))
    return axis, number


def figures() -> vtkMRMLTableNode | None:
    """Return the table node of the last `evaluate` in the scene; None if there is none."""
    return _nodeOfRole("vtkMRMLTableNode", "figures", "", create=False)


def asHtml(table: vtkMRMLTableNode) -> str:
    """Return a table node as text for a label, one row per figure, because panels are narrow."""
    table, rows = table.GetTable(), []
    for column in range(table.GetNumberOfColumns()):
        values = [table.GetValue(row, column) for row in range(table.GetNumberOfRows())]
        texts = [value.ToString() if value.IsString() else f"{value.ToDouble():#.3g}" for value in values]
        cells = "".join(f"<td align='right'>{escape(text)}</td>" for text in texts)
        rows.append(f"<th align='left'>{escape(table.GetColumnName(column))}</th>{cells}")
    return "<table cellspacing='4'>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _table(figures: dict[str, dict[str, float]]) -> vtkMRMLTableNode:
    """Return a table node with one row per method and one column per figure that all have."""
    node = _nodeOfRole("vtkMRMLTableNode", "figures", "Figures")
    names = [name for name in metrics.FIGURES if all(name in measured for measured in figures.values())]
    methods = vtk.vtkStringArray()
    methods.SetName("method")
    for method in figures:
        methods.InsertNextValue(method)
    with slicer.util.NodeModify(node):
        columns = [np.array([measured[name] for measured in figures.values()]) for name in names]
        slicer.util.updateTableFromArray(node, columns, [metrics.FIGURES[name].heading for name in names])
        node.GetTable().InsertColumn(methods, 0)
    return node


def _chart(table: vtkMRMLTableNode) -> vtkMRMLPlotChartNode:
    """Return a bar chart of the SNR and, if measured, the CNR of each method."""
    chart = _nodeOfRole("vtkMRMLPlotChartNode", "figures plot", "Figures plot")
    chart.RemoveAllPlotSeriesNodeIDs()
    for figure, color in ((metrics.FIGURES[name].heading, color) for name, color in CHARTED.items()):
        if table.GetTable().GetColumnByName(figure) is None:
            continue
        series = _nodeOfRole("vtkMRMLPlotSeriesNode", f"figures {figure}", figure)
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeBar)
        series.SetYColumnName(figure)
        series.SetLabelColumnName("method")
        series.SetColor(*color)
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle("Before and after")
    chart.SetXAxisTitle("method")
    return chart


def writeTable(table: vtkMRMLTableNode, path: str | Path) -> None:
    """Write a table node as a CSV file, whole or not at all. Raises InputError if it cannot be written.

    `slicer.util.saveNode` leaves an incomplete file when interrupted, and the scene would save the table there later.
    """
    table = table.GetTable()
    columns = range(table.GetNumberOfColumns())
    lines = [",".join(table.GetColumnName(column) for column in columns)]
    for row in range(table.GetNumberOfRows()):
        lines.append(",".join(table.GetValue(row, column).ToString() for column in columns))
    replace_file(path, ("\n".join(lines) + "\n").encode())


def _nodeOfRole(kind: str, role: str, name: str, create: bool = True) -> vtkMRMLNode | None:
    """Return the node of this role; create it if there is none."""
    for node in slicer.util.getNodesByClass(kind):
        if node.GetAttribute(ROLE) == role:
            return node
    if not create:
        return None
    node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    node.SetAttribute(ROLE, role)
    return node
