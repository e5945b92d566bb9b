"""Show the progress of training runs in the scene: curves, charts, previews, and comparisons of trained models."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import slicer
import vtk
from slicer import vtkMRMLNode, vtkMRMLTableNode
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from Speckle2SelfLib import library, metrics
from Speckle2SelfLib.system import InputError

from . import comparison, scene
from .session import Session
from .words import translate_sentence

RUN, ROLE = "SpeckleTrain.run", "SpeckleTrain.role"  # attributes of the nodes that show a run
COMPARISON = "SpeckleTrain.compared"  # attribute of a comparison's nodes: their first name, and the node they belong to
ROLES = {  # role -> class and title
    "table": ("vtkMRMLTableNode", "curve"),
    "loss": ("vtkMRMLPlotChartNode", "loss"),
    "errors": ("vtkMRMLPlotChartNode", "true error"),
    "figures": ("vtkMRMLPlotChartNode", "figures"),
    "before": ("vtkMRMLScalarVolumeNode", "held-out frame"),
    "after": ("vtkMRMLScalarVolumeNode", "held-out frame despeckled"),
}
UNCERTAINTY = ("vtkMRMLScalarVolumeNode", "uncertainty of the held-out frame (%)")  # class and title, for some models
MOST = 7.0  # % of the grey range; a preview shows this uncertainty in white
LEGEND = 10  # points; the default of 20 hides half of the curves
HELD_OUT = "held-out "  # before the name of a term of the loss
COLORS = [  # colors of curves; Okabe and Ito's, which color-blind people can distinguish, without the yellow
    (0.0, 0.45, 0.70), (0.84, 0.37, 0.0), (0.0, 0.62, 0.45), (0.8, 0.47, 0.65), (0.90, 0.60, 0.0), (0.34, 0.71, 0.91),
]  # fmt: skip


def showRun(job) -> dict[str, vtkMRMLNode]:
    """Show a run's curves and its preview in the scene; called again, it updates the same nodes.

    Returns them: `table`, `loss`, `errors` and `figures` (charts), `before` and `after` (a held-out frame), and, for
    models that estimate it, `uncertainty` (% of the grey range).
    """
    nodes = runNodes(slicer.mrmlScene, job.name)
    updateTable(nodes["table"], job.reports)
    updateCharts(slicer.mrmlScene, job.name, nodes, job.reports)
    estimates = any("uncertainty" in name for name in (job.reports[-1] if job.reports else {}))  # as a term of the loss
    picture = _pixels(job.picture())
    if picture is not None and picture.shape[1] % (3 if estimates else 2) == 0:
        if estimates:
            nodes["uncertainty"] = _node(slicer.mrmlScene, UNCERTAINTY[0], job.name, "uncertainty", UNCERTAINTY[1])
        updatePreview(nodes, picture, job.nodes)
    return nodes


def _pixels(png: bytes | None) -> np.ndarray | None:
    """Return the pixels (H, 2 W or 3 W) uint8 of a run's preview; None if it cannot be read."""
    if not png:
        return None
    reader = vtk.vtkPNGReader()
    with tempfile.TemporaryDirectory() as folder:  # VTK's way to read memory changed with version 9.6
        path = Path(folder, "preview.png")
        path.write_bytes(png)
        if not reader.CanReadFile(str(path)):
            return None
        reader.SetFileName(str(path))
        reader.Update()
    image = reader.GetOutput()
    columns, rows, _one = image.GetDimensions()
    scalars = image.GetPointData().GetScalars()
    if scalars is None or scalars.GetNumberOfComponents() != 1 or not rows:
        return None
    return vtk_to_numpy(scalars).reshape(rows, columns)[::-1]  # VTK's rows begin at the bottom


def runNodes(mrmlScene, name: str) -> dict:
    """Return the nodes that show a run, found by their attribute; create missing ones."""
    return {role: _node(mrmlScene, kind, name, role, f"{name} {title}") for role, (kind, title) in ROLES.items()}


def _node(mrmlScene, kind: str, run: str, role: str, title: str):
    for number in range(mrmlScene.GetNumberOfNodesByClass(kind)):
        node = mrmlScene.GetNthNodeByClass(number, kind)
        if (node.GetAttribute(RUN), node.GetAttribute(ROLE)) == (run, role):
            return node
    node = mrmlScene.AddNewNodeByClass(kind, title)
    node.SetAttribute(RUN, run)
    node.SetAttribute(ROLE, role)
    return node


def _columns(reports: list[dict]) -> list[str]:
    """Return the names of the columns of a run's table, `step` first."""
    left_out = {"step", "steps", "rate", "seconds_left", "preview"}
    names = {name: None for report in reports for name, value in report.items() if isinstance(value, (int, float))}
    return ["step", *(name for name in names if name not in left_out)]


def _label(name: str) -> str:
    """Return a column's name for a legend or a table, in plain words in the user's language if there are any."""
    figure = metrics.FIGURES.get(name)
    return translate_sentence(figure.label) if figure and figure.label else name


def updateTable(node, reports: list[dict]) -> None:
    with slicer.util.NodeModify(node):
        node.RemoveAllColumns()
        for name in _columns(reports):
            values = np.array([report.get(name, np.nan) for report in reports], float)
            column = numpy_to_vtk(values, deep=True)
            column.SetName(name)
            node.AddColumn(column)


def updateCharts(mrmlScene, run: str, nodes: dict, reports: list[dict]) -> None:
    """Update the series of the charts of losses, errors to a known truth and other figures of merit; add a series for a
    new term. Held-out values are circles in their term's color: VTK cannot draw a line across the steps between
    them."""
    charts: dict[str, list[str]] = {"loss": [], "errors": [], "figures": []}
    for name in _columns(reports)[1:]:
        role = "errors" if name in metrics.ERRORS else "figures" if name in metrics.FIGURES else "loss"
        charts[role].append(name)
    for role, names in charts.items():
        chart, terms = nodes[role], list(dict.fromkeys(name.removeprefix(HELD_OUT) for name in names))
        for name in names:
            series = _node(mrmlScene, "vtkMRMLPlotSeriesNode", run, name, _label(name))
            if series.GetTableNode() is not nodes["table"]:
                series.SetAndObserveTableNodeID(nodes["table"].GetID())
                series.SetXColumnName("step")
                series.SetYColumnName(name)
                series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
                isHeldOut = name.startswith(HELD_OUT) or role != "loss"
                series.SetMarkerStyle(series.MarkerStyleCircle if isHeldOut else series.MarkerStyleNone)
                series.SetLineStyle(series.LineStyleNone if isHeldOut else series.LineStyleSolid)
                series.SetColor(*COLORS[terms.index(name.removeprefix(HELD_OUT)) % len(COLORS)])
            if not chart.HasPlotSeriesNodeID(series.GetID()):
                chart.AddAndObservePlotSeriesNodeID(series.GetID())
        chart.SetLegendFontSize(LEGEND)
        chart.SetTitle(f"{run}: {ROLES[role][1]}")
        chart.SetXAxisTitle("step")
        if role == "errors":
            chart.SetYAxisTitle("fraction of the grey range")


def updatePreview(nodes: dict, picture: np.ndarray, recordings: Iterable[vtkMRMLNode] = ()) -> None:
    """Show the parts of a preview (H, 2 W), or (H, 3 W) with an uncertainty, as volumes, each a frame.

    They are placed at the middle frame of the first recording with frames of this size; without one, upright in the
    axial plane.
    """
    roles = [role for role in ("before", "after", "uncertainty") if role in nodes]
    parts = np.hsplit(picture, len(roles))
    recordingsOfSize = (_recordingOfSize(node, parts[0].shape) for node in recordings)
    recording = next((each for each in recordingsOfSize if each is not None), None)
    for role, part in zip(roles, parts, strict=True):
        volume, axis = nodes[role], recording.axis() if recording else 0
        values = part * np.float32(MOST / 255) if role == "uncertainty" else part
        slicer.util.updateVolumeFromArray(volume, np.ascontiguousarray(np.expand_dims(values, axis)))
        if recording:
            middle = recording.shape[1 + axis] // 2
            scene.placeLike(volume, recording.reference, scene.slicePlace(recording.reference, axis, middle))
        else:
            volume.SetIJKToRASDirections(-1, 0, 0, 0, -1, 0, 0, 0, 1)  # the first row on top, as in the picture
        if volume.GetDisplayNode() is None:
            volume.CreateDefaultDisplayNodes()
            if role == "uncertainty":
                volume.GetDisplayNode().SetAutoWindowLevel(False)
                volume.GetDisplayNode().SetWindowLevelMinMax(0, MOST)


def _recordingOfSize(node: vtkMRMLNode, size: tuple[int, int]) -> scene.Recording | None:
    """Return the recording of a node if its frames have this size (H, W)."""
    try:
        recording = scene.Recording.of(node)
        return recording if recording.size[1:] == size else None
    except InputError:  # it was removed, or no longer has an image
        return None


def correlationPicture(curves):
    """Return a pixmap of the speckle's autocorrelation against distance, along the columns and along the rows."""
    import qt

    width, height = 320, 90
    picture = qt.QPixmap(width, height)
    picture.fill(qt.QColor("white"))
    pen = qt.QPainter(picture)
    pen.setPen(qt.QColor("#bbbbbb"))
    pen.drawLine(0, height // 2, width, height // 2)
    for curve, color, words, place in zip(
        curves, ("#2471a3", "#ca6f1e"), (_("down"), _("across")), (60, 120), strict=True
    ):
        pen.setPen(qt.QColor(color))
        points = [(4 + i * (width - 8) // max(1, len(curve) - 1), 4 + (1 - value) * (height - 8))
                  for i, value in enumerate(curve)]  # fmt: skip
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            pen.drawLine(int(x0), int(y0), int(x1), int(y1))
        pen.drawText(width - place, 14, words)
    pen.end()
    return picture


#
# Models compared
#


def comparisonTable(model: str) -> vtkMRMLTableNode:
    """Return a table node with figures of merit of a trained model and of the one it started from, on held-out frames.
    Called again, it updates the same table, unless that was renamed. Raises InputError."""
    card = library.card(model)
    start, end = card.get("figures_at_start") or {}, card.get("figures") or {}
    name = f"{model} compared"
    table = _findComparisonNode("vtkMRMLTableNode", name) or slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
    _markComparisonNode(table, name)
    columns = (
        ("figure", [_label(name) for name in end]),
        ("start", [start.get(name, "") for name in end]),
        ("trained", list(end.values())),
    )
    with slicer.util.NodeModify(table):
        table.RemoveAllColumns()
        for title, values in columns:
            column = vtk.vtkStringArray()
            column.SetName(title)
            for value in values:
                column.InsertNextValue(f"{value:.4f}" if isinstance(value, float) else str(value))
            table.AddColumn(column)
    table.SetAttribute("Speckle2Self.figuresAreOf", str(card.get("figures_are_of", "")))
    return table


class Comparison:
    """Despeckle the image that a node shows now by `model` and, if available, by the model that it started from. Call
    `step` from a timer until it returns True, then `show`.

    Images of an earlier comparison are updated, unless they were renamed. Raises InputError.
    """

    def __init__(self, session: Session, node: vtkMRMLNode | str, model: str):
        volume = scene.proxyOf(scene.find(node))
        names = [name for name in (library.card(model).get("start"), model) if name in library.models()]
        kind = scene.VOLUMES.get(volume.GetClassName(), "")
        self.previews = {}
        for name in names:
            earlier = _findComparisonNode(kind, _previewTitle(volume, name), volume)
            self.previews[name] = session.live(volume, once=True, model=name, output=earlier)

    def step(self) -> bool:
        """Collect results; return whether all have arrived."""
        for preview in self.previews.values():
            preview.step()
        return not any(preview.waiting for preview in self.previews.values())

    def show(self) -> None:
        """Name the images, and show them side by side. Raises InputError if one failed."""
        outputs = []
        for name, preview in self.previews.items():
            preview.stop()
            if preview.state == "failed":
                raise InputError(preview.message)
            if preview.output is not None:
                _markComparisonNode(preview.output, _previewTitle(preview.node, name), preview.node)
                outputs.append(preview.output)
        if len(outputs) == 2:
            comparison.sideBySide(*outputs)


def _previewTitle(volume, model: str) -> str:
    return f"{volume.GetName()} by {model}"


def _findComparisonNode(kind: str, title: str, of=None):
    """Return the node that a comparison created with this title for the node `of`, unless it was renamed; None
    without."""
    for node in slicer.util.getNodesByClass(kind) if kind else []:
        if node.GetName() == title == node.GetAttribute(COMPARISON) and node.GetNodeReference(COMPARISON) is of:
            return node
    return None


def _markComparisonNode(node, title: str, of=None) -> None:
    """Set the name and the mark of a comparison's node, so that `_findComparisonNode` finds it."""
    node.SetName(title)
    node.SetAttribute(COMPARISON, title)
    node.SetNodeReferenceID(COMPARISON, of.GetID() if of is not None else None)
