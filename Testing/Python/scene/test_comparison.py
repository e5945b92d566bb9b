"""Comparing and measuring, on real MRML."""

import csv

import numpy as np
import pytest

from Speckle2SelfLib.system import InputError

slicer = pytest.importorskip("slicer")


@pytest.fixture
def pair(slicer_app):
    """A noisy frame with a dark disc, and the frame without noise, at a place and spacing of their own."""
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
    """A ROI over these columns and rows of the pair's frames."""
    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
    centre = [10 + 0.5 * sum(columns) / 2, -5 + 0.5 * sum(rows) / 2, 3]
    roi.SetCenter(centre)
    roi.SetSize(0.5 * (columns[1] - columns[0]), 0.5 * (rows[1] - rows[0]), 4)
    return roi


def test_a_box_takes_the_voxels_that_lie_in_it(pair):
    from Speckle2SelfSlicer import comparison

    mask = comparison.inside(pair[0], box("tissue", (50, 70), (30, 50)))
    assert mask.shape == (1, 64, 80)
    assert mask[0, 30:51, 50:71].all() and mask.sum() == 21 * 21
    with pytest.raises(InputError, match="covers no part"):
        comparison.inside(pair[0], box("away", (500, 600), (0, 9)))


def test_a_box_on_an_image_under_a_warp_is_refused(pair):
    from Speckle2SelfSlicer import comparison

    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "Warp")
    transform = slicer.vtkOrientedBSplineTransform()
    warp.SetAndObserveTransformFromParent(transform)
    pair[0].SetAndObserveTransformNodeID(warp.GetID())
    with pytest.raises(InputError, match="'in' is under the transform 'Warp', which is not linear"):
        comparison.inside(pair[0], box("tissue", (50, 70), (30, 50)))


def test_figures_before_and_after_go_into_a_table_a_plot_and_a_file(pair, tmp_path):
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


def test_figures_are_of_a_slice_that_both_boxes_share_and_of_values_that_there_are(slicer_app):
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
    slicer.util.arrayFromVolume(before)[:, :2, :2] = np.nan  # in neither box
    assert "nan" not in comparison.asHtml(comparison.evaluate(before, after, *boxes)[0]) and "nan" not in figures
    boxes[1].SetCenter(24, 16, 2)
    boxes[1].SetSize(10, 20, 0.5)
    with pytest.raises(InputError, match="no slice in common"):
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
    from Speckle2SelfSlicer import comparison

    if not comparison._each("vtkMRMLSliceCompositeNode"):
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSliceCompositeNode")
    comparison.fade(*pair, 0.25)
    composites = comparison._each("vtkMRMLSliceCompositeNode")
    assert composites
    for composite in composites:
        assert composite.GetBackgroundVolumeID() == pair[0].GetID()
        assert composite.GetForegroundVolumeID() == pair[1].GetID() and composite.GetForegroundOpacity() == 0.25
    region = np.zeros((64, 80), bool)
    region[10:30, 20:50] = True
    comparison.showRegion(pair[0], region, 0)
    labels = slicer.mrmlScene.GetNodeByID(composites[0].GetLabelVolumeID())
    assert np.array_equal(slicer.util.arrayFromVolume(labels)[0], region)
    assert all(view.GetUseLabelOutline() for view in comparison._each("vtkMRMLSliceNode"))
    comparison.showRegion(pair[0], None, 0)
    assert composites[0].GetLabelVolumeID() is None


def test_the_views_own_label_map_comes_back(pair):
    from Speckle2SelfSlicer import comparison

    for kind in ("vtkMRMLSliceNode", "vtkMRMLSliceCompositeNode"):
        if not comparison._each(kind):
            slicer.mrmlScene.AddNewNodeByClass(kind)
    view, composite = (comparison._each(kind)[0] for kind in ("vtkMRMLSliceNode", "vtkMRMLSliceCompositeNode"))
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Mine")
    view.SetUseLabelOutline(False)
    composite.SetLabelVolumeID(mine.GetID())
    for _ in range(2):  # as it is outlined anew
        comparison.showRegion(pair[0], np.ones((64, 80), bool), 0)
    assert view.GetUseLabelOutline() and composite.GetLabelVolumeID() != mine.GetID()
    comparison.showRegion(None, None, 0)
    assert not view.GetUseLabelOutline() and composite.GetLabelVolumeID() == mine.GetID()
    slicer.mrmlScene.RemoveNode(mine)


def test_a_segmentation_gives_a_mask(pair):
    from Speckle2SelfSlicer import comparison

    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Regions")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(pair[0])
    wanted = np.zeros((1, 64, 80), np.uint8)
    wanted[0, 5:20, 30:60] = 1
    segment = segmentation.GetSegmentation().AddEmptySegment("tissue")
    slicer.util.updateSegmentBinaryLabelmapFromArray(wanted, segmentation, segment, pair[0])
    assert np.array_equal(comparison.inside(pair[0], segmentation, "first"), wanted != 0)
    assert np.array_equal(comparison.frameMask(pair[0], segmentation, 0), wanted[0] != 0)


@pytest.mark.parametrize("kind", ["box", "given", "none"])
def test_a_proxy_without_image_is_told_where_a_region_is_wanted(slicer_app, kind):
    from Speckle2SelfSlicer import comparison, scene

    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Cine")
    volume = slicer.vtkMRMLScalarVolumeNode()
    slicer.util.updateVolumeFromArray(volume, np.ones((1, 64, 80), np.uint8))
    sequence.SetDataNodeAtValue(volume, "0")
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    scene.proxy(sequence).SetAndObserveImageData(None)
    logic = slicer.util.getModuleLogic("Speckle2Self")
    with pytest.raises(InputError, match="has no image data"):
        if kind == "none":
            comparison.Outline(logic).show(sequence, "none")
        else:
            logic.region(sequence, box("tissue", (50, 70), (30, 50)) if kind == "box" else None)


def test_what_changes_a_region_is_seen_and_reading_it_is_no_change(pair):
    from Speckle2SelfSlicer import comparison

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
        comparison.frameMask(pair[0], segmentation, 0)
        before = comparison.changed(segmentation)
        comparison.frameMask(pair[0], segmentation, 0)
        assert comparison.changed(segmentation) == before
        change()
        assert comparison.changed(segmentation) > before
