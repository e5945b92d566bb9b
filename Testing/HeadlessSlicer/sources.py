"""Slicer's own Python layer over our `qt` and `ctk`, from a checkout of Slicer that SLICER_SOURCE names.

Its `slicer.util`, `slicer.ScriptedLoadableModule`, `slicer.parameterNodeWrapper`, `slicer.i18n` and, where the version
has it, `slicer.packaging` then replace those in `slicer_python/` and in the wheel. They need Qt, and
therefore an application with main window.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

VARIABLE = "SLICER_SOURCE"


def checkout() -> Path | None:
    """Return the requested checkout; None without a request. Raises SystemExit if it is not a checkout."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    if not (python(Path(name)) / "util.py").is_file():
        raise SystemExit(f"{VARIABLE} is '{name}', which has no Base/Python/slicer/util.py; name a checkout of Slicer.")
    return Path(name)


def python(source: Path) -> Path:
    """Return the folder of the package `slicer` in a checkout."""
    return source / "Base" / "Python" / "slicer"


def version(source: Path) -> tuple[int, int]:
    """Return the major and minor version of a checkout."""
    text = (source / "CMakeLists.txt").read_text(encoding="utf-8")
    found = [re.search(rf'Slicer_VERSION_{part} "(\d+)"', text) for part in ("MAJOR", "MINOR")]
    return int(found[0][1]), int(found[1][1])


def install(slicer, source: Path) -> None:
    """Put the checkout's package first, and replace the wheel's `slicer.util` with its own."""
    folder = str(python(source))
    slicer.__path__.insert(0, folder)
    importlib.invalidate_caches()
    for name in ("util", "i18n", "packaging"):
        sys.modules.pop(f"slicer.{name}", None)
    slicer.util = importlib.import_module("slicer.util")
    _nameWidgets(slicer, python(source) / "parameterNodeWrapper")
    for name in ("ScriptedLoadableModule", "parameterNodeWrapper", "i18n"):
        importlib.import_module(f"slicer.{name}")


def _nameWidgets(slicer, folder: Path) -> None:
    """Define the missing widget classes that the sources compare widgets with; they cannot be created."""
    text = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*.py"))
    for module, name in set(re.findall(r"\b(ctk|slicer)\.((?:ctk|qMRML|qSlicer)\w+)", text)):
        place = sys.modules["ctk"] if module == "ctk" else slicer
        if not hasattr(place, name):
            setattr(place, name, type(name, (), {"__init__": _notModelled}))


def _notModelled(self, *arguments, **keywords) -> None:
    raise NotImplementedError(f"{type(self).__name__} is not modeled.")
