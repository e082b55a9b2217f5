"""Where text comes from: a file, a folder, a pattern of file names, a table, or a data set of the hub."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from tptt.progress import report_progress

from .data_sets import data_set, is_saved, saved
from .documents import Documents, Source, TextSplit
from .held_out import TooLittleTextError, choose
from .sources import LocalFiles
from .tables import TABLES
from .text_files import SUFFIXES


def load_text(source: str, column: str = "text", config_name: str | None = None, split: str | None = None) -> TextSplit:
    """The documents of a text, on two sides that never share one. They are read when they are asked for.

    ============================ ======================================================================================
    source                       documents
    ============================ ======================================================================================
    text file                    one: UTF-8, or UTF-16 or UTF-32 with a byte order mark
    .json .jsonl .csv .parquet   one in each row
    folder, ``books/*.txt``      its files, each read as above; those of a folder that are named .txt, .md, .rst or .py,
                                 and tables, also in folders within. Hidden files are passed over, and, with a
                                 `TextWarning`, what is no text and tables without the column
    folder of ``save_to_disk``   one in each row, memory-mapped
    id on the hub, ``owner/x``   one in each row, streamed: no more is fetched than is read
    ============================ ======================================================================================

    One document in 20 is held out (`tptt.data.held_out.choose`). Which ones depends on what the documents say and on
    nothing else, so that it is the same on every platform, and copies of a document are on the same side. Where one
    document is all of the text, its last tenth is held out, 16 MiB at most, and the hundredth before that, 64 KiB at
    most, is left out.

    Args:
        source: where the text is.
        column: of a table that holds the text.
        config_name: configuration of a data set. Given for a folder, the folder is read as one of the hub's would be.
        split: of a data set; None is "train". Given for a folder, it is read likewise.

    Raises:
        FileNotFoundError: ``source`` is neither here nor a data set that can be loaded.
        ValueError: there is no such column, configuration or split (the message lists those there are), no text was
            found, or a file cannot be read. A file that is damaged further on raises it when it is read there.
    """
    found = _source(source, column, config_name, split)
    with report_progress(f"looking through {source}", unit="documents") as progress:

        def counted() -> Iterator[tuple[int, int]]:
            for document in found.documents():
                progress.advance()
                yield document

        try:
            chosen = choose(counted())
        except TooLittleTextError as error:
            readable = ", ".join((*SUFFIXES, *TABLES))
            raise ValueError(f"{source!r}: {error}; readable are {readable} and data sets") from error
    return TextSplit(Documents(found, chosen, held_out=False), Documents(found, chosen, held_out=True))


def _source(source: str, column: str, config_name: str | None, split: str | None) -> Source:
    path = Path(source).expanduser()
    if path.is_dir():
        if is_saved(path):
            return saved(path, column, config_name, split)
        if config_name is not None or split is not None:
            return data_set(str(path), column, config_name, split)
        return LocalFiles(_files_in(path), column, strict=False)
    if path.is_file():
        files, strict = [path], True
    elif glob.has_magic(source):
        found = (Path(name) for name in glob.glob(str(path), recursive=True))
        files, strict = _in_reading_order({file: file for file in found if file.is_file()}), False
        if not files:
            raise FileNotFoundError(f"no file is named like {source!r}")
    else:
        return data_set(source, column, config_name, split)
    if config_name is not None:
        raise ValueError(f"{source!r} is a file: it has no configuration {config_name!r}, only data sets have")
    if split not in (None, "train"):
        raise ValueError(f"{source!r} is a file: it has no split {split!r}; it has train")
    return LocalFiles(files, column, strict)


def _files_in(folder: Path) -> list[Path]:
    inside = {path.relative_to(folder): path for path in folder.rglob("*")}
    return _in_reading_order({name: path for name, path in inside.items() if _is_read(name) and path.is_file()})


def _is_read(name: PurePath) -> bool:
    """Whether a file of a folder is read, by its path inside."""
    return name.suffix.lower() in (*SUFFIXES, *TABLES) and not any(part.startswith(".") for part in name.parts)


def _in_reading_order(files: Mapping[PurePath, Path]) -> list[Path]:
    """The files in the order in which they are read: paths of Windows are ordered in another way than POSIX's."""
    return [files[name] for name in sorted(files, key=lambda name: name.as_posix())]
