"""The application layer of 3D Slicer for tests and the demo, over the real MRML library of the slicer-core wheel.

`start()` gives `import slicer` what the application adds: `slicer.app`, `slicer.mrmlScene`, `slicer.modules`,
`slicer.util` that works, `slicer.ScriptedLoadableModule`, `slicer.parameterNodeWrapper`, `slicer.i18n`. What is
not modelled is not there, and raises AttributeError or ImportError. See README.md beside this file.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULE_FOLDERS = tuple(path.parent for path in sorted(ROOT.glob("Speckle*/CMakeLists.txt")))
# What the vtk and slicer-core wheels take from the system: the first two to import, the others for 3D views.
SYSTEM_PACKAGES = "libstdc++6 libgcc-s1 libgl1 libegl1 libx11-6"


def start(modulePaths: Iterable[Path] | None = None, arguments: Iterable[str] = (), testing: bool = False):
    """Starts the application once and returns it, `slicer.app`; a second call returns the running one.

    modulePaths: folders whose .py files are modules; None: those of this source tree.
    arguments: the command line that `slicer.app.arguments()` answers.
    testing: as Slicer's `--testing`: message boxes are skipped, errors are raised only.

    Raises SystemExit (1) with one line where libraries of the system are missing.
    """
    slicer = importSlicer()
    if hasattr(slicer, "app"):
        return slicer.app
    slicer.__path__.append(str(HERE / "slicer_python"))
    from .application import Application

    ours = [folder for folder in MODULE_FOLDERS if folder.is_dir()]
    folders = ours if modulePaths is None else [Path(path) for path in modulePaths]
    slicer.app = Application(list(arguments), testing)
    slicer.mrmlScene = slicer.app.mrmlScene()
    importlib.import_module("slicer.util_headless").install()
    slicer.app.moduleManager().load(folders)
    return slicer.app


def importSlicer():
    """The package `slicer` of the wheel; where the system lacks a library, one line says what to install."""
    try:
        import slicer
    except ImportError as error:
        if "cannot open shared object file" not in str(error):
            raise
        print(
            f"Slicer's MRML library cannot be loaded ({error}). Install: apt-get install {SYSTEM_PACKAGES}",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    return slicer
