"""The grain: the length at which speckle decorrelates."""

import numpy as np
import pytest

from Speckle2SelfLib.grain import estimate_grain
from Speckle2SelfLib.simulation import TEXTBOOK, SimulationConfig, simulate


@pytest.mark.parametrize("layout", TEXTBOOK)
@pytest.mark.parametrize("grain", [(0.9, 2.0), (2.0, 5.0), (3.2, 4.5), (6.0, 12.0)])
def test_the_grain_is_measured_on_any_anatomy(layout, grain):
    """Log compression shortens it to about 0.8 of the intensities' own."""
    frames = simulate(SimulationConfig((288, 288), 2, grain, layout), np.random.default_rng(3)).frames
    found = np.array(estimate_grain(frames)) / grain
    assert (found > 0.45).all() and (found < 1.1).all()


def test_an_offset_does_not_change_the_grain():
    config = SimulationConfig((160, 160), 2, (1.2, 2.0), "flat", "linear")
    frames = np.round(simulate(config, np.random.default_rng(1)).frames * 60).astype(np.int16)
    assert estimate_grain(frames + np.int16(20000)) == pytest.approx(estimate_grain(frames), rel=0.01)


def test_margins_do_not_change_the_grain():
    frames = simulate(SimulationConfig((192, 192), 2, (1.5, 3), "flat"), np.random.default_rng(3)).frames
    padded = np.pad(frames, ((0, 0), (40, 10), (200, 100)))
    region = np.pad(np.ones((192, 192), bool), ((40, 10), (200, 100)))
    assert estimate_grain(padded, region) == pytest.approx(estimate_grain(frames), rel=0.15)


@pytest.mark.parametrize("frames", [np.zeros((3, 64, 64)), np.ones((1, 10, 200)), np.full((2, 64, 64), np.nan)])
def test_without_speckle_the_grain_is_one_pixel(frames):
    assert estimate_grain(frames) == (1, 1)
