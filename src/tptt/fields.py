"""Fields of a dataclass that say what they are."""

from __future__ import annotations

import textwrap
from dataclasses import field, fields
from typing import Any, TypeVar

T = TypeVar("T", bound=type)


def described(default: Any, help: str) -> Any:
    """A dataclass field with a default; its metadata holds, as ``help``, what `tptt train --help` prints of it."""
    return field(default=default, metadata={"help": help})


def documented(cls: T) -> T:
    """Append what the metadata of the dataclass ``cls`` say of its fields to its docstring."""
    lines = [f"    {f.name}: {f.metadata['help']}" for f in fields(cls) if "help" in f.metadata]
    wrapped = (textwrap.fill(line, 120, subsequent_indent=8 * " ", break_on_hyphens=False) for line in lines)
    cls.__doc__ = "\n".join([textwrap.dedent(f"    {cls.__doc__}").rstrip(), "", "Args:", *wrapped, ""])
    return cls
