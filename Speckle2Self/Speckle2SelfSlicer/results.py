"""Put results into the scene, next to their recordings: volumes, sequences, browsers, proxies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import slicer
import vtk
from slicer import (
    vtkMRMLNode,
    vtkMRMLScene,
    vtkMRMLSequenceBrowserNode,
    vtkMRMLSequenceNode,
    vtkMRMLVolumeNode,
)
from slicer.i18n import tr as _
from vtk.util.numpy_support import get_vtk_array_type, vtk_to_numpy

from Speckle2SelfLib.system import InputError

from .scene import CHANGED, ORIGINAL, VOLUMES, Recording, browsers, holdsImages, sequenceBehind, sequenceOf


def checkOutput(recording: Recording, output: vtkMRMLNode | None) -> None:
    """Raise InputError if the node `output` (None: a new one) cannot hold the result of `recording`."""
    if output is None:
        return
    name = output.GetName()
    if output.GetScene() is not recording.scene:
        raise InputError(_("The output node '{name}' is not in the input's scene.").format(name=name))
    behind = None if output.IsA("vtkMRMLSequenceNode") else sequenceBehind(output)
    if output is recording.node or (recording.sequence is not None and recording.sequence in (output, behind)):
        raise InputError(
            _("The output '{name}' is the input itself, which is never changed; choose another output.").format(
                name=name
            )
        )
    if output.IsA("vtkMRMLSequenceNode") and recording.sequence is not None:
        if not holdsImages(output):
            raise InputError(
                _("The output '{name}' contains no images, and would be lost; choose another output.").format(name=name)
            )
        return
    if recording.node is recording.sequence or output.GetClassName() != recording.outputClass:
        kind = "vtkMRMLSequenceNode" if recording.node is recording.sequence else recording.outputClass
        raise InputError(
            _("The output '{name}' is a {found}, but the result is a {kind}.").format(
                name=name, found=output.GetClassName(), kind=kind
            )
        )
    if behind is not None and not (
        recording.isProxy
        and set(browsers(output.GetScene(), behind)) & set(browsers(output.GetScene(), recording.sequence))
    ):
        raise InputError(
            _("The output '{name}' shows another recording's sequence; choose another output.").format(name=name)
        )


def write(
    recording: Recording, volumes: Iterable[np.ndarray], output: vtkMRMLNode | None = None, suffix: str = "despeckled"
) -> vtkMRMLNode:
    """Put a result, volumes (K, J, I[, C]), into the scene of its recording; return its node."""
    *_, node = writeInSteps(recording, volumes, output, suffix)
    return node


def writeInSteps(
    recording: Recording, volumes: Iterable[np.ndarray], output: vtkMRMLNode | None = None, suffix: str = "despeckled"
) -> Iterator[vtkMRMLNode | None]:
    """Put a result into the scene of its recording, volume by volume; yield None after each, and the node last.

    Class, IJK-to-RAS matrices, parent transform, attributes, display settings and name (with the suffix) are the
    input's. A new sequence has the input's index name, unit, type and values, verbatim, and is added to every
    browser of the input with its own proxy (played like the input; never recorded into, changes of the proxy are never
    saved). For a sequence without browser, `<input> browser` is created for both, as on loading from a file: otherwise
    Slicer would show neither.

    volumes: as many volumes as the recording's, or the first of them if only a part is done. output: an existing node
    to fill (see `checkOutput`): its id and display settings are kept.
    The node is `output` if given; else the volume for a volume, the sequence for a sequence, the proxy for a proxy. The
    scene is modified once all volumes are complete; if anything fails, nodes that were added are removed.
    """
    template = None if recording.sequence is None else slicer.vtkMRMLSequenceNode()
    if template is not None:  # filled outside the scene
        # A text index preserves order and values; a numeric one would sort and merge close values.
        template.SetIndexType(slicer.vtkMRMLSequenceNode.TextIndex)
        for original, value, image in zip(recording.volumes, recording.indexValues, volumes, strict=False):
            item = template.SetDataNodeAtValue(_volume(original, image), value)
            item.SetName(original.GetName())
            yield None
        if not template.GetNumberOfDataNodes():
            raise ValueError("There is no volume to write.")
    else:
        (image,) = volumes
    if any(node.GetScene() is None for node in (recording.node, recording.sequence) if node is not None):
        raise InputError(_("The input was removed from the scene during the run; nothing was written."))
    if output is not None and output.GetScene() is None:
        raise InputError(_("The output was removed from the scene during the run; nothing was written."))
    checkOutput(recording, output)
    mrmlScene, added, joined = recording.scene, [], []
    try:
        if recording.sequence is None:
            result = _writeVolume(recording, image, output, suffix, added)
            placeBeside(recording.node, result)
        else:
            result = _writeSequence(recording, template, output, suffix, added, joined)
    except BaseException:
        for browser, sequence in joined:
            browser.RemoveSynchronizedSequenceNode(sequence.GetID())
        for node in reversed(added):
            mrmlScene.RemoveNode(node)
        raise
    yield result


def _writeVolume(
    recording: Recording, voxels: np.ndarray, output: vtkMRMLNode | None, suffix: str, added: list
) -> vtkMRMLNode:
    template, volume = recording.node, _volume(recording.volumes[0], voxels)
    if output is None:
        output = _add(template.GetScene(), volume, freeName(template, suffix), added)
    else:
        output.CopyContent(volume, False)
    showLike(template, output, added)
    return output


def _volume(template: vtkMRMLVolumeNode, voxels: np.ndarray) -> vtkMRMLVolumeNode:
    """Return a volume node outside any scene: a copy of `template` with other voxels (K, J, I[, C]).

    Voxels of another type, or without the template's color, are a map: a scalar volume at the same place.
    """
    isMap = _isMap(template, voxels)
    volume = slicer.vtkMRMLScalarVolumeNode() if isMap else getattr(slicer, VOLUMES[template.GetClassName()])()
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
        scalarType = get_vtk_array_type(voxels.dtype) if isMap else before.GetScalarType()
    image.AllocateScalars(scalarType, voxels.shape[3] if voxels.ndim == 4 else 1)
    vtk_to_numpy(image.GetPointData().GetScalars()).reshape(voxels.shape)[:] = voxels
    volume.SetAndObserveImageData(image)
    if not isMap:
        volume.SetVoxelVectorType(template.GetVoxelVectorType())
    volume.SetName(template.GetName())
    volume.RemoveAttribute(ORIGINAL)
    return volume


def _isMap(template: vtkMRMLVolumeNode, voxels: np.ndarray) -> bool:
    """Return whether voxels (K, J, I[, C]) have another type or other colors than a recording's volume."""
    if template.IsA("vtkMRMLStreamingVolumeNode"):
        return voxels.dtype.kind == "f"  # streaming volumes have 8 bits
    before = template.GetImageData()
    scalars = before.GetPointData().GetScalars() if before is not None else None
    if scalars is None:
        return False
    colors = voxels.shape[3] if voxels.ndim == 4 else 1
    return vtk_to_numpy(scalars).dtype != voxels.dtype or before.GetNumberOfScalarComponents() != colors


def _writeSequence(
    recording: Recording,
    template: vtkMRMLSequenceNode,
    output: vtkMRMLNode | None,
    suffix: str,
    added: list,
    joined: list,
) -> vtkMRMLNode:
    mrmlScene, original = recording.scene, recording.sequence
    outputProxy = None if output is None or output.IsA("vtkMRMLSequenceNode") else output
    sequence = sequenceBehind(outputProxy) if outputProxy else output
    if sequence is None:
        sequence = template
        _copyIndex(sequence, original)
        _add(mrmlScene, sequence, freeName(original, suffix), added)
    else:
        with slicer.util.NodeModify(sequence):
            sequence.RemoveAllDataNodes()
            sequence.SetIndexType(slicer.vtkMRMLSequenceNode.TextIndex)
            for number in range(template.GetNumberOfDataNodes()):
                item = template.GetNthDataNode(number)
                sequence.SetDataNodeAtValue(item, template.GetNthIndexValue(number)).SetName(item.GetName())
            _copyIndex(sequence, original)
    placeBeside(original, sequence)
    result = sequence
    for browser in browsers(mrmlScene, original) or [_makeBrowser(original, added)]:
        # One event at the end, so that Slicer's Sequences module does not create its own proxy in between.
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
            isInput = inputProxy is recording.node  # the input was this browser's proxy
            if isInput and outputProxy is not None:
                browser.AddProxyNode(outputProxy, sequence, False)
            # Slicer gives a proxy its sequence's name.
            sameName = inputProxy is None or inputProxy.GetName() == original.GetName()
            name = sequence.GetName() if sameName else freeName(inputProxy, suffix)
            proxy = _updateProxy(browser, sequence, name, inputProxy, added)
            placeBeside(inputProxy or original, proxy)
            if isInput:
                result = proxy
    return output or result


def _makeBrowser(sequence: vtkMRMLSequenceNode, added: list) -> vtkMRMLSequenceBrowserNode:
    """Create a browser and a proxy for a sequence that has none; return the browser."""
    browser = _add(sequence.GetScene(), slicer.vtkMRMLSequenceBrowserNode(), f"{sequence.GetName()} browser", added)
    with slicer.util.NodeModify(browser):
        browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
        _updateProxy(browser, sequence, sequence.GetName(), None, added)
    return browser


def _copyIndex(sequence: vtkMRMLSequenceNode, original: vtkMRMLSequenceNode) -> None:
    """Give a sequence the index and the attributes of another."""
    sequence.SetIndexName(original.GetIndexName())
    sequence.SetIndexUnit(original.GetIndexUnit())
    sequence.SetIndexType(original.GetIndexType())
    sequence.SetNumericIndexValueTolerance(original.GetNumericIndexValueTolerance())
    for attribute in original.GetAttributeNames():
        # MRML has set the class, which differs for streaming volumes.
        if attribute not in ("DataNodeClassName", ORIGINAL):
            sequence.SetAttribute(attribute, original.GetAttribute(attribute))


def selectedValue(browser: vtkMRMLSequenceBrowserNode) -> str:
    """Return the index value that a browser shows; its item number counts the items of the master sequence."""
    master, selected = browser.GetMasterSequenceNode(), browser.GetSelectedItemNumber()
    return master.GetNthIndexValue(selected) if 0 <= selected < master.GetNumberOfDataNodes() else ""


def _updateProxy(
    browser: vtkMRMLSequenceBrowserNode, sequence: vtkMRMLSequenceNode, name: str, template: vtkMRMLVolumeNode | None,
    added: list,
) -> vtkMRMLVolumeNode:  # fmt: skip
    """Let a proxy, created if there is none, show the selected item of `sequence` like `template`; return it."""
    item = sequence.GetDataNodeAtValue(selectedValue(browser), False) or sequence.GetNthDataNode(0)
    proxy = browser.GetProxyNode(sequence)
    if proxy is None or proxy.GetClassName() != item.GetClassName():
        proxy = _add(browser.GetScene(), getattr(slicer, item.GetClassName())(), name, added)
        browser.AddProxyNode(proxy, sequence, False)
    proxy.CopyContent(item)
    showLike(template, proxy, added)
    return proxy


def showLike(template: vtkMRMLVolumeNode | None, volume: vtkMRMLVolumeNode, added: list) -> None:
    """Set the parent transform and the display of `volume` to those of `template` (None: the default display).

    New nodes are appended to the list `added`.

    Existing display settings of `volume` are not changed. The window is the input's current one and does not depend on
    the new voxels, so that the two are comparable.
    """
    if template is not None:
        volume.SetAndObserveTransformNodeID(template.GetTransformNodeID())
    if volume.GetDisplayNode() is not None:
        return
    display = template.GetDisplayNode() if template is not None else None
    colored = display is not None and display.IsA("vtkMRMLVectorVolumeDisplayNode")
    unfit = colored and not volume.IsA("vtkMRMLVectorVolumeNode")
    if display is None or unfit or not display.IsA("vtkMRMLScalarVolumeDisplayNode"):
        volume.CreateDefaultSequenceDisplayNodes()
        added.append(volume.GetDisplayNode())
        return
    copy = getattr(slicer, display.GetClassName())()
    copy.CopyContent(display)
    copy.AutoWindowLevelOff()
    copy.SetWindowLevel(display.GetWindow(), display.GetLevel())
    added.append(volume.GetScene().AddNode(copy))
    volume.SetAndObserveDisplayNodeID(copy.GetID())


def showOwnWindow(node: vtkMRMLNode) -> None:
    """Show a map, or the proxies of a sequence of maps, with a window for its own values, not its recording's."""
    sequence = sequenceOf(node)
    shown = [browser.GetProxyNode(sequence) for browser in browsers(node.GetScene(), sequence)] if sequence else [node]
    for volume in shown:
        display = volume.GetDisplayNode() if volume is not None else None
        if display is not None:
            display.AutoWindowLevelOn()


def placeBeside(node: vtkMRMLNode, result: vtkMRMLNode) -> None:
    """Move `result` to the folder, study or patient of `node` in the subject hierarchy, if there is one."""
    hierarchy = node.GetScene().GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
    item = hierarchy.GetItemByDataNode(node) if hierarchy else 0
    if not item:
        return
    parent, resultItem = hierarchy.GetItemParent(item), hierarchy.GetItemByDataNode(result)
    if resultItem:
        hierarchy.SetItemParent(resultItem, parent)
    else:
        hierarchy.CreateItem(parent, result)


def rename(node: vtkMRMLNode, change: Callable[[str], str]) -> None:
    """Rename a result, its sequence and the sequence's proxies with the function `change`."""
    sequence = sequenceOf(node)
    proxies = [browser.GetProxyNode(sequence) for browser in browsers(node.GetScene(), sequence)] if sequence else []
    for each in {node, sequence, *proxies} - {None}:
        if change(each.GetName()) != each.GetName():
            each.SetName(change(each.GetName()))


def freeName(node: vtkMRMLNode, suffix: str) -> str:
    """Return the node's name with a suffix, and a number if another node has that name."""
    return node.GetScene().GenerateUniqueName(f"{node.GetName()} {suffix}")


def _add(mrmlScene: vtkMRMLScene, node: vtkMRMLNode, name: str, added: list) -> vtkMRMLNode:
    """Add `node` to the scene, and to the list `added`."""
    node.SetName(name)
    node = mrmlScene.AddNode(node)
    added.append(node)
    return node
