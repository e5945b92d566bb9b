"""The application layer of 3D Slicer for tests and the demo, over the real MRML library of the slicer-core wheel.

`start()` adds to `import slicer` the application's parts: `slicer.app`, `slicer.mrmlScene`, `slicer.modules`,
`slicer.util` that works, `slicer.ScriptedLoadableModule`, `slicer.parameterNodeWrapper`, `slicer.i18n`. What is
not modeled is missing, and raises AttributeError or ImportError. See README.md in this folder.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULE_FOLDERS = tuple(path.parent for path in sorted(ROOT.glob("Speckle*/CMakeLists.txt")))
# System libraries of the wheels of vtk, slicer-core and Qt: the first two to import MRML, the others for Qt.
SYSTEM_PACKAGES = "libstdc++6 libgcc-s1 libgl1 libegl1 libx11-6 libxkbcommon0 libfontconfig1 libdbus-1-3 libglib2.0-0"


def start(
    modulePaths: Iterable[Path] | None = None,
    arguments: Iterable[str] = (),
    testing: bool = False,
    window: bool = False,
):
    """Start the application once and return it, `slicer.app`; a second call returns the running one.

    modulePaths: folders whose .py files are modules; None: those of this source tree.
    arguments: the command line that `slicer.app.arguments()` answers.
    testing: as Slicer's `--testing`: message boxes are skipped, errors are raised only.
    window: with main window and panels, drawn offscreen by Qt (PySide6); without, `import qt` raises ImportError.

    With SLICER_SOURCE in the environment and a main window, Slicer's own Python layer of that checkout is run; see
    `sources`. Raises SystemExit with one line if system libraries are missing, or if that folder is not a checkout.
    """
    from . import sources

    source = sources.checkout() if window else None  # first: the rest takes a second
    slicer = importSlicer()
    if window:
        importQt()
    if hasattr(slicer, "app"):
        return slicer.app
    slicer.__path__.append(str(HERE / "slicer_python"))
    from .application import Application

    ours = [folder for folder in MODULE_FOLDERS if folder.is_dir()]
    folders = ours if modulePaths is None else [Path(path) for path in modulePaths]
    slicer.app = Application(list(arguments), testing, window, source)
    slicer.mrmlScene = slicer.app.mrmlScene()
    if source is not None:
        sources.install(slicer, source)
    if not window:
        importlib.import_module("slicer.util_headless").install()
    slicer.app.moduleManager().load([HERE / "scripted", *folders])
    if window:
        slicer.app._openWindow()
    slicer.app._completeStartup()
    return slicer.app


def importSlicer():
    """Return the package `slicer` of the wheel; if a system library is missing, one line says what to install."""
    return _imported("slicer", "Slicer's MRML library")


def importQt():
    """Return the package `PySide6`; if a system library is missing, one line says what to install."""
    for part in ("QtGui", "QtWidgets", "QtUiTools"):
        _imported(f"PySide6.{part}", "Qt")
    return sys.modules["PySide6"]


def _imported(name: str, what: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if "cannot open shared object file" not in str(error):
            raise
        print(f"{what} cannot be loaded ({error}). Install: apt-get install {SYSTEM_PACKAGES}", file=sys.stderr)
        raise SystemExit(1) from None
