"""MRML volumes and sequences to frames and back, with geometry, time, display and browsing kept.

A recording is `(T, K, J, I)` or `(T, K, J, I, C)`: T time points of one volume each, in VTK's order of axes
(the fastest, I, last), C colour components. The scene is touched at the end alone, by `write`, which takes
back what it added if a step fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import get_vtk_array_type, vtk_to_numpy

from Speckle2SelfLib import volumes
from Speckle2SelfLib.system import InputError

ORIGINAL = "DICOM.instanceUIDs"  # says that a node is what these files hold; a result is not
# Class of a volume that can be despeckled -> class of the result.
VOLUMES = {
    "vtkMRMLScalarVolumeNode": "vtkMRMLScalarVolumeNode",
    "vtkMRMLVectorVolumeNode": "vtkMRMLVectorVolumeNode",
    "vtkMRMLStreamingVolumeNode": "vtkMRMLVectorVolumeNode",  # it decodes on access; the result is plain
}
CHANGED = "An image of '{}' was changed meanwhile; nothing was written."
REGIONS = ("vtkMRMLSegmentationNode", "vtkMRMLMarkupsROINode")


@dataclass
class Source:
    """What to despeckle: one volume, or the volumes of a sequence."""

    node: object  # the volume, proxy or sequence node that was asked for
    volumes: list  # volume nodes, one a time point
    sequence: object = None  # the sequence node that holds the volumes; None for a volume on its own
    indexValues: list[str] = field(default_factory=list)  # of the sequence's items

    @property
    def outputClass(self) -> str:
        """Class of the despeckled volumes."""
        return VOLUMES[self.volumes[0].GetClassName()]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres between voxels along (K, J, I)."""
        return self.volumes[0].GetSpacing()[::-1]

    @property
    def isProxy(self) -> bool:
        """Whether the node that was asked for is a browser's proxy of the sequence."""
        return self.sequence is not None and self.node is not self.sequence


def source(node) -> Source:
    """The recording that a node stands for; for a browser's proxy that is the whole sequence behind it.

    Raises InputError for a node that holds no ultrasound image.
    """
    if node is None or node.GetScene() is None:
        raise InputError("There is no input node in the scene; choose a volume or a sequence.")
    sequence = node if node.IsA("vtkMRMLSequenceNode") else sequenceBehind(node)
    if sequence is None:
        volumes, values = [node], []
    else:
        count = sequence.GetNumberOfDataNodes()
        if not count:
            raise InputError(f"The sequence '{sequence.GetName()}' is empty; choose one with recorded volumes.")
        volumes = [sequence.GetNthDataNode(i) for i in range(count)]
        values = [sequence.GetNthIndexValue(i) for i in range(count)]
        if len(set(values)) < count:
            raise InputError(f"The sequence '{sequence.GetName()}' has one index value twice; give each item its own.")
    for volume in volumes:
        _checkVolume(volume, node.GetName())
    if len({volume.GetClassName() for volume in volumes}) > 1:
        raise InputError(f"The sequence '{sequence.GetName()}' mixes several kinds of volumes; split it first.")
    return Source(node, volumes, sequence, values)


def held(source: Source) -> Source:
    """The same recording, of a volume on its own as it is now: its node may be a stream's, which goes on meanwhile."""
    (volume, *_) = source.volumes
    if source.sequence is not None or volume.IsA("vtkMRMLStreamingVolumeNode") or volume.GetImageData() is None:
        return source
    copy, image = getattr(slicer, volume.GetClassName())(), vtk.vtkImageData()
    copy.CopyContent(volume, False)
    copy.SetName(volume.GetName())
    image.ShallowCopy(volume.GetImageData())
    copy.SetAndObserveImageData(image)
    return replace(source, volumes=[copy])


def proxy(sequence):
    """The volume through which a browser shows a sequence; InputError where there is none."""
    for browser in browsers(sequence.GetScene(), sequence):
        if browser.GetProxyNode(sequence) is not None:
            return browser.GetProxyNode(sequence)
    raise InputError(f"The sequence '{sequence.GetName()}' is shown nowhere; choose it in a sequence browser first.")


def _checkVolume(volume, name: str) -> None:
    kind = volume.GetClassName() if volume else "missing item"
    if kind not in VOLUMES:
        raise InputError(
            f"'{name}' holds a {kind}; choose a scalar, vector or streaming volume, or a sequence of them."
        )
    spatial = (
        slicer.vtkMRMLVolumeNode.VoxelVectorTypeSpatial,
        slicer.vtkMRMLVolumeNode.VoxelVectorTypeSpatialCovariant,
    )
    if volume.GetVoxelVectorType() in spatial:
        raise InputError(f"'{name}' holds spatial vectors (such as displacements), not an ultrasound image.")


def sequenceBehind(node):
    """The sequence that a proxy node shows, or None."""
    for browser in browsers(node.GetScene()):
        if browser.IsProxyNodeID(node.GetID()):
            return browser.GetSequenceNode(node)
    return None


def browsers(scene, sequence=None) -> list:
    """The scene's sequence browsers; of one sequence if given."""
    browsers = [
        scene.GetNthNodeByClass(i, "vtkMRMLSequenceBrowserNode")
        for i in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode"))
    ]
    return [b for b in browsers if sequence is None or b.IsSynchronizedSequenceNodeID(sequence.GetID(), True)]


#
# Frames
#


def read(source: Source) -> np.ndarray:
    """The recording as (T, K, J, I) or, in colour, (T, K, J, I, C), in the volumes' own type.

    A volume on its own is not copied: its voxels are seen through a read-only array. Raises InputError as `voxels`.
    """
    stack = None
    for number, image in enumerate(voxels(source)):
        if len(source.volumes) == 1:
            stack = image[None].copy() if source.volumes[0].IsA("vtkMRMLStreamingVolumeNode") else image[None]
            stack.flags.writeable = False
            break
        if stack is None:
            stack = np.empty((len(source.volumes), *image.shape), image.dtype)
        stack[number] = image
    return stack


def voxels(source: Source):
    """The voxels (K, J, I[, C]) of one volume after the other, each valid until the next is asked for.

    Raises InputError for volumes without image, of differing size or type, or with neither 1 nor 3 or 4 components.
    """
    name, decoder, first = source.node.GetName(), None, None
    for number, volume in enumerate(source.volumes):
        if volume.IsA("vtkMRMLStreamingVolumeNode"):
            decoder = decoder or slicer.vtkMRMLStreamingVolumeNode()  # so that the input stays encoded, as it is
            image = _decode(volume, decoder)
        else:
            image = volume.GetImageData()
        if image is None or image.GetNumberOfPoints() == 0 or image.GetPointData().GetScalars() is None:
            raise InputError(f"'{name}' has no image data{_at(source, number)}; load or record an image first.")
        components = image.GetNumberOfScalarComponents()
        if components not in (1, 3, 4):
            raise InputError(f"'{name}' has {components} components a voxel; grey (1) and colour (3 or 4) can be used.")
        kind = (image.GetDimensions(), image.GetScalarTypeAsString(), components)
        first = first or kind
        if kind != first:
            raise InputError(f"The volumes of '{name}' differ in size or type{_at(source, number)}; split it first.")
        shape = tuple(reversed(image.GetDimensions())) + ((components,) if components > 1 else ())
        yield vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)


def find(node):
    """A node as it is, or what can be despeckled and has that id or name; of a browser, the recording that it plays.

    A recording and its proxy may share a name: that is the recording's. Raises InputError where there is none, or
    several.
    """
    if isinstance(node, str):
        node = slicer.mrmlScene.GetNodeByID(node) or _named(node)
    return _played(node) if node is not None and node.IsA("vtkMRMLSequenceBrowserNode") else node


def findRegion(node):
    """A node as it is, or the segmentation or box (ROI) with that id or name. InputError where none is, or several."""
    found = slicer.mrmlScene.GetNodeByID(node) if isinstance(node, str) else node
    if found is not None:
        return found
    regions = [each for each in _all(node) if each.GetClassName() in REGIONS]
    if not regions:
        known = "auto, none, given, a segmentation or a box (ROI), or a bool array"
        raise InputError(f"There is no region '{node}'; known are {known}.")
    return _only(regions, "regions are named", node)


def _named(name: str):
    every = _all(name)
    if not every:
        raise InputError(f"There is no node with the id or name '{name}' in the scene.")
    images = [each for each in every if each.GetClassName() in VOLUMES or _holdsImages(each)]
    recordings = {sequenceBehind(each) or each: each for each in images}
    recordings |= {each: each for each in images if each in recordings}
    browsers = [each for each in every if each.IsA("vtkMRMLSequenceBrowserNode")]
    return _only(list(recordings.values()) or browsers or every[:1], "nodes that could be despeckled are named", name)


def _all(name: str) -> list:
    nodes = slicer.mrmlScene.GetNodesByName(name)
    return [nodes.GetItemAsObject(number) for number in range(nodes.GetNumberOfItems())]


def _only(nodes: list, words: str, name: str):
    if len(nodes) > 1:
        ids = ", ".join(each.GetID() for each in nodes)
        raise InputError(f"{len(nodes)} {words} '{name}'; give the id of one: {ids}.")
    return nodes[0]


def _holdsImages(node) -> bool:
    """Whether a node is a sequence of volumes, or one to be."""
    return node.IsA("vtkMRMLSequenceNode") and (
        not node.GetNumberOfDataNodes() or node.GetDataNodeClassName() in VOLUMES
    )


def _played(browser):
    """The recording that a browser plays: its master sequence, or the only one that holds images. InputError."""
    sequences = vtk.vtkCollection()
    browser.GetSynchronizedSequenceNodes(sequences, True)  # the master is the first
    every = [sequences.GetItemAsObject(number) for number in range(sequences.GetNumberOfItems())]
    images = [each for each in every if _holdsImages(each)]
    if not images:
        raise InputError(f"'{browser.GetName()}' plays no recording of images; choose another.")
    if len(images) > 1 and images[0] is not browser.GetMasterSequenceNode():
        raise InputError(f"'{browser.GetName()}' plays several recordings; choose one of them.")
    return images[0]


def shapeOf(volume) -> tuple[int, int, int]:
    """A volume's voxels along (K, J, I); InputError where it has none."""
    image = volume.GetImageData()
    if image is None or not image.GetNumberOfPoints():
        raise InputError(f"'{volume.GetName()}' has no image data; load or record an image first.")
    return tuple(reversed(image.GetDimensions()))


def size(node) -> tuple[int, int, int]:
    """How many frames `frames` gives, and their rows and columns, without reading them; zeros where there are none."""
    try:
        recording = source(node)
        shape = list(shapeOf(recording.volumes[0]))
    except InputError:
        return 0, 0, 0
    (axis,) = volumes.slicing_axes(shape, recording.spacing, "auto")
    return len(recording.volumes) * shape.pop(axis), *shape


def frames(node) -> np.ndarray:
    """All frames (N, H, W[, C]) of what a node stands for; volumes are cut along their axis of acquisition."""
    recording = source(node)
    stack = read(recording)
    (axis,) = volumes.slicing_axes(stack.shape[1:4], recording.spacing, "auto")
    cut = np.moveaxis(stack, 1 + axis, 1)  # (T, slices, H, W[, C])
    return cut.reshape(-1, *cut.shape[2:])


def _at(source: Source, number: int) -> str:
    return f" (item {number + 1} of {len(source.volumes)})" if source.sequence else ""


def _decode(volume, decoder):
    """The image of a streaming volume, decoded in the node `decoder`; None if there is none."""
    if volume.GetFrame() is None:
        return volume.GetImageData()
    decoder.SetAndObserveImageData(None)
    decoder.SetCodecFourCC(volume.GetCodecFourCC())
    decoder.SetCodecParameterString(volume.GetCodecParameterString())
    decoder.SetAndObserveFrame(volume.GetFrame())
    if decoder.GetCodec() is None or not decoder.DecodeFrame():
        raise InputError(
            f"'{volume.GetName()}' cannot be decoded: no codec '{volume.GetCodecFourCC()}' in this Slicer."
        )
    return decoder.GetImageData()


#
# Results
#


def checkOutput(source: Source, output) -> None:
    """Raises InputError if the node `output` (None: a new one) cannot take the result of `source`."""
    if output is None:
        return
    name = output.GetName()
    if output.GetScene() is not source.node.GetScene():
        raise InputError(f"The output node '{name}' is not in the input's scene.")
    shown = None if output.IsA("vtkMRMLSequenceNode") else sequenceBehind(output)
    if output is source.node or (source.sequence is not None and source.sequence in (output, shown)):
        raise InputError(f"The output '{name}' is the input itself, which is never changed; choose another output.")
    if output.IsA("vtkMRMLSequenceNode") and source.sequence is not None:
        if not _holdsImages(output):
            raise InputError(f"The output '{name}' holds no images, and would be lost; choose another output.")
        return
    if source.node is source.sequence or output.GetClassName() != source.outputClass:
        kind = "vtkMRMLSequenceNode" if source.node is source.sequence else source.outputClass
        raise InputError(f"The output '{name}' is a {output.GetClassName()}, but the result is a {kind}.")
    if shown is not None and not (
        source.isProxy and set(browsers(output.GetScene(), shown)) & set(browsers(output.GetScene(), source.sequence))
    ):
        raise InputError(f"The output '{name}' shows another recording's sequence; choose another output.")


def write(source: Source, volumes, output=None, suffix: str = "despeckled"):
    """Puts a result, an array or iterable of volumes (K, J, I[, C]), into the scene of its source; returns its node."""
    *_, node = writing(source, volumes, output, suffix)
    return node


def writing(source: Source, volumes, output=None, suffix: str = "despeckled"):
    """Puts a result into the scene of its source, volume by volume; a generator that yields None, and the node last.

    Class, IJK-to-RAS matrices, parent transform, attributes and display settings are those of the input,
    whose name it carries with the suffix. A new sequence has the input's index name, unit, type and values,
    verbatim, and is joined to every browser of the input with a proxy of its own (played as the input is;
    never recorded into, changes of the proxy never saved). A sequence without browser gets one, `<input>
    browser`, for both, as on loading from a file: without, Slicer would show neither.

    volumes: as many volumes as the source's, or the first of them where only a part is done. output: an existing
    node to fill (see `checkOutput`): its id and display settings stay.
    The node is `output` if given; else the volume for a volume, the sequence for a sequence, the proxy for a
    proxy. The scene is touched once all volumes are there; if anything fails, nodes that were added are removed.
    """
    template = None if source.sequence is None else slicer.vtkMRMLSequenceNode()
    if template is not None:  # filled outside the scene
        # A text index keeps order and values as they are; a numeric one would sort and merge close values.
        template.SetIndexType(slicer.vtkMRMLSequenceNode.TextIndex)
        for original, value, image in zip(source.volumes, source.indexValues, volumes, strict=False):
            item = template.SetDataNodeAtValue(_volume(original, image), value)
            item.SetName(original.GetName())
            yield None
        if not template.GetNumberOfDataNodes():
            raise ValueError("There is no volume to write.")
    else:
        (image,) = volumes
    if any(node.GetScene() is None for node in (source.node, source.sequence) if node is not None):
        raise InputError("The input has been removed from the scene meanwhile; nothing was written.")
    if output is not None and output.GetScene() is None:
        raise InputError("The output has been removed from the scene meanwhile; nothing was written.")
    checkOutput(source, output)
    scene, added, joined = source.node.GetScene(), [], []
    try:
        if source.sequence is None:
            result = _writeVolume(source, image, output, suffix, added)
            _placeBeside(source.node, result)
        else:
            result = _writeSequence(source, template, output, suffix, added, joined)
    except BaseException:
        for browser, sequence in joined:
            browser.RemoveSynchronizedSequenceNode(sequence.GetID())
        for node in reversed(added):
            scene.RemoveNode(node)
        raise
    yield result


def slicePlace(node, axis: int, number: int):
    """The IJK-to-RAS matrix that slice `number` along an axis of `node` has now, as a volume of its own."""
    matrix, start = vtk.vtkMatrix4x4(), [0, 0, 0, 1]
    node.GetIJKToRASMatrix(matrix)
    start[2 - axis] = number
    origin = matrix.MultiplyPoint(start)
    for row in range(3):
        matrix.SetElement(row, 3, origin[row])
    return matrix


def liveOutput(node, voxels: np.ndarray, place):
    """A new volume `<input> live` for one slice of `node`, of voxels (K, J, I[, C]); see `updateLive`."""
    volume = getattr(slicer, VOLUMES[node.GetClassName()])()
    volume.SetName(_freeName(node, "live"))
    volume = node.GetScene().AddNode(volume)
    updateLive(volume, node, voxels, place)
    _showLike(node, volume, [])
    _placeBeside(node, volume)
    return volume


def updateLive(volume, node, voxels: np.ndarray, place) -> None:
    """Puts voxels (K, J, I[, C]) into `volume`, in a place of `slicePlace` under the parent transform of `node`."""
    image = volume.GetImageData()
    size = tuple(voxels.shape[2::-1])
    components = voxels.shape[3] if voxels.ndim == 4 else 1
    kind = get_vtk_array_type(voxels.dtype)
    current = image and (image.GetDimensions(), image.GetNumberOfScalarComponents(), image.GetScalarType())
    with slicer.util.NodeModify(volume):
        volume.SetIJKToRASMatrix(place)
        volume.SetAndObserveTransformNodeID(node.GetTransformNodeID())
        if current != (size, components, kind):
            image = vtk.vtkImageData()
            image.SetDimensions(size)
            image.AllocateScalars(kind, components)
            volume.SetAndObserveImageData(image)
        vtk_to_numpy(image.GetPointData().GetScalars()).reshape(voxels.shape)[:] = voxels
        image.GetPointData().GetScalars().Modified()
        image.Modified()


def _writeVolume(source, voxels, output, suffix, added):
    template, volume = source.node, _volume(source.volumes[0], voxels)
    if output is None:
        output = _add(template.GetScene(), volume, _freeName(template, suffix), added)
    else:
        output.CopyContent(volume, False)
    _showLike(template, output, added)
    return output


def _volume(template, voxels: np.ndarray):
    """A volume node outside any scene: all of `template` but its voxels (K, J, I[, C])."""
    volume = getattr(slicer, VOLUMES[template.GetClassName()])()
    image = vtk.vtkImageData()
    if template.IsA("vtkMRMLStreamingVolumeNode"):
        bare = slicer.vtkMRMLStreamingVolumeNode()  # copying from the input itself would decode it
        bare.CopyContent(template, False)
        bare.SetAndObserveImageData(None)
        volume.CopyContent(bare, False)
        image.SetDimensions(voxels.shape[2::-1])
        scalarType = get_vtk_array_type(voxels.dtype)
    else:
        before = template.GetImageData()
        if before is None or before.GetDimensions() != voxels.shape[2::-1]:
            raise InputError(CHANGED.format(template.GetName()))
        volume.CopyContent(template, False)
        image.SetExtent(before.GetExtent())
        scalarType = before.GetScalarType()
    image.AllocateScalars(scalarType, voxels.shape[3] if voxels.ndim == 4 else 1)
    vtk_to_numpy(image.GetPointData().GetScalars()).reshape(voxels.shape)[:] = voxels
    volume.SetAndObserveImageData(image)
    volume.SetVoxelVectorType(template.GetVoxelVectorType())
    volume.SetName(template.GetName())
    volume.RemoveAttribute(ORIGINAL)
    return volume


def _writeSequence(source, filled, output, suffix, added, joined):
    scene, original = source.node.GetScene(), source.sequence
    givenProxy = None if output is None or output.IsA("vtkMRMLSequenceNode") else output
    sequence = sequenceBehind(givenProxy) if givenProxy else output
    if sequence is None:
        sequence = filled
        _describe(sequence, original)
        _add(scene, sequence, _freeName(original, suffix), added)
    else:
        with slicer.util.NodeModify(sequence):
            sequence.RemoveAllDataNodes()
            sequence.SetIndexType(slicer.vtkMRMLSequenceNode.TextIndex)
            for number in range(filled.GetNumberOfDataNodes()):
                item = filled.GetNthDataNode(number)
                sequence.SetDataNodeAtValue(item, filled.GetNthIndexValue(number)).SetName(item.GetName())
            _describe(sequence, original)
    _placeBeside(original, sequence)
    result = sequence
    for browser in browsers(scene, original) or [_makeBrowser(original, added)]:
        # One event at the end, so that Slicer's Sequences module does not make a proxy of its own in between.
        with slicer.util.NodeModify(browser):
            if not browser.IsSynchronizedSequenceNodeID(sequence.GetID(), True):
                browser.AddSynchronizedSequenceNodeID(sequence.GetID())
                joined.append((browser, sequence))
                browser.SetRecording(sequence, False)
                browser.SetSaveChanges(sequence, False)
                browser.SetPlayback(sequence, browser.GetPlayback(original))
                browser.SetOverwriteProxyName(sequence, browser.GetOverwriteProxyName(original))
                browser.SetMissingItemMode(sequence, browser.GetMissingItemMode(original))
            inputProxy = browser.GetProxyNode(original)
            asked = inputProxy is source.node  # it was this browser's proxy that was to be despeckled
            if asked and givenProxy is not None:
                browser.AddProxyNode(givenProxy, sequence, False)
            # Slicer gives a proxy its sequence's name.
            alike = inputProxy is None or inputProxy.GetName() == original.GetName()
            name = sequence.GetName() if alike else _freeName(inputProxy, suffix)
            proxy = _updateProxy(browser, sequence, name, inputProxy, added)
            _placeBeside(inputProxy or original, proxy)
            if asked:
                result = proxy
    return output or result


def _makeBrowser(sequence, added):
    """A browser for a sequence that has none, with its proxy."""
    browser = _add(sequence.GetScene(), slicer.vtkMRMLSequenceBrowserNode(), f"{sequence.GetName()} browser", added)
    with slicer.util.NodeModify(browser):
        browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
        _updateProxy(browser, sequence, sequence.GetName(), None, added)
    return browser


def _describe(sequence, original) -> None:
    """Gives a sequence the index and the attributes of another."""
    sequence.SetIndexName(original.GetIndexName())
    sequence.SetIndexUnit(original.GetIndexUnit())
    sequence.SetIndexType(original.GetIndexType())
    sequence.SetNumericIndexValueTolerance(original.GetNumericIndexValueTolerance())
    for attribute in original.GetAttributeNames():
        # The class differs for streaming volumes; MRML has set it.
        if attribute not in ("DataNodeClassName", ORIGINAL):
            sequence.SetAttribute(attribute, original.GetAttribute(attribute))


def selectedValue(browser) -> str:
    """The index value at which a browser stands; its number counts the items of the master sequence."""
    master, selected = browser.GetMasterSequenceNode(), browser.GetSelectedItemNumber()
    return master.GetNthIndexValue(selected) if 0 <= selected < master.GetNumberOfDataNodes() else ""


def _updateProxy(browser, sequence, name, template, added):
    """Lets a proxy, made if there is none, show the selected item of `sequence` as `template` is shown."""
    item = sequence.GetDataNodeAtValue(selectedValue(browser), False) or sequence.GetNthDataNode(0)
    proxy = browser.GetProxyNode(sequence)
    if proxy is None or proxy.GetClassName() != item.GetClassName():
        proxy = _add(browser.GetScene(), getattr(slicer, item.GetClassName())(), name, added)
        browser.AddProxyNode(proxy, sequence, False)
    proxy.CopyContent(item)
    _showLike(template, proxy, added)
    return proxy


def _showLike(template, volume, added) -> None:
    """Parent transform and display of `volume` as those of `template` (None: default display).

    Display settings that `volume` has already are left as they are. The window is the one at which the input
    is shown now, and does not follow the new voxels, so that the two compare.
    """
    if template is not None:
        volume.SetAndObserveTransformNodeID(template.GetTransformNodeID())
    if volume.GetDisplayNode() is not None:
        return
    display = template.GetDisplayNode() if template is not None else None
    if display is None or not display.IsA("vtkMRMLScalarVolumeDisplayNode"):
        volume.CreateDefaultSequenceDisplayNodes()
        added.append(volume.GetDisplayNode())
        return
    copy = getattr(slicer, display.GetClassName())()
    copy.CopyContent(display)
    copy.AutoWindowLevelOff()
    copy.SetWindowLevel(display.GetWindow(), display.GetLevel())
    added.append(volume.GetScene().AddNode(copy))
    volume.SetAndObserveDisplayNodeID(copy.GetID())


def _placeBeside(node, result) -> None:
    """Puts `result` into the folder, study or patient of `node` in the subject hierarchy, if there is one."""
    hierarchy = node.GetScene().GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    item = hierarchy.GetItemByDataNode(node) if hierarchy else 0
    if not item:
        return
    parent, place = hierarchy.GetItemParent(item), hierarchy.GetItemByDataNode(result)
    if place:
        hierarchy.SetItemParent(place, parent)
    else:
        hierarchy.CreateItem(parent, result)


def rename(node, change) -> None:
    """Gives a result, its sequence and that one's proxies the names that `change` makes of theirs."""
    sequence = node if node.IsA("vtkMRMLSequenceNode") else sequenceBehind(node)
    proxies = [browser.GetProxyNode(sequence) for browser in browsers(node.GetScene(), sequence)] if sequence else []
    for each in {node, sequence, *proxies} - {None}:
        if change(each.GetName()) != each.GetName():
            each.SetName(change(each.GetName()))


def _freeName(node, suffix) -> str:
    """The node's name with a suffix, and a number where another node has that name."""
    return node.GetScene().GenerateUniqueName(f"{node.GetName()} {suffix}")


def _add(scene, node, name, added):
    """Adds `node` to the scene; the caller's list `added` remembers it."""
    node.SetName(name)
    node = scene.AddNode(node)
    added.append(node)
    return node
