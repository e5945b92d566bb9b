"""Stacks of PNG, TIFF and JPEG as Slicer loads them: despeckled with their geometry, colors and type."""

import numpy as np
import pytest
import tifffile
from PIL import Image

slicer = pytest.importorskip("slicer")
import vtk  # noqa: E402

pytestmark = pytest.mark.usefixtures("slicer_app")
RNG = np.random.default_rng(0)
GREY = np.clip(90 * RNG.rayleigh(1, (4, 48, 64)), 1, 254).astype(np.uint8)
COLOUR = np.repeat(GREY[..., None], 3, -1)
COLOUR[:, 8:16, 8:24] = 250, 30, 20  # like color Doppler
DEEP = GREY.astype(np.uint16) * 200


def stack(folder, suffix, frames, **options):
    """Write a numbered file for each frame; return the first one, by which Slicer finds the others."""
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"scan_{number:03}{suffix}", **options)
    return folder / f"scan_000{suffix}"


def pages(folder, suffix, frames):
    path = folder / f"scan{suffix}"
    tifffile.imwrite(path, frames, photometric="rgb" if frames.ndim == 4 else "minisblack", metadata=None)
    return path


def despeckled(path, **properties):
    volume = slicer.util.loadVolume(str(path), properties)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy((0, -2, 0, 10, -0.5, 0, 0, 20, 0, 0, 3, -30, 0, 0, 0, 1))
    volume.SetIJKToRASMatrix(matrix)  # the user's placement
    before = slicer.util.arrayFromVolume(volume).copy()
    output = slicer.util.getModuleLogic("Speckle2Self").process(volume, model="median", region="none", axis="K")
    assert output.GetClassName() == volume.GetClassName()
    place, found = vtk.vtkMatrix4x4(), slicer.util.arrayFromVolume(output)
    output.GetIJKToRASMatrix(place)
    assert [place.GetElement(i, j) for i in range(4) for j in range(4)] == [
        matrix.GetElement(i, j) for i in range(4) for j in range(4)
    ]
    assert (found.shape, found.dtype) == (before.shape, before.dtype)
    assert np.array_equal(slicer.util.arrayFromVolume(volume), before), "the input never changes"
    rough = [np.abs(np.diff(array.astype(float), axis=2)).mean() for array in (before, found)]
    assert rough[1] < 0.7 * rough[0]
    return volume, output, before, found


@pytest.mark.parametrize("suffix, frames", [(".png", GREY), (".tif", GREY), (".jpg", GREY), (".png", DEEP)],
                         ids=["PNG", "TIFF", "JPEG", "PNG of 16 bits"])  # fmt: skip
def test_a_numbered_stack_of_grey_pictures_is_a_volume(tmp_path, suffix, frames):
    volume, _, before, _ = despeckled(stack(tmp_path, suffix, frames))
    assert volume.GetClassName() == "vtkMRMLScalarVolumeNode" and before.shape == frames.shape
    assert suffix == ".jpg" or np.array_equal(before, frames)


def test_grey_pictures_saved_in_colors_are_read_as_grey(tmp_path):
    volume, _, before, found = despeckled(stack(tmp_path, ".png", np.repeat(GREY[..., None], 3, -1)))
    assert volume.GetClassName() == "vtkMRMLVectorVolumeNode" and np.array_equal(before[..., 0], GREY)
    assert np.array_equal(found[..., 0], found[..., 1]) and np.array_equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_numbered_stack_of_colored_pictures_is_a_vector_volume(tmp_path, suffix):
    volume, output, before, found = despeckled(stack(tmp_path, suffix, COLOUR))
    assert volume.GetClassName() == "vtkMRMLVectorVolumeNode" and before.shape == COLOUR.shape
    assert suffix == ".jpg" or np.array_equal(before, COLOUR)
    assert np.array_equal(found[:, 9:15, 9:23], before[:, 9:15, 9:23]), "colors stay"
    assert output.GetNumberOfDisplayNodes() == 1


def test_the_last_number_that_varies_orders_the_slices(tmp_path):
    for number, frame in enumerate(GREY):
        Image.fromarray(frame).save(tmp_path / f"day{9 + number}_probe2.png")
    _, _, before, _ = despeckled(tmp_path / "day10_probe2.png")
    assert np.array_equal(before, GREY), "day 9 before day 10"


@pytest.mark.parametrize("frames", [GREY, DEEP, COLOUR], ids=["grey", "16 bits", "colored"])
def test_a_tiff_of_several_pages_is_a_volume(tmp_path, frames):
    _, _, before, _ = despeckled(pages(tmp_path, ".tiff", frames))
    assert np.array_equal(before, frames)


@pytest.mark.parametrize("frames", [GREY, COLOUR], ids=["grey", "colored"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_single_picture_is_a_volume_of_one_slice(tmp_path, suffix, frames):
    _, _, before, _ = despeckled(stack(tmp_path, suffix, frames), singleFile=True)
    assert before.shape == frames[:1].shape
