"""Looking at a result beside its input: views, outline of the region, difference, figures of merit. All in MRML."""

from __future__ import annotations

from html import escape
from typing import Union

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from Speckle2SelfLib import library, volumes
from Speckle2SelfLib.grey import luminance
from Speckle2SelfLib.system import InputError, replace_file

from . import scene

ROLE = "Speckle2Self.role"  # attribute of the nodes that are made here, so that they are found again
DIFFERENT = "'{}' and '{}' differ in size; choose an output of this input."
FIGURES = ("mean", "std", "SNR", "CNR", "gCNR", "homogeneity")
# For parameter nodes: Slicer binds node selectors to typing.Union alone (not to A | B), and stores "no node" only where
# None is one of them.
RegionNode = Union[slicer.vtkMRMLSegmentationNode, slicer.vtkMRMLMarkupsROINode, None]  # noqa: UP007


def shown(node):
    """The volume that shows a node: itself, or the proxy of a sequence."""
    if node is not None and node.IsA("vtkMRMLSequenceNode"):
        return scene.proxy(node)
    return node


def placed(node):
    """The volume that tells where the frames of a node lie: as `shown`, or the first of a sequence that no browser
    shows. Raises InputError for a node without any."""
    try:
        return shown(node)
    except InputError:
        return scene.source(node).volumes[0]


def seen(node):
    """As `shown`; None where no browser shows the sequence."""
    try:
        return shown(node)
    except InputError:
        return None


def inViews(node) -> bool:
    """Whether a slice view shows a node."""
    volume, composites = seen(node), _each("vtkMRMLSliceCompositeNode")
    return volume is not None and any(view.GetBackgroundVolumeID() == volume.GetID() for view in composites)


def frameSize(volume, axis: int) -> tuple[int, int]:
    """Rows and columns (H, W) of the frames that a volume is cut into along an axis of (K, J, I). InputError."""
    return tuple(side for number, side in enumerate(scene.shapeOf(volume)) if number != axis)


def axisOf(volume, axis: str = "auto") -> int:
    """The axis of (K, J, I) along which a volume is cut into frames; see `volumes.slicing_axes`. InputError."""
    source = scene.source(volume)
    chosen = volumes.slicing_axes(next(scene.voxels(source)).shape[:3], source.spacing, axis)
    if len(chosen) > 1:
        raise InputError("Frames of three orientations differ in size; choose one axis, or another region.")
    return chosen[0]


def grey(volume) -> np.ndarray:
    """A volume's grey values (K, J, I) float32; InputError where it has none."""
    return luminance(next(scene.voxels(scene.Source(volume, [volume]))))


#
# Regions
#


def inside(volume, regionNode, which: str = "all") -> np.ndarray:
    """Bool (K, J, I): the voxels of a volume that lie in a box (markups ROI) or in segments.

    which: of a segmentation, "all" visible segments, the "first" or the "last" one. InputError where none do.
    """
    size = scene.shapeOf(volume)
    if not isinstance(regionNode, (slicer.vtkMRMLSegmentationNode, slicer.vtkMRMLMarkupsROINode)):
        raise InputError("Choose a segmentation or a box (ROI) first.")
    if regionNode.IsA("vtkMRMLSegmentationNode"):
        segments = regionNode.GetSegmentation()
        names = [segments.GetNthSegmentID(number) for number in range(segments.GetNumberOfSegments())]
        display = regionNode.GetDisplayNode()
        if which == "all" and display is not None:
            names = [name for name in names if display.GetSegmentVisibility(name)]
        names = names if which == "all" else names[:1] if which == "first" else names[-1:]
        mask = np.zeros(size, bool)
        for name in names:
            found = slicer.util.arrayFromSegmentBinaryLabelmap(regionNode, name, volume)
            if found is not None:
                mask |= found != 0
    else:
        mask = _inBox(volume, regionNode, size)
    if not mask.any():
        raise InputError(f"'{regionNode.GetName()}' covers no part of '{volume.GetName()}'.")
    return mask


def _inBox(volume, box, size) -> np.ndarray:
    warp = volume.GetParentTransformNode()
    if warp is not None and not warp.IsTransformToWorldLinear():
        raise InputError(
            f"'{volume.GetName()}' is under the transform '{warp.GetName()}', which is not linear; take a segmentation."
        )
    toWorld, toBox = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(toWorld)
    parent = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(volume.GetParentTransformNode(), None, parent)
    vtk.vtkMatrix4x4.Multiply4x4(parent, toWorld, toWorld)
    vtk.vtkMatrix4x4.Invert(box.GetObjectToWorldMatrix(), toBox)
    vtk.vtkMatrix4x4.Multiply4x4(toBox, toWorld, toWorld)
    matrix = slicer.util.arrayFromVTKMatrix(toWorld)
    grid = np.ix_(*(np.arange(n, dtype=np.float32) for n in size))[::-1]  # I, J, K, to be broadcast
    mask = np.ones(size, bool)
    for row, side in zip(matrix[:3], box.GetSize(), strict=True):
        along = sum(weight * axis for weight, axis in zip(row[:3], grid, strict=True)) + row[3]
        mask &= np.abs(along) <= side / 2 + 1e-3
    return mask


def frameMask(volume, regionNode, axis: int) -> np.ndarray:
    """`inside` for frames cut along an axis of (K, J, I): the pixels (H, W) that are inside in any of them."""
    return inside(volume, regionNode).any(axis)


def placeBox(box, volume) -> None:
    """Puts a box (markups ROI) into the middle of a volume, over a quarter of each side and the whole depth."""
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    sides = np.array(bounds[1::2]) - bounds[::2]
    box.SetCenterWorld(*(np.array(bounds[1::2]) + bounds[::2]) / 2)
    frames = np.argmin(sides)
    box.SetSizeWorld(*(side if i == frames else side / 4 for i, side in enumerate(sides)))
    if box.GetDisplayNode() is None:
        box.CreateDefaultDisplayNodes()


def rememberRegion(volume, region: np.ndarray) -> None:
    """Keeps a region (H, W) bool for other recordings of this scanner with frames of this size."""
    image = vtk.vtkImageData()
    image.SetDimensions(region.shape[1], region.shape[0], 1)
    pixels = numpy_to_vtk(np.where(region[::-1], 255, 0).astype(np.uint8).ravel(), deep=True)
    image.GetPointData().SetScalars(pixels)  # VTK's rows begin below
    writer = vtk.vtkPNGWriter()
    writer.SetInputData(image)
    writer.WriteToMemoryOn()
    writer.Write()
    library.remember_region(_kind(volume, region.shape), vtk_to_numpy(writer.GetResult()).tobytes())


def rememberedRegion(volume, shape) -> np.ndarray:
    """The region (H, W) bool kept last for this scanner and this size of frames. InputError where there is none."""
    path = library.remembered_region(_kind(volume, shape))
    reader = vtk.vtkPNGReader()
    if path is not None and reader.CanReadFile(str(path)):
        reader.SetFileName(str(path))
        reader.Update()
        columns, rows, _one = reader.GetOutput().GetDimensions()
        if (rows, columns) == tuple(shape):
            return vtk_to_numpy(reader.GetOutput().GetPointData().GetScalars()).reshape(shape)[::-1] != 0
    raise InputError("Choose a segmentation or a box (ROI) first; none was given for frames of this size before.")


def _kind(volume, shape) -> str:
    """What recordings share a region: the scanner, where DICOM tells it, and the size of their frames."""
    identifiers = (volume.GetAttribute("DICOM.instanceUIDs") or "").split()
    database = getattr(slicer, "dicomDatabase", None)
    tags = ("0008,0070", "0008,1090")  # manufacturer, model
    scanner = [database.instanceValue(identifiers[0], tag) for tag in tags] if identifiers and database else []
    return "_".join([*scanner, f"{shape[1]}x{shape[0]}"])


def showRegion(volume, region, axis: int) -> None:
    """Outlines `region` (H, W) or (1, 1) bool on the volume in all slice views; None takes the outline away, and brings
    back what the views showed of label maps. It is not saved. Raises InputError where the region does not fit."""
    if region is not None:
        if region.shape not in ((1, 1), frameSize(volume, axis)):
            raise InputError(f"'{volume.GetName()}' has changed its size; show its region again.")
        labels = np.broadcast_to(np.expand_dims(region, axis), scene.shapeOf(volume)).astype(np.uint8)
    outline = _made("vtkMRMLLabelMapVolumeNode", "outline", "Outline of the region", create=region is not None)
    views, composites = _each("vtkMRMLSliceNode"), _each("vtkMRMLSliceCompositeNode")
    if region is None:
        if outline is not None:
            for view in views:
                if outline.GetAttribute(view.GetID()) == "filled":
                    view.SetUseLabelOutline(False)
            for composite in composites:
                if composite.GetLabelVolumeID() == outline.GetID():
                    before = slicer.mrmlScene.GetNodeByID(outline.GetAttribute(composite.GetID()) or "")
                    composite.SetLabelVolumeID(before.GetID() if before is not None else None)
            slicer.mrmlScene.RemoveNode(outline.GetDisplayNode())
            slicer.mrmlScene.RemoveNode(outline)
        return
    slicer.util.updateVolumeFromArray(outline, labels)
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    outline.SetIJKToRASMatrix(matrix)
    outline.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    outline.SetSaveWithScene(False)
    if outline.GetDisplayNode() is None:
        outline.CreateDefaultDisplayNodes()
        outline.GetDisplayNode().SetSaveWithScene(False)
        for view in views:
            outline.SetAttribute(view.GetID(), "outlined" if view.GetUseLabelOutline() else "filled")
        for composite in composites:
            outline.SetAttribute(composite.GetID(), composite.GetLabelVolumeID() or "")
    for view in views:
        view.SetUseLabelOutline(True)
    for composite in composites:
        composite.SetLabelVolumeID(outline.GetID())


def changed(regionNode) -> int:
    """When a segmentation or a box was changed last, in VTK's count."""
    parts = [regionNode]
    if regionNode.IsA("vtkMRMLSegmentationNode"):
        segments = regionNode.GetSegmentation()
        chosen = [segments.GetNthSegment(number) for number in range(segments.GetNumberOfSegments())]
        drawn = [segment.GetRepresentation(segments.GetSourceRepresentationName()) for segment in chosen]
        parts += [segments, *chosen, *drawn, regionNode.GetDisplayNode()]  # which knows what segments are visible
    return max(part.GetMTime() for part in parts if part is not None)


class Outline:
    """The region of a node, outlined in the slice views. What is not given is searched for in the background: call
    `step` from a timer while it is `searching`.

    logic: that of Speckle2Self. orWhole: where nothing looks like ultrasound, it is whole frames, and not nothing.
    """

    def __init__(self, logic, orWhole: bool = False):
        self._logic, self._orWhole, self._search = logic, orWhole, None

    @property
    def searching(self) -> bool:
        """Whether the region is still to be found."""
        return self._search is not None

    def show(self, node, region: str, regionNode=None, axis: str = "auto") -> None:
        """Outlines "auto": what looks like ultrasound, "none": whole frames, "given": what regionNode covers, or where
        that is None, what was given last. Raises InputError, and shows nothing then."""
        self._end()
        try:
            if region == "auto":
                self.hide()
                self._search = self._logic.start(node, axis=axis, model="median", onlyRegion=True)
            else:
                volume = placed(node)
                pixels = self._logic.region(node, regionNode, axis) if region == "given" else np.ones((1, 1), bool)
                showRegion(volume, pixels, axisOf(volume, axis))
        except InputError:
            self.hide()
            raise

    def step(self) -> None:
        """Shows what has been found; returns at once. Raises InputError where that failed."""
        search = self._search
        self._logic.worker.poll()
        search.step()
        if search.region is None and not search.ended:
            return
        self._end()
        if search.state == "failed":
            raise InputError(search.message)
        found = search.region
        if self._orWhole and found is not None and not found.any():
            found = ~found
        if search.source.node.GetScene() is not None:
            showRegion(placed(search.source.node), found, search.axes[0])

    def hide(self) -> None:
        """Takes the outline away, or ends the search for it."""
        self._end()
        showRegion(None, None, 0)

    def _end(self) -> None:
        if self._search is not None:
            self._search.abandon()
            self._search = None


#
# Views
#


def sideBySide(before, after) -> None:
    """Input in the red, output in the yellow slice view, both as the red one is turned, and linked."""
    before, after = shown(before), shown(after)
    if slicer.app.layoutManager() is not None:
        slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView)
    views = {view.GetLayoutName(): view for view in _each("vtkMRMLSliceNode")}
    composites = {composite.GetLayoutName(): composite for composite in _each("vtkMRMLSliceCompositeNode")}
    for name, volume in (("Red", before), ("Yellow", after)):
        composites[name].SetLinkedControl(False)
        composites[name].SetForegroundVolumeID(None)
        composites[name].SetBackgroundVolumeID(volume.GetID())
    if "Yellow" in views:
        views["Yellow"].SetOrientation(views["Red"].GetOrientation())
        views["Yellow"].GetSliceToRAS().DeepCopy(views["Red"].GetSliceToRAS())
        views["Yellow"].SetFieldOfView(*views["Red"].GetFieldOfView())
        views["Yellow"].UpdateMatrices()
    for name in ("Red", "Yellow"):
        composites[name].SetLinkedControl(True)


def fade(before, after, share: float) -> None:
    """Input and output one over the other in all slice views; share: 0 the input, 1 the output."""
    before, after = shown(before), shown(after)
    for composite in _each("vtkMRMLSliceCompositeNode"):
        composite.SetBackgroundVolumeID(before.GetID())
        composite.SetForegroundVolumeID(after.GetID())
        composite.SetForegroundOpacity(share)


def restoreViews(removed, replacement) -> None:
    """Where slice views show `removed`, a volume or its sequence, they show `replacement`."""
    gone = {node.GetID() for node in (removed, seen(removed)) if node is not None}
    back = replacement.GetID() if replacement is not None else None
    for composite in _each("vtkMRMLSliceCompositeNode"):
        if composite.GetForegroundVolumeID() in gone:
            composite.SetForegroundVolumeID(None)
        if composite.GetBackgroundVolumeID() in gone:
            composite.SetBackgroundVolumeID(back)


def difference(before, after):
    """A volume: input less output of what is shown now, with a fixed window of a quarter of the range about zero."""
    before, after = shown(before), shown(after)
    one, two = grey(before), grey(after)
    if one.shape != two.shape:
        raise InputError(DIFFERENT.format(before.GetName(), after.GetName()))
    kind = next(scene.voxels(scene.Source(before, [before]))).dtype
    span = float(np.iinfo(kind).max) if kind == np.uint8 else float(np.ptp(one[np.isfinite(one)])) or 1.0
    node = _made("vtkMRMLScalarVolumeNode", "difference", "Difference")
    slicer.util.updateVolumeFromArray(node, one - two)
    matrix = vtk.vtkMatrix4x4()
    before.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveTransformNodeID(before.GetTransformNodeID())
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().AutoWindowLevelOff()
    node.GetDisplayNode().SetWindowLevel(span / 4, 0)
    return node


#
# Figures
#


def evaluate(before, after, tissueNode, lumenNode=None, filterName: str = "none"):
    """Figures of merit of what is shown now, before and after, and by a classical filter: a table and a plot node.

    tissueNode: a box, or a segmentation whose first segment is taken; lumenNode: a box or a segmentation whose last
    segment is taken, for contrast. Definitions: `Speckle2SelfLib.metrics`. Returns (table, chart). InputError.
    """
    from Speckle2SelfLib import metrics
    from Speckle2SelfLib.filters import FILTERS

    before, after = shown(before), shown(after)
    one, two = grey(before), grey(after)
    if one.shape != two.shape:
        raise InputError(DIFFERENT.format(before.GetName(), after.GetName()))
    tissue = inside(before, tissueNode, "first")
    lumen = inside(before, lumenNode, "last") if lumenNode is not None else None
    known = np.isfinite(one) & np.isfinite(two)
    low, high = (float(f(one[known])) if known.any() else 0.0 for f in (np.min, np.max))
    if high <= low:
        raise InputError(f"'{before.GetName()}' is constant; there is nothing to measure.")
    axis = int(np.argmin(one.shape))
    others, tissue = tuple(i for i in range(3) if i != axis), tissue & known
    counts = tissue.sum(others)
    if lumen is not None:
        lumen = lumen & known
        counts = counts * lumen.sum(others)
    number = int(np.argmax(counts))
    if not counts[number]:
        raise InputError("What is chosen has no voxel with a value, or tissue and lumen have no slice in common.")
    cut = lambda x: np.take(x, number, axis)  # noqa: E731
    image, result = ((cut(np.where(known, x, low)) - low) / (high - low) * 255 for x in (one, two))
    rows = {"input": image, "despeckled": result}
    if filterName in FILTERS:
        rows[filterName] = FILTERS[filterName](image[None].astype(np.float32) / 255)[0] * 255
    figures = {}
    for name, frame in rows.items():
        mapped = metrics.matched(image, frame)
        values = mapped[cut(tissue)]
        found = {"mean": frame[cut(tissue)].mean(), "std": frame[cut(tissue)].std(), "SNR": metrics.snr(values)}
        if lumen is not None:
            other = mapped[cut(lumen)]
            found |= {"CNR": metrics.cnr(other, values), "gCNR": metrics.gcnr(other, values)}
        found["homogeneity"] = metrics.homogeneity(image, frame)
        figures[name] = {figure: float(value) for figure, value in found.items()}
    return _table(figures), _chart(figures)


def figures():
    """The table node of the last `evaluate` in the scene; None where there is none."""
    return _made("vtkMRMLTableNode", "figures", "", create=False)


def asHtml(table) -> str:
    """A table node as text for a label."""
    table = table.GetTable()
    columns = range(table.GetNumberOfColumns())
    rows = ["".join(f"<th align='right'>{escape(table.GetColumnName(column))}</th>" for column in columns)]
    for row in range(table.GetNumberOfRows()):
        values = [table.GetValue(row, column) for column in columns]
        texts = [value.ToString() if value.IsString() else f"{value.ToDouble():#.3g}" for value in values]
        rows.append("".join(f"<td align='right'>{escape(text)}</td>" for text in texts))
    return "<table cellspacing='4'>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _table(figures: dict):
    table = _made("vtkMRMLTableNode", "figures", "Figures")
    with slicer.util.NodeModify(table):
        table.RemoveAllColumns()
        methods = vtk.vtkStringArray()
        methods.SetName("method")
        for name in figures:
            methods.InsertNextValue(name)
        table.AddColumn(methods)
        for figure in FIGURES:
            if not all(figure in found for found in figures.values()):
                continue
            column = vtk.vtkDoubleArray()
            column.SetName(figure)
            for found in figures.values():
                column.InsertNextValue(found[figure])
            table.AddColumn(column)
    return table


def _chart(figures: dict):
    """Bars of SNR and, where measured, CNR of each method."""
    table, chart = (
        _made("vtkMRMLTableNode", "figures", ""),
        _made("vtkMRMLPlotChartNode", "figures plot", "Figures plot"),
    )
    chart.RemoveAllPlotSeriesNodeIDs()
    for figure, colour in (("SNR", (0.2, 0.5, 0.8)), ("CNR", (0.9, 0.6, 0.2))):
        if not all(figure in found for found in figures.values()):
            continue
        series = _made("vtkMRMLPlotSeriesNode", f"figures {figure}", figure)
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeBar)
        series.SetYColumnName(figure)
        series.SetLabelColumnName("method")
        series.SetColor(*colour)
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle("Before and after")
    chart.SetXAxisTitle("method")
    return chart


def writeTable(table, path) -> None:
    """A table node as a CSV file, whole or not at all. InputError where it cannot be written."""
    table = table.GetTable()
    columns = range(table.GetNumberOfColumns())
    lines = [",".join(table.GetColumnName(column) for column in columns)]
    for row in range(table.GetNumberOfRows()):
        lines.append(",".join(table.GetValue(row, column).ToString() for column in columns))
    replace_file(path, ("\n".join(lines) + "\n").encode())


def _each(kind: str) -> list:
    return [slicer.mrmlScene.GetNthNodeByClass(i, kind) for i in range(slicer.mrmlScene.GetNumberOfNodesByClass(kind))]


def _made(kind: str, role: str, name: str, create: bool = True):
    """The node of this role; made if there is none."""
    for node in _each(kind):
        if node.GetAttribute(ROLE) == role:
            return node
    if not create:
        return None
    node = slicer.mrmlScene.AddNewNodeByClass(kind, name)
    node.SetAttribute(ROLE, role)
    return node
