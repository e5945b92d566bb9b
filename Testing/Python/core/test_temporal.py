"""In time: less flicker, no lag, no ghost. The bundled model on simulated cines whose truth is known."""

from unittest.mock import patch

import numpy as np
import pytest
import torch

from Speckle2SelfLib import simulation
from Speckle2SelfLib.calibration import Calibration
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.grain import estimate_grain
from Speckle2SelfLib.grey import grey_mapping
from Speckle2SelfLib.simulation import SimulationConfig, simulate

OPTIONS = {"region": None, "device": "cpu", "precision": torch.float32}


def flicker(frames):
    """Return the temporal standard deviation, averaged over the pixels."""
    return frames.std(0).mean()


@pytest.mark.parametrize("layout", ["vessel", "layers", "organ"])
@pytest.mark.parametrize("geometry", ["linear", "sector"])
def test_a_static_cine_flickers_far_less(layout, geometry):
    config = SimulationConfig((128, 128), 8, (1.2, 2.0), layout, geometry)
    simulated = simulate(config, np.random.default_rng(3))
    output = despeckle(simulated.frames, "default", **{**OPTIONS, "region": simulated.region})
    inside = simulated.region
    assert flicker(output[:, inside]) <= 0.3 * flicker(simulated.frames[:, inside])
    assert np.abs(output.mean(0) - simulated.truth)[inside].mean() < 0.03, "not by leaving the truth"


def interface(depth, contrast, seed):
    """Return one frame of two tissues that meet at `depth` pixels, and its truth."""

    def draw(layout, size, rng):
        anatomy = simulation.Textbook(size, rng)
        anatomy.put(1 / (1 + np.exp(np.clip(-(anatomy.y - depth) / 0.4, -40, 40))), contrast)
        return anatomy

    def display(level, rng):  # 60 dB
        return lambda envelope: np.clip((20 * np.log10(np.maximum(envelope, 1e-9)) + 42) / 60, 0, 1)

    with patch.object(simulation, "_draw_anatomy", draw), patch.object(simulation, "_draw_grey_map", display):
        simulated = simulate(SimulationConfig((128, 128), 1, (1.2, 2.0), "flat"), np.random.default_rng(seed))
    return simulated.frames[0], simulated.truth


def edge(image):
    """Return where the profile in depth, averaged over the columns, crosses the mean of its two levels, in pixels."""
    profile = image.mean(1)
    middle = (profile[10:40].mean() + profile[-40:-10].mean()) / 2
    above = profile > middle
    above = above if above[-20] else ~above
    row = 40 + int(np.flatnonzero(above[40:])[0])
    before, after = profile[row - 1] - middle, profile[row] - middle
    return row - 1 + before / (before - after)


@pytest.fixture(scope="module", params=[20, 12, -12])
def moving(request):
    """Return a cine whose interface moves 0.7 pixels deeper per frame: frames (N, H, W), truths, output."""
    cine = [interface(55 + 0.7 * number, request.param, number) for number in range(14)]
    frames, truths = map(np.array, zip(*cine, strict=True))
    return frames, truths, despeckle(frames, "default", **OPTIONS)


def test_a_moving_edge_is_found_at_its_place(moving):
    _, truths, output = moving
    found, true = (np.array([edge(image) for image in images]) for images in (output, truths))
    assert np.diff(true) == pytest.approx(0.7, abs=0.1)
    assert np.abs(found - true).max() <= 0.5
    assert abs((found - true).mean()) < 0.2, "neither late nor early"


def test_a_moving_edge_leaves_no_ghost(moving):
    """Nothing of the edge is seen where it was some frames ago or where it will be."""
    _, truths, output = moving
    error = (output - truths).mean(2)  # (N, H), averaged over the columns
    places = [round(edge(truth)) for truth in truths]
    for number in range(len(places)):
        for other in range(len(places)):
            if abs(places[other] - places[number]) > 4:
                assert abs(error[number, places[other]]) < 0.04


def test_a_frame_is_despeckled_independently_of_its_cine(moving):
    """The frames of a cine share only the grey mapping and the grain."""
    frames, _, output = moving
    whole = np.ones(frames.shape[1:], bool)
    grain = estimate_grain(frames[:: max(1, len(frames) // 8)], whole)
    shared = {"calibration": Calibration(whole, grey_mapping(frames, None), grain)}
    for number in (0, 5, 13):
        alone = despeckle(frames[number], "default", **shared, **OPTIONS)
        assert np.abs(alone - output[number]).max() < 1e-4
    backwards = despeckle(frames[::-1], "default", **shared, **OPTIONS)[::-1]
    assert np.abs(backwards - output).max() < 1e-4, "the order of the frames makes no difference"
