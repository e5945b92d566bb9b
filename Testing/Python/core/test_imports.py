"""Who may import whom: the core is self-contained, and its imports point one way."""

import ast
import subprocess
import sys

import pytest

# A module imports only those of the lines above its own.
RANKS = [
    {"system", "anatomy"},
    {"config", "grey", "graphics"},
    {"tint"},
    {"protocol", "volumes", "look", "augmentation", "perturbation", "network", "loss", "beams", "devices"},
    {"grain", "resampling"},
    {"formats.base"},
    {
        "formats.arrays",
        "formats.dicom_pixels",
        "formats.films",
        "formats.itk",
        "formats.research",
        "formats.signals",
        "formats.tiff",
    },
    {"formats.dicom", "formats.metaimage", "formats.nrrd", "formats.nifti", "formats.pictures"},
    {"formats"},
    {"checkpoint", "simulation", "recorded_speckle", "metrics", "filters", "files"},
    {"library", "inference"},
    {"detector"},
    {"region"},
    {"calibration"},
    {"despeckling", "dataset"},
    {"respeckling", "worker_process"},
    {"recipes"},
    {"validation"},
    {"training"},
    {"runs"},
    {"__main__"},
]
SLICER = [
    {"scene", "dependencies", "sample_data", "words"},
    {"file_reader", "processes", "results", "run_files", "views"},
    {"exporting"},
    {"trainer", "worker", "uncertainty"},
    {"processing", "regions"},
    {"comparison", "live"},
    {"session"},
    {"curves", "panel", "training_data"},
    {"panel_parts"},
]
BENCH = [
    {"baselines", "phantom", "report", "graphics_cases", "train_detector"},
    {"cases", "speed"},
    {"natural"},
    {"quality"},
]


def scripts(project, package):
    """Module's name -> file; a package inside is a module by its `__init__.py`, and the name of each of its own."""
    folder = project / "Speckle2Self" / package
    inside = {path: ".".join(path.relative_to(folder).with_suffix("").parts) for path in folder.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in sorted(inside.items())}


def imports(folder, path, known):
    """Return the names of the modules of its own package that a file imports, at any level of nesting."""
    found, inside = set(), path.parent.relative_to(folder).parts
    tree = ast.parse(path.read_text())
    asked = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    only_types = {id(part) for node in asked for part in ast.walk(node)} if folder.name == "Speckle2SelfSlicer" else ()
    for node in ast.walk(tree):
        if id(node) in only_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            place = [*inside[: len(inside) - node.level + 1], *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                names = [".".join([*place, alias.name]), ".".join(place)]
                named = [name for name in names if name in {*known, ""}]
                assert named, f"{path} imports {names[0]}"
                found |= {*named[:1]} - {""}
        elif isinstance(node, ast.ImportFrom) and path.stem != "__main__" and "Lib" in str(path.parent):
            assert not (node.module or "").startswith("Speckle2Self"), f"{path.name} imports {node.module}"
    return found


@pytest.mark.parametrize(("package", "ranks"), [
    ("Speckle2SelfLib", RANKS), ("Speckle2SelfBench", BENCH), ("Speckle2SelfSlicer", SLICER),
])  # fmt: skip
def test_imports_point_in_one_direction(project, package, ranks):
    rank = {name: number for number, names in enumerate(ranks) for name in names}
    assert set(scripts(project, package)) == {*rank, "__init__"}
    for own, path in scripts(project, package).items():
        for name in imports(project / "Speckle2Self" / package, path, set(rank)):
            assert rank[name] < rank[own], f"{own} imports {name}"


def test_modules_import_the_glue_and_never_each_other_and_the_core_never_the_glue(project):
    modules = ("Speckle2Self", "SpeckleTrain")
    for path in [project / name / f"{name}.py" for name in modules] + list(
        (project / "Speckle2Self" / "Speckle2SelfSlicer").glob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {name.split(".")[0] for name in names} & {*modules, "Speckle2SelfBench"}, path.name
    for path in (project / "Speckle2Self" / "Speckle2SelfLib").rglob("*.py"):
        names = ast.walk(ast.parse(path.read_text()))
        named = {getattr(node, "module", None) or "" for node in names if isinstance(node, ast.ImportFrom)}
        assert not any(name.startswith("Speckle2SelfSlicer") for name in named), path.name


def test_the_core_needs_no_slicer_no_qt_and_no_vtk(project):
    names = [f"Speckle2SelfLib.{name}" for name in scripts(project, "Speckle2SelfLib") if not name.startswith("__")]
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
