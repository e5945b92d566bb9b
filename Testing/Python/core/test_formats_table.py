"""The page on formats names every suffix that is known and only tests that exist."""

import re
import tomllib

import pytest

from Speckle2SelfLib.formats import FORMATS


@pytest.fixture(scope="module")
def page(project):
    return (project / "Documentation" / "formats.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_every_suffix_is_in_the_table(page, one):
    named = set(re.findall(r"`(\.[\w.]+)`", page))
    assert set(one.suffixes) <= named
    assert type(one).__doc__ or one.name


def test_every_suffix_of_the_table_is_known(page):
    first = [row.split("|")[1] for row in page.splitlines() if row.startswith("| ") and "`test_" in row]
    assert len(first) >= len(FORMATS) - 1, "Pictures and others may share a row"
    known = {suffix for one in FORMATS for suffix in one.suffixes} | {".igs.mha"}
    assert set(re.findall(r"`(\.[\w.]+)`", " ".join(first))) <= known


def test_every_test_that_is_named_exists(page, project):
    tests = "".join(path.read_text(encoding="utf-8") for path in (project / "Testing" / "Python").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert named and {name for name in named if f"def {name}(" not in tests} == set()


@pytest.mark.parametrize("document", ["README.md", "Documentation/formats.md"])
def test_the_extras_that_are_named_exist(document, project):
    extras = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r'`pip install "\.\[([\w,]+)\]"`', (project / document).read_text(encoding="utf-8"))
    assert [set(names.split(",")) for names in named] == [{"films", "hdf5"}] and extras.keys() >= {"films", "hdf5"}
