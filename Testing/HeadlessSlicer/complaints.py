"""Errors that Slicer's own code logs while a test runs: errors of VTK and MRML, and of the models here.

They raise nothing, in the application as here; tests can read them from `heard`.
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
    """Add a line to the application's log, as Qt's and CTK's classes write it."""
    heard.append(text)
    logging.warning(text)
