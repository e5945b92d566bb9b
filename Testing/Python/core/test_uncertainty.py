"""What models tell of their uncertainty: in which units, where, and what caution makes of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from Speckle2SelfLib.calibration import Calibration, calibrate
from Speckle2SelfLib.checkpoint import Model
from Speckle2SelfLib.config import ModelConfig
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.look import DOUBTFUL, UNKNOWN, look, uncertainty_of_look
from Speckle2SelfLib.network import UNSURE, build
from Speckle2SelfLib.system import InputError

MAPPING = (10.0, 210.0)  # the grey values that a model takes for 0 and 1
EXACT = {"precision": torch.float32, "device": "cpu"}


def make(deviation=UNSURE, spread=0.0, **config):
    """A model of random weights that tells `deviation` everywhere, or around it with a spread of its logarithm."""
    torch.manual_seed(0)
    config = ModelConfig(width=8, uncertainty=True, **config)
    network = build(config).eval()
    for name, parameter in network.named_parameters():
        if not name.startswith("uncertainty"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif name.endswith("fine.weight"):
            torch.nn.init.normal_(parameter, std=spread)
        elif name.endswith("fine.bias"):
            torch.nn.init.constant_(parameter, np.log(deviation / UNSURE))
    return Model(config, network)


@pytest.fixture
def cine():
    return np.random.default_rng(0).integers(20, 220, (3, 40, 48)).astype(np.uint8)


@pytest.fixture
def whole(cine):
    return Calibration(np.ones(cine.shape[1:], bool), MAPPING)


def told(frames, model, calibration, **options):
    uncertainty = np.full(frames.shape[:3], 7, np.float32)
    output = despeckle(frames, model, calibration=calibration, uncertainty=uncertainty, **EXACT, **options)
    return output, uncertainty


def test_it_is_in_grey_values_of_the_output(cine, whole):
    output, uncertainty = told(cine, make(), whole)
    assert uncertainty == pytest.approx(np.full(cine.shape, UNSURE * 200), rel=1e-5)
    assert np.array_equal(output, despeckle(cine, make(), calibration=whole, **EXACT))
    _, of_floats = told(cine.astype(np.float32) * 0.3 - 60, make(), replace(whole, mapping=(-57, 3)))
    assert of_floats == pytest.approx(np.full(cine.shape, UNSURE * 60), rel=1e-5)


def test_what_was_fitted_to_held_out_frames_multiplies_it(cine, whole):
    _, uncertainty = told(cine, make(uncertainty_scale=1.5), whole)
    assert uncertainty == pytest.approx(np.full(cine.shape, 1.5 * UNSURE * 200), rel=1e-5)


def test_strength_and_the_slope_of_gamma_scale_it(cine, whole):
    plain, _ = told(cine.astype(np.float32), make(), whole)
    _, half = told(cine, make(), whole, strength=0.5)
    assert half == pytest.approx(np.full(cine.shape, 0.5 * UNSURE * 200), rel=1e-5)
    for gamma in (0.7, 2.0):
        _, uncertainty = told(cine.astype(np.float32), make(), whole, gamma=gamma)
        values = np.maximum((plain - MAPPING[0]) / 200, UNSURE)
        assert uncertainty == pytest.approx(gamma * values ** (gamma - 1) * UNSURE * 200, rel=1e-2)
    same, nothing = told(cine, make(), whole, strength=0)
    assert np.array_equal(same, cine) and not nothing.any()


def test_outside_the_region_and_where_nothing_is_changed_it_is_zero(cine):
    region = np.zeros((40, 48), bool)
    region[5:30, 10:40] = True
    frames = cine.astype(np.float32)
    frames[0, 8, 12] = np.nan
    _, uncertainty = told(frames, make(), Calibration(region, MAPPING, bounds=(20, 219)))
    assert not uncertainty[:, ~region].any() and uncertainty[0, 8, 12] == 0
    assert (uncertainty[1:, region] > 0).all()
    colors = np.repeat(cine[..., None], 3, -1)
    colors[:, 20:24, 20:24] = (200, 30, 30)
    _, uncertainty = told(colors, make(), Calibration(region, MAPPING, bounds=(20, 219)))
    assert not uncertainty[:, 20:24, 20:24].any() and (uncertainty[:, 5:15, 10:15] > 0).all()


def test_it_comes_back_at_the_frames_own_resolution_and_along_beams():
    frames = np.random.default_rng(0).integers(20, 220, (2, 120, 160)).astype(np.uint8)
    rows, columns = np.mgrid[:120, :160]
    depth, angle = np.hypot(rows + 20, columns - 80), np.arctan2(columns - 80, rows + 20)
    fan = (depth > 40) & (depth < 130) & (np.abs(angle) < 0.6)
    for region in (np.ones((120, 160), bool), fan):
        calibration = Calibration(region, MAPPING, grain=(3.0, 4.0))
        _, uncertainty = told(frames, make(grain=(0.65, 1.45)), calibration)
        assert uncertainty[:, region] == pytest.approx(UNSURE * 200, rel=1e-4)
        assert not uncertainty[:, ~region].any()


def test_a_single_frame_takes_a_single_map_and_others_are_refused(cine, whole):
    _, uncertainty = told(cine[0], make(), whole)
    assert uncertainty.shape == (40, 48) and (uncertainty > 0).all()
    for wrong in (np.zeros((40, 48), np.float32), np.zeros(cine.shape), np.zeros((48, 40, 3), np.float32).T):
        with pytest.raises(InputError, match="array for the uncertainty"):
            despeckle(cine, make(), calibration=whole, uncertainty=wrong)


@pytest.mark.parametrize("model", ["median", Model(ModelConfig(width=8), build(ModelConfig(width=8)))])
@pytest.mark.parametrize("asked", ["uncertainty", "cautious"])
def test_filters_and_models_without_a_head_are_refused_in_one_sentence(cine, model, asked):
    value = np.empty(cine.shape, np.float32) if asked == "uncertainty" else 0.5
    with pytest.raises(InputError, match="does not tell how uncertain it is"):
        despeckle(cine, model, region=None, **{asked: value})


@pytest.mark.parametrize("level, kept", [(DOUBTFUL * 0.9, 0), ((DOUBTFUL + UNKNOWN) / 2, 0.5), (UNKNOWN * 1.1, 1)])
def test_caution_keeps_the_input_where_the_model_is_uncertain(cine, whole, level, kept):
    frames, model = cine.astype(np.float32), make(level)
    plain = despeckle(frames, model, calibration=whole, **EXACT)
    careful = despeckle(frames, model, calibration=whole, cautious=0.8, **EXACT)
    share = 0.8 * kept
    assert careful == pytest.approx(share * frames + (1 - share) * plain, abs=1e-2)


@pytest.mark.parametrize("strength, gamma, cautious", [(1, 1, 0.7), (0.6, 1, 1), (0.5, 1.6, 0.3), (1, 0.8, 0)])
def test_the_look_changes_afterwards_without_the_network(cine, strength, gamma, cautious):
    frames, model = cine.astype(np.float32), make(0.055, spread=40.0)
    calibration = calibrate(frames, None, with_grain=False)
    plain, uncertainty = told(frames, model, calibration)
    assert uncertainty.std() > 0.2 * uncertainty.mean()
    options = {"strength": strength, "gamma": gamma}
    expected, expected_uncertainty = told(frames, model, calibration, cautious=cautious, **options)
    region, mapping = calibration.region, calibration.mapping
    found = look(frames, plain, region, mapping, strength, gamma, cautious, uncertainty)
    inside = (plain > frames.min()) & (plain < frames.max())  # others have been clipped
    assert found[inside] == pytest.approx(expected[inside], abs=0.05)
    found = uncertainty_of_look(uncertainty, plain, mapping, strength, gamma)
    assert found[inside] == pytest.approx(expected_uncertainty[inside], rel=1e-3)
