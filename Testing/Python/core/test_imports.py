"""Who may import whom: the core stands alone, and its imports point one way."""

import ast
import subprocess
import sys

import pytest

# A module imports only those of the lines above its own.
RANKS = [
    {"system", "anatomy"},
    {"config", "grey"},
    {"volumes", "look", "augmentation", "perturbation", "network", "loss", "beams", "devices"},
    {"region", "grain", "resampling"},
    {"checkpoint", "simulation", "metrics", "filters", "files"},
    {"library", "calibration", "inference"},
    {"despeckling", "dataset"},
    {"recipes", "worker_process"},
    {"validation"},
    {"training"},
    {"runs"},
    {"__main__"},
]
BENCH = [{"baselines", "phantom", "report"}, {"cases", "speed"}, {"natural"}, {"quality"}]


def scripts(project, package):
    return sorted((project / "Speckle2Self" / package).glob("*.py"))


def imports(path):
    """Names of the modules of its own package that a file imports, at any level of nesting."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and path.stem != "__main__" and "Lib" in str(path.parent):
            assert not (node.module or "").startswith("Speckle2Self"), f"{path.name} imports {node.module}"
    return found - {"__version__"}


@pytest.mark.parametrize(("package", "ranks"), [("Speckle2SelfLib", RANKS), ("Speckle2SelfBench", BENCH)])
def test_imports_point_one_way(project, package, ranks):
    rank = {name: number for number, names in enumerate(ranks) for name in names}
    assert {path.stem for path in scripts(project, package)} == {*rank, "__init__"}
    for path in scripts(project, package):
        for name in imports(path):
            assert rank[name] < rank[path.stem], f"{path.stem} imports {name}"


def test_the_core_needs_no_slicer_no_qt_and_no_vtk(project):
    names = [
        f"Speckle2SelfLib.{path.stem}" for path in scripts(project, "Speckle2SelfLib") if not path.stem.startswith("__")
    ]
    code = f"""
import sys, importlib
for name in ("slicer", "qt", "ctk", "vtk", "vtkmodules", "PySide6", "Speckle2SelfSlicer"):
    sys.modules[name] = None
sys.path.insert(0, {str(project / "Speckle2Self")!r})
for name in {[*names, "Speckle2SelfLib.__main__"]!r}:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_config_needs_only_the_standard_library(project):
    code = f"""
import sys
sys.path.insert(0, {str(project / "Speckle2Self")!r})
import Speckle2SelfLib.config
assert not {{"torch", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
