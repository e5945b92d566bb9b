"""Tinted B-mode is despeckled throughout, in its own hue; Doppler color is not mistaken for a tint."""

import numpy as np
import pydicom.examples
import pytest
from PIL import Image
from scipy import ndimage

from Speckle2SelfLib import files
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.grey import luminance
from Speckle2SelfLib.look import look
from Speckle2SelfLib.region import grey
from Speckle2SelfLib.simulation import SimulationConfig, simulate
from Speckle2SelfLib.tint import find_tint

LEVELS = np.linspace(0, 1, 256)
MAPS = {  # the color of each grey value
    "sepia": np.stack([LEVELS, 0.82 * LEVELS, 0.6 * LEVELS], 1),
    "blue": np.stack([0.5 * LEVELS, 0.75 * LEVELS, LEVELS**0.8], 1),
    "from red to yellow": np.stack([LEVELS**0.6, LEVELS**1.3, 0.7 * LEVELS**3], 1),
}


def tinted(values, name):
    return np.round(255 * MAPS[name])[values].astype(np.uint8)


def changed(before, after):
    """Return where a pixel or one next to it changed, because some are right by chance."""
    return ndimage.maximum_filter((before != after).any(-1), (1, 3, 3))


@pytest.fixture(scope="module")
def speckled():
    frames = simulate(SimulationConfig((96, 128), 2, (1.2, 1.8), "organ"), np.random.default_rng(3)).frames
    values = np.zeros((2, 120, 160), np.uint8)
    values[:, 12:108, 16:144] = np.round(6 + 220 * frames)
    return values


@pytest.mark.parametrize("name", MAPS)
def test_a_tinted_recording_is_despeckled_throughout_and_keeps_its_hue(speckled, name):
    frames = tinted(speckled, name)
    result = despeckle(frames, "median")
    inside = np.s_[:, 16:104, 20:140]
    assert changed(frames, result)[inside].mean() > 0.97
    map_of = np.round(255 * MAPS[name])
    away = np.abs(result[inside].reshape(-1, 1, 3)[::7] - map_of).max(-1).min(1)
    assert np.quantile(away, 0.99) <= 4, "colors of the map"
    assert not result[:, :10].any() and not result[:, :, :14].any(), "black is kept"
    plain = despeckle(speckled, "median")
    assert np.abs(luminance(result)[inside] - luminance(tinted(plain, name))[inside]).mean() < 3


def test_strength_and_gamma_also_keep_the_hue(speckled):
    frames = tinted(speckled, "sepia")
    region = np.ones(frames.shape[1:3], bool)
    result = despeckle(frames, "median", region=None)
    half = look(frames, result, region, (0.0, 190.0), 0.5, 1.3)
    away = np.abs(half.reshape(-1, 1, 3)[::31].astype(int) - np.round(255 * MAPS["sepia"])).max(-1).min(1)
    assert np.quantile(away, 0.99) <= 4


def test_grey_recordings_and_doppler_color_have_no_tint(speckled):
    assert find_tint(speckled) is None
    assert find_tint(speckled[..., None].repeat(3, -1)) is None
    rng = np.random.default_rng(0)
    slightly = speckled[..., None].repeat(3, -1) + rng.integers(0, 6, (*speckled.shape, 3)).astype(np.uint8)
    assert find_tint(slightly) is None
    doppler = speckled[..., None].repeat(3, -1).copy()
    doppler[:, 40:80, 50:110] = np.stack([speckled, speckled // 2, speckled // 8], -1)[:, 40:80, 50:110]
    assert find_tint(doppler) is None
    for name in ("ybr_color", "jpeg2k", "rgb_color", "palette_color"):
        assert find_tint(files.read(pydicom.examples.get_path(name)).frames) is None, name


def test_doppler_color_on_a_tinted_image_is_kept(speckled):
    frames = tinted(speckled, "sepia")
    frames[:, 50:70, 60:90] = (40, 60, 220)
    result = despeckle(frames, "median")
    assert np.array_equal(result[:, 50:70, 60:90], frames[:, 50:70, 60:90])
    assert changed(frames, result)[:, 20:45, 20:140].mean() > 0.97


def test_the_shared_tinted_image(shared_data):
    frames = np.asarray(Image.open(shared_data / "faults" / "tinted" / "sepia.png"))[None]
    result = despeckle(frames, "median")
    lit = frames.max(-1) > 10
    assert changed(frames, result)[lit].mean() > 0.97
    assert not result[frames.max(-1) == 0].any()
    assert grey(result, 255.0, find_tint(frames)).mean() > 0.999
