"""Our views: disjoint lattices, and the grain that sets them."""

import numpy as np
import pytest
import torch

from Speckle2SelfLib.grain import estimate_grain
from Speckle2SelfLib.loss import disjoint_loss
from Speckle2SelfLib.network import FastNetwork, LatticePair, LatticePredictions
from Speckle2SelfLib.perturbation import LatticeViews, lattice_views
from Speckle2SelfLib.simulation import TEXTBOOK, SimulationConfig, simulate


@pytest.mark.parametrize("seed", range(20))
def test_the_sites_lie_between_the_lattice_and_never_near_it(seed):
    height, width = 37, 50
    numbered = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)
    views = lattice_views(numbered, np.random.default_rng(seed), grain=(1.0, 1.6))
    taken = views.lattice[0, 0].long()
    sites = numbered[0, 0][views.sites].long()
    assert taken.shape == sites.shape
    for a, b, reach in ((taken // width, sites // width, 2), (taken % width, sites % width, 3)):
        gaps = (a.reshape(-1, 1) - b.reshape(1, -1)).abs()
        assert gaps.min() >= reach
    assert not set(taken.flatten().tolist()) & set(sites.flatten().tolist())


def test_a_constant_frame_gives_constant_views_and_no_loss():
    views = lattice_views(torch.full((2, 1, 40, 40), 0.25), np.random.default_rng(0))
    assert views.lattice[:, 0].eq(0.25).all()
    same = LatticePredictions(torch.full_like(views.lattice[:, :1], 0.25), views.frame)
    assert all(term == 0 for term in disjoint_loss(same, views).values())


def test_consistency_teaches_the_full_network_alone():
    pair = LatticePair(FastNetwork(8), 8)
    views = lattice_views(torch.rand(1, 1, 48, 48), np.random.default_rng(0))
    disjoint_loss(pair(views), views)["consistency"].backward()
    assert all(p.grad is None for p in pair.low.parameters())
    assert pair.high.head.weight.grad.abs().sum() > 0


def test_a_known_truth_takes_the_place_of_the_lattice():
    frame = torch.zeros(1, 1, 16, 16)
    terms = disjoint_loss(LatticePredictions(None, frame + 1), LatticeViews(frame, truth=frame + 2))
    assert set(terms) == {"truth", "slopes"}
    assert terms["truth"] == pytest.approx(1 - 0.0025) and terms["slopes"] == 0


def test_a_ripple_costs_more_than_a_wrong_level_of_its_size():
    truth, rows = torch.zeros(1, 1, 32, 32), torch.arange(32)[:, None].expand(32, 32)
    ripple, level = (0.05 * x for x in (1 - 2 * (rows % 2), torch.ones(32, 32)))
    costs = [
        sum(disjoint_loss(LatticePredictions(None, truth + x), LatticeViews(truth, truth=truth)).values())
        for x in (ripple, level)
    ]
    assert costs[0] > 3 * costs[1]


def test_a_point_that_is_lost_costs_more_than_one_that_is_left_over():
    nothing, point = torch.zeros(2, 1, 1, 32, 32)
    point[..., 16, 16] = 1
    for detail in (0.0, 0.3, 5.0):
        lost = disjoint_loss(LatticePredictions(None, nothing), LatticeViews(point, truth=point), detail)["truth"]
        left = disjoint_loss(LatticePredictions(None, point), LatticeViews(point, truth=nothing), detail)["truth"]
        assert lost == pytest.approx((1 + detail) * left)


def test_squared_errors_are_least_at_the_mean_of_what_may_be_true_and_absolute_ones_at_its_median():
    """An edge that is as often here as there: 60 % of the anatomies are dark, 40 % bright."""
    truths = torch.zeros(5, 1, 16, 16)
    truths[:2] = 1
    costs = {error: [] for error in ("absolute", "squared")}
    for level in (0.0, 0.2, 0.4, 0.6):
        for error, values in costs.items():
            high = LatticePredictions(None, torch.full_like(truths, level))
            values.append(sum(disjoint_loss(high, LatticeViews(truths, truth=truths), 0.0, error).values()).item())
    assert np.argmin(costs["squared"]) == 2 and np.argmin(costs["absolute"]) == 0


def test_the_likelihood_is_best_at_the_errors_own_deviation_and_moves_the_grey_value_by_nothing():
    truth = torch.zeros(1, 1, 16, 16)
    high = torch.full_like(truth, 0.05).requires_grad_()
    costs = []
    for deviation in (0.025, 0.05, 0.1):
        predictions = LatticePredictions(None, high, torch.full_like(truth, np.log(deviation)))
        terms = disjoint_loss(predictions, LatticeViews(truth, truth=truth))
        assert set(terms) == {"truth", "slopes", "uncertainty"} and not terms["uncertainty"].requires_grad
        costs.append(terms["uncertainty"].item())
    assert np.argmin(costs) == 1


@pytest.mark.parametrize("layout", TEXTBOOK)
@pytest.mark.parametrize("grain", [(0.9, 2.0), (2.0, 5.0), (3.2, 4.5), (6.0, 12.0)])
def test_the_grain_is_measured_whatever_the_anatomy(layout, grain):
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
