"""Shared fixtures. Real recordings live outside the project; tests that need them are skipped where they are not."""

import os
from pathlib import Path

import pytest

# Threads that wait do not spin: tests share the machine with the processes that they start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings (SPECKLE2SELF_DATA, or ../shared/data beside the project)."""
    folder = Path(os.environ.get("SPECKLE2SELF_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real recordings are not on this machine")
    return folder
