"""The devices for networks."""

import pytest
import torch

from Speckle2SelfLib import devices
from Speckle2SelfLib.system import InputError


def test_an_unavailable_device_is_refused():
    assert devices.choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"There is no device 'cuda:7' here; available are .*cpu"):
        devices.choose_device("cuda:7")
