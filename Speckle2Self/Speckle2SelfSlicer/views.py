"""Manage the slice views of the current layout: what they show, how they are turned, and what the user had in them
before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from slicer import vtkMRMLNode, vtkMRMLScene, vtkMRMLSliceCompositeNode, vtkMRMLSliceNode, vtkMRMLVolumeNode
from slicer.util import getNodesByClass

from .scene import ijkToWorld, proxyOrNone, shapeOf

FOREGROUND = "Speckle2Self.foreground"  # attribute of a composite node: the foreground that we set
ALONG = 0.7  # cosine of the largest angle at which an image is still recognizable


@dataclass(frozen=True)
class View:
    """A slice view: its orientation and its volumes."""

    node: vtkMRMLSliceNode
    composite: vtkMRMLSliceCompositeNode

    def setVolumes(self, background: str | None, foreground: str | None = None, share: float | None = None) -> None:
        """Show volumes by their ids; share: opacity of the foreground. The state to restore is kept."""
        self.composite.SetBackgroundVolumeID(background)
        self.composite.SetForegroundVolumeID(foreground)
        self.composite.SetAttribute(FOREGROUND, foreground or "")
        if share is not None:
            self.composite.SetForegroundOpacity(share)
        before = _userViews.get(self.node.GetID())
        if before is not None:
            before.moduleBackground = background

    @property
    def hasUserForeground(self) -> bool:
        """Return whether there is a foreground that the user set."""
        foreground = self.composite.GetForegroundVolumeID()
        return foreground is not None and foreground != self.composite.GetAttribute(FOREGROUND)

    def sees(self, volume: vtkMRMLVolumeNode) -> bool:
        """Return whether the view shows a volume of one slice as more than a line."""
        toWorld, toRAS, axis = ijkToWorld(volume), self.node.GetSliceToRAS(), shapeOf(volume).index(1)
        toSlice, bounds = vtk.vtkMatrix4x4(), [0.0] * 6
        vtk.vtkMatrix4x4.Invert(toRAS, toSlice)
        volume.GetSliceBounds(bounds, toSlice)
        if not bounds[4] <= 0 <= bounds[5]:
            return False
        normal = np.array([toWorld.GetElement(row, 2 - axis) for row in range(3)])
        looking = np.array([toRAS.GetElement(row, 2) for row in range(3)])
        return abs(normal @ looking) > ALONG * np.linalg.norm(normal) * np.linalg.norm(looking)

    def face(self, volume: vtkMRMLVolumeNode, axis: int | None = None) -> None:
        """Turn to a volume's plane, go to its slice and fit it; with several slices, go to the one at the view's
        position.

        axis: of (K, J, I), to look along; None: that of the only slice, else the closest.
        """
        place = self.place
        shape = shapeOf(volume)
        axis = shape.index(1) if axis is None and 1 in shape else axis
        if axis is None:
            self.node.RotateToVolumePlane(volume)
        else:  # start at the closest anatomical plane, so that all views have the same side up
            toWorld = ijkToWorld(volume)
            normal = [abs(toWorld.GetElement(row, 2 - axis)) for row in range(3)]
            preset = ("Sagittal", "Coronal", "Axial")[normal.index(max(normal))]
            if self.node.HasSliceOrientationPreset(preset):
                self.node.SetOrientation(preset)
            self.node.RotateToAxes(toWorld, 2 - axis)
        self.fit(volume, place)

    def fit(self, volume: vtkMRMLVolumeNode, place: list[float] | None = None) -> None:
        """Fit a volume into the view without turning it; keep the slice at `place` (RAS), else the current one."""
        place = place or self.place
        manager = slicer.app.layoutManager()
        widget = manager.sliceWidget(self.node.GetLayoutName()) if manager is not None else None
        if widget is not None:
            widget.sliceLogic().FitSliceToVolume(volume, *self.node.GetDimensions()[:2])
        matrix, toSlice, bounds = self.node.GetSliceToRAS(), vtk.vtkMatrix4x4(), [0.0] * 6
        vtk.vtkMatrix4x4.Invert(matrix, toSlice)
        volume.GetSliceBounds(bounds, toSlice, True)
        depth = toSlice.MultiplyPoint([*place, 1])[2]
        if bounds[4] <= depth <= bounds[5]:
            for row, at in enumerate(matrix.MultiplyPoint([0, 0, depth, 1])[:3]):
                matrix.SetElement(row, 3, at)
            self.node.UpdateMatrices()

    @property
    def place(self) -> list[float]:
        """Return the point (RAS) at the center of the view."""
        return [self.node.GetSliceToRAS().GetElement(row, 3) for row in range(3)]


@dataclass
class _UserView:
    """The state of a view before we changed it."""

    moduleBackground: str | None  # the background that we set; if it differs, the user has changed the view
    background: str | None
    foreground: str | None
    moduleForeground: str  # the foreground that we had set
    share: float
    linked: bool
    sliceToRAS: vtk.vtkMatrix4x4
    fieldOfView: tuple[float, ...]
    content: bool  # whether to restore the volumes as well, or only the orientation


_userViews: dict[str, _UserView] = {}  # states to restore, by the ids of slice nodes
_observers: list[int] = []  # observer of the scene's closing, once needed
_layouts: list[int] = []  # the user's layout and the one that replaced it, if any


def allViews() -> list[View]:
    """Return all slice views of the scene, including those that the layout does not show."""
    composites = {composite.GetLayoutName(): composite for composite in getNodesByClass("vtkMRMLSliceCompositeNode")}
    nodes = {node.GetLayoutName(): node for node in getNodesByClass("vtkMRMLSliceNode")}
    return [View(node, composites[name]) for name, node in nodes.items() if name in composites]


def viewsOfLayout(names: Iterable[str] | None = None) -> list[View]:
    """Return the slice views that the current layout shows; if names are given, only these and in their order."""
    views = {view.node.GetLayoutName(): view for view in allViews() if view.node.IsMappedInLayout()}
    return [views[name] for name in (views if names is None else names) if name in views]


def isInViews(node: vtkMRMLNode) -> bool:
    """Return whether a slice view of the current layout shows a node."""
    volume = proxyOrNone(node)
    return volume is not None and any(
        view.composite.GetBackgroundVolumeID() == volume.GetID() for view in viewsOfLayout()
    )


def showInViews(volume: vtkMRMLVolumeNode, names: Iterable[str] | None = None, axis: int | None = None) -> None:
    """Show only this volume in slice views of the layout, turned to its plane, at its slice, and fitted.

    names: of the views; None: all. axis: see `View.face`. `restore` restores the user's views.
    """
    for view in viewsOfLayout(names):
        _saveUserView(view)
        view.setVolumes(volume.GetID())
        view.face(volume, axis)


def turnToSlice(view: View, volume: vtkMRMLVolumeNode) -> None:
    """Turn a view to a volume of one slice that would be a line in it, or invisible, unless it was turned before.

    `restore` turns it back, and keeps its volumes.
    """
    if volume.GetImageData() is None or 1 not in shapeOf(volume):
        return
    if view.node.GetID() not in _userViews and not view.sees(volume):
        _saveUserView(view, content=False)
        view.face(volume)


def setLayout(layout: int) -> None:
    """Change the layout; `restore` restores the user's. Do nothing without a main window."""
    manager = slicer.app.layoutManager()
    if manager is not None and manager.layout != layout:
        _layouts[:] = [_layouts[0] if _layouts and _layouts[1] == manager.layout else manager.layout, layout]
        manager.setLayout(layout)
        import qt

        qt.QTimer.singleShot(0, _fitAgain)  # views have their new sizes only once Qt has laid them out


def _fitAgain() -> None:
    """Fit our volumes into views whose size has changed."""
    for view in viewsOfLayout():
        before, background = _userViews.get(view.node.GetID()), view.composite.GetBackgroundVolumeID()
        volume = slicer.mrmlScene.GetNodeByID(background) if background else None
        shows = before is not None and before.moduleBackground == background  # still our volume
        if shows and volume is not None and volume.GetImageData() is not None:
            view.fit(volume)


def restore() -> None:
    """Restore the user's views and layout, except for changes that the user made later."""
    for view in allViews():
        before = _userViews.pop(view.node.GetID(), None)
        if before is None or view.composite.GetBackgroundVolumeID() != before.moduleBackground:
            continue
        _restoreOrientation(view.node, before)
        if not before.content:
            continue
        ids = [i if i and slicer.mrmlScene.GetNodeByID(i) else None for i in (before.background, before.foreground)]
        view.composite.SetBackgroundVolumeID(ids[0])
        view.composite.SetForegroundVolumeID(ids[1])
        view.composite.SetForegroundOpacity(before.share)
        view.composite.SetLinkedControl(before.linked)
        view.composite.SetAttribute(FOREGROUND, before.moduleForeground)
    _userViews.clear()
    manager = slicer.app.layoutManager()
    if _layouts and manager is not None and manager.layout == _layouts[1]:
        manager.setLayout(_layouts[0])
    _layouts.clear()


def _restoreOrientation(node: vtkMRMLSliceNode, before: _UserView) -> None:
    node.GetSliceToRAS().DeepCopy(before.sliceToRAS)
    node.SetFieldOfView(*before.fieldOfView)
    node.UpdateMatrices()


def _saveUserView(view: View, content: bool = True) -> None:
    """Remember the user's state of a view, unless the state is ours.

    content: whether the volumes will change; else only the orientation.
    """
    composite, userView = view.composite, _userViews.get(view.node.GetID())
    background = composite.GetBackgroundVolumeID()
    isOurs = userView is not None and userView.moduleBackground == background
    if isOurs and (userView.content or not content):
        return
    if not _observers:
        _observers.append(slicer.mrmlScene.AddObserver(slicer.mrmlScene.StartCloseEvent, _discardUserViews))
    sliceToRAS = vtk.vtkMatrix4x4()
    sliceToRAS.DeepCopy(userView.sliceToRAS if isOurs else view.node.GetSliceToRAS())
    _userViews[view.node.GetID()] = _UserView(
        moduleBackground=background,
        background=background,
        foreground=composite.GetForegroundVolumeID(),
        moduleForeground=composite.GetAttribute(FOREGROUND) or "",
        share=composite.GetForegroundOpacity(),
        linked=composite.GetLinkedControl(),
        sliceToRAS=sliceToRAS,
        fieldOfView=userView.fieldOfView if isOurs else view.node.GetFieldOfView(),
        content=content,
    )


def _discardUserViews(mrmlScene: vtkMRMLScene, event: str) -> None:
    """Forget all states when the scene is closed: ids are reused."""
    _userViews.clear()
    _layouts.clear()
