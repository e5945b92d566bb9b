"""Despeckling in the background, on real MRML with a real worker process."""

import time
from dataclasses import replace

import numpy as np
import pytest
from helpers import add_sequence, frames_of

from Speckle2SelfLib.system import Cancelled, InputError

slicer = pytest.importorskip("slicer")

FRAMES = np.random.default_rng(0).rayleigh(40, (12, 48, 56)).clip(0, 255).astype(np.uint8)


@pytest.fixture
def sequence(slicer_app):
    return make_sequence(FRAMES)


def make_sequence(frames):
    """Return a sequence with browser and proxy; its item 3 is shown."""
    sequence, browser = add_sequence(frames)
    browser.SetSelectedItemNumber(3)
    return sequence


def finish(worker, run, seconds=60):
    """Call `step` like the panel's timer; return the longest step in seconds."""
    end, longest = time.monotonic() + seconds, 0.0
    while not run.ended:
        assert time.monotonic() < end
        started = time.perf_counter()
        worker.poll()
        run.step()
        longest = max(longest, time.perf_counter() - started)
        time.sleep(0.005)
    return longest


def logic():
    return slicer.util.getModuleLogic("Speckle2Self")


@pytest.mark.parametrize("options", [{}, {"strength": 0.6, "gamma": 1.5}])
def test_a_recording_is_despeckled_as_the_console_does_it(worker, sequence, options):
    from Speckle2SelfSlicer.processing import Run

    expected = frames_of(logic().process(sequence, model="lee", region="none", **options))
    run = Run(worker, sequence, model="lee", region="none", **options)
    finish(worker, run)
    assert run.state == "done", run.message
    assert (run.done, run.total) == (12, 12)
    assert run.result.node.GetNthIndexValue(2) == "0.20"
    assert np.abs(frames_of(run.result.node).astype(int) - expected).max() <= (0 if not options else 2)
    assert np.array_equal(frames_of(sequence), FRAMES)


@pytest.mark.parametrize("axis", ["I", "average"])
def test_a_volume_is_cut_and_put_together_as_the_console_does_it(worker, slicer_app, axis):
    from Speckle2SelfSlicer.processing import Run

    volume = slicer.util.addVolumeFromArray(FRAMES, name="Volume")
    expected = slicer.util.arrayFromVolume(logic().process(volume, model="median", region="none", axis=axis))
    run = Run(worker, volume, axis=axis, model="median", region="none")
    finish(worker, run)
    assert np.array_equal(slicer.util.arrayFromVolume(run.result.node), expected)


def test_an_orientation_without_ultrasound_is_left_out_of_the_mean_with_a_message(worker, slicer_app, caplog):
    from Speckle2SelfSlicer.processing import Run

    speckle = np.random.default_rng(0).rayleigh(40, (48, 48, 48)).clip(0, 255).astype(np.uint8)
    k, j, _i = np.indices(speckle.shape)
    speckle[(k % 16 > 0) & (j % 16 > 0)] = 0  # a lattice of lines across I
    volume = slicer.util.addVolumeFromArray(speckle, name="Volume")
    expected = slicer.util.arrayFromVolume(logic().process(volume, model="median", axis="average"))
    assert "along i" in caplog.text
    run = Run(worker, volume, axis="average", model="median", region="auto")
    finish(worker, run)
    assert np.array_equal(slicer.util.arrayFromVolume(run.result.node), expected)
    assert "along i" in run.message
    halves = [slicer.util.arrayFromVolume(logic().process(volume, model="median", axis=axis)) for axis in "kj"]
    assert np.abs(np.mean(halves, 0) - expected).max() <= 0.5


def test_the_look_changes_the_output_without_the_network_and_the_shown_frame_first(worker, sequence):
    from Speckle2SelfSlicer.processing import Run

    run = Run(worker, sequence, model="lee", region="none")
    finish(worker, run)
    node = run.result.node
    shown = slicer.mrmlScene.GetFirstNodeByName("Cine despeckled")
    before = frames_of(node)
    steps = run.result.relook(0.0, 1.0)
    next(steps)
    proxy = next(n for n in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if "despeckled" in n.GetName())
    assert shown is not None
    assert np.array_equal(slicer.util.arrayFromVolume(proxy)[0], FRAMES[3]), "the shown frame comes first"
    for _ in steps:
        pass
    assert np.array_equal(frames_of(node), FRAMES), "strength 0 is the input"
    for _ in run.result.relook(1.0, 1.0):
        pass
    assert np.array_equal(frames_of(node), before)
    run.result.release()


def look(result, strength):
    for _ in result.relook(strength, 1.0):
        pass


def test_the_look_finds_frames_by_their_index_value(worker, sequence, tmp_path):
    """The browser's master is another sequence, such as one of transforms, and items of the output changed."""
    from Speckle2SelfSlicer import scene
    from Speckle2SelfSlicer.processing import Run

    master = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Transforms")
    for number in range(24):
        master.SetDataNodeAtValue(slicer.vtkMRMLLinearTransformNode(), f"{number / 20:.2f}")
    browser = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(master.GetID())
    browser.AddSynchronizedSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    browser.SetSelectedItemNumber(6)
    run = Run(worker, sequence, model="lee", region="none")
    finish(worker, run)
    output = run.result.node
    output.AddDefaultStorageNode()
    output.GetStorageNode().SetFileName(str(tmp_path / "saved.seq.nrrd"))
    assert output.GetStorageNode().WriteData(output) and not output.GetModifiedSinceRead()
    look(run.result, 0.0)
    assert np.array_equal(slicer.util.arrayFromVolume(scene.proxyOf(output))[0], FRAMES[3]), (
        "0.30, item 6 of the master"
    )
    assert output.GetModifiedSinceRead(), "it is to be saved again"
    output.RemoveDataNodeAtValue("0.00")
    added = slicer.vtkMRMLScalarVolumeNode()
    slicer.util.updateVolumeFromArray(added, np.full((1, 5, 5), 7, np.uint8))
    output.SetDataNodeAtValue(added, "9.00")
    look(run.result, 1.0)
    look(run.result, 0.0)
    for number in range(11):
        image = slicer.util.arrayFromVolume(output.GetNthDataNode(number))[0]
        assert np.array_equal(image, FRAMES[number + 1])
    assert (slicer.util.arrayFromVolume(output.GetNthDataNode(11)) == 7).all()
    shown = scene.proxyOf(output)
    slicer.mrmlScene.RemoveNode(browser)
    look(run.result, 1.0)
    assert np.array_equal(slicer.util.arrayFromVolume(shown)[0], FRAMES[3]), "nothing reports the current content"
    run.result.release()


def test_a_stream_that_continues_during_a_run_does_not_change_it(worker, slicer_app):
    from Speckle2SelfSlicer.processing import Run

    stream = slicer.util.addVolumeFromArray(FRAMES[:1], name="US")
    stream.SetOrigin(1, 2, 3)
    run = Run(worker, stream, model="lee", region="none")
    while run.state == "reading":
        run.step()
    image = slicer.vtkMRMLScalarVolumeNode()
    slicer.util.updateVolumeFromArray(image, FRAMES[5:6, :20, :30])
    stream.SetAndObserveImageData(image.GetImageData())
    stream.SetOrigin(100, 0, 0)
    finish(worker, run)
    output = run.result.node
    assert run.state == "done" and output.GetOrigin() == (1, 2, 3) and output.GetName() == "US despeckled"
    look(run.result, 0.0)
    assert np.array_equal(slicer.util.arrayFromVolume(output), FRAMES[:1])
    assert np.array_equal(slicer.util.arrayFromVolume(stream), FRAMES[5:6, :20, :30])
    run.result.release()


def test_a_sequence_of_transforms_is_refused_as_output(worker, sequence):
    from Speckle2SelfSlicer.processing import Run

    transforms = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Transforms")
    transforms.SetDataNodeAtValue(slicer.vtkMRMLLinearTransformNode(), "0")
    with pytest.raises(InputError, match="would be lost"):
        Run(worker, sequence, transforms, model="lee")


def test_the_outline_lies_where_the_recording_is_shown(worker, sequence):
    from Speckle2SelfSlicer import regions, scene

    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Probe")
    scene.proxyOf(sequence).SetAndObserveTransformNodeID(transform.GetID())
    outline, own = regions.Outline(logic()), logic()
    outline.show(sequence, "auto")
    end = time.monotonic() + 60
    while outline.searching and time.monotonic() < end:
        own.worker.poll()
        outline.step()
        time.sleep(0.01)
    node = slicer.mrmlScene.GetFirstNodeByName("Outline of the region")
    assert node.GetTransformNodeID() == transform.GetID()
    outline.hide()


def test_live_despeckles_the_slice_in_the_view_and_shows_it_there(worker, slicer_app):
    from Speckle2SelfSlicer.live import Live

    volume = slicer.util.addVolumeFromArray(np.repeat(np.arange(40, dtype=np.uint8), 48 * 56).reshape(40, 48, 56))
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Shift")
    matrix = slicer.util.vtkMatrixFromArray(np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 20], [0, 0, 0, 1.0]]))
    transform.SetMatrixTransformToParent(matrix)
    volume.SetAndObserveTransformNodeID(transform.GetID())
    volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.diag([1, 1, 1, 1.0])))
    view = slicer.vtkMRMLSliceNode()
    view.GetSliceToRAS().SetElement(2, 3, 30)
    live = Live(worker, volume, axis="K", sliceNode=view, model="median", region="none")
    for position in (30, 31, 34):
        view.GetSliceToRAS().SetElement(2, 3, position)
        view.Modified()
        live.step()  # called by the timer; the slice is read here
        end = time.monotonic() + 60
        while live.waiting and time.monotonic() < end:
            worker.poll()
            view.GetSliceToRAS().SetElement(2, 3, 50)  # it continues before the result has arrived
            live.step()
            time.sleep(0.005)
        origin = live.output.GetOrigin()[2]
        assert np.unique(slicer.util.arrayFromVolume(live.output)) == [origin] == [position - 20]
    live.stop()


def test_live_waits_for_a_first_image(worker, slicer_app):
    from Speckle2SelfSlicer.live import Live

    volume = slicer.util.addVolumeFromArray(FRAMES[:1], name="US")
    live = Live(worker, volume, model="median", region="none")
    with pytest.raises(InputError, match="is a recording"):
        Live(worker, volume, model="median", output=volume)
    volume.SetAndObserveImageData(None)
    live.setLook(0.0, 1.0)
    slicer.util.updateVolumeFromArray(volume, FRAMES[1:2, :32, :40])
    assert live.state == "running", live.message
    end = time.monotonic() + 60
    while time.monotonic() < end and (live.waiting or live.output is None):
        worker.poll()
        live.step()
        time.sleep(0.005)
    assert np.array_equal(slicer.util.arrayFromVolume(live.output)[0], FRAMES[1, :32, :40])
    live.stop()


def test_a_canceled_run_leaves_nothing_or_the_finished_part_if_requested(worker, sequence):
    from Speckle2SelfSlicer.processing import Run

    count = slicer.mrmlScene.GetNumberOfNodes()
    for moment in ("reading", "despeckling"):
        run = Run(worker, sequence, model="nlm", region="none")
        while run.state != moment:
            run.step(0)
        run.cancel()
        finish(worker, run)
        assert run.state == "cancelled" and slicer.mrmlScene.GetNumberOfNodes() == count
    large = make_sequence(np.kron(FRAMES, np.ones((5, 5), np.uint8)))  # four frames a block
    run = Run(worker, large, model="median", region="none", keepPartial=True)
    while run.done < 1:
        worker.poll()
        run.step()
    run.cancel()
    finish(worker, run)
    assert run.state == "done" and 0 < run.done < 12
    node = run.result.node
    assert node.GetName() == "Cine despeckled (partial)" and node.GetNumberOfDataNodes() == run.done
    assert "first" in run.message


def test_nodes_that_are_removed_during_a_run_end_it_with_a_sentence(worker, sequence):
    from Speckle2SelfSlicer.processing import Run

    run = Run(worker, sequence, model="lee", region="none")
    run.step()
    slicer.mrmlScene.Clear()
    finish(worker, run)
    assert run.state == "failed" and "removed" in run.message
    with pytest.raises(InputError):
        Run(worker, None)


def test_a_killed_worker_fails_the_run_and_the_next_one_works(worker, sequence):
    import os
    import signal

    from Speckle2SelfSlicer.processing import Run

    run = Run(worker, sequence, model="nlm", region="none")
    while run.state != "despeckling":
        run.step()
    os.kill(worker.pid, signal.SIGKILL)
    finish(worker, run)
    assert run.state == "failed" and "unexpectedly" in run.message
    run = Run(worker, sequence, model="lee", region="none")
    finish(worker, run)
    assert run.state == "done"


def live_until(worker, live, condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and live.state != "failed", live.message
        worker.poll()
        live.step()
        time.sleep(0.002)


def test_a_box_is_the_region_of_a_run_and_of_live_images(sequence, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECKLE2SELF_HOME", str(tmp_path))
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    box.SetCenter(20, 20, 0)
    box.SetSize(20, 20, 4)
    inside = logic().region(sequence, box)
    run = logic().start(sequence, model="median", region=box)
    finish(logic().worker, run)
    live = logic().live(sequence, model="median", region="given", once=True)
    live_until(logic().worker, live, lambda: live.output is not None)
    shown = slicer.util.arrayFromVolume(live.output)[0]
    live.stop()
    for before, after in ((FRAMES, frames_of(run.result.node)), (FRAMES[3], shown)):
        changed = before != after
        assert changed.any() and not changed[..., ~inside].any()
    with pytest.raises(InputError, match="differ in size"):
        logic().start(sequence, axis="average", region=inside)


@pytest.mark.parametrize("kind", ["box", "segmentation"])
def test_live_follows_a_region_that_is_moved(slicer_app, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECKLE2SELF_HOME", str(tmp_path))
    volume = slicer.util.addVolumeFromArray(FRAMES[:1], name="US")
    volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.eye(4)))
    if kind == "box":
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
        node.SetSize(14, 14, 4)
    else:
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Region")
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segment = node.GetSegmentation().AddEmptySegment("tissue")

    def move(at):
        if kind == "box":
            node.SetCenter(at, at, 0)
        else:
            mask = np.zeros((1, 48, 56), np.uint8)
            mask[0, at - 7 : at + 8, at - 7 : at + 8] = 1
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment, volume)

    def changed_alone(at, frame):
        """Return whether the shown image is despeckled within the region at `at` and nowhere else."""
        changed = slicer.util.arrayFromVolume(live.output)[0] != frame
        inside = changed[at - 7 : at + 8, at - 7 : at + 8]
        return inside.mean() > 0.5 and changed.sum() == inside.sum()

    move(16)
    own = logic()
    live = own.live(volume, model="median", region=node)
    try:
        live_until(own.worker, live, lambda: live.output is not None)
        assert changed_alone(16, FRAMES[0])
        for number, at in ((1, 36), (1, 24), (2, 30)):  # with a new image, and without one
            move(at)
            if at != 24:
                slicer.util.updateVolumeFromArray(volume, FRAMES[number : number + 1])
            live_until(own.worker, live, lambda at=at, number=number: changed_alone(at, FRAMES[number]))
        slicer.util.updateVolumeFromArray(volume, FRAMES[3:4, :40, :45])
        live_until(own.worker, live, lambda: slicer.util.arrayFromVolume(live.output).shape == (1, 40, 45))
        assert changed_alone(30, FRAMES[3, :40, :45]), "another size, the same place"
        if kind == "box":
            node.SetCenter(500, 500, 0)
            copy = lambda: np.array_equal(slicer.util.arrayFromVolume(live.output)[0], FRAMES[3, :40, :45])  # noqa: E731
            live_until(own.worker, live, copy)
            node.SetCenter(20, 20, 0)
            live_until(own.worker, live, lambda: changed_alone(20, FRAMES[3, :40, :45]))
            slicer.mrmlScene.RemoveNode(node)
            slicer.util.updateVolumeFromArray(volume, FRAMES[4:5, :40, :45])
            live_until(own.worker, live, lambda: not live.waiting)
            assert changed_alone(20, FRAMES[4, :40, :45]), "a removed region is kept in its last state"
            live.stop()
            given = own.region(volume)
            assert given[20, 20] and not given[36, 36], "and is used again as the last one given"
    finally:
        live.stop()


@pytest.mark.parametrize("wrong", [{"strength": 2}, {"strength": float("nan")}, {"gamma": 0}])
def test_an_invalid_strength_or_gamma_is_refused_before_any_work(worker, sequence, wrong):
    from Speckle2SelfSlicer.live import Live
    from Speckle2SelfSlicer.processing import Run

    (name,) = wrong
    for kind in (Run, Live):
        with pytest.raises(InputError, match=f"{name} must be between"):
            kind(worker, sequence, model="median", region="none", **wrong)
    live = Live(worker, sequence, model="median", region="none")
    with pytest.raises(InputError, match=f"{name} must be between"):
        live.setLook(**{"strength": 1.0, "gamma": 1.0, **wrong})
    live_until(worker, live, lambda: live.output is not None)
    live.stop()


def test_an_image_that_changes_its_size_during_a_run_is_reported(worker, sequence):
    from Speckle2SelfSlicer.processing import Run

    count = slicer.mrmlScene.GetNumberOfNodes()
    run = Run(worker, sequence, model="median", region="none")
    while run.state == "reading":
        run.step()
    slicer.util.updateVolumeFromArray(sequence.GetNthDataNode(11), FRAMES[:1, :20, :20])
    finish(worker, run)
    assert run.state == "failed" and "was changed during the run; nothing was written" in run.message
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    for other in (FRAMES[:1, :20, :20], FRAMES[:1].astype(np.int16) + 300):
        alone = make_sequence(FRAMES[:1])
        run = Run(worker, alone, model="median", region="none")
        slicer.util.updateVolumeFromArray(alone.GetNthDataNode(0), other)  # before it was read
        finish(worker, run)
        assert run.state == "failed" and "was changed during the run" in run.message


def test_live_measures_grain_and_grey_values_again_in_a_region_that_is_moved(slicer_app, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECKLE2SELF_HOME", str(tmp_path))
    frame = FRAMES[:1].copy()
    frame[..., 28:] //= 8
    volume = slicer.util.addVolumeFromArray(frame, name="US")
    volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.eye(4)))
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    box.SetSize(18, 30, 4)
    own, shown = logic(), []
    for places in ((14, 42), (42,)):
        live = None
        for at in places:
            box.SetCenter(at, 24, 0)
            if live is None:
                live = own.live(volume, model="default", region=box)
            live_until(own.worker, live, lambda live=live: live.output is not None)
            slicer.util.updateVolumeFromArray(volume, frame)
            live_until(own.worker, live, lambda live=live: not live.waiting)
        shown.append(slicer.util.arrayFromVolume(live.output).copy())
        live.stop()
    assert np.array_equal(*shown), "as if it had been there from the start"


def test_live_follows_a_volume_that_changes_and_stops_when_it_is_removed(worker, sequence):
    from Speckle2SelfSlicer.live import Live

    browser = slicer.mrmlScene.GetFirstNodeByName("Browser")
    live = Live(worker, sequence, model="median", region="none")
    live_until(worker, live, lambda: live.output is not None)
    assert live.output.GetName().endswith("live")
    from Speckle2SelfLib.filters import FILTERS

    def expected(number):
        from Speckle2SelfLib.calibration import calibrate
        from Speckle2SelfLib.despeckling import despeckle

        found = replace(calibrate(FRAMES[3:4], None), bounds=None)
        return despeckle(FRAMES[number], FILTERS["median"], calibration=found)

    count = slicer.mrmlScene.GetNumberOfNodes()
    for number in (7, 2):
        browser.SetSelectedItemNumber(number)
        wanted = expected(number)
        live_until(worker, live, lambda w=wanted: np.array_equal(slicer.util.arrayFromVolume(live.output)[0], w))
    assert slicer.mrmlScene.GetNumberOfNodes() == count and live.rate > 0 and live.latency > 0
    assert np.array_equal(frames_of(sequence), FRAMES)
    slicer.mrmlScene.RemoveNode(live.node)
    live.step()
    assert live.state == "stopped"


def test_a_preview_is_one_slice_in_its_place(worker, slicer_app):
    from Speckle2SelfSlicer.live import Live

    volume = slicer.util.addVolumeFromArray(FRAMES, name="Volume")
    volume.SetSpacing(1, 1, 3)
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(slicer.mrmlScene)
    red = slicer.mrmlScene.GetFirstNodeByName("Red")
    red.SetSliceOffset(5 * 3.0)
    preview = Live(worker, volume, sliceNode=red, once=True, model="median", region="none")
    live_until(worker, preview, lambda: not preview.waiting)
    assert slicer.util.arrayFromVolume(preview.output).shape == (1, 48, 56)
    assert preview.output.GetOrigin() == (0, 0, 15)


def test_live_drops_images_that_it_cannot_keep_up_with(worker, slicer_app):
    from Speckle2SelfSlicer.live import Live

    large = np.kron(FRAMES, np.ones((8, 8), np.uint8))
    volume = slicer.util.addVolumeFromArray(large[:1], name="Stream")
    live = Live(worker, volume, model="median", region="none")
    live_until(worker, live, lambda: live.output is not None)
    for number in range(60):
        slicer.util.updateVolumeFromArray(volume, large[number % 12][None])
        live.step()
    live_until(worker, live, lambda: live.dropCount > 0)
    live.stop()


def test_waiting_for_a_run_returns_its_output(worker, sequence):
    from Speckle2SelfSlicer.processing import Run
    from Speckle2SelfSlicer.scene import proxyOf

    reported = []
    options = {"model": "median", "region": "none", "strength": 0.5, "gamma": 1.5}
    node = Run(worker, proxyOf(sequence), **options).wait(lambda *counts: reported.append(counts))
    assert reported == sorted(set(reported)) and reported[-1] == (12, 12)
    stepped = Run(worker, sequence, **options)
    finish(worker, stepped)
    assert np.array_equal(frames_of(scene_sequence(node)), frames_of(stepped.result.node))
    count = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(Cancelled):
        Run(worker, sequence, model="nlm", region="none").wait(cancelled=lambda: True)
    with pytest.raises(InputError, match="There is no model"):
        Run(worker, sequence, model="no such model", region="none").wait()
    with pytest.raises(ZeroDivisionError):
        Run(worker, sequence, model="nlm", region="none").wait(lambda done, total: 1 / 0)
    with pytest.raises(InputError, match="Unknown options of despeckling: sharpness"):
        Run(worker, sequence, sharpness=2)
    assert slicer.mrmlScene.GetNumberOfNodes() == count
    finish(worker, run := Run(worker, sequence, model="lee", region="none"))
    assert run.state == "done", "nothing is left over in the worker"


def scene_sequence(proxy):
    from Speckle2SelfSlicer.scene import sequenceOf

    return sequenceOf(proxy)


class Counter:
    """Count how many nodes of a class are created."""

    def __init__(self, monkeypatch, name):
        from Speckle2SelfSlicer import scene

        self.count, counter, kind = 0, self, getattr(slicer, name)

        class Counted(kind):
            def __init__(self):
                counter.count += 1

        monkeypatch.setattr(slicer, name, Counted)
        monkeypatch.setattr(scene, name, Counted, raising=False)


def test_image_and_position_of_a_message_are_kept_together_and_each_image_is_pushed_once(worker, slicer_app):
    """OpenIGTLink overwrites the same voxels, reports it, and sets the matrix after that."""
    from Speckle2SelfSlicer.live import Live

    volume = slicer.util.addVolumeFromArray(np.full((1, 48, 56), 100, np.uint8), name="US")
    volume.SetOrigin(100, 0, 0)
    live = Live(worker, volume, model="median", region="none")
    live_until(worker, live, lambda: live.output is not None)
    seen = set()
    for number in range(101, 131):
        slicer.util.arrayFromVolume(volume)[:] = number
        for _ in range(2):  # the image, its voxels and the volume may each report it
            volume.GetImageData().Modified()
        matrix = slicer.util.vtkMatrixFromArray(np.eye(4))
        matrix.SetElement(0, 3, number)
        volume.SetIJKToRASMatrix(matrix)
        volume.Modified()
        until = time.monotonic() + 1 / 30
        while time.monotonic() < until:
            worker.poll()
            if live.step():
                (value,) = np.unique(slicer.util.arrayFromVolume(live.output))
                assert live.output.GetOrigin()[0] == value
                seen.add(int(value))
            time.sleep(0.002)
    live_until(worker, live, lambda: not live.waiting)
    assert live._stream.push_count == 31 and len(seen) > 5
    for _ in range(5):  # a view that is moved shows the same frame
        live._onView()
        live.step()
    assert live._stream.push_count == 31
    live.stop()


def test_encoded_images_are_decoded_once_by_their_own_node_and_pushed_once(worker, slicer_app, monkeypatch):
    from Speckle2SelfSlicer.live import Live

    encoded = []
    for number in range(6):
        plain, node = slicer.vtkMRMLVectorVolumeNode(), slicer.vtkMRMLStreamingVolumeNode()
        slicer.util.updateVolumeFromArray(plain, np.full((1, 48, 56, 3), 100 + number, np.uint8))
        node.SetAndObserveImageData(plain.GetImageData())
        node.SetCodecFourCC("RV24")
        assert node.EncodeImageData(True)
        encoded.append(node.GetFrame())
    stream = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLStreamingVolumeNode", "US")
    stream.SetAndObserveFrame(encoded[0])
    decoders = Counter(monkeypatch, "vtkMRMLStreamingVolumeNode")
    live = Live(worker, stream, model="median", region="none")
    live_until(worker, live, lambda: live.output is not None)
    for number in range(1, 6):
        stream.SetAndObserveFrame(encoded[number])
        stream.GetImageData().Modified()  # a view has decoded it, which is an event as well
        live_until(worker, live, lambda n=number: slicer.util.arrayFromVolume(live.output).max() == 100 + n)
        live_until(worker, live, lambda: not live.waiting)
    assert live._stream.push_count == 6 and decoders.count == 0
    bad = slicer.vtkStreamingVolumeFrame()
    bad.SetCodecFourCC("XXXX")
    bad.SetDimensions(56, 48, 1)
    stream.SetAndObserveFrame(bad)
    live.step()
    assert live.state == "failed" and "no codec 'XXXX'" in live.message
