"""Our loss, where the truth is known; that of the paper is in test_published_method.py."""

import numpy as np
import pytest
import torch

from Speckle2SelfLib.loss import truth_loss

NOTHING = torch.zeros(1, 1, 32, 32)


def test_a_constant_error_costs_its_square_and_has_no_slopes():
    terms = truth_loss(NOTHING + 0.1, None, NOTHING)
    assert set(terms) == {"truth", "slopes"}
    assert terms["truth"] == pytest.approx(10 * 0.1**2) and terms["slopes"] == 0


def test_a_ripple_costs_more_than_a_wrong_level_of_its_size():
    rows = torch.arange(32)[:, None].expand(32, 32)
    ripple, level = (0.05 * x for x in (1 - 2 * (rows % 2), torch.ones(32, 32)))
    costs = [sum(truth_loss(NOTHING + x, None, NOTHING).values()) for x in (ripple, level)]
    assert costs[0] > 3 * costs[1]


def test_a_lost_point_costs_as_much_as_an_invented_one():
    point = NOTHING.clone()
    point[..., 16, 16] = 1
    assert truth_loss(NOTHING, None, point) == truth_loss(point, None, NOTHING)


def test_the_loss_is_smallest_at_the_mean_of_the_possible_truths():
    """At the same place, 60 % of the anatomies are dark and 40 % bright."""
    truths = torch.zeros(5, 1, 16, 16)
    truths[:2] = 1
    levels = (0.0, 0.2, 0.4, 0.6)
    costs = [sum(truth_loss(torch.full_like(truths, level), None, truths).values()).item() for level in levels]
    assert np.argmin(costs) == 2


def test_the_likelihood_is_best_at_the_errors_deviation_and_does_not_move_the_grey_value():
    grey = torch.full_like(NOTHING, 0.05).requires_grad_()
    costs = []
    for deviation in (0.025, 0.05, 0.1):
        terms = truth_loss(grey, torch.full_like(NOTHING, np.log(deviation)), NOTHING)
        assert set(terms) == {"truth", "slopes", "uncertainty"} and not terms["uncertainty"].requires_grad
        costs.append(terms["uncertainty"].item())
    assert np.argmin(costs) == 1
