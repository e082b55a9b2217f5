"""One YAML file per training run: flat keys, each of them a flag of `tptt train`, flags before the file."""

from __future__ import annotations

import difflib
import math
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from tptt.config import MemoryConfig
from tptt.train.settings import TrainingSettings

DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "4bit")


@dataclass(frozen=True)
class RunOptions:
    """All that a training run is given.

    Args:
        base_model_name: path or hub id of a causal language model.
        base_model_revision: branch, tag or commit of it.
        base_config: JSON file with the base's configuration, for a dry run without the base; in a run file relative to it.
        data: text file, folder, table or data set of the hub; null is the running Python's documentation.
        column: of a table that holds the text.
        out: folder to write; must be empty, or hold what is to be resumed.
        resume: go on from the last checkpoint in ``out``.
        save_every: optimizer steps between two checkpoints to resume from (0: none).
        lora_rank: of LoRA; 0 trains the whole base instead.
        lora_alpha, lora_dropout: of LoRA.
        lora_targets: names of modules that get LoRA; "auto" are the projections that the memory reads and writes.
        dtype: of the base's weights; "auto" is what its checkpoint has.
        quantization: of the frozen base: "none", or "4bit" (NF4 with double quantisation by bitsandbytes).
        attn_implementation: of the base; a window needs "sdpa" or "eager".
        hardware: device a dry run is made for, a name in `tptt.estimate.hardware.HARDWARE`; null is all of them.
        memory, training: the fields of `MemoryConfig` and `TrainingSettings`, which are keys of their own.

    Raises:
        ValueError: a value is not valid; the message names it and what is.
    """

    base_model_name: str | None = None
    base_model_revision: str | None = None
    base_config: str | None = None
    data: str | None = None
    column: str = "text"
    out: str = "tptt-train-out"
    resume: bool = False
    save_every: int = 500
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    lora_targets: str | Sequence[str] = "auto"
    dtype: str = "auto"
    quantization: str = "none"
    attn_implementation: str | None = None
    hardware: str | None = None
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        for name, valid in (("dtype", DTYPES), ("quantization", QUANTIZATIONS)):
            if getattr(self, name) not in valid:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; valid are {', '.join(valid)}")
        for name in ("lora_rank", "save_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.lora_alpha < math.inf:
            raise ValueError(f"lora_alpha must be more than 0 and finite, got {self.lora_alpha}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be a number in [0, 1), got {self.lora_dropout}")
        if self.quantization != "none" and not self.lora_rank:
            raise ValueError("quantization 4bit freezes the base: it needs lora_rank of 1 or more, got 0")

    def changed(self, **values: Any) -> RunOptions:
        """These options with other values of some keys."""
        flat = flat_options(self) | values
        return _built(flat, {})

    def to_yaml(self) -> str:
        """All keys with their values, as a run file."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in flat_options(self).items()}
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


PARTS: dict[str, type] = {"memory": MemoryConfig, "training": TrainingSettings}
"""Fields of `RunOptions` whose own fields are keys."""


def flat_options(options: RunOptions) -> dict[str, Any]:
    """{key: value} of all keys."""
    own = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in PARTS}
    parts = (getattr(options, name) for name in PARTS)
    return own | {f.name: getattr(part, f.name) for part in parts for f in fields(part)}


@cache
def keys() -> dict[str, Any]:
    """{key: its type}, in the order in which they are documented."""
    own = {k: v for k, v in get_type_hints(RunOptions).items() if k not in PARTS}
    return own | {k: v for part in PARTS.values() for k, v in get_type_hints(part).items()}


def described_keys() -> list[tuple[str, Any, str]]:
    """(key, default, what it is) of all keys; the words are those of the classes' docstrings."""
    words: dict[str, str] = {}
    for kind in (RunOptions, *PARTS.values()):
        text = re.split(r"\n    Args:\n|\n    Raises:\n", kind.__doc__ or "")[1]
        for entry in re.split(r"\n {8}(?=\S)", "\n" + text.rstrip()):
            names, _, what = entry.partition(": ")
            words |= {n.strip(): " ".join(what.split()) for n in names.split(",")}
    return [(k, v, words[k]) for k, v in flat_options(RunOptions()).items()]


# ---- what a file and flags say ------------------------------------------------------------------------------------


def load_run(file: str | Path | None = None, flags: Sequence[tuple[str, str]] = (), **defaults: Any) -> RunOptions:
    """The options of a run.

    Args:
        file: YAML file of flat keys; None is a run of flags alone.
        flags: (name, value) as they were typed, the value as YAML; over the file's, the last one counts.
        defaults: of keys that neither gives.

    Raises:
        OSError: the file cannot be read.
        ValueError: an unknown key, a value of another type, or one that is not valid; the message says where it stands.
    """
    values, places = dict(defaults), {}
    for key, value, place in _in_file(Path(file)) if file is not None else ():
        values[key], places[key] = _typed(key, value, place), place
        if key == "base_config" and value is not None:
            values[key] = str(Path(file).parent / value)  # type: ignore[arg-type]
    for name, text in flags:
        place = f"flag --{name}"
        key = _known(name.replace("-", "_"), place)
        values[key], places[key] = _typed_flag(key, text, place), place
    return _built(values, places)


def parse_flags(arguments: Sequence[str]) -> tuple[Path | None, list[tuple[str, str]]]:
    """The run file and the flags of a command line: ``--key value``, ``--key=value``, ``--key`` alone where it is a switch.

    Raises:
        ValueError: two files, a flag without its value, an unknown flag.
    """
    files: list[str] = []
    flags: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            files.append(word)
            continue
        name, given, value = word[2:].partition("=")
        if not given:
            is_switch = keys()[_known(name.replace("-", "_"), f"flag --{name}")] in (bool, bool | None)
            if rest and not rest[0].startswith("--") and not (is_switch and not isinstance(_parsed(rest[0]), bool)):
                value = rest.pop(0)
            elif is_switch:
                value = "true"
            else:
                raise ValueError(f"flag --{name} needs a value")
        flags.append((name, value))
    if len(files) > 1:
        raise ValueError(f"one run file at most, got {', '.join(files)}")
    return (Path(files[0]) if files else None), flags


def _in_file(path: Path):
    """(key, value, place) of each line's key."""
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    try:
        node = loader.get_single_node()
        if node is None:  # nothing but comments
            return
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"{path}: a run file holds lines of `key: value`, this one does not")
        seen: dict[str, str] = {}
        for key_node, value_node in node.value:
            place = f"{path} line {key_node.start_mark.line + 1}"
            key = _known(str(loader.construct_object(key_node, deep=True)), place)
            if key in seen:
                raise ValueError(f"{place}: {key} stands in {seen[key]} already")
            seen[key] = place
            yield key, loader.construct_object(value_node, deep=True), place
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _known(key: str, place: str) -> str:
    if key not in keys():
        nearest = difflib.get_close_matches(key, keys(), 1, 0.0)[0]
        raise ValueError(f"{place}: unknown key {key!r}; did you mean {nearest!r}? `tptt train --keys` lists all")
    return key


def _built(values: Mapping[str, Any], places: Mapping[str, str]) -> RunOptions:
    parts = {}
    try:
        for name, kind in PARTS.items():
            parts[name] = kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})
        own = {f.name: values[f.name] for f in fields(RunOptions) if f.name in values}
        return replace(RunOptions(**own), **parts)
    except ValueError as error:
        told = [f"{k}: {p}" for k, p in places.items() if re.search(rf"\b{k}\b", str(error))]
        raise ValueError(f"{error} ({'; '.join(told)})" if told else str(error)) from error


# ---- types --------------------------------------------------------------------------------------------------------

_NO = object()
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def _typed(key: str, value: Any, place: str) -> Any:
    if (found := _accepted(value, keys()[key])) is _NO:
        raise ValueError(f"{place}: {key} must be {_worded(keys()[key])}, got {value!r}")
    return found


def _typed_flag(key: str, text: str, place: str) -> Any:
    """A flag's text as YAML where that is of the key's type, else as it stands; ``a,b`` is a list. Text is taken as it is:
    in YAML a ``#`` would begin a comment, quotes would vanish."""
    hint = keys()[key]
    parsed = _parsed(text)
    if isinstance(parsed, str) or (parsed is None and "#" in text):
        parsed = text
    listed = [[_parsed(x) for x in text.split(",")]] if "," in text and text[0] not in "[{" else []
    for reading in (*listed, parsed, text):
        if (found := _accepted(reading, hint)) is not _NO:
            return found
    return _typed(key, parsed, place)


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _accepted(value: Any, hint: Any) -> Any:
    """``value`` as one of the type ``hint``, or _NO."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return next((x for kind in inner if (x := _accepted(value, kind)) is not _NO), _NO)
    if origin in (tuple, Sequence):
        if not isinstance(value, list | tuple):
            return _NO
        found = tuple(_accepted(x, inner[0]) for x in value)
        return _NO if any(x is _NO for x in found) else found
    if origin is dict:
        return value if isinstance(value, dict) else _NO
    if hint in (int, float):
        return _number(value, hint)
    return value if isinstance(value, hint) else _NO


def _number(value: Any, kind: type) -> Any:
    """YAML 1.1, which this is, takes ``2e6`` and ``1e-3`` for text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return _NO
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _NO
    if kind is int:
        return int(value) if float(value).is_integer() else _NO
    return float(value)


def _worded(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_worded(x) for x in inner)
    if origin in (tuple, Sequence):
        return f"a list (of each {_worded(inner[0])})"
    return _WORDS.get(hint, "a mapping")
