"""A run's options from a YAML file of flat keys and from flags, which go before the file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .keys import Key, known
from .options import RunOptions


class _Loader(yaml.SafeLoader):
    """SafeLoader for which ``2e6`` and ``1e-3`` are numbers, as in YAML 1.2, and ``2e6`` a whole one."""


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    value = float(node.value)
    return int(value) if value.is_integer() else value


_Loader.add_implicit_resolver("!number", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), [*"-+.0123456789"])
_Loader.add_constructor("!number", _number)


def load_run(file: str | Path | None = None, flags: Mapping[str, str | bool] | None = None) -> RunOptions:
    """The options of a run.

    Args:
        file: YAML file of flat keys; None is a run of flags alone.
        flags: {key: what was typed}, which go before the file; a switch is true or false.

    Raises:
        OSError: the file cannot be read.
        ValueError: an unknown key, a value of another type, or one that is not valid. The message says where it stands.
    """
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for key, value, place in _in_file(Path(file)) if file is not None else ():
        values[key.name], places[key.name] = key.accept(value, place), place
        if key.name == "base_config" and value is not None:
            values[key.name] = str(Path(file).parent / value)  # type: ignore[arg-type]
    for name, given in (flags or {}).items():
        place = f"flag --{name.replace('_', '-')}"
        values[name], places[name] = _from_flag(known(name, place), given, place), place
    try:
        return RunOptions.from_flat(values)
    except ValueError as error:
        told = [f"{key}: {place}" for key, place in places.items() if re.search(rf"\b{key}\b", str(error))]
        raise ValueError(f"{error} ({'; '.join(told)})" if told else str(error)) from error


def _in_file(path: Path) -> Iterator[tuple[Key, Any, str]]:
    """(key, value, place) of each key in the file."""
    loader = _Loader(path.read_text(encoding="utf-8"))
    try:
        node = loader.get_single_node()
        if node is None:  # nothing but comments
            return
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"{path}: a run file holds lines of `key: value`, this one does not")
        seen: dict[str, str] = {}
        for key_node, value_node in node.value:
            place = f"{path} line {key_node.start_mark.line + 1}"
            key = known(str(loader.construct_object(key_node, deep=True)), place)
            if key.name in seen:
                raise ValueError(f"{place}: {key.name} stands in {seen[key.name]} already")
            seen[key.name] = place
            yield key, loader.construct_object(value_node, deep=True), place
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _from_flag(key: Key, given: str | bool, place: str) -> Any:
    """What was typed, as YAML where that is of the key's type, else as text; ``a,b`` is a list.

    Text stays as it was typed: in YAML a ``#`` would begin a comment, and quotes would vanish.
    """
    if isinstance(given, bool):
        return given
    parsed = _parsed(given)
    if isinstance(parsed, str) or (parsed is None and "#" in given):
        parsed = given
    listed = [[_parsed(x) for x in given.split(",")]] if "," in given and given[0] not in "[{" else []
    for reading in (*listed, parsed, given):
        try:
            return key.accept(reading, place)
        except ValueError:
            continue
    return key.accept(parsed, place)


def _parsed(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError:
        return text
