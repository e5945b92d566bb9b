"""The published method, number by number. Source: Li, Navab, Jiang, Medical Image Analysis 2025.

`data/published_parity.npz` was computed with the authors' code (MIT, commit dd09fb3) on two simulated 64 x 64 frames:
its three views, the network's outputs and four steps of losses, with the weights that `closed_form_weights` gives.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from Speckle2SelfLib import checkpoint, inference
from Speckle2SelfLib.checkpoint import Model
from Speckle2SelfLib.config import ModelConfig
from Speckle2SelfLib.despeckling import despeckle
from Speckle2SelfLib.loss import published_loss
from Speckle2SelfLib.network import NormalisedConvolution, SpeckleReductionNetwork
from Speckle2SelfLib.perturbation import published_views

FIXTURE = Path(__file__).parent / "data" / "published_parity.npz"


def closed_form_weights(network):
    """Fills every tensor with a sine of the element's number, scaled by its fan-in: the same on every platform."""
    state = network.state_dict()
    for number, name in enumerate(sorted(state)):
        tensor = state[name]
        wave = np.sin(0.7 * np.arange(tensor.numel()) + number) / np.sqrt(max(tensor[0].numel(), 1))
        tensor.copy_(torch.from_numpy(wave.astype(np.float32)).reshape(tensor.shape))
    return network


def check_against(numbers, network):
    views = published_views(torch.from_numpy(numbers["frames"])[:, None])
    scales = ("high", "mid", "low")
    for scale, view in zip(scales, views, strict=True):
        assert np.abs(view.numpy() - numbers[f"view_{scale}"]).max() <= 1e-4
    with torch.no_grad():
        for scale, prediction in zip(scales, network(views), strict=True):
            assert np.abs(prediction.numpy() - numbers[f"pred_{scale}"]).max() <= 1e-4
        inference = network(views[0]).clamp(0, 1)[:, 0].numpy()
    assert np.abs(inference - numbers["inference"]).max() <= 1e-4
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), 1e-3, betas=(0.5, 0.999))
    for step, expected in enumerate(numbers["losses"]):
        terms = published_loss(network(views), views)
        optimiser.zero_grad()
        sum(terms.values()).backward()
        optimiser.step()
        found = [terms["reconstruction"].item(), terms["consistency"].item()]
        assert np.abs(np.array(found) - expected).max() <= (1e-4 if step == 0 else 1e-3)


def test_the_authors_numbers_are_reproduced():
    check_against(np.load(FIXTURE), closed_form_weights(SpeckleReductionNetwork()))


def test_the_authors_reference_is_reproduced(shared_data):
    _, network, _ = checkpoint.load(shared_data / "parity" / "official_random_weights.pth")
    check_against(np.load(shared_data / "parity" / "official_reference.npz"), network)


def test_despeckling_with_the_authors_file_matches_the_reference_inference(shared_data):
    """Min-max of every frame on its own, the full-scale branch, cut to [0, 1]; here on the input's own scale."""
    numbers = np.load(shared_data / "parity" / "official_reference.npz")
    frames = numbers["frames"].astype(np.float32)
    model = str(shared_data / "parity" / "official_random_weights.pth")
    low, high = frames.min((1, 2), keepdims=True), frames.max((1, 2), keepdims=True)
    result = (despeckle(frames, model, region=None, precision=torch.float32) - low) / (high - low)
    assert np.abs(result - numbers["inference"]).max() <= 1e-4


def test_it_runs_in_single_precision_even_where_half_would_be_faster(monkeypatch):
    monkeypatch.setattr(inference, "choose_precision", lambda device: torch.bfloat16)
    model = Model(ModelConfig("published", normalisation="frame"), None)
    assert inference.precision_of(model, torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("linear", [True, False])
def test_training_in_half_precision_also_normalizes_each_frame_separately(linear):
    torch.manual_seed(0)
    layer = inference.accelerate(NormalisedConvolution(torch.nn.Conv2d(4, 8, 3, padding=1), linear))
    frames = torch.randn(3, 4, 20, 24)
    frames[1] *= 7
    found = []
    for sixteen in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=sixteen):
            output = layer(frames)
        (output.float() * torch.arange(24)).mean().backward()
        found.append((output.detach().float(), layer.conv.weight.grad.clone()))
    (exact, slope), (near, slope_near) = found
    assert (near - exact).square().mean().sqrt() < 0.01
    assert (slope_near - slope).norm() < 0.1 * slope.norm()


def test_the_network_has_the_published_size():
    assert sum(p.numel() for p in SpeckleReductionNetwork().parameters()) == 7_821_825
    assert sum(p.numel() for p in SpeckleReductionNetwork(1).parameters()) == 3_910_785


def test_a_constant_frame_has_identical_views():
    views = published_views(torch.full((1, 1, 32, 32), 7, dtype=torch.uint8))
    assert all(torch.equal(view, torch.zeros(1, 1, 32, 32)) for view in views)


def test_views_fill_the_unit_range_each_on_its_own():
    frames = torch.rand(3, 1, 40, 56, generator=torch.Generator().manual_seed(0)) * 100
    for view in published_views(frames):
        assert view.shape == frames.shape
        assert torch.equal(view.amin((1, 2, 3)), torch.zeros(3)) and torch.equal(view.amax((1, 2, 3)), torch.ones(3))


def test_equal_predictions_have_zero_consistency_loss():
    same = (torch.ones(1, 1, 8, 8),) * 3
    terms = published_loss(same, (torch.zeros(1, 1, 8, 8), *same[1:]))
    assert terms["consistency"] == 0
    assert terms["reconstruction"] == pytest.approx(1)
