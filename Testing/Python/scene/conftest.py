"""The scene's tests run inside the stand-in of the application, over real MRML."""

import pytest
from helpers import clear_scene, start_application

pytest_configure = start_application


@pytest.fixture(scope="session", autouse=True)
def worker():
    """Return the application's process that despeckles in the background: it takes seconds to start, and outlives
    scenes."""
    pytest.importorskip("slicer")
    from Speckle2SelfSlicer.session import Session, applicationSession

    worker = applicationSession().worker
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "closeWorker", lambda session: None)
        yield worker
    worker.close()


@pytest.fixture
def slicer_app():
    """Return the running application with an empty scene, in its first layout."""
    slicer = pytest.importorskip("slicer")
    clear_scene()
    slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutInitialView)
    yield slicer.app
    clear_scene()
