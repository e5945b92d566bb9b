"""Translate into the user's language, also for code that runs without Slicer; standard library only."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path
from string import Formatter

__all__ = ["_", "translate_sentence"]

if "slicer" in sys.modules:  # do not load it for this outside the application: it takes a second
    from slicer.i18n import tr as _
    from slicer.i18n import translate
else:

    def _(text: str) -> str:
        """Return the text unchanged."""
        return text

    def translate(context: str, text: str) -> str:
        """Return the text unchanged."""
        return text


def translate_sentence(message: str) -> str:
    """Translate a sentence of the core, with its values, into the user's language; a file name in front of it is kept.

    The core knows no language, and most of it runs in other processes without translations. Its sentences are therefore
    marked there for Slicer's tools, and recognized here.
    """
    for context, template, pattern in core_sentences():
        found = pattern.search(message)
        words = translate(context, template) if found else template
        if words != template:
            return message[: found.start()] + re.sub(r"{(\w+)}", lambda name: found[name[1]], words)  # noqa: B023
    return message


@cache
def core_sentences() -> list[tuple[str, str, re.Pattern]]:
    """Return (context, sentence, pattern) of the sentences that the core marks, the longest first."""
    sentences = {}
    for path in (Path(__file__).resolve().parent.parent / "Speckle2SelfLib").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if re.search(r"\b_\(", text) else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
                sentences[ast.literal_eval(node.args[0])] = f"{path.parent.name}.{path.stem}"
    ordered = sorted(sentences, key=lambda template: (-len(re.sub(r"{\w+}", "", template)), template))
    return [(sentences[template], template, re.compile(_pattern(template), re.DOTALL)) for template in ordered]


def _pattern(template: str) -> str:
    """Return the expression that finds a sentence at the end of a message, its values as groups."""
    parts, names = [], set()
    for literal, name, *_rest in Formatter().parse(template):
        parts.append(re.escape(literal))
        if name is not None:
            parts.append(f"(?P={name})" if name in names else f"(?P<{name}>.*?)")
            names.add(name)
    return f"(?:^|(?<=: )){''.join(parts)}$"
