"""Some of these tests run in the stand-in of the application, over real MRML."""

import pytest
from helpers import start_application

pytest_configure = start_application


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    from Speckle2SelfSlicer.trainer import Trainer

    monkeypatch.setenv("SPECKLE2SELF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    trainer = Trainer()
    yield trainer
    trainer.close()


@pytest.fixture
def job(tmp_path):
    """Return a short adaptation of a small model."""
    import torch

    from Speckle2SelfLib import checkpoint
    from Speckle2SelfLib.config import Job, ModelConfig
    from Speckle2SelfLib.network import build

    model, start = ModelConfig(width=4, grain=(0.75, 1.7)), str(tmp_path / "start.model")
    torch.manual_seed(0)
    checkpoint.save(start, model, build(model), {})
    return Job("", preset="adapt", init=start, steps=3, batch=2, simulated=2, device="cpu", report=1)
