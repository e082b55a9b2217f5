"""Where text comes from: the running Python's own documentation, a file, a folder, or a data set."""

from __future__ import annotations

import ast
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .files import SUFFIXES, NoTextError, TextWarning, read_file, text_column

_SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}


@dataclass(frozen=True)
class TextSplit:
    """Documents for training and documents held out, which never share a source."""

    train: list[str]
    held_out: list[str]

    @property
    def characters(self) -> int:
        return sum(map(len, self.train)) + sum(map(len, self.held_out))


def split_by_name(named: Iterable[tuple[str, str]], one_in: int = 20) -> TextSplit:
    """Hold out one document in ``one_in``, chosen by a hash of its name, so that the choice never moves."""
    train: list[str] = []
    held_out: list[str] = []
    for name, text in named:
        (held_out if _hash(name) % one_in == 0 else train).append(text)
    return TextSplit(train, held_out)


def _hash(name: str) -> int:
    return zlib.crc32(name.encode())


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
    packages, stdlib = split_by_name(found), stdlib_text()
    return TextSplit(stdlib.train + packages.train, stdlib.held_out + packages.held_out)


def load_text(source: str, column: str = "text") -> TextSplit:
    """Documents of a text file, a folder, a JSON/JSONL/CSV/Parquet table, a data set of the hub or a saved one's folder.

    Tables and data sets are read through ``datasets``. A text file (UTF-8, or UTF-16 with its byte order mark) becomes one
    document per 200 lines, every 20th held out. Inside a folder, files and folders whose name begins with a dot are passed
    over, tables without ``column`` and what is no text with a warning.

    Raises:
        FileNotFoundError: ``source`` is neither a path nor a data set that can be loaded.
        ValueError: no text was found, too little of it to hold any out, a file that cannot be read, or the table has no
            such column.
    """
    path = Path(source).expanduser()
    if path.is_dir() and _is_saved(path):
        named = [(f"#{i}", d) for i, d in enumerate(_saved(path, column))]
    elif path.is_dir():
        files = sorted(p for p in path.rglob("*") if _is_document(p, path))
        named = [(f"{p.relative_to(path)}#{i}", d) for p in files for i, d in enumerate(_read_any(p, column))]
    elif path.is_file():
        named = [(f"#{i}", d) for i, d in enumerate(read_file(path, column))]
    else:
        named = [(f"#{i}", d) for i, d in enumerate(_data_set(source, column))]
    named = [(n, d) for n, d in named if d.strip()]
    if not named:
        raise ValueError(f"{source!r} holds no text; readable are {', '.join(sorted(SUFFIXES))} and data sets")
    split = split_by_name(named)
    if split.held_out and split.train:
        return split
    documents = [d for _, d in named]
    if len(documents) == 1:  # one short document: its end is held out
        if len(documents[0]) < 2:
            raise ValueError(f"{source!r} holds one character, nothing of which can be held out")
        cut = max(1, len(documents[0]) * 9 // 10)
        return TextSplit([documents[0][:cut]], [documents[0][cut:]])
    return TextSplit(documents[:-1], documents[-1:])


def _is_document(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in SUFFIXES and not hidden and file.is_file()


def _topics() -> list[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions ship Python without it
        return []
    return sorted(topics.items())


def _modules() -> list[tuple[str, str]]:
    sources = list(_sources(Path(sysconfig.get_paths()["stdlib"])))
    docs = [(name, _docstrings(source)) for name, source in sources]
    return [(n, t) for n, t in docs + sources if len(t) > 200]


def _sources(root: Path, order: Callable[[str], int] | None = None) -> Iterator[tuple[str, str]]:
    """Names and texts of the Python modules in a folder, by path, or by ``order`` of the name; read as they are asked for."""
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


def _read_any(path: Path, column: str) -> list[str]:
    """`read_file`, but what is no text is no document: a folder of text often holds other tables too."""
    try:
        return read_file(path, column)
    except NoTextError as error:
        warnings.warn(f"passed over: {error}", TextWarning, stacklevel=3)
        return []


def _is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of ``datasets`` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _saved(folder: Path, column: str) -> list[str]:
    from datasets import load_from_disk

    try:
        data = load_from_disk(str(folder))
    except Exception as error:
        raise ValueError(f"{folder} cannot be loaded as a saved data set: {error}") from error
    if isinstance(data, dict):
        if "train" not in data:
            raise ValueError(f"{folder} has no split 'train'; name the folder of one of its splits: {', '.join(data)}")
        data = data["train"]
    return text_column(data, column, str(folder))


def _data_set(name: str, column: str) -> list[str]:
    from datasets import load_dataset

    try:
        data = load_dataset(name, split="train")
    except Exception as error:
        raise FileNotFoundError(
            f"{name!r} is no file or folder here, and loading it as a data set failed: {error}"
        ) from error
    return text_column(data, column, name)
