"""Who may import whom: the core stands alone, and its imports point one way."""

import ast
import subprocess
import sys

RANKS = [
    {"config", "anatomy"},
    {"look", "devices", "perturbation", "network", "loss", "volumes"},
    {"frames"},
    {"checkpoint", "layout", "region", "simulation", "metrics", "filters", "files"},
    {"library", "chart", "report"},
    {"despeckling"},
    {"training", "worker_process"},
    {"runs"},
    {"baselines"},
    {"benchmark", "speed"},
    {"__main__"},
]


def core(project):
    return sorted((project / "Speckle2Self" / "Speckle2SelfLib").glob("*.py"))


def imports(path):
    """Names of the core's modules that a file imports, at any level of nesting."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not (node.module or "").startswith("Speckle2Self"), f"{path.name} imports {node.module}"
    return found - {"__version__"}


def test_imports_point_one_way(project):
    rank = {name: number for number, names in enumerate(RANKS) for name in names}
    assert {path.stem for path in core(project)} == {*rank, "__init__"}
    for path in core(project):
        for name in imports(path):
            assert rank[name] < rank[path.stem], f"{path.stem} imports {name}"


def test_the_core_needs_no_slicer_no_qt_and_no_vtk(project):
    names = [f"Speckle2SelfLib.{path.stem}" for path in core(project) if not path.stem.startswith("__")]
    code = f"""
import sys, importlib
for name in ("slicer", "qt", "ctk", "vtk", "vtkmodules", "PySide6", "Speckle2SelfSlicer"):
    sys.modules[name] = None
sys.path.insert(0, {str(project / "Speckle2Self")!r})
for name in {[*names, "Speckle2SelfLib.__main__"]!r}:
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_config_needs_the_standard_library_alone(project):
    code = f"""
import sys
sys.path.insert(0, {str(project / "Speckle2Self")!r})
import Speckle2SelfLib.config
assert not {{"torch", "numpy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-S", "-c", code], check=True)
