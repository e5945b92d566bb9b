"""Comparing and measuring, on real MRML."""

import csv

import numpy as np
import pytest
from helpers import add_sequence

from Speckle2SelfLib.system import InputError

slicer = pytest.importorskip("slicer")


@pytest.fixture
def pair(slicer_app):
    """Return a noisy frame with a dark disc, and the frame without noise, at a place and spacing of their own."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :80]
    clean = np.where(np.hypot(y - 20, x - 20) < 12, 30.0, 120.0)
    noisy = np.clip(clean * rng.rayleigh(0.8, clean.shape), 0, 255).astype(np.uint8)
    volumes = [
        slicer.util.addVolumeFromArray(frame[None].astype(np.uint8), name=name)
        for frame, name in ((noisy, "in"), (clean, "out"))
    ]
    for volume in volumes:
        volume.SetSpacing(0.5, 0.5, 1)
        volume.SetOrigin(10, -5, 3)
    return volumes


def box(name, columns, rows):
    """Return a ROI over these columns and rows of the pair's frames."""
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
    centre = [10 + 0.5 * sum(columns) / 2, -5 + 0.5 * sum(rows) / 2, 3]
    roi.SetCenter(centre)
    roi.SetSize(0.5 * (columns[1] - columns[0]), 0.5 * (rows[1] - rows[0]), 4)
    return roi


def test_a_box_covers_the_voxels_that_lie_in_it(pair):
    from Speckle2SelfSlicer import regions

    mask = regions.voxelsInside(pair[0], box("tissue", (50, 70), (30, 50)))
    assert mask.shape == (1, 64, 80)
    assert mask[0, 30:51, 50:71].all() and mask.sum() == 21 * 21
    with pytest.raises(InputError, match="covers no part"):
        regions.voxelsInside(pair[0], box("away", (500, 600), (0, 9)))


def test_a_box_on_an_image_under_a_warp_is_refused(pair):
    from Speckle2SelfSlicer import regions

    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "Warp")
    transform = slicer.vtkOrientedBSplineTransform()
    warp.SetAndObserveTransformFromParent(transform)
    pair[0].SetAndObserveTransformNodeID(warp.GetID())
    with pytest.raises(InputError, match="'in' is under the transform 'Warp', which is not linear"):
        regions.voxelsInside(pair[0], box("tissue", (50, 70), (30, 50)))


def test_figures_before_and_after_are_written_to_a_table_a_plot_and_a_file(pair, tmp_path):
    from Speckle2SelfSlicer import comparison

    tissue, lumen = box("tissue", (50, 70), (30, 50)), box("lumen", (14, 26), (14, 26))
    table, chart = comparison.evaluate(*pair, tissue, lumen, "median")
    count = slicer.mrmlScene.GetNumberOfNodes()
    again, _ = comparison.evaluate(*pair, tissue, lumen, "median")
    assert again is table and slicer.mrmlScene.GetNumberOfNodes() == count
    comparison.writeTable(table, tmp_path / "figures.csv")
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "figures.csv").open())}
    assert list(rows) == ["input", "despeckled", "median"]
    snr = [float(rows[name]["SNR"]) for name in ("input", "median", "despeckled")]
    assert snr == sorted(snr)
    assert float(rows["despeckled"]["gCNR"]) == pytest.approx(1) and float(rows["input"]["std"]) > 30
    assert chart.GetNumberOfPlotSeriesNodes() == 2
    with pytest.raises(InputError):
        comparison.evaluate(*pair, None)


def test_figures_use_a_slice_that_both_boxes_share_and_only_finite_values(slicer_app):
    from Speckle2SelfSlicer import comparison

    voxels = np.random.default_rng(0).rayleigh(40, (3, 32, 32)).astype(np.float32)
    before, after = (slicer.util.addVolumeFromArray(x) for x in (voxels, voxels / 2 + 40))
    for volume in (before, after):
        volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.eye(4)))
    boxes = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode") for _ in range(2)]
    for roi, column, depth, size in ((boxes[0], 8, 0.5, 1.2), (boxes[1], 24, 1.5, 1.2)):  # slices 0 and 1; 1 and 2
        roi.SetCenter(column, 16, depth)
        roi.SetSize(10, 20, size)
    whole, _ = comparison.evaluate(before, after, *boxes)
    columns = {whole.GetTable().GetColumnName(i) for i in range(whole.GetTable().GetNumberOfColumns())}
    assert {"CNR", "gCNR"} <= columns
    figures = comparison.asHtml(whole)
    slicer.util.arrayFromVolume(before)[:, :2, :2] = np.nan  # outside both boxes
    assert "nan" not in comparison.asHtml(comparison.evaluate(before, after, *boxes)[0]) and "nan" not in figures
    boxes[1].SetCenter(24, 16, 2)
    boxes[1].SetSize(10, 20, 0.5)
    with pytest.raises(InputError, match="do not share a slice"):
        comparison.evaluate(before, after, *boxes)


def test_the_difference_has_a_fixed_scale_and_the_place_of_the_input(pair):
    from Speckle2SelfSlicer import comparison

    node = comparison.difference(*pair)
    expected = slicer.util.arrayFromVolume(pair[0]).astype(float) - slicer.util.arrayFromVolume(pair[1])
    assert np.array_equal(slicer.util.arrayFromVolume(node), expected)
    assert node.GetOrigin() == (10, -5, 3)
    assert (node.GetDisplayNode().GetWindow(), node.GetDisplayNode().GetLevel()) == (255 / 4, 0)
    assert comparison.difference(*pair) is node


def test_views_show_input_and_output(pair):
    from Speckle2SelfSlicer import comparison, regions

    if not slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    comparison.fade(*pair, 0.25)
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    assert composites
    for composite in composites:
        assert composite.GetBackgroundVolumeID() == pair[0].GetID()
        assert composite.GetForegroundVolumeID() == pair[1].GetID() and composite.GetForegroundOpacity() == 0.25
    region = np.zeros((64, 80), bool)
    region[10:30, 20:50] = True
    regions.showOutline(pair[0], region, 0)
    labels = slicer.mrmlScene.GetNodeByID(composites[0].GetLabelVolumeID())
    assert np.array_equal(slicer.util.arrayFromVolume(labels)[0], region)
    assert all(view.GetUseLabelOutline() for view in slicer.util.getNodesByClass("vtkMRMLSliceNode"))
    regions.hideOutline()
    assert composites[0].GetLabelVolumeID() is None


def test_the_label_map_of_a_view_is_restored(pair):
    from Speckle2SelfSlicer import regions

    for kind in ("vtkMRMLSliceNode", "vtkMRMLSliceCompositeNode"):
        if not slicer.util.getNodesByClass(kind):
            slicer.mrmlScene.AddNewNodeByClass(kind)
    view, composite = (
        slicer.util.getNodesByClass(kind)[0] for kind in ("vtkMRMLSliceNode", "vtkMRMLSliceCompositeNode")
    )
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Mine")
    view.SetUseLabelOutline(False)
    composite.SetLabelVolumeID(mine.GetID())
    for _ in range(2):  # outlined twice
        regions.showOutline(pair[0], np.ones((64, 80), bool), 0)
    assert view.GetUseLabelOutline() and composite.GetLabelVolumeID() != mine.GetID()
    regions.hideOutline()
    assert not view.GetUseLabelOutline() and composite.GetLabelVolumeID() == mine.GetID()
    slicer.mrmlScene.RemoveNode(mine)


def test_a_segmentation_becomes_a_mask(pair):
    from Speckle2SelfSlicer import regions

    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Regions")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(pair[0])
    wanted = np.zeros((1, 64, 80), np.uint8)
    wanted[0, 5:20, 30:60] = 1
    segment = segmentation.GetSegmentation().AddEmptySegment("tissue")
    slicer.util.updateSegmentBinaryLabelmapFromArray(wanted, segmentation, segment, pair[0])
    assert np.array_equal(regions.voxelsInside(pair[0], segmentation, "first"), wanted != 0)
    assert np.array_equal(regions.frameMask(pair[0], segmentation, 0), wanted[0] != 0)


@pytest.mark.parametrize("kind", ["box", "given", "none"])
def test_a_region_on_a_proxy_without_image_is_refused(slicer_app, kind):
    from Speckle2SelfSlicer import regions, scene

    sequence, _ = add_sequence(np.ones((1, 64, 80), np.uint8))
    scene.proxyOf(sequence).SetAndObserveImageData(None)
    logic = slicer.util.getModuleLogic("Speckle2Self")
    with pytest.raises(InputError, match="has no image data"):
        if kind == "none":
            regions.Outline(logic).show(sequence, "none")
        else:
            logic.region(sequence, box("tissue", (50, 70), (30, 50)) if kind == "box" else None)


def test_edits_of_a_region_are_noticed_and_reading_it_is_not_an_edit(pair):
    from Speckle2SelfSlicer import regions

    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Regions")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(pair[0])
    mask = np.zeros((1, 64, 80), np.uint8)
    segments = [segmentation.GetSegmentation().AddEmptySegment(name) for name in ("tissue", "lumen")]

    def draw(segment, rows):
        mask[:] = 0
        mask[0, rows] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment, pair[0])

    draw(segments[1], slice(40, 60))
    for change in (
        lambda: draw(segments[0], slice(20)),
        lambda: draw(segments[0], slice(30)),
        lambda: segmentation.GetDisplayNode().SetSegmentVisibility(segments[0], False),
        lambda: segmentation.GetSegmentation().RemoveSegment(segments[0]),
    ):
        regions.frameMask(pair[0], segmentation, 0)
        before = regions.lastChange(segmentation)
        regions.frameMask(pair[0], segmentation, 0)
        assert regions.lastChange(segmentation) == before
        change()
        assert regions.lastChange(segmentation) > before


#
# Views
#

ORIENTATIONS = {
    "axial": np.diag([0.5, 0.5, 1, 1.0]),
    "coronal": np.array([[0.5, 0, 0, 40], [0, 0, 1, -30], [0, -0.5, 0, 20], [0, 0, 0, 1.0]]),
    "oblique": np.array([[0.35, 0.35, 0, -60], [-0.25, 0.25, 0.71, 15], [0.25, -0.25, 0.71, 70], [0, 0, 0, 1.0]]),
}


def placed_pair(orientation, shape=(1, 64, 80)):
    """Return two bright volumes of this orientation."""
    volumes = [slicer.util.addVolumeFromArray(np.full(shape, value, np.uint8)) for value in (150, 200)]
    for volume in volumes:
        volume.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(ORIENTATIONS[orientation]))
        volume.CreateDefaultDisplayNodes()
        volume.GetDisplayNode().AutoWindowLevelOff()
        volume.GetDisplayNode().SetWindowLevel(255, 127)
    return volumes


def share_filled(name) -> float:
    """Return the share of the area that the frame could fill in a slice view: its area over that of 64 x 80 pixels,
    fitted."""
    from HeadlessSlicer.views import pixels

    seen = pixels(slicer.app.layoutManager().sliceWidget(name).sliceLogic())
    rows, columns = seen.shape[:2]
    return (seen.max(-1) > 60).sum() / (64 * 80 * min(rows / 64, columns / 80) ** 2)


def view_node(name):
    return slicer.mrmlScene.GetNodeByID(f"vtkMRMLSliceNode{name}")


def composite_node(name):
    return slicer.mrmlScene.GetNodeByID(f"vtkMRMLSliceCompositeNode{name}")


def set_layout(name):
    slicer.app.layoutManager().setLayout(getattr(slicer.vtkMRMLLayoutNode, f"SlicerLayout{name}View"))
    slicer.app.processEvents()
    for view, orientation in (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal")):
        view_node(view).SetOrientation(orientation)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("layout", ["FourUp", "Conventional"])
def test_frames_side_by_side_fill_their_views_in_any_orientation(slicer_app, layout, orientation):
    from Speckle2SelfSlicer import comparison

    set_layout(layout)
    view_node("Red").SetFieldOfView(900, 900, 1)  # the user has looked at something else
    view_node("Red").GetSliceToRAS().SetElement(2, 3, 400)
    view_node("Red").UpdateMatrices()
    before, after = placed_pair(orientation)
    comparison.sideBySide(before, after)
    slicer.app.processEvents()
    for name, volume in (("Red", before), ("Yellow", after)):
        assert composite_node(name).GetBackgroundVolumeID() == volume.GetID()
        assert 0.9 < share_filled(name) < 1.1


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("layout", ["FourUp", "Conventional"])
def test_a_difference_fills_all_views_of_the_layout(slicer_app, layout, orientation):
    from Speckle2SelfSlicer import comparison, views

    set_layout(layout)
    node = comparison.difference(*placed_pair(orientation))
    node.GetDisplayNode().SetWindowLevel(10, -60)  # it is -50 everywhere: bright
    views.showInViews(node)
    for name in ("Red", "Yellow", "Green"):
        assert 0.9 < share_filled(name) < 1.1


def test_frames_that_are_stacked_in_a_volume_are_seen_from_their_front(slicer_app):
    from Speckle2SelfSlicer import comparison

    set_layout("FourUp")
    before, after = placed_pair("coronal", (10, 64, 80))
    view_node("Red").JumpSliceByCentering(before.GetOrigin()[0], -30 + 7, 0)  # the user is at frame 7
    comparison.sideBySide(before, after)
    slicer.app.processEvents()
    for name in ("Red", "Yellow"):
        assert 0.9 < share_filled(name) < 1.1
        assert abs(view_node(name).GetSliceToRAS().GetElement(1, 3) - (-30 + 7)) < 1e-6


def test_side_by_side_keeps_a_reformatted_view_and_each_views_aspect(pair):
    from HeadlessSlicer import complaints
    from Speckle2SelfSlicer import comparison

    complaints.listen()
    set_layout("SideBySide")
    view_node("Red").GetSliceToRAS().DeepCopy(
        slicer.util.vtkMatrixFromArray(np.array([[0, -1, 0, 0], [0.6, 0, 0.8, 0], [-0.8, 0, 0.6, 0], [0, 0, 0, 1.0]]))
    )
    view_node("Red").UpdateMatrices()
    assert view_node("Red").GetOrientation() == "Reformat"
    view_node("Yellow").SetDimensions(300, 200, 1)
    complaints.heard.clear()
    for volumes, orientation in ((pair, "Axial"), (placed_pair("oblique"), "Reformat")):
        comparison.sideBySide(*volumes)
        assert not complaints.heard and view_node("Red").GetOrientation() == orientation
        for name in ("Red", "Yellow"):
            wide, tall, _ = view_node(name).GetFieldOfView()
            columns, rows, _ = view_node(name).GetDimensions()
            assert wide / tall == pytest.approx(columns / rows)
        turned = [slicer.util.arrayFromVTKMatrix(view_node(name).GetSliceToRAS()) for name in ("Red", "Yellow")]
        assert np.allclose(*turned)


def test_fading_does_not_change_hidden_views_or_a_foreground_of_the_user(pair):
    from Speckle2SelfSlicer import comparison

    set_layout("SideBySide")  # red and yellow
    mine = slicer.util.addVolumeFromArray(np.zeros((1, 8, 8), np.uint8), name="PET")
    for name in ("Red", "Yellow", "Green"):
        composite_node(name).SetBackgroundVolumeID(mine.GetID())
        composite_node(name).SetForegroundVolumeID(None)
    composite_node("Yellow").SetForegroundVolumeID(mine.GetID())
    comparison.fade(*pair, 1.0)
    layers = {
        name: (composite_node(name).GetBackgroundVolumeID(), composite_node(name).GetForegroundVolumeID())
        for name in ("Red", "Yellow", "Green")
    }
    before, after, own = (node.GetID() for node in (*pair, mine))
    assert layers == {"Red": (before, after), "Yellow": (own, own), "Green": (own, None)}
    again = slicer.util.addVolumeFromArray(np.zeros((1, 64, 80), np.uint8), name="second result")
    comparison.fade(pair[0], again, 0.5)
    assert composite_node("Red").GetForegroundVolumeID() == again.GetID(), "its own nodes"
    assert composite_node("Red").GetForegroundOpacity() == 0.5


def test_the_users_views_are_restored(pair):
    from Speckle2SelfSlicer import comparison, views

    set_layout("FourUp")
    mine = slicer.util.addVolumeFromArray(np.zeros((1, 8, 8), np.uint8), name="Mine")
    for name in ("Red", "Yellow", "Green"):
        composite_node(name).SetBackgroundVolumeID(mine.GetID())
    view_node("Yellow").SetFieldOfView(77, 55, 1)

    def state():
        nodes = [(view_node(name), composite_node(name)) for name in ("Red", "Yellow", "Green")]
        return [
            (slicer.util.arrayFromVTKMatrix(view.GetSliceToRAS()).tolist(), view.GetOrientation(),
             composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(), composite.GetLinkedControl())
            for view, composite in nodes
        ]  # fmt: skip

    before, layout = state(), slicer.app.layoutManager().layout
    views.showInViews(pair[0])
    comparison.sideBySide(*pair)
    comparison.fade(*pair, 0.5)
    assert state() != before and slicer.app.layoutManager().layout != layout
    views.restore()
    slicer.app.processEvents()
    assert state() == before and slicer.app.layoutManager().layout == layout
    views.showInViews(pair[0])
    composite_node("Red").SetBackgroundVolumeID(mine.GetID())  # the user is elsewhere by now
    turned = state()[0]
    views.restore()
    assert state()[0] == turned and state()[1:] == before[1:]


#
# Regions
#


def test_a_new_box_lies_in_a_recording_that_no_browser_shows(slicer_app):
    from Speckle2SelfSlicer import regions

    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Cine")
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    regions.placeBox(roi, sequence)  # no image yet: it is kept
    volume = slicer.vtkMRMLScalarVolumeNode()
    slicer.util.updateVolumeFromArray(volume, np.ones((1, 64, 80), np.uint8))
    sequence.SetDataNodeAtValue(volume, "0")
    regions.placeBox(roi, sequence)
    assert np.allclose(roi.GetSize(), (20, 16, 1)) and np.allclose(roi.GetCenter(), (39.5, 31.5, 0))


def test_a_dicom_database_is_asked_for_the_scanner_only_where_it_is_open(pair, monkeypatch, tmp_path):
    from HeadlessSlicer import complaints
    from Speckle2SelfSlicer import regions

    monkeypatch.setenv("SPECKLE2SELF_HOME", str(tmp_path))
    pair[0].SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    database = slicer.dicomDatabase
    database.closeDatabase()
    complaints.heard.clear()
    region = np.zeros((64, 80), bool)
    region[3:9, 4:40] = True
    regions.saveRegion(pair[0], region)
    assert np.array_equal(regions.lastRegion(pair[0], (64, 80)), region) and not complaints.heard
    database.openWith({("1.2.3", "0008,0070"): "Acme", ("1.2.3", "0008,1090"): "Sono/1"})
    with pytest.raises(InputError, match="none was used"):
        regions.lastRegion(pair[0], (64, 80))
    regions.saveRegion(pair[0], ~region)
    assert np.array_equal(regions.lastRegion(pair[0], (64, 80)), ~region)
    with pytest.raises(InputError, match="none was used"):
        regions.lastRegion(pair[0], (80, 64))
    database.closeDatabase()
    assert np.array_equal(regions.lastRegion(pair[0], (64, 80)), region)


#
# Previews of training
#


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("layout", ["FourUp", "Conventional"])
def test_held_out_frames_lie_where_their_recording_lies_and_fill_their_views(slicer_app, layout, orientation):
    from Speckle2SelfSlicer import curves, views

    set_layout(layout)
    (recording, _other) = placed_pair(orientation, (5, 64, 80))
    small = slicer.util.addVolumeFromArray(np.zeros((1, 8, 8), np.uint8))
    shift = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Probe")
    recording.SetAndObserveTransformNodeID(shift.GetID())
    nodes = curves.runNodes(slicer.mrmlScene, "run")
    curves.updatePreview(nodes, np.full((64, 160), 200, np.uint8), [small, recording])
    middle = ORIENTATIONS[orientation] @ [0, 0, 2, 1]
    for name, role in (("Red", "before"), ("Yellow", "after")):
        volume = nodes[role]
        assert np.allclose(volume.GetSpacing(), recording.GetSpacing())
        assert np.allclose(volume.GetOrigin(), middle[:3]) and volume.GetTransformNodeID() == shift.GetID()
        volume.GetDisplayNode().AutoWindowLevelOff()
        volume.GetDisplayNode().SetWindowLevel(255, 127)
        views.showInViews(volume, (name,))
        assert 0.9 < share_filled(name) < 1.1
    slicer.mrmlScene.RemoveNode(recording)
    curves.updatePreview(nodes, np.full((64, 160), 200, np.uint8), [small, recording])
    assert nodes["before"].GetImageData().GetDimensions() == (80, 64, 1)
