"""The simulator: its speckle is speckle, and its truth is the truth."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from Speckle2SelfLib import anatomy, simulation
from Speckle2SelfLib.simulation import LAYOUTS, SimulationConfig, simulate, simulate_recorded
from Speckle2SelfLib.system import InputError


def run(seed=0, **options):
    return simulate(SimulationConfig(**{"size": (64, 80), **options}), np.random.default_rng(seed))


@pytest.mark.parametrize("tails", [0, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mean_of_many_frames_is_the_truth(layout, tails):
    simulated = run(frames=150, grain=(1.2, 2.0), layout=layout, tails=tails)
    error = simulated.frames.mean(0) - simulated.truth
    chance = simulated.frames.std(0) / np.sqrt(150)
    assert np.mean(np.abs(error) > 4 * chance + 0.01) < 0.005
    assert np.abs(error.mean()) < 0.005


def test_frames_share_the_anatomy_but_not_the_speckle():
    simulated = run(frames=60, layout="organ")
    speckle = (simulated.frames - simulated.truth)[:, 5:-5, 5:-5]
    together = np.corrcoef(speckle.reshape(60, -1))
    assert np.abs(together[~np.eye(60, dtype=bool)]).mean() < 0.06
    assert speckle.std() > 0.03


@pytest.mark.parametrize("tails", [0, 0.5])
def test_the_grain_is_where_the_correlation_of_intensity_is_one_half_and_tails_reach_further(tails):
    pulse, rng = simulation._Pulse((2.0, 3.0), tails), np.random.default_rng(0)
    power = (simulation._echo(simulation._scatterers((300, 300), np.inf, rng), pulse, 0, power=False) ** 2).sum(0)
    assert power.mean() == pytest.approx(1, abs=0.05)
    power -= power.mean()
    half, far = np.mean(power[2:] * power[:-2]) / power.var(), np.mean(power[:, 6:] * power[:, :-6]) / power.var()
    assert half == pytest.approx(0.5, abs=0.04)
    assert (far > 0.1) == bool(tails)


def test_equal_seeds_draw_equal_frames_and_others_do_not():
    assert np.array_equal(run(1).frames, run(1).frames)
    assert not np.array_equal(run(1).frames, run(2).frames)


def test_outside_a_sector_everything_is_zero():
    simulated = run(frames=2, geometry="sector")
    assert 0.2 < simulated.region.mean() < 0.95
    assert not simulated.frames[:, ~simulated.region].any() and not simulated.truth[~simulated.region].any()
    assert simulated.frames[:, simulated.region].std() > 0.02


def test_phantoms_have_labeled_objects_and_fit_the_unit_range():
    simulated = run(layout="phantom")
    assert simulated.labels.max() >= 1
    for image in (simulated.frames, simulated.truth):
        assert image.min() >= 0 and image.max() <= 1 and image.dtype == np.float32


@pytest.mark.parametrize(
    "options",
    [{"size": (8, 64)}, {"frames": 0}, {"grain": (0, 1)}, {"layout": "sky"}, {"geometry": "round"}, {"tails": 0.6}],
)
def test_impossible_settings_are_refused(options):
    with pytest.raises(InputError):
        SimulationConfig(**options)


def recorded(seed):
    frames, truth = simulate_recorded((64, 64), (1.2, 2.0), "linear", np.random.default_rng(seed))
    assert frames.shape == (1, 64, 64)
    return frames[0], truth


def test_the_processing_of_a_frame_is_applied_to_its_truth():
    """Otherwise the remaining error would correlate with the detail of the truth (edges enhanced) or its slopes
    (moved)."""
    pairs = [recorded(seed) for seed in range(150)]
    rest = np.array([frame - truth for frame, truth in pairs])
    detail = np.array([truth - gaussian_filter(truth, 2) for _, truth in pairs])
    assert abs(rest.mean()) < 0.01
    assert abs((rest * detail).sum() / (detail**2).sum()) < 0.06
    for axis in (1, 2):
        slope = np.gradient(detail, axis=axis)
        assert abs((rest * slope).sum() / (slope**2).sum()) < 0.06  # pixels


def test_the_truth_of_enhanced_frames_includes_the_clipping(monkeypatch):
    """Overshoots are cut at black and white: near black the mean of the frames is brighter than without."""
    monkeypatch.setattr(simulation, "ENHANCED", 1.0)
    frames, truths = np.swapaxes([recorded(seed) for seed in range(120)], 0, 1)
    for dark, most in ((truths < 0.1, 0.0015), (truths < 0.3, 0.0015)):
        assert abs((frames - truths)[dark].mean()) < most


def test_some_recorded_frames_have_8_bits_some_are_compressed_and_all_are_in_range():
    whole = []
    for seed in range(40):
        frame, truth = recorded(seed)
        assert frame.shape == truth.shape == (64, 64) and frame.dtype == truth.dtype == np.float32
        assert min(frame.min(), truth.min()) >= 0 and max(frame.max(), truth.max()) <= 1
        whole.append(np.allclose(frame * 255, np.round(frame * 255), atol=1e-3))
    assert 0.3 < np.mean(whole) < 0.8
    assert np.array_equal(recorded(3)[0], recorded(3)[0]) and not np.array_equal(recorded(3)[0], recorded(4)[0])


@pytest.mark.parametrize("kind", anatomy.TEXTURES)
def test_textures_have_no_mean_one_deviation_and_no_gaps(kind):
    for seed in range(5):
        field = anatomy.Textures((60, 90), np.random.default_rng(seed)).draw(kind)
        assert field.shape == (60, 90) and field.dtype == np.float32 and np.isfinite(field).all()
        assert abs(field.mean()) < 0.1 and 0.5 < field.std() < 1.05


def test_radii_of_leaves_fall_with_the_third_power():
    radii = anatomy.draw_radii(100_000, 1.5, 1e6, np.random.default_rng(0))
    assert radii.min() >= 1.5
    assert np.mean(radii > 3) == pytest.approx(1 / 4, abs=0.01)
    assert np.mean(radii > 6) == pytest.approx(1 / 16, abs=0.01)


def test_natural_anatomies_are_calm_with_few_steep_edges():
    """They resemble photographs, not a Gaussian field, whose slopes have a kurtosis of 3."""
    kurtosis = []
    for seed in range(12):
        slopes = np.diff(anatomy.draw_anatomy((128, 128), np.random.default_rng(seed)).decibels, axis=1)
        kurtosis.append(np.mean(slopes**4) / np.mean(slopes**2) ** 2)
    assert np.median(kurtosis) > 8


def test_the_depth_within_an_outline_is_the_distance_to_it():
    y, x = np.mgrid[-20:21, -20:21].astype(np.float32)
    depth = anatomy._within(np.full(anatomy.ANGLES, 7, np.float32), y, x)
    assert depth == pytest.approx(7 - np.hypot(y, x), abs=1e-4)


def test_vessels_are_darker_than_their_surroundings():
    lowest = []
    for seed in range(8):
        drawn = anatomy.Anatomy((128, 128), np.random.default_rng(seed))
        drawn.tree(-10)
        inside = drawn.labels > 0
        assert inside.mean() < 0.6 and drawn.decibels[inside].mean() < -1
        lowest.append(drawn.decibels.min())
    assert min(lowest) == pytest.approx(-10, abs=0.1)


def test_reverberation_repeats_a_bright_layer_below_it_and_weaker():
    drawn = anatomy.Anatomy((128, 64), np.random.default_rng(0))
    drawn.decibels[20] = 30
    drawn.reverberate()
    bright = np.flatnonzero(drawn.decibels[:, 5] > 1)
    assert len(bright) == 3 and bright[0] == 20 and bright[2] - bright[1] == bright[1] - bright[0]
    assert 30 <= drawn.decibels[20, 5] < 30.5 and (np.diff(drawn.decibels[bright, 5]) < -5).all()


def test_side_lobes_lie_next_to_their_bright_object():
    drawn = anatomy.Anatomy((64, 128), np.random.default_rng(0))
    drawn.decibels[:] = -40
    drawn.decibels[30, 64] = 30
    drawn.side_lobes()
    beside = drawn.decibels[30] > -39
    assert 5 < beside.sum() < 64 and beside[64] and (np.delete(drawn.decibels, 30, axis=0) < -39).all()


@pytest.mark.parametrize("size", [(32, 32), (32, 200), (300, 40)])
def test_natural_anatomies_of_any_size_can_be_drawn(size):
    for seed in range(8):
        drawn = anatomy.draw_anatomy(size, np.random.default_rng(seed))
        for image in (drawn.decibels, drawn.specular, drawn.echoes):
            assert image.shape == size and image.dtype == np.float32 and np.isfinite(image).all()
