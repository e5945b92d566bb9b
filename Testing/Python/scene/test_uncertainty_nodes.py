"""The uncertainty of an output as a second node next to it."""

import numpy as np
import pytest
import torch
from helpers import add_sequence

slicer = pytest.importorskip("slicer")
from Speckle2SelfLib import checkpoint  # noqa: E402
from Speckle2SelfLib.calibration import calibrate  # noqa: E402
from Speckle2SelfLib.config import ModelConfig  # noqa: E402
from Speckle2SelfLib.despeckling import despeckle  # noqa: E402
from Speckle2SelfLib.network import UNSURE, build  # noqa: E402
from Speckle2SelfLib.system import InputError  # noqa: E402

FRAMES = np.random.default_rng(0).integers(20, 200, (3, 40, 32)).astype(np.uint8)
TOLD = 2 * UNSURE  # fraction of the grey range
LOW, HIGH = calibrate(FRAMES, None, with_grain=False).mapping


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return a file of a model that estimates TOLD everywhere."""
    torch.manual_seed(0)
    path, config = (
        tmp_path_factory.mktemp("models") / "told",
        ModelConfig(width=8, uncertainty=True, uncertainty_scale=2),
    )
    network = build(config)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    checkpoint.save(path, config, network, {})
    return str(path)


@pytest.fixture
def logic():
    slicer.mrmlScene.Clear()
    return slicer.util.getModuleLogic("Speckle2Self")


def voxels(node):
    return slicer.util.arrayFromVolume(node)


def test_the_uncertainty_of_a_volume_is_a_floating_point_volume_in_its_place(logic, model):
    node = slicer.util.addVolumeFromArray(FRAMES, name="US")
    node.SetSpacing(0.5, 0.25, 2)
    node.SetOrigin(1, 2, 3)
    output = logic.process(node, model=model, region="none", axis="K", strength=0.5, uncertainty=True)
    told = slicer.util.getNode("US uncertainty")
    assert told.GetClassName() == "vtkMRMLScalarVolumeNode" and voxels(told).dtype == np.float32
    assert voxels(told) == pytest.approx(np.full(FRAMES.shape, 0.5 * TOLD * (HIGH - LOW)), rel=1e-3)
    assert told.GetSpacing() == node.GetSpacing() and told.GetOrigin() == node.GetOrigin()
    assert told.GetDisplayNode().GetAutoWindowLevel() and voxels(output).dtype == np.uint8


def test_the_uncertainty_of_a_color_volume_is_a_scalar_volume(logic, model):
    colors = np.repeat(FRAMES[..., None], 3, -1)
    node = slicer.util.addVolumeFromArray(colors, name="US", nodeClassName="vtkMRMLVectorVolumeNode")
    logic.process(node, model=model, region="none", axis="K", uncertainty=True)
    told = slicer.util.getNode("US uncertainty")
    assert told.GetClassName() == "vtkMRMLScalarVolumeNode" and voxels(told).shape == FRAMES.shape
    assert told.GetDisplayNode().GetClassName() == "vtkMRMLScalarVolumeDisplayNode"
    assert (voxels(told) > 0).all()


def test_the_uncertainty_of_a_sequence_is_a_sequence_in_the_same_browser(logic, model):
    sequence, browser = add_sequence(FRAMES)
    output = logic.process(sequence, model=model, region="none", uncertainty=True)
    told = next(n for n in slicer.util.getNodesByClass("vtkMRMLSequenceNode") if n.GetName() == "Cine uncertainty")
    assert told.GetNumberOfDataNodes() == 3 and told.GetNthIndexValue(1) == "0.10"
    items = np.array([voxels(told.GetNthDataNode(number))[0] for number in range(3)])
    assert items.dtype == np.float32 and items == pytest.approx(TOLD * (HIGH - LOW), rel=1e-3)
    proxies = [browser.GetProxyNode(each) for each in (output, told)]
    assert all(proxies) and voxels(proxies[1]).dtype == np.float32


def test_caution_also_keeps_the_input_in_the_scene(logic, model):
    node = slicer.util.addVolumeFromArray(FRAMES, name="US")
    options = {"model": model, "region": "none", "axis": "K", "device": "cpu"}
    output = logic.process(node, cautious=1.0, **options)
    expected = despeckle(FRAMES, model, region=None, device="cpu", cautious=1.0)
    assert np.abs(voxels(output).astype(int) - expected).max() <= 1
    plain = despeckle(FRAMES, model, region=None, device="cpu").astype(float)
    assert np.abs(expected - plain).max() > 20
    assert slicer.mrmlScene.GetNodesByName("US uncertainty").GetNumberOfItems() == 0


@pytest.mark.parametrize("asked", [{"uncertainty": True}, {"cautious": 0.5}])
def test_asking_a_filter_for_its_uncertainty_is_refused_and_leaves_nothing(logic, asked):
    node = slicer.util.addVolumeFromArray(FRAMES, name="US")
    count = slicer.mrmlScene.GetNumberOfNodes()
    with pytest.raises(InputError, match="does not estimate its uncertainty"):
        logic.process(node, model="median", region="none", **asked)
    assert slicer.mrmlScene.GetNumberOfNodes() == count
