"""Regions: the pixels of a recording's frames to despeckle or measure.

A region is "auto" (detect the ultrasound image), "none" (whole frames), a segmentation or a box (markups ROI), "given"
(the one used last for this scanner and frames of this size), or pixels (H, W) bool.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Union

import numpy as np
import slicer
import vtk
from slicer import vtkMRMLMarkupsROINode, vtkMRMLNode, vtkMRMLSegmentationNode, vtkMRMLVolumeNode
from slicer.i18n import tr as _

from Speckle2SelfLib import library
from Speckle2SelfLib.system import InputError

from . import scene
from .scene import Recording, frameSize, shapeOf
from .views import allViews

if TYPE_CHECKING:
    from .processing import Run
    from .session import Session

# For parameter nodes: Slicer binds node selectors only to typing.Union (not to A | B), and stores "no node" only where
# None is one of them.
RegionNode = Union[vtkMRMLSegmentationNode, vtkMRMLMarkupsROINode, None]  # noqa: UP007
WORDS = ("auto", "none", "given")
OUTLINE = "Speckle2Self.outline"  # attribute of the label map that outlines a region


#
# Requested regions
#


def find(region: vtkMRMLNode | str) -> vtkMRMLNode:
    """Return a node unchanged, or the only segmentation or box with that id or name. Raises InputError."""
    node = slicer.mrmlScene.GetNodeByID(region) if isinstance(region, str) else region
    if node is not None:
        return node
    nodes = [each for each in scene.nodesNamed(region) if _isRegion(each)]
    if not nodes:
        known = "auto, none, given, a segmentation or a box (ROI), or a bool array"
        raise InputError(_("Unknown region '{region}'; choose {known}.").format(region=region, known=known))
    return scene.onlyNode(nodes, "regions are named", region)


def nodeOf(region: object = "auto") -> vtkMRMLNode | None:
    """Return the requested segmentation or box; None for all other regions. Raises InputError."""
    if isinstance(region, str) and region not in WORDS:
        return find(region)
    return region if isinstance(region, vtk.vtkObject) else None


def resolve(node: vtkMRMLNode | Recording, region: object = "auto", axis: str = "auto") -> str | np.ndarray | None:
    """Return a region of a recording as "auto", "none" or pixels (H, W). Raises InputError."""
    regionNode = nodeOf(region)
    if regionNode is not None or (isinstance(region, str) and region == "given"):
        return pixels(node, regionNode, axis)
    if not (region is None or isinstance(region, str)) and axis.lower() == "average":
        raise InputError(_("With axis='average', no region array fits: frames of three orientations differ in size."))
    return region


def pixels(node: vtkMRMLNode | Recording, regionNode: vtkMRMLNode | None = None, axis: str = "auto") -> np.ndarray:
    """Return the pixels (H, W) bool of a recording's frames that a segmentation or a box covers, and remember them.

    regionNode: None: the one used last for this scanner and frames of this size. Raises InputError.
    """
    recording = Recording.of(node)
    volume, axis = recording.reference, recording.axis(axis)
    if regionNode is None:
        return lastRegion(volume, frameSize(volume, axis))
    region = frameMask(volume, regionNode, axis)
    saveRegion(volume, region)
    return region


#
# Pixels that segmentations and boxes cover
#


def _isRegion(node: vtkMRMLNode | None) -> bool:
    return isinstance(node, (vtkMRMLSegmentationNode, vtkMRMLMarkupsROINode))


def voxelsInside(volume: vtkMRMLVolumeNode, regionNode: vtkMRMLNode, which: str = "all") -> np.ndarray:
    """Return (K, J, I) bool: the voxels of a volume that lie in a box (markups ROI) or in segments.

    which: "all" visible segments of a segmentation, the "first" or the "last" one. Raises InputError if none.
    """
    shape = shapeOf(volume)
    if not _isRegion(regionNode):
        raise InputError(_("Choose a segmentation or a box (ROI) first."))
    inBox = regionNode.IsA("vtkMRMLMarkupsROINode")
    mask = _inBox(volume, regionNode, shape) if inBox else _inSegments(volume, regionNode, shape, which)
    if not mask.any():
        raise InputError(
            _("'{regionNode}' covers no part of '{volume}'.").format(
                regionNode=regionNode.GetName(), volume=volume.GetName()
            )
        )
    return mask


def _inSegments(
    volume: vtkMRMLVolumeNode, segmentation: vtkMRMLSegmentationNode, shape: tuple[int, ...], which: str
) -> np.ndarray:
    segments, display = segmentation.GetSegmentation(), segmentation.GetDisplayNode()
    names = [segments.GetNthSegmentID(number) for number in range(segments.GetNumberOfSegments())]
    if which == "all" and display is not None:
        names = [name for name in names if display.GetSegmentVisibility(name)]
    names = names if which == "all" else names[:1] if which == "first" else names[-1:]
    mask = np.zeros(shape, bool)
    for name in names:
        labels = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, name, volume)
        if labels is not None:
            mask |= labels != 0
    return mask


def _inBox(volume: vtkMRMLVolumeNode, box: vtkMRMLMarkupsROINode, shape: tuple[int, ...]) -> np.ndarray:
    warp = volume.GetParentTransformNode()
    if warp is not None and not warp.IsTransformToWorldLinear():
        raise InputError(
            _("'{volume}' is under the transform '{warp}', which is not linear; use a segmentation.").format(
                volume=volume.GetName(), warp=warp.GetName()
            )
        )
    toBox = vtk.vtkMatrix4x4()
    vtk.vtkMatrix4x4.Invert(box.GetObjectToWorldMatrix(), toBox)
    vtk.vtkMatrix4x4.Multiply4x4(toBox, scene.ijkToWorld(volume), toBox)
    matrix = slicer.util.arrayFromVTKMatrix(toBox)
    grid = np.ix_(*(np.arange(n, dtype=np.float32) for n in shape))[::-1]  # I, J, K, for broadcasting
    mask = np.ones(shape, bool)
    for row, side in zip(matrix[:3], box.GetSize(), strict=True):
        along = sum(weight * axis for weight, axis in zip(row[:3], grid, strict=True)) + row[3]
        mask &= np.abs(along) <= side / 2 + 1e-3
    return mask


def frameMask(volume: vtkMRMLVolumeNode, regionNode: vtkMRMLNode, axis: int) -> np.ndarray:
    """Return `voxelsInside` for frames cut along an axis of (K, J, I): the pixels (H, W) inside in any of them."""
    return voxelsInside(volume, regionNode).any(axis)


def placeBox(box: vtkMRMLMarkupsROINode, node: vtkMRMLNode | Recording) -> None:
    """Place a box in the middle of a recording, over a quarter of each side and the whole depth.

    Do nothing if the recording has no image.
    """
    with suppress(InputError):
        volume = Recording.of(node).reference
        shapeOf(volume)  # raises if there is no image
        bounds = [0.0] * 6
        volume.GetRASBounds(bounds)
        low, high = np.array(bounds[::2]), np.array(bounds[1::2])
        sides = high - low
        box.SetCenterWorld(*(low + high) / 2)
        depth = np.argmin(sides)
        box.SetSizeWorld(*(side if i == depth else side / 4 for i, side in enumerate(sides)))
    if box.GetDisplayNode() is None:
        box.CreateDefaultDisplayNodes()


def lastChange(regionNode: vtkMRMLNode) -> int:
    """Return the time of the last change of a segmentation or a box, as counted by VTK."""
    parts = [regionNode]
    if regionNode.IsA("vtkMRMLSegmentationNode"):
        segments = regionNode.GetSegmentation()
        children = [segments.GetNthSegment(number) for number in range(segments.GetNumberOfSegments())]
        images = [segment.GetRepresentation(segments.GetSourceRepresentationName()) for segment in children]
        parts += [segments, *children, *images, regionNode.GetDisplayNode()]  # it stores which segments are visible
    return max(part.GetMTime() for part in parts if part is not None)


class MovingRegion:
    """The pixels of frames that a segmentation or a box covers, followed as it is moved or drawn.

    regionNode: None: the region is fixed. region: the initial one, pixels (H, W) or a word.
    """

    def __init__(self, regionNode: vtkMRMLNode | None, region: object):
        self._node, self._initial, self._region, self._lastUpdate = regionNode, region, region, (None,)

    @property
    def changed(self) -> bool:
        """Return whether it has changed since `update`; False if there is none, or it was removed."""
        return self._lastChange not in (None, self._lastUpdate[0])

    @property
    def _lastChange(self) -> int | None:
        node = self._node
        return None if node is None or node.GetScene() is None else lastChange(node)

    def update(self, volume: vtkMRMLVolumeNode, size: tuple[int, int], axis: int) -> np.ndarray | None:
        """Return the pixels (H, W) bool of a volume's frames of this size if they have changed, else None."""
        change = self._lastChange
        if change is None or self._lastUpdate == (change, size, axis):
            return None
        try:
            region = frameMask(volume, self._node, axis)
        except InputError:  # moved off the image: despeckle nothing
            region = np.zeros(size, bool)
        self._lastUpdate = self._lastChange, size, axis  # last, because reading a segmentation can modify it
        if np.array_equal(region, self._region):  # both moved with the same transform
            return None
        self._region = region
        return region

    def save(self, volume: vtkMRMLVolumeNode) -> None:
        """Remember its new place; call this at the end, because it writes a file."""
        if self._region is not self._initial and self._region.any():
            with suppress(InputError):
                saveRegion(volume, self._region)


#
# Remembered regions
#


def saveRegion(volume: vtkMRMLVolumeNode, region: np.ndarray) -> None:
    """Keep a region (H, W) bool for other recordings of this scanner with frames of this size. Raises InputError."""
    library.save_region(_key(volume, region.shape), region)


def lastRegion(volume: vtkMRMLVolumeNode, size: tuple[int, int]) -> np.ndarray:
    """Return the region (H, W) bool kept last for this scanner and size of frames. Raises InputError without one."""
    region = library.last_region(_key(volume, size))
    if region is None or region.shape != tuple(size):
        raise InputError(_("Choose a segmentation or a box (ROI) first; none was used for frames of this size before."))
    return region


def _key(volume: vtkMRMLVolumeNode, size: tuple[int, ...]) -> str:
    """Return a key that recordings with the same region share: the scanner, if known from DICOM, and frame size."""
    identifiers = (volume.GetAttribute("DICOM.instanceUIDs") or "").split()
    database = getattr(slicer, "dicomDatabase", None)
    isKnown = bool(identifiers) and database is not None and database.isOpen
    tags = ("0008,0070", "0008,1090")  # manufacturer, model
    scanner = [database.instanceValue(identifiers[0], tag) for tag in tags] if isKnown else []
    return "_".join([*scanner, f"{size[1]}x{size[0]}"])


#
# Outlines
#


def showOutline(volume: vtkMRMLVolumeNode, region: np.ndarray, axis: int) -> None:
    """Outline a region (H, W) or (1, 1) bool on the volume in all slice views. It is not saved.

    Raises InputError if the region does not fit.
    """
    if region.shape not in ((1, 1), frameSize(volume, axis)):
        raise InputError(_("'{volume}' has changed its size; show its region again.").format(volume=volume.GetName()))
    labels = np.broadcast_to(np.expand_dims(region, axis), shapeOf(volume)).astype(np.uint8)
    outline, views = _outline(), allViews()
    if outline is None:
        outline = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Outline of the region")
        outline.SetAttribute(OUTLINE, "1")
        outline.SetSaveWithScene(False)
        outline.CreateDefaultDisplayNodes()
        outline.GetDisplayNode().SetSaveWithScene(False)
        for view in views:
            outline.SetAttribute(view.node.GetID(), "outlined" if view.node.GetUseLabelOutline() else "filled")
            outline.SetAttribute(view.composite.GetID(), view.composite.GetLabelVolumeID() or "")
    slicer.util.updateVolumeFromArray(outline, labels)
    scene.placeLike(outline, volume)
    for view in views:
        view.node.SetUseLabelOutline(True)
        view.composite.SetLabelVolumeID(outline.GetID())


def hideOutline() -> None:
    """Remove the outline, and restore the label maps that the views showed."""
    outline = _outline()
    if outline is None:
        return
    for view in allViews():
        if outline.GetAttribute(view.node.GetID()) == "filled":
            view.node.SetUseLabelOutline(False)
        if view.composite.GetLabelVolumeID() == outline.GetID():
            before = slicer.mrmlScene.GetNodeByID(outline.GetAttribute(view.composite.GetID()) or "")
            view.composite.SetLabelVolumeID(before.GetID() if before is not None else None)
    slicer.mrmlScene.RemoveNode(outline.GetDisplayNode())
    slicer.mrmlScene.RemoveNode(outline)


def _outline() -> vtkMRMLVolumeNode | None:
    labels = slicer.util.getNodesByClass("vtkMRMLLabelMapVolumeNode")
    return next((node for node in labels if node.GetAttribute(OUTLINE)), None)


class Outline:
    """The region of a node, outlined in the slice views. An automatic region is detected in the background: call
    `step` from a timer while it is `searching`.

    session: the `Session` that despeckles in the background.
    """

    def __init__(self, session: Session):
        self._session = session
        self._search: Run | None = None

    @property
    def searching(self) -> bool:
        """Return whether the region is still being detected."""
        return self._search is not None

    def show(self, node: vtkMRMLNode, region: str, regionNode: vtkMRMLNode | None = None, axis: str = "auto") -> None:
        """Outline "auto": the ultrasound image; "none": whole frames; "given": the pixels that regionNode covers, or,
        if that is None, the region used last. Raises InputError, and shows nothing then."""
        self._end()
        try:
            if region == "auto":
                self.hide()
                self._search = self._session.start(node, axis=axis, model="median", onlyRegion=True)
            else:
                recording = Recording.of(node)
                mask = pixels(recording, regionNode, axis) if region == "given" else np.ones((1, 1), bool)
                showOutline(recording.reference, mask, recording.axis(axis))
        except InputError:
            self.hide()
            raise

    def step(self) -> None:
        """Show the region once it is detected; return at once. Raises InputError if that failed or found none."""
        search = self._search
        self._session.worker.poll()
        search.step()
        if search.region is None and not search.ended:
            return
        self._end()
        if search.state == "failed":
            raise InputError(search.message)
        region = search.region
        if search.recording.scene is None:
            return
        if region is None:
            self.hide()
        elif not region.any():
            raise InputError(
                _("No ultrasound region was found. Choose the region 'none' for whole frames, or 'given'.")
            )
        else:
            showOutline(search.recording.reference, region, search.axes[0])

    def hide(self) -> None:
        """Remove the outline, or stop the detection."""
        self._end()
        hideOutline()

    def _end(self) -> None:
        if self._search is not None:
            self._search.abandon()
            self._search = None
