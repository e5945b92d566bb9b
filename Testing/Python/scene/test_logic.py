"""The module's logic from the console: nodes in, despeckled nodes out."""

import numpy as np
import pytest
from helpers import add_sequence, frames_of

slicer = pytest.importorskip("slicer")
from Speckle2SelfLib.look import look  # noqa: E402
from Speckle2SelfLib.system import Cancelled, InputError  # noqa: E402

FRAMES = np.random.default_rng(0).integers(20, 200, (3, 32, 24)).astype(np.uint8)


class FakeJob:
    """A recording in memory; `release` keeps it, so that a test can look at it."""

    def __init__(self, shape, dtype):
        self.input, self.output = np.zeros(shape, dtype), np.zeros(shape, dtype)
        self.state, self.message, self.done, self.total = "waiting", "", 0, shape[0]
        self.rate, self.seconds_left, self.device, self.mapping = 1.0, None, "cpu", (0.0, 255.0)
        self.region = np.ones(shape[1:3], bool)

    @property
    def ended(self):
        return self.state in ("done", "cancelled", "failed")

    def release_input(self):
        pass

    release = release_input


class FakeWorker:
    """Stand in for the despeckling process: invert one frame at each poll, and remember the calls."""

    def __init__(self, message=""):
        self.calls, self.devices, self._running, self._message = [], [], None, message

    def allocate(self, shape, dtype):
        return FakeJob(shape, dtype)

    def start(self, job, request):
        self.calls.append({"shape": job.input.shape, **request})
        job.state, job.message = ("failed", self._message) if self._message else ("running", "")
        self._running = job

    def poll(self):
        job = self._running
        if job is not None and job.state == "running":
            job.output[job.done] = 255 - job.input[job.done]
            job.done += 1
            job.state = "done" if job.done == job.total else "running"

    def cancel(self, job):
        job.state = job.state if job.ended else "cancelled"

    def close(self):
        pass


@pytest.fixture
def fake():
    return FakeWorker()


@pytest.fixture
def logic(fake):
    from Speckle2Self import Speckle2SelfLogic

    slicer.mrmlScene.Clear()
    return Speckle2SelfLogic(worker=fake)


@pytest.fixture
def real(logic):
    """Return the logic over the real core."""
    return type(logic)()


def add_volume(array, name="US", kind="vtkMRMLScalarVolumeNode"):
    return slicer.util.addVolumeFromArray(array, name=name, nodeClassName=kind)


def add_recording(frames, name="Cine"):
    sequence, browser = add_sequence(frames, name)
    return sequence, browser, browser.GetProxyNode(sequence)


def voxels(node):
    return slicer.util.arrayFromVolume(node)


def node_ids():
    return [slicer.mrmlScene.GetNthNode(i).GetID() for i in range(slicer.mrmlScene.GetNumberOfNodes())]


def test_a_volume_is_despeckled_with_the_given_settings(logic, fake):
    region = np.ones((32, 24), bool)
    output = logic.process(add_volume(FRAMES[:1]), model="m", strength=0.5, gamma=2.0, region=region, device="cpu")
    expected = look(FRAMES[:1], 255 - FRAMES[:1], region, (0, 255), strength=0.5, gamma=2.0)
    assert np.array_equal(voxels(output), expected) and not np.array_equal(expected, 255 - FRAMES[:1])
    assert len(fake.calls) == 1
    call = fake.calls[0]
    assert call.pop("region") is region
    assert call == {"shape": (1, 32, 24), "model": "m", "device": "cpu"}


def test_none_means_whole_frames(logic, fake):
    node = add_volume(FRAMES[:1])
    logic.process(node)
    logic.process(node, region="none")
    assert [call["region"] for call in fake.calls] == ["auto", "none"]


def test_a_sequence_is_despeckled_at_once_and_its_sequence_returned(logic, fake):
    sequence, browser, _ = add_recording(FRAMES)
    output = logic.process(sequence)
    assert [call["shape"] for call in fake.calls] == [(3, 32, 24)]
    assert output.IsA("vtkMRMLSequenceNode")
    assert np.array_equal(frames_of(output), 255 - FRAMES)
    assert browser.IsSynchronizedSequenceNodeID(output.GetID(), True)


def test_a_proxy_is_answered_with_a_proxy(logic):
    _, browser, proxy = add_recording(FRAMES)
    output = logic.process(proxy)
    assert np.array_equal(frames_of(browser.GetSequenceNode(output)), 255 - FRAMES)


def test_color_frames_reach_the_core_in_color(logic, fake):
    frames = np.stack([FRAMES, FRAMES, 255 - FRAMES], axis=-1)
    sequence, *_ = add_recording(frames)
    output = logic.process(sequence)
    assert fake.calls[0]["shape"] == (3, 32, 24, 3)
    assert np.array_equal(frames_of(output), 255 - frames)


def test_a_volume_is_cut_along_the_requested_axis(logic, fake):
    volume = add_volume(FRAMES)
    for axis in ("auto", "K", "J", "I"):
        assert np.array_equal(voxels(logic.process(volume, axis=axis)), 255 - FRAMES)
    assert [call["shape"] for call in fake.calls] == [(3, 32, 24), (3, 32, 24), (32, 3, 24), (24, 3, 32)]


def test_by_default_a_volume_is_cut_along_the_axis_of_acquisition(logic, fake):
    volume = add_volume(FRAMES)
    volume.SetSpacing(0.2, 1.0, 0.2)  # millimeters along I, J, K
    logic.process(volume)
    assert fake.calls[0]["shape"] == (32, 3, 24)


def test_the_average_uses_all_three_axes_with_one_progress(logic, fake):
    volume, steps = np.repeat(FRAMES, 3, axis=0), []
    output = logic.process(add_volume(volume), axis="average", progress=lambda *step: steps.append(step))
    assert [call["shape"] for call in fake.calls] == [(9, 32, 24), (32, 9, 24), (24, 9, 32)]
    assert np.array_equal(voxels(output), 255 - volume)
    shares = [done / total for done, total in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_the_average_of_a_single_frame_is_refused(logic):
    with pytest.raises(InputError, match="at least 8 voxels in each direction"):
        logic.process(add_volume(FRAMES[:1]), axis="average")


def test_the_average_with_a_region_of_one_orientation_is_refused(logic):
    with pytest.raises(InputError, match="region array"):
        logic.process(add_volume(np.repeat(FRAMES, 3, axis=0)), axis="average", region=np.ones((32, 24), bool))


@pytest.mark.parametrize("named", [False, True])
def test_the_region_can_be_a_box_and_later_the_last_one_given(logic, fake, named, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECKLE2SELF_HOME", str(tmp_path))
    node = add_volume(FRAMES[:1])
    with pytest.raises(InputError, match="none was used"):
        logic.process(node, region="given")
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    box.SetCenter(5, 6, 0)
    box.SetSize(6, 8, 4)
    logic.process(node, region="Box" if named else box)
    logic.process(node, region="given")
    first, second = (call["region"] for call in fake.calls)
    assert first.shape == (32, 24) and first.sum() == 63 and np.array_equal(first, second)
    with pytest.raises(InputError, match="choose one axis"):
        logic.process(add_volume(np.repeat(FRAMES, 3, axis=0)), axis="average", region=box)


def test_nodes_can_be_given_by_id_and_by_name(logic):
    node, output = add_volume(FRAMES[:1]), add_volume(FRAMES[:1], "Mine [1]")
    assert logic.process(node.GetID(), "Mine [1]") is output
    assert logic.process("US", output.GetID()) is output


def test_a_name_refers_to_the_node_that_can_be_despeckled(logic):
    for kind in ("SegmentationNode", "ScalarVolumeDisplayNode", "LabelMapVolumeNode", "SequenceBrowserNode"):
        slicer.mrmlScene.AddNewNodeByClass(f"vtkMRML{kind}", "Liver")
    with pytest.raises(InputError, match="'Liver' holds a vtkMRMLSegmentationNode"):
        slicer.mrmlScene.RemoveNode(slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode"))
        logic.process("Liver")
    add_volume(FRAMES[:1], "Liver")
    assert np.array_equal(voxels(logic.process("Liver")), 255 - FRAMES[:1])
    add_volume(FRAMES[1:2], "Liver")
    with pytest.raises(InputError, match="2 nodes that could be despeckled are named 'Liver'; use the id of one: vtk"):
        logic.process("Liver")


@pytest.mark.parametrize("alike", [True, False])
def test_a_recording_its_proxy_and_its_browser_are_found_by_one_name(logic, alike):
    sequence, browser, proxy = add_recording(FRAMES, "Liver")
    proxy.SetName("Liver" if alike else "Shown")
    browser.SetName("Liver" if alike else "Browser")
    output = logic.process("Liver")
    assert output.IsA("vtkMRMLSequenceNode") and np.array_equal(frames_of(output), 255 - FRAMES)
    if not alike:
        assert logic.process("Browser").IsA("vtkMRMLSequenceNode"), "although it also plays the output"
        assert logic.process("Shown").IsA("vtkMRMLScalarVolumeNode")
    with pytest.raises(InputError, match="the input itself"):
        logic.process("Liver", sequence.GetID())


def test_a_browser_means_its_only_recording_of_images(logic):
    sequence, browser, _ = add_recording(FRAMES)
    master = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Transforms")
    master.SetDataNodeAtValue(slicer.vtkMRMLLinearTransformNode(), "0.00")
    browser.SetAndObserveMasterSequenceNodeID(master.GetID())
    browser.AddSynchronizedSequenceNodeID(sequence.GetID())
    assert np.array_equal(frames_of(logic.process(browser)), 255 - FRAMES)
    other, *_ = add_recording(FRAMES[1:])
    browser.AddSynchronizedSequenceNodeID(other.GetID())
    with pytest.raises(InputError, match="'Browser' plays several recordings; choose one of them"):
        logic.process(browser)
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "None")
    with pytest.raises(InputError, match="'None' does not play a recording of images"):
        logic.process(empty)


def test_a_region_by_name_is_a_segmentation_or_a_box(logic, fake, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECKLE2SELF_HOME", str(tmp_path))
    node = add_volume(FRAMES[:1], "Liver")
    with pytest.raises(InputError, match="Unknown region 'Liver'"):
        logic.process(node, region="Liver")
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Liver")
    box.SetCenter(5, 6, 0)
    box.SetSize(6, 8, 4)
    logic.process("Liver", region="Liver")
    assert fake.calls[0]["region"].sum() == 63
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Liver")
    with pytest.raises(InputError, match="2 regions are named 'Liver'; use the id of one"):
        logic.process("Liver", region="Liver")


def test_an_unknown_name_is_refused_by_name(logic):
    with pytest.raises(InputError, match="no node with the id or name 'Nobody'"):
        logic.process("Nobody")


def test_unknown_arguments_are_refused_with_the_known_ones(logic):
    node = add_volume(FRAMES[:1])
    for call in (logic.process, logic.start):
        with pytest.raises(InputError, match=r"Unknown options of despeckling: sharpness; choose from .*strength"):
            call(node, sharpness=2)
    for call in (logic.process, logic.start, logic.live):
        with pytest.raises(InputError, match="'3' is not a node, nor the id or name of one"):
            call(3)


def test_a_given_output_keeps_its_id(logic):
    node, output = add_volume(FRAMES[:1]), add_volume(FRAMES[:1] * 0, "Mine")
    before = node_ids()
    assert logic.process(node, outputNode=output) is output
    assert node_ids() == before
    assert np.array_equal(voxels(output), 255 - FRAMES[:1])


def test_wrong_input_is_refused_before_any_work_and_leaves_no_node(logic, fake):
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
    good = add_volume(FRAMES[:1])
    before = node_ids()
    for arguments in ({"inputNode": None}, {"inputNode": empty}, {"inputNode": good, "outputNode": good}):
        with pytest.raises(InputError):
            logic.process(**arguments)
    with pytest.raises(InputError, match="Unknown region 'some'"):
        logic.process(good, region="some")
    with pytest.raises(InputError, match="Unknown axis 'q'"):
        logic.process(good, axis="Q")
    assert fake.calls == []
    assert node_ids() == before


def test_canceling_leaves_the_scene_unchanged(logic):
    sequence, *_ = add_recording(FRAMES)
    before, asked = node_ids(), []

    def cancelled():
        asked.append(True)
        return len(asked) == 3

    with pytest.raises(Cancelled):
        logic.process(sequence, cancelled=cancelled)
    assert node_ids() == before
    with pytest.raises(Cancelled):  # after the last frame, before the scene
        logic.process(sequence, cancelled=lambda: len(asked) > 5 or asked.append(True))
    assert node_ids() == before


def test_an_error_of_the_core_is_raised_and_leaves_the_scene_unchanged(logic):
    node = add_volume(FRAMES[:1])
    before = node_ids()
    with pytest.raises(ValueError, match=r"^The frames are constant; record an image.$"):
        type(logic)(worker=FakeWorker("The frames are constant; record an image.")).process(node)
    assert node_ids() == before


def test_progress_counts_the_frames(logic):
    sequence, *_ = add_recording(FRAMES)
    steps = []
    logic.process(sequence, progress=lambda *step: steps.append(step))
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_the_models_are_the_bundled_ones_and_the_filters(real):
    models = real.models()
    assert "median" in models
    if "default" in models:
        assert models[0] == "default"


def test_a_filter_of_the_real_core_smooths_a_recording(real):
    sequence, *_ = add_recording(FRAMES)
    output = real.process(sequence, model="median", region="none")
    result = frames_of(output)
    assert result.dtype == np.uint8
    assert result.std() < 0.7 * FRAMES.std()
    assert np.array_equal(frames_of(sequence), FRAMES)


def test_zero_strength_returns_the_input(real):
    assert np.array_equal(voxels(real.process(add_volume(FRAMES), model="median", strength=0)), FRAMES)


def test_an_unknown_model_is_refused_and_leaves_no_node(real):
    node = add_volume(FRAMES[:1])
    before = node_ids()
    with pytest.raises(InputError, match="no model 'nonsense'"):
        real.process(node, model="nonsense")
    assert node_ids() == before


def test_the_reconstructed_phantom_keeps_its_geometry(real, shared_data):
    import SimpleITK as sitk

    path = shared_data / "plus" / "SpinePhantomFreehandReconstructed.mha"
    phantom = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    volume = add_volume(phantom[:20], "Spine")
    volume.SetSpacing(0.5, 0.5, 0.5)
    output = real.process(volume, model="median")
    assert voxels(output).shape == (20, 106, 147)
    assert output.GetSpacing() == (0.5, 0.5, 0.5)
    assert (voxels(output) != phantom[:20]).any()
