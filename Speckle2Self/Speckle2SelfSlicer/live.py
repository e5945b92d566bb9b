"""Despeckle the image of a volume again whenever it changes: a stream, a playing recording, a slice that is moved."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import slicer
import vtk
from slicer import vtkMRMLNode, vtkMRMLSliceNode, vtkMRMLStreamingVolumeNode, vtkMRMLVolumeNode
from slicer.i18n import tr as _
from vtk.util.numpy_support import get_vtk_array_type, vtk_to_numpy

from Speckle2SelfLib.system import InputError
from Speckle2SelfLib.volumes import slicing_axes

from . import results, scene
from .regions import MovingRegion
from .scene import VOLUMES, Recording
from .worker import Worker


class Live:
    """Images despeckled one after the other. Call `step` from a timer.

    The newest image is processed next; images that arrive too fast are dropped. output: a volume `<input> live` in the
    same place, or a given one. state: "running", "stopped", "failed" (message). latency, rate: measured. once: a
    preview of the image shown now; `refresh` updates it. regionNode: the segmentation or box that `region` (H, W) came
    from; its changes are followed. uncertainty: whether `uncertainty` holds that of the last image, (K, J, I) float32
    as a fraction of the grey range. options: the others of `config.DespeckleOptions`; region may also be pixels
    (H, W). Raises InputError.

    Observers only note that something has changed: OpenIGTLink overwrites an image, reports it, and then sets the
    volume's new place. `step` reads both together, once for all events of an image.
    """

    def __init__(
        self, worker: Worker, node: vtkMRMLNode, axis: str = "auto", sliceNode: vtkMRMLSliceNode | None = None,
        once: bool = False, output: vtkMRMLVolumeNode | None = None, regionNode: vtkMRMLNode | None = None,
        uncertainty: bool = False, **options,
    ):  # fmt: skip
        node = scene.proxyOf(node)
        self.recording = Recording.of(node)
        if output is not None and (output is node or scene.sequenceBehind(output) is not None):
            raise InputError(
                _("'{output}' is a recording, which live images cannot change; choose another output.").format(
                    output=output.GetName()
                )
            )
        self.node, self.output, self.once, self.state, self.message = node, output, once, "running", ""
        self._sliceNode, self._axis, self._worker, self._options = sliceNode, axis, worker, options
        self._region = MovingRegion(regionNode, options.get("region"))
        self.hasUncertainty, self.uncertainty = uncertainty, None
        self._stream, self._observed, self._moments = None, [], []
        self._lastPush, self._lastResult, self._places, self._slice = 0, 0, {}, None
        self._imageChanged = self._viewMoved = False
        self.refresh()
        if not once:
            self._observe(node, slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent, self._onImage)
            if node.IsA("vtkMRMLStreamingVolumeNode"):  # encoded images do not cause the event above
                self._observe(node, vtkMRMLStreamingVolumeNode.FrameModifiedEvent, self._onImage)
            if sliceNode is not None:
                self._observe(sliceNode, "ModifiedEvent", self._onView)

    def _observe(self, node: vtkMRMLNode, event: int | str, function: Callable) -> None:
        self._observed.append((node, node.AddObserver(event, function)))

    def _onImage(self, caller=None, event=None) -> None:
        self._imageChanged = True

    def _onView(self, caller=None, event=None) -> None:
        self._viewMoved = True

    def setLook(self, strength: float, gamma: float, cautious: float = 0.0) -> None:
        """Set strength, gamma and caution of the image shown now and of later ones. Raises InputError."""
        if self.state == "running":
            self._stream.set_look(strength, gamma, cautious)
            self._imageChanged = True

    @property
    def hasOutput(self) -> bool:
        """Return whether its output is in the scene."""
        return self.output is not None and self.output.GetScene() is not None

    def refresh(self) -> None:
        """Despeckle the image that the volume shows now. Raises InputError."""
        if self.node.GetScene() is None:
            self.stop()
            return
        image = self._image()
        self._imageChanged = False  # only here, because decoding the image reports a change
        self._push(scene.imageArray(image, self.node.GetName()))

    def _image(self) -> vtk.vtkImageData | None:
        """Return the volume's image; the volume decodes encoded images once each, with its own decoder."""
        node = self.node
        if node.IsA("vtkMRMLStreamingVolumeNode") and node.GetFrame() is not None and node.GetCodec() is None:
            raise InputError(scene.NO_CODEC.format(node.GetName(), node.GetCodecFourCC()))
        return node.GetImageData()

    def _push(self, voxels: np.ndarray) -> None:
        axis, number = self._sliceOf(voxels.shape)
        frame = np.moveaxis(voxels, axis, 0)[number]
        if self._stream is None:
            self._stream = self._worker.live(frame.shape, frame.dtype, self._options, self.hasUncertainty)
        region = self._region.update(self.node, frame.shape[:2], axis)
        if region is not None:
            self._stream.set_region(region)
        self._lastPush = self._stream.push(frame)
        self._places[self._lastPush] = axis, scene.slicePlace(self.node, axis, number)
        self._slice = axis, number

    def _sliceOf(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return the axis of (K, J, I) and the slice: for a 3D volume that of the slice view, else the middle one."""
        chosen = "auto" if self._axis == "average" else self._axis
        (axis,) = slicing_axes(shape[:3], self.recording.spacing, chosen)
        if shape[axis] == 1 or self._sliceNode is None:
            return axis, shape[axis] // 2
        toIJK = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(scene.ijkToWorld(self.node), toIJK)
        toRAS = self._sliceNode.GetSliceToRAS()
        point = toIJK.MultiplyPoint([toRAS.GetElement(i, 3) for i in range(3)] + [1])
        return axis, int(np.clip(round(point[2 - axis]), 0, shape[axis] - 1))

    def _hasChanges(self) -> bool:
        """Return whether there is something to despeckle that has not been submitted yet."""
        changed = self._imageChanged or (not self.once and self._region.changed)
        if not (changed or self._viewMoved) or not self._hasCompleteImage():
            return False
        self._viewMoved = False
        return changed or self._sliceOf(scene.shapeOf(self.node)) != self._slice

    def _hasCompleteImage(self) -> bool:
        """Return whether the volume has a complete image. It has none after its size changed and before its voxels
        do."""
        image = self._image()
        scalars = image.GetPointData().GetScalars() if image is not None else None
        return scalars is not None and 0 < scalars.GetNumberOfTuples() == image.GetNumberOfPoints()

    @property
    def waiting(self) -> bool:
        """Return whether a result is still expected."""
        return self.state == "running" and (self._imageChanged or self._lastResult < self._lastPush)

    def step(self) -> bool:
        """Submit changes, and put results into the scene; return whether there was a new result."""
        if self.state != "running":
            return False
        if self.node.GetScene() is None or (self.output is not None and self.output.GetScene() is None):
            self.stop()
            return False
        try:
            if self._hasChanges():
                self.refresh()
        except InputError as error:
            self.stop("failed", str(error))
            return False
        if self._stream.state == "failed":
            self.stop("failed", self._stream.message)
            return False
        return self._writeResult()

    def _writeResult(self) -> bool:
        frame = self._stream.take()
        if frame is None:
            return False
        self._lastResult = frame.number
        axis, place = self._places[frame.number]
        self._places = {number: place for number, place in self._places.items() if number > frame.number}
        voxels = np.expand_dims(frame.image, axis)  # (K, J, I[, C]) with one voxel along the axis
        self.uncertainty = np.expand_dims(frame.uncertainty, axis) if frame.uncertainty is not None else None
        if self.output is None:
            self.output = _makeOutput(self.node, voxels, place)
        else:
            _update(self.output, self.node, voxels, place)
        self._moments = [m for m in self._moments if m > time.monotonic() - 2] + [time.monotonic()]
        return True

    @property
    def rate(self) -> float:
        """Return images per second, over the last two seconds."""
        if len(self._moments) < 2:
            return 0.0
        return (len(self._moments) - 1) / max(self._moments[-1] - self._moments[0], 1e-6)

    @property
    def dropCount(self) -> int:
        """Return the number of images that were skipped."""
        return self._stream.drop_count if self._stream else 0

    @property
    def latency(self) -> float:
        """Return the median time from submitting an image to its result, in milliseconds."""
        return 1000 * (self._stream.latency() or 0) if self._stream else 0.0

    @property
    def device(self) -> str:
        """Return the name of the device that the worker runs on."""
        return self._stream.device if self._stream else ""

    def stop(self, state: str = "stopped", message: str = "") -> None:
        """Stop; the output is kept."""
        for node, tag in self._observed:
            node.RemoveObserver(tag)
        self._observed = []
        self._region.save(self.node)
        if self._stream is not None and self.state == "running":
            self._stream.stop()
        if self.state == "running":
            self.state, self.message = state, message


def _makeOutput(node: vtkMRMLVolumeNode, voxels: np.ndarray, place: vtk.vtkMatrix4x4) -> vtkMRMLVolumeNode:
    """Return a new volume `<input> live` for one slice of `node`, see `_update`."""
    volume = getattr(slicer, VOLUMES[node.GetClassName()])()
    volume.SetName(results.freeName(node, "live"))
    volume = node.GetScene().AddNode(volume)
    _update(volume, node, voxels, place)
    results.showLike(node, volume, [])
    results.placeBeside(node, volume)
    return volume


def _update(volume: vtkMRMLVolumeNode, node: vtkMRMLVolumeNode, voxels: np.ndarray, place: vtk.vtkMatrix4x4) -> None:
    """Put voxels (K, J, I[, C]) into `volume`, in a place of `slicePlace` under the parent transform of `node`."""
    image, size = volume.GetImageData(), tuple(voxels.shape[2::-1])
    components, kind = (voxels.shape[3] if voxels.ndim == 4 else 1), get_vtk_array_type(voxels.dtype)
    current = image and (image.GetDimensions(), image.GetNumberOfScalarComponents(), image.GetScalarType())
    with slicer.util.NodeModify(volume):
        scene.placeLike(volume, node, place)
        if current != (size, components, kind):
            image = vtk.vtkImageData()
            image.SetDimensions(size)
            image.AllocateScalars(kind, components)
            volume.SetAndObserveImageData(image)
        vtk_to_numpy(image.GetPointData().GetScalars()).reshape(voxels.shape)[:] = voxels
        image.GetPointData().GetScalars().Modified()
        image.Modified()
