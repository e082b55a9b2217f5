"""The running Python's own documentation and sources: a text that is everywhere."""

from __future__ import annotations

import ast
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tptt.progress import report_progress

from .documents import TextSplit, document_key
from .held_out import ONE_IN

_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}


def split_by_name(named: Iterable[tuple[str, str]]) -> TextSplit:
    """Hold out one text in 20, chosen by a hash of its name, so that those of one name are on the same side.

    A text that comes again under another name is on the side where it was first.
    """
    train: list[str] = []
    held_out: list[str] = []
    sides: dict[int, list[str]] = {}
    for name, text in named:
        side = held_out if _hash(name) % ONE_IN == 0 else train
        sides.setdefault(document_key(text), side).append(text)
    return TextSplit(train, held_out)


def _hash(name: str) -> int:
    return zlib.crc32(name.encode("utf-8"))


def stdlib_text() -> TextSplit:
    """The running Python's language reference, docstrings and sources, in that order.

    The docstrings of a module and its source fall on the same side of the split.
    """
    return split_by_name([*_topics(), *_modules()])


def installed_text(characters: int) -> TextSplit:
    """`stdlib_text` and as many ``characters``, about, of the sources of the packages that are installed beside it.

    Which ones depends on the machine: for a base that needs more text than the standard library has.
    """
    root = Path(sysconfig.get_paths()["purelib"])
    found: list[tuple[str, str]] = []
    for name, source in _sources(root, _hash):  # some of every package
        characters -= len(source)
        if characters < 0:
            break
        found.append((name, source))
    return split_by_name([*_topics(), *_modules(), *found])


def _topics() -> list[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions ship Python without it
        return []
    return sorted(topics.items())


def _modules() -> list[tuple[str, str]]:
    sources = list(_sources(Path(sysconfig.get_paths()["stdlib"])))
    docs: list[tuple[str, str]] = []
    with report_progress("reading the standard library", len(sources), "modules") as progress:
        for name, source in sources:
            docs.append((name, _docstrings(source)))
            progress.advance()
    return [(n, t) for n, t in docs + sources if len(t) > 200]


def _sources(root: Path, order: Callable[[str], int] | None = None) -> Iterator[tuple[str, str]]:
    """Names and texts of the Python modules in a folder, by path, or by ``order`` of the name; read when asked for."""
    inside = (path.relative_to(root) for path in sorted(root.rglob("*.py")))
    modules = [p for p in inside if not _SKIPPED_FOLDERS & set(p.parts) and p.name not in ("topics.py", "pyclbr.py")]
    if order is not None:
        modules.sort(key=lambda p: order(p.as_posix()))
    for path in modules:
        yield path.as_posix(), (root / path).read_text(encoding="utf-8", errors="ignore")


def _docstrings(source: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in library sources
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(d for d in found if d)
