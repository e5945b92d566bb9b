"""Show the uncertainty of an output in the slice views: a label map in warm colors where it exceeds a threshold."""

from __future__ import annotations

import numpy as np
import slicer
from slicer import vtkMRMLColorTableNode, vtkMRMLLabelMapVolumeNode, vtkMRMLNode, vtkMRMLVolumeNode
from slicer.i18n import tr as _

from Speckle2SelfLib.look import DOUBTFUL, UNKNOWN

from . import scene, views

ROLE = "Speckle2Self.uncertainty"  # reference of an output to its uncertainty; attribute of our nodes
RANGE = "Speckle2Self.greyRange"  # attribute of an uncertainty node: the grey values between the model's 0 and 1
LEVELS = np.linspace(DOUBTFUL, UNKNOWN, 4)  # fractions of the grey range at which the colors begin
COLORS = ((1.0, 0.9, 0.2), (1.0, 0.65, 0.1), (1.0, 0.4, 0.05), (0.9, 0.1, 0.1))  # colors of the levels
OPACITY = 0.45


def relate(output: vtkMRMLNode, node: vtkMRMLNode | None, span: float = 0.0) -> None:
    """Remember the uncertainty node of an output; None: it has none. span: see RANGE."""
    if node is None:
        output.RemoveNodeReferenceIDs(ROLE)
        return
    output.SetNodeReferenceID(ROLE, node.GetID())
    node.SetAttribute(RANGE, repr(float(span)))


def mapOf(output: vtkMRMLNode | None) -> vtkMRMLNode | None:
    """Return the uncertainty node of an output; None if there is none."""
    return output.GetNodeReference(ROLE) if output is not None else None


class Overlay:
    """Colors over the slice views of the layout. Views with a label map of the user are left unchanged.

    The colors follow a node of the scene (`follow`) or a live output (`show`).
    """

    def __init__(self) -> None:
        self._observation: tuple[vtkMRMLVolumeNode, int] | None = None  # volume, and the tag of its observer
        self._span = 1.0

    def follow(self, node: vtkMRMLNode) -> None:
        """Color the places where an uncertainty node, or a sequence's current item, is high. Raises InputError for a
        sequence that no browser shows."""
        volume = scene.proxyOf(node)
        self._stopFollowing()
        self._span = float(node.GetAttribute(RANGE) or 0) or 1.0
        tag = volume.AddObserver(slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent, self._onImage)
        self._observation = volume, tag
        self._onImage()

    def show(self, voxels: np.ndarray, place: vtkMRMLVolumeNode) -> None:
        """Color the places where voxels (K, J, I), fractions of the grey range, are high; they lie at `place`."""
        self._stopFollowing()
        self._update(voxels, place)

    def hide(self) -> None:
        """Remove the colors."""
        self._stopFollowing()
        for kind in ("vtkMRMLLabelMapVolumeNode", "vtkMRMLColorTableNode"):
            for node in _overlayNodes(kind):
                for view in views.allViews():
                    if view.composite.GetLabelVolumeID() == node.GetID():
                        view.composite.SetLabelVolumeID(None)
                display = node.GetDisplayNode() if kind == "vtkMRMLLabelMapVolumeNode" else None
                slicer.mrmlScene.RemoveNode(node)
                if display is not None:
                    slicer.mrmlScene.RemoveNode(display)

    def _stopFollowing(self) -> None:
        if self._observation is not None:
            volume, tag = self._observation
            volume.RemoveObserver(tag)
        self._observation = None

    def _onImage(self, caller=None, event=None) -> None:
        if self._observation is None:
            return
        volume = self._observation[0]
        if volume.GetScene() is None or volume.GetImageData() is None:
            return
        self._update(scene.voxelsOf(volume) / self._span, volume)

    def _update(self, shares: np.ndarray, place: vtkMRMLVolumeNode) -> None:
        made = _overlayNodes("vtkMRMLLabelMapVolumeNode")
        node = made[0] if made else _makeLabels()
        labels = np.digitize(shares, LEVELS).astype(np.uint8)
        with slicer.util.NodeModify(node):
            slicer.util.updateVolumeFromArray(node, labels)
            scene.placeLike(node, place)
        for view in views.viewsOfLayout():
            if view.composite.GetLabelVolumeID() in (None, ""):
                view.composite.SetLabelVolumeID(node.GetID())
                view.composite.SetLabelOpacity(OPACITY)


def _overlayNodes(kind: str) -> list[vtkMRMLNode]:
    return [node for node in slicer.util.getNodesByClass(kind) if node.GetAttribute(ROLE)]


def _makeLabels() -> vtkMRMLLabelMapVolumeNode:
    """Return a label map that is not saved with the scene."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", _("Uncertain places"))
    node.SetAttribute(ROLE, "overlay")
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID(_makeColors().GetID())
    for each in (node, node.GetDisplayNode()):
        each.SetSaveWithScene(False)
    node.SetHideFromEditors(True)
    return node


def _makeColors() -> vtkMRMLColorTableNode:
    colors = slicer.vtkMRMLColorTableNode()
    colors.SetTypeToUser()
    colors.SetNumberOfColors(1 + len(COLORS))
    colors.SetColor(0, "certain", 0, 0, 0, 0)
    for level, (share, color) in enumerate(zip(LEVELS, COLORS, strict=True), 1):
        colors.SetColor(level, f"{share:.0%}", *color, 1)
    colors.SetName("Uncertain places")
    colors.SetHideFromEditors(True)
    colors.SetSaveWithScene(False)
    colors.SetAttribute(ROLE, "overlay")
    return slicer.mrmlScene.AddNode(colors)
