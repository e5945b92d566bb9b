"""A PyTorch that is installed and does not start is reported in one sentence, with what to do."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from Speckle2SelfLib.system import torch_fault
from Speckle2SelfSlicer.worker import Worker

FAULTS = {
    "library": 'raise ImportError("No module named torchgen.model (from torch/_C)")',
    "loader": 'raise OSError("[WinError 126] The specified module could not be found")',
    "half": "import torch_that_is_not_there",
}
SENTENCE = "PyTorch is installed, but does not start ("


@pytest.fixture(params=FAULTS)
def broken(request, tmp_path, monkeypatch):
    """Return the environment of a process in which torch is broken."""
    (tmp_path / "packages" / "torch").mkdir(parents=True)
    (tmp_path / "packages" / "torch" / "__init__.py").write_text(FAULTS[request.param] + "\n")
    path = os.pathsep.join([str(tmp_path / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    np.save(tmp_path / "in.npy", np.random.default_rng(0).integers(20, 200, (2, 40, 48)).astype(np.uint8))
    return tmp_path


@pytest.mark.parametrize("command", [["despeckle", "in.npy", "out.npy"], ["train", "in.npy", "--output", "a.model"]])
def test_the_command_line_reports_it_in_one_line(broken, command):
    done = subprocess.run(
        [sys.executable, "-m", "Speckle2SelfLib", *command], cwd=broken, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"speckle2self: {SENTENCE}") and "reinstall" in line
    assert sorted(path.name for path in broken.iterdir()) == ["in.npy", "packages"]


def test_a_job_in_slicer_fails_with_that_sentence(broken):
    worker = Worker()
    try:
        job = worker.despeckle(np.load(broken / "in.npy"))
        end = time.monotonic() + 60
        while not job.ended and time.monotonic() < end:
            worker.poll()
            time.sleep(0.01)
        assert job.state == "failed" and job.message.startswith(SENTENCE) and "PyTorch extension" in job.message
    finally:
        worker.close()


@pytest.mark.parametrize("module, package, source, target", [
    ("tifffile", "tifffile", "in.npy", "out.tif"), ("scipy", "scipy", "in.npy", "out.mat"),
    ("PIL", "pillow", "in.npy", "out.webp"), ("av", "av", "in.npy", "out.mkv"), ("h5py", "h5py", "in.npy", "out.h5"),
    ("pydicom", "pydicom", "in.npy", "out.npy"),
])  # fmt: skip
def test_another_package_that_is_missing_is_named_with_what_to_install(tmp_path, module, package, source, target):
    np.save(tmp_path / source, np.random.default_rng(0).integers(20, 200, (2, 40, 48)).astype(np.uint8))
    code = f"""
import sys
sys.modules[{module!r}] = None
from Speckle2SelfLib.__main__ import main
sys.exit(main(["despeckle", {source!r}, {target!r}, "--model", "median", "--region", "none"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.endswith(f"install it: python -m pip install {package}."), line
    assert [path.name for path in tmp_path.iterdir()] == [source]


def test_a_pytorch_that_starts_is_not_reported():
    assert torch_fault() is None
