"""The layout of frames for a network: at its grain, and a fan along its beams."""

import numpy as np
import pytest
import torch

from Speckle2SelfLib.beams import find_fan
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.grain import estimate_grain, measure_grain
from Speckle2SelfLib.recipes import FAST_GRAIN
from Speckle2SelfLib.resampling import Resampling
from Speckle2SelfLib.simulation import SimulationConfig, simulate


def fan(shape=(240, 320), apex=(-30.0, 160.0), depths=(40.0, 260.0), half=0.6):
    """Return the mask of a fan, and each pixel's depth and angle."""
    y, x = np.mgrid[: shape[0], : shape[1]] - np.array(apex)[:, None, None]
    depth, angle = np.hypot(y, x), np.arctan2(x, y)
    return (depth >= depths[0]) & (depth <= depths[1]) & (np.abs(angle) <= half), depth, angle


@pytest.mark.parametrize("half", [0.35, 0.6, 0.78])
@pytest.mark.parametrize("apex", [-60.0, -10.0, 8.0])
def test_a_fan_is_found_where_it_is(apex, half):
    region, depth, angle = fan(apex=(apex, 160.0), depths=(20.0, 215.0), half=half)
    found = find_fan(region)
    assert found.apex == pytest.approx((apex, 160), abs=3)
    assert found.depths == pytest.approx((depth[region].min(), depth[region].max()), abs=3)
    assert found.angles == pytest.approx((angle[region].min(), angle[region].max()), abs=0.05)


def test_graphics_and_a_ragged_edge_do_not_hide_a_fan():
    region, _, _ = fan()
    rng = np.random.default_rng(0)
    region[:, :-1] &= rng.random(region[:, 1:].shape) < 0.995
    region[100:120, 60:90] = False
    assert find_fan(region).apex == pytest.approx((-30, 160), abs=4)


@pytest.mark.parametrize("left, right", [(60, 320), (0, 265), (60, 260)])
def test_a_fan_whose_sides_are_cut_off_is_one(left, right):
    region, _, _ = fan()
    assert find_fan(region[:, left:right]).apex == pytest.approx((-30, 160 - left), abs=3)


def ellipse():
    y, x = np.mgrid[:200, :200]
    return ((y - 100) / 90) ** 2 + ((x - 100) / 80) ** 2 < 1


def trapezoid(top=60, bottom=180):
    y, x = np.mgrid[:200, :200]
    return (np.abs(x - 100) < top / 2 + (bottom - top) / 2 * y / 200) & (y > 10) & (y < 190)


NO_FANS = {
    "all": np.ones((200, 200), bool),
    "none": np.zeros((200, 200), bool),
    "ellipse": ellipse(),
    "trapezoid": trapezoid(),
    "narrowing": trapezoid(180, 60),
    "upside down": fan()[0][::-1],
    "cut off": fan()[0][:200],
    "on its side": fan()[0].T,
}


@pytest.mark.parametrize("region", NO_FANS.values(), ids=NO_FANS)
def test_nothing_else_is_mistaken_for_a_fan(region):
    assert find_fan(region) is None


def test_resampling_along_beams_and_back_restores_the_image():
    region, depth, angle = fan()
    image = torch.from_numpy((np.sin(depth / 6) * np.cos(angle * 9)).astype(np.float32))[None, None]
    resampling = Resampling(region, (1.0, 1.0), FAST_GRAIN)
    error = (resampling.to_recording(resampling.to_network(image)) - image)[0, 0].numpy()[region]
    assert np.sqrt(np.mean(error**2)) < 0.01


def test_beams_are_rows_and_columns():
    region, depth, angle = fan()
    resampling = Resampling(region, (1.0, 4.0), FAST_GRAIN)
    for of, axis in ((depth, 1), (angle, 0)):  # depth is constant along a row, the angle along a column
        lines = resampling.to_network(torch.from_numpy(of.astype(np.float32))[None, None])[0, 0].numpy()[60:, 8:-8]
        assert lines.std(axis).max() < 0.02 * of[region].std() + 0.5 * (of is depth)


def test_along_the_beams_the_grain_widens_less_with_depth_than_in_the_image():
    def widening(frames):
        """Return the lateral grain in the last third, relative to the third before."""
        rows = np.array_split(np.arange(frames.shape[1]), 3)[1:]
        middle, deep = (estimate_grain(frames[:, part])[1] for part in rows)
        return deep / middle

    in_image, in_beams = [], []
    for seed in range(3):
        config = SimulationConfig((320, 400), 4, (1.3, 3.0), "flat", "sector", np.inf)
        made = simulate(config, np.random.default_rng(seed))
        at, resampling = (
            find_fan(made.region),
            Resampling(made.region, measure_grain(made.frames, made.region), FAST_GRAIN),
        )
        middle = slice(round(at.apex[1]) - 40, round(at.apex[1]) + 40)
        in_image.append(widening(made.frames[:, : round(at.apex[0] + at.depths[1]), middle]))
        in_beams.append(widening(resampling.to_network(torch.from_numpy(made.frames)[:, None])[:, 0].numpy()))
    assert np.mean(in_beams) < 0.9 * np.mean(in_image), (in_image, in_beams)


def test_a_sector_is_as_clean_at_its_sides_and_its_end_as_in_its_middle():
    errors = {"middle": [], "sides": [], "end": []}
    for seed in range(3):
        config = SimulationConfig((300, 360), 1, (1.2, 2.8), "flat", "sector", np.inf)
        made = simulate(config, np.random.default_rng(seed))
        frames = np.round(made.frames * 255).astype(np.uint8)
        error = (despeckle(frames, region=made.region)[0] / 255 - made.truth) ** 2
        at = find_fan(made.region)
        y, x = np.mgrid[:300, :360] - np.array(at.apex)[:, None, None]
        depth = (np.hypot(y, x) - at.depths[0]) / (at.depths[1] - at.depths[0])
        side = np.abs(np.arctan2(x, y)) / at.angles[1]
        errors["middle"].append(error[made.region & (depth < 0.67) & (depth > 0.33) & (side < 0.5)].mean())
        errors["sides"].append(error[made.region & (depth > 0.33) & (side > 0.75)].mean())
        errors["end"].append(error[made.region & (depth > 0.75)].mean())
    middle, sides, end = (np.sqrt(np.mean(values)) for values in errors.values())
    assert sides < 1.5 * middle and end < 1.5 * middle, (middle, sides, end)
