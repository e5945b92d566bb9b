"""Prose is plain: Markdown, docstrings, comments, messages, names of tests and panels avoid the phrases below; `make
lint` runs this."""

import ast
import io
import re
import tokenize

import pytest

PHRASES = {  # what not to write -> what to write instead
    r"\balone\b(?! file)": "only, before the noun",
    r"\b(anew|no more)\b": "again, no longer",
    r"\bat hand\b": "available",
    r"\bbut for\b": "except",
    r"\bof (which|whom)\b": "whose, or a sentence of its own",
    r"\b(goes|go|went|gone) on\b": "continues, resumes",
    r"\b(is|are|was|were|be) told\b": "is reported",
    r"\bthe like\b": "or similar, or name it",
    r"\bmeanwhile\b": "in the meantime, during a run",
    r"\bby (itself|themselves)\b": "automatically, on its own",
    r"\b(says|said) so\b": "with a message, a warning",
    r", too[,.;:)]": "also, as well",
    r"\blearnt\b": "learned",
    r"\b(colour|neighbour|behaviour|normalis|artefact|licence)": "American spelling",
    r"\bwhat there is\b": "name it",
    r"\bbesides? (the|a|an|it|its|them|others|that|each)\b": "next to, in addition to",
    r"(?<!here )\b(is|are|was|were) no (?!longer|better|sharper|more)": "is not a",
    r"\b(stays?|stayed) (as|so|where|out|in)\b": "is kept, is not changed",
    r"\btaken? for\b": "is mistaken for",
    r"\b(comes?|came) back\b": "is returned, is restored",
    r"\b(gives?|gave) (what|the same|back)\b": "matches, returns",
    r"\bas (it was|they were)\b(?! read)": "unchanged",
    r"\blikewise\b": "also, in the same way",
    r"\b(tells?|telling) (of|what|how|whether|that)\b": "reports, shows",
    r"\bso (many|much)\b(?! (as|that))": "name the number",
    r"\bgoes (to|into|where|first|last)\b": "is written, is moved",
    r"\bnot so\b": "name it",
    r"\bknown are\b": "choose one of",
    r"\bper cent\b": "%",
    r"\bas recorders do\b": "name what they do",
    r"\b(recognis|initialis|summaris(?!e\()|millimetre|cancelled (images|runs|recordings))": "American spelling",
    r"(^|[.:] )Of (a|an|the|fewer|each|what|several)\b": "the subject first",
}


def prose_of_python(text):
    """Return (line, text) of the docstrings, comments and messages of a module, and of its tests' names."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            yield node.body[0].lineno, ast.get_docstring(node)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.match(r"\S+( [\w,'(]+){3}", node.value)
        ):
            yield node.lineno, node.value  # docstrings again, as a module shows them


def prose_of(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from prose_of_python(text)
    elif path.suffix == ".ui":
        yield from ((0, string) for string in re.findall(r"<string>(.*?)</string>", text, re.DOTALL))
    else:
        yield 0, re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def faults(text):
    """Return the phrases to avoid in a text, names in backticks aside, with what to write instead."""
    text = " ".join(re.sub(r"`[^`]*`", "", text).split())
    return [f"'{found[0]}': {better}" for phrase, better in PHRASES.items() if (found := re.search(phrase, text))]


@pytest.mark.parametrize("pattern", ["*.md", "Documentation/*.md", "Speckle*/**/*.md", "Testing/**/*.md",
                                     "Speckle*/**/*.ui", "Speckle*/**/*.py", "Testing/**/*.py"])  # fmt: skip
def test_no_phrase_to_avoid_is_used(project, pattern):
    paths = [path for path in sorted(project.glob(pattern)) if path.name != "test_words.py"]  # which names them
    found = {f"{path.relative_to(project)}:{line} {fault}" for path in paths
             for line, text in prose_of(path) for fault in faults(text)}  # fmt: skip
    assert not found, "\n".join(sorted(found))


def test_a_phrase_to_avoid_is_found():
    assert faults("Frames, of which the truth is known") and not faults("Frames whose truth is known")
    assert list(prose_of_python('def f():\n    """Goes on."""  # alone\n')) == [(2, "# alone"), (2, "Goes on.")]
