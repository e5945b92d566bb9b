"""The panel's tests: real widgets of Qt, real MRML, real processes, in the stand-in of the application."""

import time

import numpy as np
import pytest
from helpers import add_sequence, clear_scene, frames_of, start_application

pytest_configure = start_application

FRAMES = np.random.default_rng(0).rayleigh(40, (12, 48, 56)).clip(0, 255).astype(np.uint8)


class Desk:
    """The application as a user has it before them."""

    def __init__(self, slicer):
        from HeadlessSlicer import complaints, dialogs, pythonqt

        self.slicer, self.errors, self.asked, self.answers = slicer, pythonqt.errors, dialogs.asked, dialogs.answers
        self.complaints = complaints.heard  # errors in the log

    def wait(self, condition, seconds: float = 60) -> float:
        """Process events until `condition`; return the longest processor time in seconds that they took at once."""
        end, longest = time.monotonic() + seconds, 0.0
        while not condition():
            assert time.monotonic() < end, "this did not happen in time"
            assert not self.errors, self.errors
            began = time.thread_time()
            self.slicer.app.processEvents()
            longest = max(longest, time.thread_time() - began)
            time.sleep(0.001)
        return longest

    def arrange(self, layout: str) -> None:
        """Set the views to their defaults in that layout: Red axial, Yellow sagittal, Green coronal."""
        manager = self.slicer.app.layoutManager()
        manager.setLayout(getattr(self.slicer.vtkMRMLLayoutNode, f"SlicerLayout{layout}View"))
        for name, orientation in (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal")):
            manager.sliceWidget(name).mrmlSliceNode().SetOrientation(orientation)

    def filled(self, name: str) -> float:
        """Return the share of a slice view, 0 to 1, that images fill."""
        return self.slicer.app.layoutManager().sliceWidget(name).filled()

    def rest(self, seconds: float = 0.1) -> None:
        """Process events for a while."""
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > end)

    def check_controls(self, panel, width: int) -> None:
        """Check that every control of a panel has a tool tip, and that none is cut at this width in pixels."""
        import qt

        self.rest()
        assert panel.parent.minimumSizeHint.width() <= width
        for name, widget in vars(panel.ui).items():
            kind = type(widget)
            if not issubclass(kind, qt.QWidget) or kind in (qt.QLabel, self.slicer.qMRMLWidget) or not widget.visible:
                continue
            if name.endswith("CollapsibleButton") or name.startswith("qt_"):
                continue
            assert widget.toolTip, f"{name} has no tooltip"
            assert widget.mapTo(panel.parent, qt.QPoint(widget.width, 0)).x() <= panel.parent.width, f"{name} is cut"

    def volume(self, name: str = "Liver", frames=FRAMES[:1]):
        return self.slicer.util.addVolumeFromArray(frames, name=name)

    def cine(self, frames=FRAMES, name: str = "Cine"):
        """Return a sequence with browser and proxy."""
        sequence, _ = add_sequence(frames, name, f"{name} browser")
        return sequence

    def frames(self, sequence) -> np.ndarray:
        return frames_of(sequence)

    def names(self, kind: str = "vtkMRMLNode") -> set:
        return {node.GetName() for node in self.slicer.util.getNodesByClass(kind)}


@pytest.fixture
def desk(monkeypatch, tmp_path, tmp_path_factory):
    """Start the application with an empty scene and message boxes that are kept and answered; no slot may raise, and
    Slicer may find no error."""
    slicer = pytest.importorskip("slicer")
    home = tmp_path_factory.getbasetemp() / "home"  # one path for all tests, which share a background process
    home.unlink(missing_ok=True)
    (tmp_path / "home").mkdir()
    home.symlink_to(tmp_path / "home")
    monkeypatch.setenv("SPECKLE2SELF_HOME", str(home))
    monkeypatch.setattr(slicer.app, "_testing", False)
    from Speckle2SelfSlicer import session

    monkeypatch.setattr(session, "PACKAGES", ())  # a reload renews no class that other tests have imported
    desk = Desk(slicer)
    for kept in (desk.errors, desk.asked, desk.answers, desk.complaints):
        kept.clear()
    clear_scene()
    desk.arrange("Initial")
    yield desk
    clear_scene()
    assert not desk.errors
    assert not desk.complaints


@pytest.fixture
def panel(desk):
    """Return the panel of Speckle2Self."""
    desk.slicer.util.selectModule("Speckle2Self")
    panel = desk.slicer.modules.Speckle2SelfWidget
    panel.initializeParameterNode()
    yield panel
    desk.slicer.modules.Speckle2SelfWidget.endAll()
