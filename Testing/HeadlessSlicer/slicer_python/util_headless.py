"""Functions of `slicer.util` that need Qt in Slicer, for as long as Qt is not modeled.

Each does what the original does without main window. The wheel's other functions are used unchanged; those
that need Qt raise ImportError.
"""

import logging
import os
from datetime import datetime

import slicer


def install() -> None:
    """Add the functions to `slicer.util` and, like the wheel's functions, to `slicer`."""
    for function in (delayDisplay, infoDisplay, warningDisplay, errorDisplay, settingsValue, tempDirectory):
        setattr(slicer.util, function.__name__, function)
        setattr(slicer, function.__name__, function)


def delayDisplay(message, autoCloseMsec=1000, parent=None, **kwargs):
    """Log the message; popups need Qt."""
    logging.info(message)
    slicer.app.processEvents()


def infoDisplay(text, windowTitle=None, parent=None, standardButtons=None, **kwargs):
    """Log the text, as Slicer does without main window."""
    logging.info(text)


def warningDisplay(text, windowTitle=None, parent=None, standardButtons=None, **kwargs):
    """Log the text, as Slicer does without main window."""
    logging.warning(text)


def errorDisplay(text, windowTitle=None, parent=None, standardButtons=None, **kwargs):
    """Log the text, as Slicer does without main window."""
    logging.error(text)


def settingsValue(key, default, converter=lambda v: v, settings=None):
    """Return the default: no settings are stored without Qt."""
    if settings is not None:
        raise TypeError("A settings object needs Qt, which is not modeled yet.")
    return default


def tempDirectory(key="__SlicerTemp__", tempDir=None, includeDateTime=True):
    """Return a new folder in the application's temporary folder; it is removed with it."""
    name = key + (datetime.now().strftime("%Y-%m-%d_%H+%M+%S.%f")[:-3] if includeDateTime else "")
    path = os.path.abspath(os.path.join(str(tempDir or slicer.app.temporaryPath), name))
    os.makedirs(path, exist_ok=True)
    return path
