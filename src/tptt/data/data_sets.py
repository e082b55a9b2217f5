"""Data sets as `datasets` knows them: of the hub, streamed, and folders of `save_to_disk`, memory-mapped."""

from __future__ import annotations

from pathlib import Path

from .sources import Rows, folder_hash

_SHARDS = 256
"""Parts of a saved data set that are read in an order by chance."""


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` of `datasets` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def saved(folder: Path, column: str, config_name: str | None, split: str | None) -> Rows:
    """The rows of a folder that ``save_to_disk`` wrote.

    Raises:
        ValueError: it cannot be loaded, or has no such split.
    """
    from datasets import load_from_disk

    if config_name is not None:
        raise ValueError(f"{folder} is a saved data set: it has no configuration {config_name!r}")
    try:
        data = load_from_disk(str(folder))
    except Exception as error:  # of many kinds
        raise ValueError(f"{folder} cannot be loaded as a saved data set: {error}") from error
    if isinstance(data, dict):
        data = _split_of(data, split, str(folder))
    elif split not in (None, str(data.split)):
        raise ValueError(f"{folder} has no split {split!r}; it is a single one")
    rows = data.to_iterable_dataset(num_shards=max(1, min(_SHARDS, len(data))))
    return Rows(rows, column, str(folder), f"{folder_hash(folder)} {split} {column}")


def data_set(name: str, column: str, config_name: str | None, split: str | None) -> Rows:
    """The rows of a data set of the hub, or of a folder that is laid out like one. Nothing is fetched but what is read.

    Raises:
        FileNotFoundError: there is no such data set, or it cannot be reached.
        ValueError: it has no such configuration or split.
    """
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(name, config_name)
        data = builder.as_streaming_dataset()
    except Exception as error:  # of many kinds
        _check_configuration(name, config_name, error)
        raise FileNotFoundError(
            f"{name!r} is no file or folder here, and loading it as a data set failed: {error}"
        ) from error
    rows = _split_of(data, split, name)
    # a data set of the hub is hashed by its revision; the hash of a folder does not depend on what its files hold
    content = folder_hash(Path(name)) if Path(name).is_dir() else builder.hash
    return Rows(rows, column, name, f"{builder.dataset_name} {builder.config_id} {content} {split} {column}")


def _split_of(data, split: str | None, name: str):
    wanted = split or "train"
    if wanted not in data:
        raise ValueError(f"{name} has no split {wanted!r}; it has {', '.join(map(str, data))}")
    return data[wanted]


def _check_configuration(name: str, config_name: str | None, error: Exception) -> None:
    """Raises ValueError where ``error`` is that of a configuration that is missing or unknown."""
    from datasets import get_dataset_config_names

    try:
        names = get_dataset_config_names(name)
    except Exception:  # the data set itself cannot be loaded
        return
    if config_name is None and len(names) > 1:
        raise ValueError(f"{name} has several configurations: choose one of {', '.join(names)}") from error
    if config_name is not None and config_name not in names:
        raise ValueError(f"{name} has no configuration {config_name!r}; it has {', '.join(names)}") from error
