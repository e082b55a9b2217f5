"""The keys of a run: their types, defaults and help, from the fields of the classes that hold them."""

from __future__ import annotations

import difflib
import functools
import operator
import types
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import Strict, TypeAdapter, ValidationError

from .options import PARTS, RunOptions


@dataclass(frozen=True)
class Key:
    """One key of a run file, which is a flag of `tptt train` as well.

    Args:
        name: as it stands in a file.
        part: field of `RunOptions` that holds it, or "run" for its own fields.
        hint: its type.
        default: its default.
        help: what it is.
    """

    name: str
    part: str
    hint: Any
    default: Any
    help: str

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false."""
        return self.hint in (bool, bool | None)

    @cached_property
    def _adapter(self) -> TypeAdapter:
        return TypeAdapter(_strict(self.hint))

    def accept(self, value: Any, place: str) -> Any:
        """``value`` as one of this key's type.

        Raises:
            ValueError: it is not; the message says so of ``place``.
        """
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            found = dict.fromkeys(_wanted(x["msg"]) for x in error.errors())
            valid = " or ".join([*found, *(["null"] if type(None) in get_args(self.hint) else [])])
            raise ValueError(f"{place}: {self.name} must be {valid}, got {value!r}") from None


def _wanted(message: str) -> str:
    """What pydantic's ``message`` says that a value should be, in a run file's words."""
    return message.removeprefix("Input should be ").partition(",")[0].replace("tuple", "list")


def _strict(hint: Any) -> Any:
    """``hint`` for pydantic, without its conversions: true is no number, and "3" is text."""
    if hint in (int, float, bool):
        return Annotated[hint, Strict()]
    origin: Any = get_origin(hint)
    inner: list[Any] = [_strict(x) for x in get_args(hint)]
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, inner)
    if origin is Sequence:
        origin, inner = tuple, [inner[0], ...]
    return origin[*inner] if inner else hint


@cache
def keys() -> dict[str, Key]:
    """{name: key} of all keys, in the order in which they are documented."""
    found = {}
    defaults = RunOptions().flat()
    for part, kind in {"run": RunOptions, **PARTS}.items():
        hints = get_type_hints(kind)
        for f in fields(kind):
            if f.name not in PARTS:
                found[f.name] = Key(f.name, part, hints[f.name], defaults[f.name], f.metadata["help"])
    return found


def known(name: str, place: str) -> Key:
    """The key of that name.

    Raises:
        ValueError: there is none; the message names the nearest one and the ``place``.
    """
    if name not in keys():
        nearest = difflib.get_close_matches(name, keys(), 1, 0.0)[0]
        raise ValueError(f"{place}: unknown key {name!r}; did you mean {nearest!r}? `tptt train --help` lists all")
    return keys()[name]
