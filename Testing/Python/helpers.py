"""Helpers that tests of several folders share."""

import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

# Settings that shorten test runs: held-out anatomies, frames of a recording, and rounds of a fit.
FEW = {"recipes.HELD_OUT_ANATOMIES": (2, 64), "respeckling.FRAMES": 2, "recorded_speckle.ROUNDS": 1,
       "recorded_speckle.DRAWS": 2, "validation.FRAMES": 2}  # fmt: skip


def start_application(config):
    """Start the stand-in of the application if it is installed, but not where pytest only leads other processes."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if find_spec("slicer") is not None and config.getoption("dist", "no") == "no":
        import HeadlessSlicer

        HeadlessSlicer.start(testing=True, window=True)


def until(condition, poll=lambda: None, seconds=60):
    """Poll until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        poll()
        time.sleep(0.005)


def alive(pid):
    """Return whether a process runs; a process that has ended but is not waited for does not."""
    try:
        os.kill(pid, 0)
        return not Path("/proc").exists() or Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def clear_scene():
    """Close the scene, but not the process in the background, which needs seconds to start."""
    import slicer

    from Speckle2SelfSlicer.session import Session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "closeWorker", lambda session: None)
        slicer.mrmlScene.Clear()


def add_sequence(frames, name="Cine", browser="Browser"):
    """Add a sequence of frames (N, H, W[, C]), ten a second, with a browser that shows a proxy; return both."""
    import slicer

    color = "Vector" if frames.ndim == 4 else "Scalar"
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("s")
    for number, frame in enumerate(frames):
        volume = getattr(slicer, f"vtkMRML{color}VolumeNode")()
        slicer.util.updateVolumeFromArray(volume, frame[None])
        sequence.SetDataNodeAtValue(volume, f"{number / 10:.2f}")
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", browser)
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return sequence, browser


def frames_of(sequence):
    """Return the first slice of each item of a sequence, (N, H, W[, C])."""
    import slicer

    nodes = [sequence.GetNthDataNode(number) for number in range(sequence.GetNumberOfDataNodes())]
    return np.array([slicer.util.arrayFromVolume(node)[0] for node in nodes])
