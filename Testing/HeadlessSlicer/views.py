"""Pictures of volumes as Slicer's slice views show them, without window: Slicer's own slice pipeline, offscreen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import slicer
import vtk
from PIL import Image, ImageDraw, ImageFont
from vtk.util.numpy_support import vtk_to_numpy

MARGIN = 12  # pixels around and between the views
BACKGROUND = (24, 26, 32)
TEXT = (235, 238, 245)


def sliceView(volume, size: tuple[int, int], zoom: float = 1.0, centre=(0.5, 0.5)) -> np.ndarray:
    """Return one slice view (height, width, 3) uint8 of a volume node, at its middle slice.

    The image's rows run downwards and its columns to the right, whatever its orientation in the patient. Colors,
    window and interpolation are those of the volume's display node.

    size: width and height of the view in pixels.
    zoom: magnification beyond the fit of the whole slice; center: the point in the middle, in fractions of the
    image's width and height.
    """
    scene = slicer.vtkMRMLScene()
    colours = slicer.vtkMRMLColorLogic()
    colours.SetMRMLScene(scene)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    shown = _copy(volume, scene)
    logic = slicer.vtkMRMLSliceLogic()
    logic.SetMRMLScene(scene)
    view = logic.AddSliceNode("Red")
    view.SetDimensions(*size, 1)
    view.GetSliceToRAS().DeepCopy(_facing(shown, centre))
    view.UpdateMatrices()
    logic.GetSliceCompositeNode().SetBackgroundVolumeID(shown.GetID())
    spacing, extent = shown.GetSpacing(), shown.GetImageData().GetDimensions()
    wide, tall = spacing[0] * extent[0], spacing[1] * extent[1]
    millimetres = max(wide / size[0], tall / size[1]) / zoom
    view.SetFieldOfView(size[0] * millimetres, size[1] * millimetres, min(spacing))
    seen = pixels(logic)
    logic.SetMRMLScene(None)
    return seen


def pixels(logic) -> np.ndarray | None:
    """Return the image (height, width, 3) uint8 that a slice logic shows; None without one."""
    logic.UpdatePipeline()
    port = logic.GetImageDataConnection()
    if port is None:
        return None
    port.GetProducer().Update()
    image = port.GetProducer().GetOutputDataObject(port.GetIndex())
    width, height, _one = image.GetDimensions()
    values = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1].astype(float)
    return (values[..., :3] * values[..., 3:] / 255).round().astype(np.uint8)


def _copy(volume, scene):
    """Return a copy of the volume with its display and color table, in a separate scene."""
    node = scene.AddNewNodeByClass(volume.GetClassName())
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveImageData(volume.GetImageData())
    node.SetVoxelVectorType(volume.GetVoxelVectorType())
    node.CreateDefaultDisplayNodes()
    display = volume.GetDisplayNode()
    if display is not None:
        node.GetDisplayNode().CopyContent(display)
        colours = display.GetColorNode()
        if colours is not None and scene.GetNodeByID(colours.GetID()) is None:
            own = scene.AddNewNodeByClass(colours.GetClassName())
            own.CopyContent(colours)
            node.GetDisplayNode().SetAndObserveColorNodeID(own.GetID())
    return node


def _facing(volume, centre):
    """Return the slice-to-RAS matrix of a view on the volume's middle slice, with rows running downwards.

    Left-handed, as all of Slicer's own orientations are.
    """
    toRas = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(toRas)
    rows = np.array([[toRas.GetElement(r, c) for c in range(4)] for r in range(4)])
    right = rows[:3, 0] / np.linalg.norm(rows[:3, 0])
    up = -rows[:3, 1] / np.linalg.norm(rows[:3, 1])
    extent = volume.GetImageData().GetDimensions()
    middle = [centre[0] * (extent[0] - 1), centre[1] * (extent[1] - 1), extent[2] // 2, 1]
    matrix = vtk.vtkMatrix4x4()
    for r in range(3):
        for c, column in enumerate((right, up, np.cross(up, right), (rows @ middle)[:3])):
            matrix.SetElement(r, c, column[r])
    return matrix


def render(volumes: list, labels: list[str], path: Path, height: int = 420, closer=None) -> None:
    """Write a PNG of slice views side by side, each with its label above.

    volumes: volume nodes; height: of each view in pixels, its width follows from the first volume's shape.
    closer: (zoom, center) of a second row of views; None: one row.
    """
    image = volumes[0].GetImageData().GetDimensions()
    spacing = volumes[0].GetSpacing()
    shape = image[0] * spacing[0] / (image[1] * spacing[1])
    size = (round(height * min(max(shape, 0.4), 2.5)), height)
    rows = [[sliceView(volume, size) for volume in volumes]]
    if closer:
        rows.append([sliceView(volume, size, *closer) for volume in volumes])
    font = ImageFont.load_default(size=20)
    caption = 34
    page = Image.new(
        "RGB",
        (
            MARGIN + len(volumes) * (size[0] + MARGIN),
            caption + len(rows) * (size[1] + MARGIN) + MARGIN // 2,
        ),
        BACKGROUND,
    )
    pen = ImageDraw.Draw(page)
    for column, label in enumerate(labels):
        x = MARGIN + column * (size[0] + MARGIN)
        pen.text((x + size[0] / 2, caption / 2 + 2), label, fill=TEXT, font=font, anchor="mm")
        for row, views in enumerate(rows):
            page.paste(Image.fromarray(views[column]), (x, caption + row * (size[1] + MARGIN)))
    page.save(path)


def arrange(volumes: list) -> None:
    """Set the scene's views so that Slicer opens it with two volumes side by side, each filling its view."""
    scene = slicer.mrmlScene
    layout = scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    layout.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView)
    for name, volume in zip(("Red", "Yellow"), volumes, strict=True):
        view = scene.GetNodeByID(f"vtkMRMLSliceNode{name}")
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLScene(scene)
        logic.SetSliceNode(view)
        logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
        view.SetOrientation("Axial")
        view.RotateToVolumePlane(volume)
        logic.FitSliceToVolume(volume, *view.GetDimensions()[:2])
