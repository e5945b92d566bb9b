"""Shared fixtures. Real recordings live outside the project; tests that need them are skipped where they are not."""

import importlib.util
import os
import sys
import types
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from copies import original  # noqa: F401
from helpers import FEW

# Threads that wait do not spin: tests share the machine with the processes that they start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable  # the stand-in for Slicer puts a launcher in its place, as Slicer does


EXAMPLES = ("jpeg2k", "palette_color", "rgb_color", "ybr_color")


def examples() -> types.ModuleType:
    """Stand in for `pydicom.examples`, which pydicom 2.4 of Slicer 5.10 lacks, with the files of a later one,
    in the folder that PYDICOM_EXAMPLES names; tests that need them are skipped without."""

    def path_of(name: str) -> Path:
        name = "palette" if name == "palette_color" else name
        path = Path(os.environ.get("PYDICOM_EXAMPLES", "-"), f"examples_{name}.dcm")
        if not path.exists():
            pytest.skip("this pydicom comes without its examples")
        return path

    def read(name: str):
        if name not in EXAMPLES:
            raise AttributeError(name)
        return pydicom.dcmread(path_of(name))

    module = types.ModuleType("pydicom.examples")
    module.get_path, module.__getattr__ = path_of, read
    return module


if importlib.util.find_spec("pydicom.examples") is None:
    pydicom.examples = sys.modules["pydicom.examples"] = examples()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    """Put Python back before pytest-xdist starts its processes and before the core's tests are imported."""
    session.launcher, sys.executable = sys.executable, PYTHON


def pytest_collection_modifyitems(items):
    """Put the tests of core and scene first that need a process which takes seconds to start: of pytest-xdist's
    processes, one starts it then, and the others take tests that need none."""
    slow = {"original", "worker"}
    items.sort(key=lambda item: item.path.parent.name in ("core", "scene") and slow.isdisjoint(item.fixturenames))


@pytest.fixture(autouse=True)
def executable(request, monkeypatch):
    """Set `sys.executable`: in Slicer it is a launcher; in tests of the core and of its processes, it is Python
    itself."""
    if request.path.parent.name in ("scene", "panel"):
        monkeypatch.setattr(sys, "executable", request.session.launcher)


@pytest.fixture
def small_crops(monkeypatch):
    """Set presets with small crops and few validation frames, so that runs are short."""
    from Speckle2SelfLib import config

    for name, preset in config.PRESETS.items():
        monkeypatch.setitem(config.PRESETS, name, replace(preset, crop=32))
    for name, value in FEW.items():
        monkeypatch.setattr(f"Speckle2SelfLib.{name}", value)


@pytest.fixture(scope="session")
def project() -> Path:
    """Return the project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real recordings (SPECKLE2SELF_DATA, or ../shared/data next to the project)."""
    folder = Path(os.environ.get("SPECKLE2SELF_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real recordings are not on this machine")
    return folder
