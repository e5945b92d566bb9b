"""Convert MRML volumes and sequences to frames and back; geometry, time, display and browsing are kept.

A recording is `(T, K, J, I)` or `(T, K, J, I, C)`: T time points of one volume each, in VTK's order of axes
(the fastest, I, last), C color components. `results` puts results into the scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import slicer
import vtk
from slicer import (
    vtkMRMLNode,
    vtkMRMLScene,
    vtkMRMLSequenceBrowserNode,
    vtkMRMLSequenceNode,
    vtkMRMLStreamingVolumeNode,
    vtkMRMLVolumeNode,
)
from slicer.i18n import tr as _
from vtk.util.numpy_support import vtk_to_numpy

from Speckle2SelfLib.system import InputError
from Speckle2SelfLib.volumes import slicing_axes

ORIGINAL = "DICOM.instanceUIDs"  # attribute of nodes loaded from these files; results do not have it
# Class of a volume that can be despeckled -> class of the result.
VOLUMES = {
    "vtkMRMLScalarVolumeNode": "vtkMRMLScalarVolumeNode",
    "vtkMRMLVectorVolumeNode": "vtkMRMLVectorVolumeNode",
    "vtkMRMLStreamingVolumeNode": "vtkMRMLVectorVolumeNode",  # it decodes on access; the result is plain
}
CHANGED = _("An image of '{}' was changed during the run; nothing was written.")
NO_IMAGE = _("'{}' has no image data{}; load or record an image first.")
NO_CODEC = _("'{}' cannot be decoded: no codec '{}' in this Slicer.")


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording to despeckle, resolved once: one volume, or the volumes of a sequence."""

    node: vtkMRMLNode  # the requested node: the volume, the sequence, or a browser's proxy of it
    volumes: list[vtkMRMLVolumeNode]  # one per time point
    sequence: vtkMRMLSequenceNode | None = None  # the sequence of the volumes; None for a single volume
    indexValues: list[str] = field(default_factory=list)  # index values of the sequence's items

    @classmethod
    def of(cls, node: vtkMRMLNode | Recording | None) -> Recording:
        """Return the recording of a node; for a browser's proxy, the whole sequence behind it.

        Raises InputError for a node that holds no ultrasound image.
        """
        if isinstance(node, Recording):
            return node
        if node is None or node.GetScene() is None:
            raise InputError(_("There is no input node in the scene; choose a volume or a sequence."))
        sequence, volumes, values = sequenceOf(node), [node], []
        if sequence is not None:
            count = sequence.GetNumberOfDataNodes()
            if not count:
                raise InputError(
                    _("The sequence '{sequence}' is empty; choose one with recorded volumes.").format(
                        sequence=sequence.GetName()
                    )
                )
            volumes = [sequence.GetNthDataNode(i) for i in range(count)]
            values = [sequence.GetNthIndexValue(i) for i in range(count)]
            if len(set(values)) < count:
                raise InputError(
                    _("The sequence '{sequence}' has one index value twice; make the index values unique.").format(
                        sequence=sequence.GetName()
                    )
                )
        for volume in volumes:
            _checkVolume(volume, node.GetName())
        if len({volume.GetClassName() for volume in volumes}) > 1:
            raise InputError(
                _("The sequence '{sequence}' mixes several kinds of volumes; split it first.").format(
                    sequence=sequence.GetName()
                )
            )
        return cls(node, volumes, sequence, values)

    @property
    def name(self) -> str:
        """Return the name of the requested node."""
        return self.node.GetName()

    @property
    def scene(self) -> vtkMRMLScene | None:
        """Return the scene of the node; None once it has been removed."""
        return self.node.GetScene()

    @property
    def browsers(self) -> list[vtkMRMLSequenceBrowserNode]:
        """Return the browsers that play the sequence."""
        return browsers(self.scene, self.sequence) if self.sequence is not None else []

    @property
    def isProxy(self) -> bool:
        """Return whether the requested node is a browser's proxy of the sequence."""
        return self.sequence is not None and self.node is not self.sequence

    @property
    def proxy(self) -> vtkMRMLVolumeNode:
        """Return the volume that shows the recording, see `proxyOf`. Raises InputError if there is none."""
        return proxyOf(self.node)

    @property
    def reference(self) -> vtkMRMLVolumeNode:
        """Return the volume with the position of the frames, see `referenceVolume`."""
        return referenceVolume(self.node)

    @property
    def outputClass(self) -> str:
        """Return the class of the despeckled volumes."""
        return VOLUMES[self.volumes[0].GetClassName()]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Return the millimeters between voxels along (K, J, I)."""
        return self.volumes[0].GetSpacing()[::-1]

    @cached_property
    def kind(self) -> tuple[tuple[int, ...], np.dtype]:
        """Return `shape` and `dtype`, from the first volume at the first call. Raises InputError."""
        first = next(self.voxels())
        return (len(self.volumes), *first.shape), first.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (T, K, J, I) or (T, K, J, I, C), see `kind`."""
        return self.kind[0]

    @property
    def dtype(self) -> np.dtype:
        """Return the type of the voxels, see `kind`."""
        return self.kind[1]

    @property
    def size(self) -> tuple[int, int, int]:
        """Return the shape (N, H, W) of `frames`, without reading them. Raises InputError."""
        count, *sides = self.shape[:4]
        return count * sides.pop(self.axis()), *sides

    def axes(self, axis: str = "auto") -> list[int]:
        """Return the axes of (K, J, I) along which frames follow each other, see `volumes.slicing_axes`. Raises
        InputError."""
        return slicing_axes(self.shape[1:4], self.spacing, axis)

    def axis(self, axis: str = "auto") -> int:
        """Return the only one of `axes`. Raises InputError if there are several."""
        axes = self.axes(axis)
        if len(axes) > 1:
            raise InputError(_("Frames of three orientations differ in size; choose one axis, or another region."))
        return axes[0]

    def voxels(self) -> Iterator[np.ndarray]:
        """Yield the voxels (K, J, I[, C]) of one volume after the other, each valid until the next one.

        Raises InputError for volumes without image, of differing size or type, or with other than 1, 3 or 4 components.
        """
        decoder, first = None, None
        for number, volume in enumerate(self.volumes):
            if volume.IsA("vtkMRMLStreamingVolumeNode"):
                decoder = decoder or vtkMRMLStreamingVolumeNode()  # the input itself remains encoded
                image = _decode(volume, decoder)
            else:
                image = volume.GetImageData()
            at = f" (item {number + 1} of {len(self.volumes)})" if self.sequence else ""
            array = imageArray(image, self.name, at)
            kind = (image.GetDimensions(), image.GetScalarTypeAsString(), image.GetNumberOfScalarComponents())
            first = first or kind
            if kind != first:
                raise InputError(
                    _("The volumes of '{name}' differ in size or type{at}; split it first.").format(
                        name=self.name, at=at
                    )
                )
            yield array

    def read(self) -> np.ndarray:
        """Return the recording as (T, K, J, I) or, in color, (T, K, J, I, C), in the volumes' own type.

        A single volume is not copied: a read-only array shows its voxels. Raises InputError as `voxels`.
        """
        stack = None
        for number, image in enumerate(self.voxels()):
            if len(self.volumes) == 1:
                stack = image[None].copy() if self.volumes[0].IsA("vtkMRMLStreamingVolumeNode") else image[None]
                stack.flags.writeable = False
                break
            if stack is None:
                stack = np.empty((len(self.volumes), *image.shape), image.dtype)
            stack[number] = image
        return stack

    def frames(self) -> np.ndarray:
        """Return all frames (N, H, W[, C]); volumes are cut along their axis of acquisition. Raises InputError."""
        cut = np.moveaxis(self.read(), 1 + self.axis(), 1)  # (T, slices, H, W[, C])
        return cut.reshape(-1, *cut.shape[2:])

    def eachFrame(self) -> Frames:
        """Return the same as `frames`, to be read one after the other. Raises InputError."""
        return Frames(self.snapshot(), self.axis())

    def snapshot(self) -> Recording:
        """Return the same recording, with a copy of a single volume's image, which a stream could change."""
        (volume, *_) = self.volumes
        if self.sequence is not None or volume.IsA("vtkMRMLStreamingVolumeNode") or volume.GetImageData() is None:
            return self
        copy, image = getattr(slicer, volume.GetClassName())(), vtk.vtkImageData()
        copy.CopyContent(volume, False)
        copy.SetName(volume.GetName())
        image.ShallowCopy(volume.GetImageData())
        copy.SetAndObserveImageData(image)
        return replace(self, volumes=[copy])


@dataclass(frozen=True)
class Frames:
    """The frames (H, W[, C]) of a recording along an axis of (K, J, I); each is read on access."""

    recording: Recording
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (N, H, W) or (N, H, W, C)."""
        count, *sides = self.recording.shape
        return count * sides.pop(self.axis), *sides

    @property
    def dtype(self) -> np.dtype:
        """Return the type of the pixels."""
        return self.recording.dtype

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames. Raises InputError like `Recording.voxels`."""
        for image in self.recording.voxels():
            yield from np.moveaxis(image, self.axis, 0)


def _checkVolume(volume: vtkMRMLNode | None, name: str) -> None:
    kind = volume.GetClassName() if volume else "missing item"
    if kind not in VOLUMES:
        raise InputError(
            _("'{name}' holds a {kind}; choose a scalar, vector or streaming volume, or a sequence of them.").format(
                name=name, kind=kind
            )
        )
    spatial = (vtkMRMLVolumeNode.VoxelVectorTypeSpatial, vtkMRMLVolumeNode.VoxelVectorTypeSpatialCovariant)
    if volume.GetVoxelVectorType() in spatial:
        raise InputError(
            _("'{name}' holds spatial vectors (such as displacements), not an ultrasound image.").format(name=name)
        )


#
# Nodes of a recording
#


def sequenceBehind(node: vtkMRMLNode) -> vtkMRMLSequenceNode | None:
    """Return the sequence that a proxy node shows, or None."""
    for browser in browsers(node.GetScene()):
        if browser.IsProxyNodeID(node.GetID()):
            return browser.GetSequenceNode(node)
    return None


def sequenceOf(node: vtkMRMLNode) -> vtkMRMLSequenceNode | None:
    """Return a node that is a sequence, or the sequence that it shows as a proxy; None for a single volume."""
    return node if node.IsA("vtkMRMLSequenceNode") else sequenceBehind(node)


def browsers(mrmlScene: vtkMRMLScene, sequence: vtkMRMLSequenceNode | None = None) -> list[vtkMRMLSequenceBrowserNode]:
    """Return the scene's sequence browsers; of one sequence if given."""
    allBrowsers = [
        mrmlScene.GetNthNodeByClass(i, "vtkMRMLSequenceBrowserNode")
        for i in range(mrmlScene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode"))
    ]
    return [b for b in allBrowsers if sequence is None or b.IsSynchronizedSequenceNodeID(sequence.GetID(), True)]


def proxyOf(node: vtkMRMLNode) -> vtkMRMLVolumeNode:
    """Return the volume that shows a node: itself, or a browser's proxy of a sequence.

    Raises InputError for a sequence that no browser shows.
    """
    proxy = proxyOrNone(node)
    if proxy is None and node is not None:
        raise InputError(
            _("The sequence '{node}' is not shown; choose it in a sequence browser first.").format(node=node.GetName())
        )
    return proxy


def proxyOrNone(node: vtkMRMLNode | None) -> vtkMRMLVolumeNode | None:
    """Return the same as `proxyOf`, and None for a sequence that no browser shows."""
    if node is None or not node.IsA("vtkMRMLSequenceNode"):
        return node
    proxies = (browser.GetProxyNode(node) for browser in browsers(node.GetScene(), node))
    return next((proxy for proxy in proxies if proxy is not None), None)


def referenceVolume(node: vtkMRMLNode) -> vtkMRMLVolumeNode:
    """Return the volume with the position of a node's frames: that of `proxyOf`, or the first of a sequence that no
    browser shows. Raises InputError if there is none."""
    return proxyOrNone(node) or Recording.of(node).volumes[0]


def find(node: vtkMRMLNode | str | None) -> vtkMRMLNode | None:
    """Return a node unchanged, or the only one with that id or name that can be despeckled; for a browser, its
    recording.

    If a recording and its proxy share a name, the recording is returned. Raises InputError if there is no node, or
    several.
    """
    if isinstance(node, str):
        node = slicer.mrmlScene.GetNodeByID(node) or _imageNamed(node)
    if node is not None and not isinstance(node, vtkMRMLNode):
        raise InputError(_("'{node!r:.100}' is not a node, nor the id or name of one.").format(node=node))
    return _recordingOfBrowser(node) if node is not None and node.IsA("vtkMRMLSequenceBrowserNode") else node


def _imageNamed(name: str) -> vtkMRMLNode:
    nodes = nodesNamed(name)
    if not nodes:
        raise InputError(_("There is no node with the id or name '{name}' in the scene.").format(name=name))
    images = [each for each in nodes if each.GetClassName() in VOLUMES or holdsImages(each)]
    recordings = {sequenceBehind(each) or each: each for each in images}
    recordings |= {each: each for each in images if each in recordings}
    players = [each for each in nodes if each.IsA("vtkMRMLSequenceBrowserNode")]
    return onlyNode(list(recordings.values()) or players or nodes[:1], "nodes that could be despeckled are named", name)


def nodesNamed(name: str) -> list[vtkMRMLNode]:
    """Return all nodes of the scene with this name."""
    return list(slicer.mrmlScene.GetNodesByName(name))


def onlyNode(nodes: list[vtkMRMLNode], words: str, name: str) -> vtkMRMLNode:
    """Return the only one of the nodes with a name. Raises InputError if there are several."""
    if len(nodes) > 1:
        ids = ", ".join(each.GetID() for each in nodes)
        raise InputError(
            _("{number} {words} '{name}'; use the id of one: {ids}.").format(
                number=len(nodes), words=words, name=name, ids=ids
            )
        )
    return nodes[0]


def holdsImages(node: vtkMRMLNode) -> bool:
    """Return whether a node is a sequence of volumes, or an empty one for volumes."""
    return node.IsA("vtkMRMLSequenceNode") and (
        not node.GetNumberOfDataNodes() or node.GetDataNodeClassName() in VOLUMES
    )


def _recordingOfBrowser(browser: vtkMRMLSequenceBrowserNode) -> vtkMRMLSequenceNode:
    """Return the recording that a browser plays: its master sequence, or the only one that holds images. Raises
    InputError."""
    sequences = vtk.vtkCollection()
    browser.GetSynchronizedSequenceNodes(sequences, True)  # the master is the first
    images = [each for each in sequences if holdsImages(each)]
    if not images:
        raise InputError(
            _("'{browser}' does not play a recording of images; choose another.").format(browser=browser.GetName())
        )
    if len(images) > 1 and images[0] is not browser.GetMasterSequenceNode():
        raise InputError(
            _("'{browser}' plays several recordings; choose one of them.").format(browser=browser.GetName())
        )
    return images[0]


def size(node: vtkMRMLNode) -> tuple[int, int, int]:
    """Return the number of frames in `frames`, their rows and columns, without reading them; zeros if there are
    none."""
    try:
        return Recording.of(node).size
    except InputError:
        return 0, 0, 0


def frames(node: vtkMRMLNode) -> np.ndarray:
    """Return all frames (N, H, W[, C]) of a node's recording. Raises InputError."""
    return Recording.of(node).frames()


#
# One volume
#


def shapeOf(volume: vtkMRMLVolumeNode) -> tuple[int, int, int]:
    """Return a volume's voxels along (K, J, I). Raises InputError if it has none."""
    image = volume.GetImageData()
    if image is None or not image.GetNumberOfPoints():
        raise InputError(NO_IMAGE.format(volume.GetName(), ""))
    return tuple(reversed(image.GetDimensions()))


def frameSize(volume: vtkMRMLVolumeNode, axis: int) -> tuple[int, int]:
    """Return rows and columns (H, W) of the frames that a volume is cut into along an axis of (K, J, I). Raises
    InputError."""
    return tuple(side for number, side in enumerate(shapeOf(volume)) if number != axis)


def voxelsOf(volume: vtkMRMLVolumeNode) -> np.ndarray:
    """Return the voxels (K, J, I[, C]) that a volume shows now, without copying. Raises InputError."""
    return next(Recording(volume, [volume]).voxels())


def imageArray(image: vtk.vtkImageData | None, name: str, at: str = "") -> np.ndarray:
    """Return the voxels (K, J, I[, C]) of an image, without copying. Raises InputError if it is not ultrasound.

    name, at: the node's name and the place in it, for messages.
    """
    if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
        raise InputError(NO_IMAGE.format(name, at))
    components = image.GetNumberOfScalarComponents()
    if components not in (1, 3, 4):
        raise InputError(
            _("'{name}' has {components} components per voxel; use grey (1) or color (3 or 4) images.").format(
                name=name, components=components
            )
        )
    shape = tuple(reversed(image.GetDimensions())) + ((components,) if components > 1 else ())
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)


def _decode(volume: vtkMRMLStreamingVolumeNode, decoder: vtkMRMLStreamingVolumeNode) -> vtk.vtkImageData | None:
    """Return the image of a streaming volume, decoded in the node `decoder`; None if there is none."""
    if volume.GetFrame() is None:
        return volume.GetImageData()
    decoder.SetAndObserveImageData(None)
    decoder.SetCodecFourCC(volume.GetCodecFourCC())
    decoder.SetCodecParameterString(volume.GetCodecParameterString())
    decoder.SetAndObserveFrame(volume.GetFrame())
    if decoder.GetCodec() is None or not decoder.DecodeFrame():
        raise InputError(NO_CODEC.format(volume.GetName(), volume.GetCodecFourCC()))
    return decoder.GetImageData()


def ijkToRAS(volume: vtkMRMLVolumeNode) -> vtk.vtkMatrix4x4:
    """Return the matrix from a volume's voxels (I, J, K) to its own RAS, without its parent transform."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return matrix


def ijkToWorld(volume: vtkMRMLVolumeNode) -> vtk.vtkMatrix4x4:
    """Return the matrix from a volume's voxels (I, J, K) to the world, with its parent transform, which is linear."""
    matrix, parent = ijkToRAS(volume), vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(volume.GetParentTransformNode(), None, parent)
    vtk.vtkMatrix4x4.Multiply4x4(parent, matrix, matrix)
    return matrix


def placeLike(volume: vtkMRMLVolumeNode, other: vtkMRMLVolumeNode, matrix: vtk.vtkMatrix4x4 | None = None) -> None:
    """Move a volume to the place and parent transform of another one. matrix: IJK-to-RAS to use instead."""
    volume.SetIJKToRASMatrix(matrix or ijkToRAS(other))
    volume.SetAndObserveTransformNodeID(other.GetTransformNodeID())


def slicePlace(volume: vtkMRMLVolumeNode, axis: int, number: int) -> vtk.vtkMatrix4x4:
    """Return the IJK-to-RAS matrix of slice `number` along an axis of (K, J, I), as a separate volume."""
    matrix, start = ijkToRAS(volume), [0, 0, 0, 1]
    start[2 - axis] = number
    origin = matrix.MultiplyPoint(start)
    for row in range(3):
        matrix.SetElement(row, 3, origin[row])
    return matrix
