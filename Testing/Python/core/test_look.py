"""Strength and gamma changed afterwards match despeckling with them."""

import numpy as np
import pytest

from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.grey import grey_mapping
from Speckle2SelfLib.look import look

FRAMES = np.random.default_rng(0).rayleigh(40, (3, 48, 56)).clip(0, 255).astype(np.uint8)
REGION = np.zeros((48, 56), bool)
REGION[4:40, 5:50] = True


def test_without_strength_it_is_the_input_bit_for_bit():
    frames = (10**9 + np.arange(64).reshape(1, 8, 8)).astype(np.int32)  # more than float32 holds
    assert np.array_equal(look(frames, frames + 5, np.ones((8, 8), bool), (0, 2e9), 0.0, 1.0), frames)


@pytest.mark.parametrize("strength, gamma", [(1, 1), (0.5, 1), (1, 1.8), (0.3, 0.6), (0, 2)])
@pytest.mark.parametrize("kind", ["grey", "colour", "float"])
def test_a_look_matches_despeckling_with_the_same_settings(kind, strength, gamma):
    frames = FRAMES
    if kind == "colour":
        frames = np.repeat(FRAMES[..., None], 3, -1)
        frames[:, 10:20, 10:20] = (200, 30, 30)
    elif kind == "float":
        frames = FRAMES.astype(np.float32) * 3
        frames[0, 8, 8] = np.nan
    plain = despeckle(frames, median, region=REGION)
    expected = despeckle(frames, median, region=REGION, strength=strength, gamma=gamma)
    found = look(frames, plain, REGION, grey_mapping(frames, REGION), strength, gamma)
    assert found.dtype == frames.dtype
    assert np.array_equal(found[:, ~REGION], frames[:, ~REGION], equal_nan=True)
    if strength:
        difference = np.abs(found.astype(float) - expected)
        assert np.nanmax(difference) <= (4 if kind != "float" else 1e-2), "the plain result was rounded before"
    else:
        assert np.array_equal(found, frames, equal_nan=True)


def median(frames):
    from Speckle2SelfLib.filters import FILTERS

    return FILTERS["median"](frames)
