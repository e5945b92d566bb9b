"""The module as Slicer loads it: metadata, panel, self-test; and its imports."""

import ast
import sys
import xml.etree.ElementTree as ElementTree
from functools import cache

import pytest

slicer = pytest.importorskip("slicer")

BUNDLED = {"slicer", "vtk", "qt", "ctk", "numpy", "SimpleITK", "pydicom", "requests"}  # packages that Slicer bundles
OURS = {"Speckle2SelfLib", "Speckle2SelfSlicer"}


@cache
def imports_at_file_level(path):
    """Return the names of the modules that a file imports when it is imported; those of its own package with their full
    name."""
    imports = []
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import):
            imports += [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            package = [path.parent.name] if statement.level else []
            names = [statement.module] if statement.module else [alias.name for alias in statement.names]
            imports += [".".join([*package, name]) for name in names]
            if statement.module in OURS:
                imports += [f"{statement.module}.{alias.name}" for alias in statement.names]
    return imports


def imported_with(project, path, seen):
    """Adds to `seen`: (file, module) for all that comes with a file, through our own packages."""
    for name in imports_at_file_level(path):
        if (path.name, name) in seen:
            continue
        seen.add((path.name, name))
        ours = project / "Speckle2Self" / (name.replace(".", "/") + ".py")
        if ours.exists():
            imported_with(project, ours, seen)


def test_only_what_slicer_bundles_is_imported_at_file_level(project):
    """The modules must load in a Slicer without torch."""
    seen = set()
    for module in ("Speckle2Self", "SpeckleTrain"):
        imported_with(project, project / module / f"{module}.py", seen)
    for path in (project / "Speckle2Self" / "Speckle2SelfSlicer").glob("*.py"):
        imported_with(project, path, seen)
    assert ("look.py", "numpy") in seen  # the search goes through our packages
    for file, name in sorted(seen):
        top = name.split(".")[0]
        assert top in BUNDLED | OURS or top in sys.stdlib_module_names, f"{file} imports {name}"


def test_every_parameter_bound_in_the_panel_exists(project):
    from Speckle2Self import Speckle2SelfParameterNode

    tree = ElementTree.parse(project / "Speckle2Self" / "Resources" / "UI" / "Speckle2Self.ui")
    bound = {p[0].text for p in tree.iter("property") if p.get("name") == "SlicerParameterName"}
    assert bound | {"model", "device"} == set(Speckle2SelfParameterNode.__annotations__)


@pytest.mark.parametrize(("module", "opened"), [
    ("Speckle2Self", ["input", "model", "look", "live", "compare"]), ("SpeckleTrain", ["data", "settings", "runs"]),
])  # fmt: skip
def test_sections_that_are_rarely_needed_are_folded(project, module, opened):
    """A panel has only a third of the height while Slicer's Data Probe is open."""
    widgets = ElementTree.parse(project / module / "Resources" / "UI" / f"{module}.ui").iter("widget")
    sections = [widget for widget in widgets if widget.get("class") == "ctkCollapsibleButton"]
    assert sections[0].get("name") == f"{opened[0]}CollapsibleButton"
    folded = {s for s in sections for entry in s.findall("property") if entry.get("name") == "collapsed"}
    assert [s.get("name").removesuffix("CollapsibleButton") for s in sections if s not in folded] == opened
    assert folded


def test_every_node_selector_gets_the_scene(project):
    tree = ElementTree.parse(project / "Speckle2Self" / "Resources" / "UI" / "Speckle2Self.ui")
    selectors = {w.get("name") for w in tree.iter("widget") if w.get("class") == "qMRMLNodeComboBox"}
    connected = {c.findtext("receiver") for c in tree.iter("connection")}
    assert selectors == connected


def test_parameters_are_kept_in_the_scene():
    from Speckle2Self import Speckle2SelfLogic

    slicer.mrmlScene.Clear()
    logic = Speckle2SelfLogic()
    parameters = logic.getParameterNode()
    assert (parameters.model, parameters.region) == ("default", "auto")
    assert (parameters.strength, parameters.gamma) == (1, 1)
    assert parameters.inputNode is None
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "US")
    parameters.inputNode = volume
    parameters.strength = 0.25
    again = logic.getParameterNode()
    assert again.inputNode is volume
    assert again.strength == 0.25
    with pytest.raises(ValueError):
        parameters.strength = 2
    parameters.inputNode = None
    assert again.inputNode is None


def test_the_metadata_of_the_module_are_complete(project):
    from Speckle2Self import Speckle2Self

    class Parent:
        path = str(project / "Speckle2Self" / "Speckle2Self.py")

    module = Speckle2Self(Parent())
    assert module.parent.title == "Speckle2Self"
    assert module.parent.categories == ["Ultrasound"]
    assert module.parent.contributors == ["Speckle2Self contributors"]
    for words in ("not a medical device", "Medical Image Analysis 2025", "cannot"):
        assert words in module.parent.helpText


def test_the_self_test_passes():
    from Speckle2Self import Speckle2SelfTest

    Speckle2SelfTest().runTest()


@pytest.mark.parametrize("name", ["Speckle2Self", "SpeckleTrain"])
def test_a_self_test_on_the_dashboard_installs_nothing_and_skips_what_needs_torch(name, monkeypatch):
    """In testing mode Slicer's pip_ensure installs nothing, and PyTorchUtils downloads without asking."""
    import importlib

    from Speckle2SelfSlicer import dependencies

    def fail(*arguments, **options):
        raise AssertionError("something was installed")

    monkeypatch.setattr(slicer.app, "_testing", True)
    monkeypatch.setattr(dependencies, "find_spec", lambda name: None if name == "torch" else name)
    monkeypatch.setattr(dependencies, "_installTorch", fail)
    monkeypatch.setattr(dependencies, "_install", fail)
    said = []
    test = getattr(importlib.import_module(name), f"{name}Test")()
    monkeypatch.setattr(test, "delayDisplay", lambda text, *arguments: said.append(text))
    test.runTest()
    assert any(text.startswith("Skipped") for text in said) and len(said) > 1, "the rest is tested"


def test_nothing_is_installed_if_all_packages_are_there(monkeypatch):
    from Speckle2SelfSlicer import dependencies

    def fail(*arguments, **options):
        raise AssertionError("something was installed")

    monkeypatch.setattr(slicer.util, "pip_install", fail)
    monkeypatch.setattr(dependencies, "_installTorch", fail)
    dependencies.ensure()


PACKAGES = {  # imported name -> installed package
    "imageio": "imageio>=2.31", "PIL": "pillow>=10", "safetensors": "safetensors>=0.4", "skimage": "scikit-image>=0.22",
    "scipy": "scipy>=1.12", "tifffile": "tifffile>=2023.2.28", "tqdm": "tqdm>=4.60",
}  # fmt: skip


def test_missing_packages_are_requested_and_installed(monkeypatch):
    from Speckle2SelfSlicer import dependencies

    there, installed = {"torch", "scipy"}, []
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)  # as in Slicer before 5.11
    monkeypatch.setattr(dependencies, "find_spec", lambda name: name if name in there else None)
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: True)

    def install(requirements):
        installed.extend(requirements)
        there.update(PACKAGES)

    monkeypatch.setattr(slicer.util, "pip_install", install)
    dependencies.ensure()
    assert installed == [package for name, package in PACKAGES.items() if name != "scipy"]


def test_a_declined_installation_is_one_clear_sentence(monkeypatch):
    from Speckle2SelfLib.system import InputError
    from Speckle2SelfSlicer import dependencies

    monkeypatch.setitem(sys.modules, "slicer.packaging", None)  # as in Slicer before 5.11
    monkeypatch.setattr(dependencies, "find_spec", lambda name: name if name == "torch" else None)
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_, **__: False)
    with pytest.raises(InputError, match=f"missing: {', '.join(PACKAGES)}; install"):
        dependencies.ensure()


def test_a_missing_pytorch_extension_is_named(monkeypatch):
    from Speckle2SelfLib.system import InputError
    from Speckle2SelfSlicer import dependencies

    monkeypatch.setattr(dependencies, "find_spec", lambda name: None if name == "torch" else name)
    with pytest.raises(InputError, match="install the PyTorch extension"):
        dependencies.ensure()


def test_torch_comes_through_the_pytorch_extension(monkeypatch):
    from Speckle2SelfSlicer import dependencies

    asked = []

    class PyTorchUtilsLogic:
        def installTorch(self, askConfirmation):
            asked.append(askConfirmation)
            there.add("torch")

    there = set(PACKAGES)
    monkeypatch.setattr(dependencies, "find_spec", lambda name: name if name in there else None)
    extension = type(sys)("PyTorchUtils")
    extension.PyTorchUtilsLogic = PyTorchUtilsLogic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", extension)
    dependencies.ensure()
    assert asked == [True]


def newer_slicer(monkeypatch, answer):
    """Provide `slicer.packaging` of Slicer 5.11 and later, where the user answers: 'yes', or declines."""
    asked = []

    def load_requirements(path):
        return [line for line in path.read_text().splitlines() if not line.startswith("#")]

    def pip_ensure(requirements, requester):
        asked.append((requirements, requester))
        if answer != "yes":
            raise RuntimeError("User declined package installation")

    packaging = type(sys)("slicer.packaging")
    packaging.load_requirements, packaging.pip_ensure = load_requirements, pip_ensure
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    return asked


def test_newer_slicer_versions_ask_and_install_themselves(monkeypatch):
    from Speckle2SelfLib.system import InputError
    from Speckle2SelfSlicer import dependencies

    asked = newer_slicer(monkeypatch, "no")
    monkeypatch.setattr(dependencies, "find_spec", lambda name: None if name == "scipy" else name)
    with pytest.raises(InputError, match=r"cannot run without scipy: User declined"):
        dependencies.ensure()
    assert asked == [([*PACKAGES.values()], "Speckle2Self")]


def test_newer_slicer_versions_let_the_user_keep_an_older_package(monkeypatch):
    from Speckle2SelfSlicer import dependencies

    asked = newer_slicer(monkeypatch, "no")
    dependencies.ensure()
    assert len(asked) == 1
