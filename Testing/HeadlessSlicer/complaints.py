"""What Slicer's own code complains of in the log while a test runs: errors of VTK and MRML, and of the models here.

Nothing is raised by them, in the application as here; a test that cares looks into `heard`.
"""

from __future__ import annotations

import logging

import vtk

heard: list[str] = []
_listened: list[tuple[vtk.vtkOutputWindow, int]] = []  # the window and the observer's tag


def listen() -> None:
    """Keep the errors that VTK prints, each once, however often this is called."""
    window = vtk.vtkOutputWindow.GetInstance()
    if _listened and _listened[0][0] is window:
        return
    _listened[:] = [(window, window.AddObserver("ErrorEvent", _hear))]


@vtk.calldata_type(vtk.VTK_STRING)
def _hear(window, event, text) -> None:
    heard.append(text.strip())


def complain(text: str) -> None:
    """A line in the application's log, as Qt's and CTK's classes write it."""
    heard.append(text)
    logging.warning(text)
