"""The measures of the source: short functions and files, docstrings that are sentences, private names of torch in one
place, recipes by their class.

The complexity of functions is measured by ruff (`lint.mccabe` in pyproject.toml).
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from Speckle2SelfLib.config import RECIPES

ROOT = Path(__file__).resolve().parents[3]
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("Speckle2Self", "SpeckleTrain")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
LONGEST_FUNCTION, LONGEST_FILE = 60, 650  # lines
BY_NAME = ("config.py", "recipes.py")  # files that may look up recipes by name
FRAGMENTS = {"As", "In", "Its", "Of", "So", "Their", "What", "Where", "Whether"}  # such docstrings have no main verb
each_source = pytest.mark.parametrize("source", SOURCES)


@cache
def tree_of(source):
    return ast.parse((ROOT / source).read_text(encoding="utf-8"))


def test_the_sources_are_found():
    found = {source.rpartition("/")[0] for source in SOURCES}
    assert found >= {"Speckle2Self", "SpeckleTrain"} | {
        f"Speckle2Self/Speckle2Self{name}" for name in ("Lib", "Bench", "Slicer")
    }


@each_source
def test_functions_and_files_are_short(source):
    lines = (ROOT / source).read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_FILE, f"{source} has {lines} lines"
    long = {}
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            if length > LONGEST_FUNCTION:
                long[node.name] = length
    assert not long


def fragments(tree):
    """Return the docstrings that begin with a word such as Of or Whether, where a sentence or a noun belongs."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in texts if re.match(r"\w*", text).group() in FRAGMENTS]


def test_fragments_are_found():
    code = 'def length():\n    """Of its middle, pixels."""\ndef area():\n    """Return the area of its middle."""'
    assert fragments(ast.parse(code)) == ["Of its middle, pixels."]


@each_source
def test_docstrings_are_not_fragments(source):
    assert not fragments(tree_of(source))


def test_docstrings_of_tests_are_not_fragments():
    found = {path: fragments(tree_of(path)) for path in (ROOT / "Testing").rglob("*.py")}
    assert not {path: text for path, texts in found.items() for text in texts if not text.startswith("In ")}


def private_names(tree):
    """Return the names of torch that it does not promise to keep: torch.ops, torch._C, and others with one leading
    underscore.

    Other names that `import` binds to torch and its modules count; so does `_version`, an attribute of tensors.
    """
    ours = {"torch"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "torch":
                    ours.add(alias.asname or "torch")
                    found += [part for part in alias.name.split(".") if is_private(part)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            ours |= {alias.asname or alias.name for alias in node.names}
            found += [part for part in (*node.module.split("."), *(a.name for a in node.names)) if is_private(part)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            of_torch = isinstance(root, ast.Name) and root.id in ours
            if (of_torch and is_private(node.attr)) or node.attr == "_version":
                found.append(node.attr)
    return found


def is_private(name):
    return name == "ops" or (name.startswith("_") and not name.startswith("__"))


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import torch\ntorch.ops.mkldnn.f()", ["ops"]),
        ("import torch.nn.functional as F\nF._pad", ["_pad"]),
        ("from torch import _C", ["_C"]),
        ("import torch\nweight._version", ["_version"]),
        ("import torch\ntorch.__version__, self._weight, torch.nn.Module", []),
    ],
)
def test_private_names_are_found(code, names):
    assert private_names(ast.parse(code)) == names


@each_source
def test_private_names_of_torch_are_used_only_to_run_networks_fast(source):
    if not source.endswith("Speckle2SelfLib/inference.py"):
        assert not private_names(tree_of(source))


@each_source
def test_no_recipe_is_checked_for_by_name(source):
    if Path(source).name in BY_NAME:
        return
    asked = []
    for node in ast.walk(tree_of(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            values = [v for side in sides for v in ast.walk(side) if isinstance(v, ast.Constant) and v.value in RECIPES]
            asked += [f"line {value.lineno}: {value.value}" for value in values if isinstance(value.value, str)]
        elif isinstance(node, ast.match_case):
            asked += [f"line {v.lineno}" for v in ast.walk(node.pattern) if getattr(v, "value", None) in RECIPES]
    assert not asked
