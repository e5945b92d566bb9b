"""MRML <-> frames on real MRML: geometry, time, display and browsing kept; the input never changes."""

import time

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402
from vtk.util.numpy_support import vtk_to_numpy  # noqa: E402

from Speckle2SelfLib.system import InputError  # noqa: E402
from Speckle2SelfSlicer import results  # noqa: E402
from Speckle2SelfSlicer.scene import Recording  # noqa: E402

OBLIQUE = (0, -0.3, 0.1, 12.5, 0.4, 0, 0, -7.25, 0, 0.05, 2, 1e-3, 0, 0, 0, 1)
DATA = {1: "vtkMRMLScalarVolumeNode", 3: "vtkMRMLVectorVolumeNode", 4: "vtkMRMLVectorVolumeNode"}


@pytest.fixture
def scene():
    """Return a scene that Slicer's Sequences module watches, as in the application."""
    scene, sequences = slicer.vtkMRMLScene(), slicer.vtkSlicerSequencesLogic()
    sequences.SetMRMLScene(scene)
    yield scene
    sequences.SetMRMLScene(None)


def image_of(array):
    image = vtk.vtkImageData()
    components = array.shape[3] if array.ndim == 4 else 1
    image.SetDimensions(array.shape[2], array.shape[1], array.shape[0])
    image.AllocateScalars({"uint8": vtk.VTK_UNSIGNED_CHAR, "int16": vtk.VTK_SHORT}[str(array.dtype)], components)
    vtk_to_numpy(image.GetPointData().GetScalars()).reshape(array.shape)[:] = array
    return image


def voxels_of(node):
    image = node.GetImageData()
    shape = image.GetDimensions()[::-1] + ((3,) if image.GetNumberOfScalarComponents() == 3 else ())
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)


def ramp(*shape, dtype="uint8", start=0):
    return (np.arange(np.prod(shape)).reshape(shape) % 200 + start).astype(dtype)


def add_volume(scene, array, name="US", kind=None, matrix=OBLIQUE):
    components = array.shape[3] if array.ndim == 4 else 1
    node = scene.AddNewNodeByClass(kind or DATA[components], name)
    node.SetAndObserveImageData(image_of(array))
    node.SetIJKToRASMatrix(matrix_of(matrix))
    return node


def matrix_of(elements):
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(elements)
    return matrix


def matrix_elements(node):
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return [matrix.GetElement(r, c) for r in range(4) for c in range(4)]


def add_sequence(scene, arrays, values=("0.10", "0.2", "1e0"), kind=None, browsed=True, name="Cine"):
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("ms")
    loose = slicer.vtkMRMLScene()
    for number, (array, value) in enumerate(zip(arrays, values, strict=True)):
        frame = add_volume(loose, array, f"frame {number}", kind, (*OBLIQUE[:3], number, *OBLIQUE[4:]))
        frame.SetAttribute("Timestamp", f"{number}.50")
        sequence.SetDataNodeAtValue(frame, value)
    browser = proxy = None
    if browsed:
        browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
        browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
        proxy = browser.GetProxyNode(sequence)  # made by the Sequences module
    return sequence, browser, proxy


def despeckle(node, output=None, by=1):
    """Run the whole glue with a despeckling that adds `by` to each voxel."""
    source = Recording.of(node)
    results.checkOutput(source, output)
    return results.write(source, source.read() + np.uint8(by), output)


def nodes(scene):
    return [scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())]


def index_values(sequence):
    return [sequence.GetNthIndexValue(i) for i in range(sequence.GetNumberOfDataNodes())]


# Volumes


@pytest.mark.parametrize("shape", [(1, 9, 8), (5, 9, 8), (1, 9, 8, 3)])
def test_the_output_of_a_volume_is_a_volume_of_the_same_kind_and_place(scene, shape):
    node = add_volume(scene, ramp(*shape))
    output = despeckle(node)
    assert output.GetName() == "US despeckled"
    assert output.GetClassName() == node.GetClassName()
    assert matrix_elements(output) == list(OBLIQUE)
    assert np.array_equal(voxels_of(output), ramp(*shape) + 1)
    assert output.GetImageData().GetScalarType() == vtk.VTK_UNSIGNED_CHAR


def test_the_scalar_type_is_kept_where_numpy_knows_several_names_for_it(scene):
    node = add_volume(scene, ramp(1, 9, 8))
    image = vtk.vtkImageData()
    image.SetDimensions(8, 9, 1)
    image.AllocateScalars(vtk.VTK_LONG_LONG, 1)
    image.GetPointData().GetScalars().Fill(3)
    node.SetAndObserveImageData(image)
    source = Recording.of(node)
    output = results.write(source, source.read() * 2)
    assert output.GetImageData().GetScalarType() == vtk.VTK_LONG_LONG
    assert voxels_of(output).tolist() == np.full((1, 9, 8), 6).tolist()


def test_the_parent_transform_is_copied(scene):
    node = add_volume(scene, ramp(1, 9, 8))
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "ProbeToReference")
    node.SetAndObserveTransformNodeID(transform.GetID())
    assert despeckle(node).GetTransformNodeID() == transform.GetID()


def test_display_settings_are_copied_and_do_not_change(scene):
    node = add_volume(scene, ramp(1, 9, 8))
    node.CreateDefaultDisplayNodes()
    colours = scene.AddNewNodeByClass("vtkMRMLColorTableNode", "Rainbow")
    colours.SetTypeToRainbow()
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID(colours.GetID())
    display.AutoWindowLevelOff()
    display.SetWindowLevel(77, 33)
    display.SetInterpolate(False)
    copy = despeckle(node).GetDisplayNode()
    assert copy is not display
    assert (copy.GetWindow(), copy.GetLevel(), copy.GetAutoWindowLevel()) == (77, 33, False)
    assert copy.GetColorNodeID() == colours.GetID()
    assert not copy.GetInterpolate()


def test_an_automatic_window_is_copied_with_its_current_values(scene):
    node = add_volume(scene, ramp(1, 9, 8))
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    assert display.GetAutoWindowLevel()
    copy = despeckle(node, by=50).GetDisplayNode()
    assert (copy.GetWindow(), copy.GetLevel()) == (display.GetWindow(), display.GetLevel())
    assert not copy.GetAutoWindowLevel()


def test_the_input_is_not_changed_by_a_run(scene):
    node = add_volume(scene, ramp(3, 9, 8))
    node.CreateDefaultDisplayNodes()
    image, before = node.GetImageData(), voxels_of(node).copy()
    times = image.GetMTime(), image.GetPointData().GetScalars().GetMTime(), node.GetMTime()
    output = despeckle(node)
    assert node.GetImageData() is image
    assert (image.GetMTime(), image.GetPointData().GetScalars().GetMTime(), node.GetMTime()) == times
    voxels_of(output)[:] = 0
    assert np.array_equal(voxels_of(node), before)


def test_the_input_cannot_be_written_through_its_frames(scene):
    frames = Recording.of(add_volume(scene, ramp(1, 9, 8))).read()
    with pytest.raises(ValueError, match="read-only"):
        frames[0, 0, 0, 0] = 9


def test_a_second_run_makes_a_second_output(scene):
    node = add_volume(scene, ramp(1, 9, 8))
    first = despeckle(node)
    assert despeckle(node) is not first
    assert despeckle(node).GetName() == "US despeckled_2"


def test_a_given_output_is_filled_and_keeps_its_id_name_and_display(scene):
    node = add_volume(scene, ramp(1, 9, 8))
    output = add_volume(scene, ramp(2, 3, 3), "Mine", matrix=(1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1))
    output.CreateDefaultDisplayNodes()
    identity, display, count = output.GetID(), output.GetDisplayNode(), scene.GetNumberOfNodes()
    assert despeckle(node, output) is output
    assert (output.GetID(), output.GetName(), output.GetDisplayNode()) == (identity, "Mine", display)
    assert np.array_equal(voxels_of(output), ramp(1, 9, 8) + 1)
    assert matrix_elements(output) == list(OBLIQUE)
    assert scene.GetNumberOfNodes() == count


def test_an_output_of_another_class_is_refused(scene):
    node = add_volume(scene, ramp(1, 9, 8))
    with pytest.raises(InputError, match="vtkMRMLVectorVolumeNode, but the result is a vtkMRMLScalarVolumeNode"):
        despeckle(node, scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "colour"))


def test_the_input_is_refused_as_output(scene):
    node = add_volume(scene, ramp(1, 9, 8))
    with pytest.raises(InputError, match="is the input itself"):
        despeckle(node, node)


def test_the_result_is_next_to_the_input_in_the_subject_hierarchy(scene):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    node = add_volume(scene, ramp(1, 9, 8))
    hierarchy.CreateItem(study, node)
    output = despeckle(node)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(output)) == study


# Streaming volumes


def streaming(scene, array, name="Live"):
    node = scene.AddNewNodeByClass("vtkMRMLStreamingVolumeNode", name)
    node.SetAndObserveImageData(image_of(array))
    node.SetIJKToRASMatrix(matrix_of(OBLIQUE))
    return node


def test_an_encoded_streaming_volume_is_decoded_into_a_plain_vector_volume(scene):
    node = streaming(scene, ramp(1, 9, 8, 3))
    node.SetCodecFourCC("RV24")
    assert node.EncodeImageData(True)
    received = scene.AddNewNodeByClass("vtkMRMLStreamingVolumeNode", "Received")
    received.SetCodecFourCC("RV24")
    received.SetIJKToRASMatrix(matrix_of(OBLIQUE))
    received.SetAndObserveFrame(node.GetFrame())
    output = despeckle(received)
    assert output.GetClassName() == "vtkMRMLVectorVolumeNode"
    assert np.array_equal(voxels_of(output), ramp(1, 9, 8, 3) + 1)
    assert matrix_elements(output) == list(OBLIQUE)
    assert received.GetFrame() is node.GetFrame()


def test_a_sequence_of_streaming_volumes_becomes_one_of_vector_volumes(scene):
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "Stream")
    for number in range(2):
        node = streaming(slicer.vtkMRMLScene(), ramp(1, 9, 8, 3, start=number))
        node.SetCodecFourCC("RV24")
        node.EncodeImageData(True)
        sequence.SetDataNodeAtValue(node, f"{number}.0")
    output = despeckle(sequence)
    assert output.GetDataNodeClassName() == output.GetAttribute("DataNodeClassName") == "vtkMRMLVectorVolumeNode"
    for number in range(2):
        assert np.array_equal(voxels_of(output.GetNthDataNode(number)), ramp(1, 9, 8, 3, start=number) + 1)


def test_a_streaming_volume_without_its_codec_is_refused(scene):
    frame = slicer.vtkStreamingVolumeFrame()
    frame.SetCodecFourCC("XXXX")
    frame.SetDimensions(8, 9, 1)
    received = scene.AddNewNodeByClass("vtkMRMLStreamingVolumeNode", "Received")
    received.SetAndObserveFrame(frame)
    before = nodes(scene)
    with pytest.raises(InputError, match="no codec 'XXXX'"):
        despeckle(received)
    assert nodes(scene) == before


# Sequences


CINE = [ramp(1, 9, 8, start=i) for i in range(3)]


def test_a_sequence_keeps_index_and_per_frame_fields_verbatim(scene):
    sequence, *_ = add_sequence(scene, CINE)
    sequence.SetAttribute("Device", "L14")
    sequence.SetAttribute("DICOM.instanceUIDs", "1.2.3")
    for number in range(sequence.GetNumberOfDataNodes()):
        sequence.GetNthDataNode(number).SetAttribute("DICOM.instanceUIDs", "1.2.3")
    output = despeckle(sequence)
    assert output.GetName() == "Cine despeckled"
    assert index_values(output) == ["0.10", "0.2", "1e0"]
    assert (output.GetIndexName(), output.GetIndexUnit(), output.GetIndexTypeAsString()) == (
        "time",
        "ms",
        "numeric",
    )
    assert output.GetAttribute("Device") == "L14"
    assert output.GetAttribute("DICOM.instanceUIDs") is None, "the result differs from the DICOM files"
    assert output.GetNthDataNode(0).GetAttribute("DICOM.instanceUIDs") is None
    for number in range(3):
        before, after = sequence.GetNthDataNode(number), output.GetNthDataNode(number)
        assert np.array_equal(voxels_of(after), CINE[number] + 1)
        assert matrix_elements(after) == matrix_elements(before)
        assert after.GetAttribute("Timestamp") == f"{number}.50"
        assert after.GetName() == before.GetName()


def test_times_closer_than_the_tolerance_are_kept_apart(scene):
    sequence, *_ = add_sequence(scene, CINE, ("0", "0.002", "0.004"))
    sequence.SetNumericIndexValueTolerance(0.1)
    output = despeckle(sequence)
    assert index_values(output) == ["0", "0.002", "0.004"]
    assert output.GetNumericIndexValueTolerance() == 0.1


def test_equal_time_stamps_in_a_file_are_merged_only_by_slicer(slicer_app, project, tmp_path):
    """Frames of one time are one item of Slicer's sequence, on loading; each that is there has a result at its time."""
    content = (project / "Testing" / "Data" / "Speckle2SelfCine1.seq.nrrd").read_bytes()
    (tmp_path / "equal.seq.nrrd").write_bytes(content.replace(b"=0.00 0.05 0.10 0.15", b"=0.00 0.00 0.00 0.15"))
    sequence = slicer.util.loadSequence(str(tmp_path / "equal.seq.nrrd"))
    assert index_values(sequence)[:2] == ["0.00", "0.15"] and sequence.GetNumberOfDataNodes() == 18
    assert index_values(despeckle(sequence)) == index_values(sequence)


def test_a_text_index_is_kept_as_text(scene):
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "Views")
    sequence.SetIndexType(slicer.vtkMRMLSequenceNode.TextIndex)
    for value in ("systole", "diastole"):
        sequence.SetDataNodeAtValue(add_volume(slicer.vtkMRMLScene(), CINE[0]), value)
    output = despeckle(sequence)
    assert index_values(output) == ["systole", "diastole"]
    assert output.GetIndexTypeAsString() == "text"


def test_the_output_joins_the_inputs_browser_with_a_proxy_at_the_selected_item(scene):
    sequence, browser, proxy = add_sequence(scene, CINE)
    browser.SetSelectedItemNumber(2)
    proxy.GetDisplayNode().SetWindowLevel(66, 22)
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "ImageToProbe")
    proxy.SetAndObserveTransformNodeID(transform.GetID())
    output = despeckle(sequence)
    shown = browser.GetProxyNode(output)
    assert browser.GetMasterSequenceNode() is sequence
    assert shown.GetName() == f"{proxy.GetName()} despeckled"
    assert np.array_equal(voxels_of(shown), CINE[2] + 1)
    assert (shown.GetDisplayNode().GetWindow(), shown.GetDisplayNode().GetLevel()) == (66, 22)
    assert shown.GetTransformNodeID() == transform.GetID()
    assert browser.GetPlayback(output)
    assert not browser.GetRecording(output)
    assert not browser.GetSaveChanges(output)
    assert browser.GetSelectedItemNumber() == 2


def test_slicers_sequences_logic_plays_the_output_in_step(scene):
    sequence, browser, proxy = add_sequence(scene, CINE)
    output = despeckle(sequence)
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2  # no third one, made by the logic
    browser.SetSelectedItemNumber(1)
    assert np.array_equal(voxels_of(proxy), CINE[1])
    assert np.array_equal(voxels_of(browser.GetProxyNode(output)), CINE[1] + 1)


def test_writing_a_long_recording_never_blocks_the_panel(scene):
    """500 frames of 640 x 480, three times, the last two into the output that is there."""
    frame, output, longest = ramp(1, 480, 640), None, []
    sequence, *_ = add_sequence(scene, [frame] * 500, [str(number) for number in range(500)])
    for _again in range(3):
        steps = results.writeInSteps(Recording.of(sequence).snapshot(), (frame for _ in range(500)), output)
        times = [time.thread_time()]
        for output in steps:  # noqa: B007
            times.append(time.thread_time())
        assert len(times) == 502
        longest.append(max(np.diff(times)))
    assert max(longest[0], min(longest[1:])) < 0.1, "of processor time, as others may be at work"


def test_every_browser_of_the_input_shows_the_output(scene):
    sequence, first, _ = add_sequence(scene, CINE)
    second = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Other")
    second.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    output = despeckle(sequence)
    assert first.GetProxyNode(output) and second.GetProxyNode(output)
    assert first.GetProxyNode(output) is not second.GetProxyNode(output)


def test_a_sequence_without_browser_gets_one_for_input_and_output(scene):
    sequence, *_ = add_sequence(scene, CINE, browsed=False)
    output = despeckle(sequence)
    browser = scene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    assert browser.GetName() == "Cine browser"
    assert browser.GetMasterSequenceNode() is sequence
    assert np.array_equal(voxels_of(browser.GetProxyNode(sequence)), CINE[0])
    assert np.array_equal(voxels_of(browser.GetProxyNode(output)), CINE[0] + 1)


def test_a_proxy_means_its_whole_sequence(scene):
    sequence, browser, proxy = add_sequence(scene, CINE)
    shown = despeckle(proxy)
    output = browser.GetSequenceNode(shown)
    assert output.GetName() == "Cine despeckled"
    assert index_values(output) == index_values(sequence)
    assert np.array_equal(voxels_of(output.GetNthDataNode(2)), CINE[2] + 1)


def test_a_sequence_of_three_dimensional_color_volumes_works(scene):
    arrays = [ramp(4, 9, 8, 3, start=i) for i in range(2)]
    sequence, *_ = add_sequence(scene, arrays, ("0", "1"))
    output = despeckle(sequence)
    assert Recording.of(sequence).read().shape == (2, 4, 9, 8, 3)
    assert np.array_equal(voxels_of(output.GetNthDataNode(1)), arrays[1] + 1)


def test_a_given_output_sequence_is_refilled_in_place(scene):
    sequence, browser, _ = add_sequence(scene, CINE)
    output = despeckle(sequence)
    browser.SetSelectedItemNumber(1)
    before = nodes(scene)
    assert despeckle(sequence, output, by=7) is output
    assert nodes(scene) == before
    assert browser.GetSelectedItemNumber() == 1
    assert index_values(output) == ["0.10", "0.2", "1e0"]
    assert np.array_equal(voxels_of(output.GetNthDataNode(0)), CINE[0] + 7)
    assert np.array_equal(voxels_of(browser.GetProxyNode(output)), CINE[1] + 7)


def test_the_proxy_of_an_earlier_output_can_be_reused(scene):
    _, browser, proxy = add_sequence(scene, CINE)
    shown = despeckle(proxy)
    before = nodes(scene)
    assert despeckle(proxy, shown, by=7) is shown
    assert nodes(scene) == before
    assert np.array_equal(voxels_of(browser.GetSequenceNode(shown).GetNthDataNode(1)), CINE[1] + 7)


def test_an_empty_volume_becomes_the_proxy_of_the_output(scene):
    _, browser, proxy = add_sequence(scene, CINE)
    mine = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Mine")
    assert despeckle(proxy, mine) is mine
    assert browser.GetSequenceNode(mine).GetNumberOfDataNodes() == 3
    assert np.array_equal(voxels_of(mine), CINE[0] + 1)
    assert mine.GetName() == "Mine"


@pytest.mark.parametrize("which", ["sequence", "proxy"])
@pytest.mark.parametrize("asked", ["sequence", "proxy"])
def test_neither_sequence_nor_proxy_of_the_input_is_accepted_as_output(scene, asked, which):
    sequence, _, proxy = add_sequence(scene, CINE)
    both = {"sequence": sequence, "proxy": proxy}
    with pytest.raises(InputError, match="is the input itself"):
        despeckle(both[asked], both[which])


def test_the_proxy_of_another_recording_is_refused_as_output(scene):
    _, _, proxy = add_sequence(scene, CINE)
    _, _, other = add_sequence(scene, CINE, name="Other")
    with pytest.raises(InputError, match="another recording"):
        despeckle(proxy, other)
    with pytest.raises(InputError, match="another recording"):
        despeckle(add_volume(scene, CINE[0]), other)


def test_despeckling_a_sequence_does_not_change_it(scene):
    sequence, _, proxy = add_sequence(scene, CINE)
    watched = [sequence.GetNthDataNode(i) for i in range(3)]
    times = [(node.GetMTime(), node.GetImageData().GetMTime()) for node in watched]
    despeckle(sequence)
    assert [(node.GetMTime(), node.GetImageData().GetMTime()) for node in watched] == times
    assert all(np.array_equal(voxels_of(node), frame) for node, frame in zip(watched, CINE, strict=True))
    assert np.array_equal(voxels_of(proxy), CINE[0])


# Nodes that cannot be despeckled


def empty_volume(scene):
    return scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Bad")


def label_map(scene):
    return add_volume(scene, ramp(1, 9, 8), "Bad", "vtkMRMLLabelMapVolumeNode")


def transform(scene):
    return scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Bad")


def two_components(scene):
    return add_volume(scene, ramp(1, 9, 8, 2), "Bad", "vtkMRMLVectorVolumeNode")


def displacements(scene):
    node = add_volume(scene, ramp(1, 9, 8, 3), "Bad")
    node.SetVoxelVectorType(node.VoxelVectorTypeSpatial)
    return node


def empty_sequence(scene):
    return scene.AddNewNodeByClass("vtkMRMLSequenceNode", "Bad")


def sequence_of_transforms(scene):
    sequence = empty_sequence(scene)
    sequence.SetDataNodeAtValue(slicer.vtkMRMLLinearTransformNode(), "0")
    return sequence


def sequence_of_empty_volumes(scene):
    sequence = empty_sequence(scene)
    sequence.SetDataNodeAtValue(slicer.vtkMRMLScalarVolumeNode(), "0")
    return sequence


def mixed_sizes(scene):
    return add_sequence(scene, [CINE[0], ramp(1, 9, 7)], ("0", "1"), name="Bad")[0]


def mixed_types(scene):
    return add_sequence(scene, [CINE[0], ramp(1, 9, 8, dtype="int16")], ("0", "1"), name="Bad")[0]


def mixed_classes(scene):
    return add_sequence(scene, [CINE[0], ramp(1, 9, 8, 3)], ("0", "1"), name="Bad")[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty_volume, "no image data; load"),
        (label_map, "vtkMRMLLabelMapVolumeNode"),
        (transform, "vtkMRMLLinearTransformNode"),
        (two_components, "2 components"),
        (displacements, "spatial vectors"),
        (empty_sequence, "is empty"),
        (sequence_of_transforms, "vtkMRMLLinearTransformNode"),
        (sequence_of_empty_volumes, r"no image data \(item 1 of 1\)"),
        (mixed_sizes, r"differ in size or type \(item 2 of 2\)"),
        (mixed_types, r"differ in size or type \(item 2 of 2\)"),
        (mixed_classes, "mixes several kinds"),
    ],
)
def test_nodes_that_are_not_ultrasound_are_refused_in_one_sentence_and_add_no_node(scene, make, message):
    node = make(scene)
    before = nodes(scene)
    with pytest.raises(InputError, match=message) as error:
        despeckle(node)
    assert "'Bad'" in str(error.value)
    assert "\n" not in str(error.value)
    assert nodes(scene) == before


def test_a_missing_node_is_refused():
    for node in (None, slicer.vtkMRMLScalarVolumeNode()):
        with pytest.raises(InputError, match="no input node"):
            Recording.of(node)


@pytest.mark.parametrize("which", ["sequence", "proxy"])
def test_an_input_that_is_removed_during_a_run_causes_no_crash(scene, which):
    sequence, _, proxy = add_sequence(scene, CINE)
    source = Recording.of({"sequence": sequence, "proxy": proxy}[which])
    frames = source.read()
    scene.RemoveNode(sequence)
    before = nodes(scene)
    with pytest.raises(InputError, match="removed from the scene during the run"):
        results.write(source, frames)
    assert nodes(scene) == before


def test_a_failure_halfway_removes_the_nodes_that_were_added(scene, monkeypatch):
    sequence, browser, _ = add_sequence(scene, CINE)
    before = nodes(scene)

    def fail(*_):
        raise RuntimeError("the display broke")

    monkeypatch.setattr(results, "showLike", fail)
    with pytest.raises(RuntimeError, match="the display broke"):
        despeckle(sequence)
    assert nodes(scene) == before
    assert browser.GetNumberOfSynchronizedSequenceNodes(True) == 1
    with pytest.raises(RuntimeError, match="the display broke"):
        despeckle(add_volume(scene, CINE[0], "Single"))
    assert len(nodes(scene)) == len(before) + 1


def test_the_spacing_is_in_the_order_of_the_arrays_axes(scene):
    node = add_volume(scene, ramp(1, 9, 8), matrix=(0, 0, -2, 0, 0.5, 0, 0, 0, 0, 0.25, 0, 0, 0, 0, 0, 1))
    assert Recording.of(node).spacing == (2, 0.25, 0.5)


# Files


def load(path, folder):
    """Load the saved scene, with the Sequences module watching; return both, which the caller must keep."""
    scene, sequences = slicer.vtkMRMLScene(), slicer.vtkSlicerSequencesLogic()
    sequences.SetMRMLScene(scene)
    (folder / ".slicer-cache").touch()  # Slicer's mark of a cache folder
    cache, manager = slicer.vtkCacheManager(), slicer.vtkDataIOManager()
    cache.SetRemoteCacheDirectory(str(folder))
    manager.SetCacheManager(cache)
    scene.SetDataIOManager(manager)
    assert scene.ReadFromMRB(str(path))
    return scene, sequences


@pytest.mark.parametrize("tracked", [False, True])  # one geometry, or one for each frame
def test_the_result_survives_a_saved_scene(scene, tmp_path, tracked):
    sequence, browser, _ = add_sequence(scene, CINE)
    if not tracked:
        for i in range(3):
            sequence.GetNthDataNode(i).SetIJKToRASMatrix(matrix_of(OBLIQUE))
    browser.SetSelectedItemNumber(1)
    output = despeckle(sequence)
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"))
    loaded, _sequences = load(tmp_path / "scene.mrb", tmp_path)
    again = loaded.GetFirstNodeByName("Cine despeckled")
    assert index_values(again) == ["0.10", "0.2", "1e0"]
    assert (again.GetIndexName(), again.GetIndexUnit()) == ("time", "ms")
    for before, after in ((output.GetNthDataNode(i), again.GetNthDataNode(i)) for i in range(3)):
        assert np.array_equal(voxels_of(after), voxels_of(before))
        assert np.allclose(matrix_elements(after), matrix_elements(before), atol=1e-6)
        assert after.GetAttribute("Timestamp") == before.GetAttribute("Timestamp")
    proxy = loaded.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode").GetProxyNode(again)
    assert np.array_equal(voxels_of(proxy), CINE[1] + 1)
