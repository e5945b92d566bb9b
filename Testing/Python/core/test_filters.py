"""The classical filters share the network's interface and do what filters do."""

import numpy as np
import pytest

from Speckle2SelfLib.filters import FILTERS
from Speckle2SelfLib.simulation import SimulationConfig, simulate


@pytest.fixture(scope="module")
def speckle():
    return simulate(SimulationConfig((64, 64), 2, (1.2, 2.0), "flat", roughness=np.inf), np.random.default_rng(0))


@pytest.mark.parametrize("name", FILTERS)
def test_a_constant_frame_is_kept(name):
    frames = np.full((2, 32, 40), 0.5, np.float32)
    result = FILTERS[name](frames)
    assert result.dtype == np.float32
    assert np.allclose(result, 0.5, atol=1e-4)


@pytest.mark.parametrize("name", FILTERS)
def test_speckle_is_reduced_without_changing_the_level(name, speckle):
    result = FILTERS[name](speckle.frames)
    assert result.shape == speckle.frames.shape
    before, after = ((x - speckle.truth).std() for x in (speckle.frames, result))
    assert after < 0.75 * before
    assert abs(result.mean() - speckle.frames.mean()) < 0.05


@pytest.mark.parametrize("name", FILTERS)
def test_frames_do_not_influence_each_other(name, speckle):
    assert np.allclose(FILTERS[name](speckle.frames)[:1], FILTERS[name](speckle.frames[:1]), atol=1e-6)
