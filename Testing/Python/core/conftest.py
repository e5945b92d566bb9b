"""Fixtures that several tests of the core share."""

import pytest


@pytest.fixture(scope="module")
def network():
    """Return a small network whose weights are all random."""
    import torch

    from Speckle2SelfLib.network import FastNetwork

    torch.manual_seed(0)
    network = FastNetwork(8).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network
