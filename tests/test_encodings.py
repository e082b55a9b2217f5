"""Text files are read and written as UTF-8 on every platform, not in the encoding that the platform prefers."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("src", "tools", "benchmarks")
FILES = [ROOT / "setup.py", *(path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py")))]
SNIPPETS = [*ROOT.glob("*.md"), *(path for folder in ("docs", *CODE) for path in sorted((ROOT / folder).rglob("*.md")))]


def without_encoding(source):
    """(line, call) of each call that opens text, or a process whose output is text, and names no encoding."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {k.arg: k.value for k in node.keywords}
        if name in ("read_text", "write_text") or (name == "open" and not is_binary(node, given)):
            wrong = "encoding" not in given
        else:
            wrong = bool(given.keys() & {"text", "universal_newlines"}) and name in ("run", "Popen", "check_output")
            wrong = wrong and "encoding" not in given
        if wrong:
            yield node.lineno, ast.unparse(node)


def is_binary(node, given):
    place = 1 if isinstance(node.func, ast.Name) else 0
    mode = given.get("mode") or (node.args[place] if len(node.args) > place else None)
    return isinstance(mode, ast.Constant) and "b" in str(mode.value)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_opened_as_utf_8(path):
    assert list(without_encoding(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", SNIPPETS, ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_open_files_as_utf_8(path):
    for code in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
        assert list(without_encoding(code)) == []


def test_what_is_looked_for_is_found():
    wrong = "p.read_text()\np.write_text(x)\nopen(p)\np.open('w')\nsubprocess.run(c, text=True)\n"
    right = "p.read_text(encoding='utf-8')\nopen(p, 'rb')\np.open('wb')\nopen(p, encoding='utf-8')\nsubprocess.run(c)\n"
    assert [line for line, _ in without_encoding(wrong)] == [1, 2, 3, 4, 5]
    assert list(without_encoding(right)) == []
