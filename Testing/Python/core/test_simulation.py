"""The simulator: its speckle is speckle, and its truth is the truth."""

import numpy as np
import pytest

from Speckle2SelfLib.config import InputError
from Speckle2SelfLib.simulation import LAYOUTS, SimulationConfig, simulate


def run(seed=0, **options):
    return simulate(SimulationConfig(**{"size": (64, 80), **options}), np.random.default_rng(seed))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mean_of_many_frames_is_the_truth(layout):
    simulated = run(frames=150, grain=(1.2, 2.0), layout=layout)
    error = simulated.frames.mean(0) - simulated.truth
    chance = simulated.frames.std(0) / np.sqrt(150)
    assert np.mean(np.abs(error) > 4 * chance + 0.01) < 0.005
    assert np.abs(error.mean()) < 0.005


def test_frames_share_the_anatomy_and_nothing_of_the_speckle():
    simulated = run(frames=60, layout="organ")
    speckle = (simulated.frames - simulated.truth)[:, 5:-5, 5:-5]
    together = np.corrcoef(speckle.reshape(60, -1))
    assert np.abs(together[~np.eye(60, dtype=bool)]).mean() < 0.06
    assert speckle.std() > 0.03


def test_equal_seeds_give_equal_frames_and_others_do_not():
    assert np.array_equal(run(1).frames, run(1).frames)
    assert not np.array_equal(run(1).frames, run(2).frames)


def test_outside_a_sector_there_is_nothing():
    simulated = run(frames=2, geometry="sector")
    assert 0.2 < simulated.region.mean() < 0.95
    assert not simulated.frames[:, ~simulated.region].any() and not simulated.truth[~simulated.region].any()
    assert simulated.frames[:, simulated.region].std() > 0.02


def test_phantoms_have_labelled_objects_and_everything_fits_the_unit_range():
    simulated = run(layout="phantom")
    assert simulated.labels.max() >= 1
    for image in (simulated.frames, simulated.truth):
        assert image.min() >= 0 and image.max() <= 1 and image.dtype == np.float32


@pytest.mark.parametrize(
    "options", [{"size": (8, 64)}, {"frames": 0}, {"grain": (0, 1)}, {"layout": "sky"}, {"geometry": "round"}]
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(InputError):
        SimulationConfig(**options)
