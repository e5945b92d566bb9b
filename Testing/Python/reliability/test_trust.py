"""Documentation/trust.md names tests that exist."""

import re


def test_every_test_that_the_table_of_faults_names_exists(project):
    text = (project / "Documentation" / "trust.md").read_text()
    named = set(re.findall(r"`(\w+/\w+\.py)::(\w+)`", text))
    hostile = text[text.index("| what | test in") : text.index("`make test` tries")]
    named |= {("reliability/test_hostile_input.py", name) for name in re.findall(r"`(test_\w+)`", hostile)}
    assert len(named) > 30
    for file, name in named:
        assert f"def {name}(" in (project / "Testing" / "Python" / file).read_text(), f"{file}::{name}"
    for file in re.findall(r"`(\w+/\w+\.py)`", text):
        assert (project / "Testing" / "Python" / file).exists(), file
