"""Public names of a package that are imported when they are first used (PEP 562): importing the package is cheap."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a package.

    Args:
        package: its name.
        homes: public name -> module that defines it, relative to the package.

    Raises:
        ValueError: a public name is called as one of the package's own modules that holds such a name. Importing that
            module would put the module in the name's place.
    """
    if clashes := sorted(name for name in homes if name in {home.partition(".")[0] for home in homes.values()}):
        raise ValueError(f"{package} has modules called as its public names: {', '.join(clashes)}")

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return find, names
