"""Lets transformers' Auto classes know the model type "tptt", without importing transformers for that.

`import tptt` calls `register_config`. The configuration's class registers itself where it is defined
(`tptt.hf.configuration`), the model's class where it is defined (`tptt.hf.model`), which a configuration imports when
one is made: before that no Auto class asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import FileLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_AUTO = "transformers.models.auto.configuration_auto"
"""The module whose AutoConfig has to know the type: every other Auto class asks it first."""


def register_config() -> None:
    """Register `TpttConfig` with AutoConfig: now if transformers' Auto classes are imported, else as soon as they
    are."""
    if _is_imported():
        _import_configuration()
    elif not any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfterImport())


def _is_imported() -> bool:
    """Whether AutoConfig is there. Its module may be half executed: it imports torch, which calls `tptt.autoload`."""
    return hasattr(sys.modules.get(_AUTO), "AutoConfig")


def _import_configuration() -> None:
    importlib.import_module("tptt.hf.configuration")


class _RegisterAfterImport(MetaPathFinder):
    """Finds one module as Python's own finders do, and registers the configuration when that module has been executed:
    AutoConfig's, or where that one was being executed already, the next one of transformers."""

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _AUTO and not (fullname.startswith("transformers.") and _is_imported()):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        loader = spec.loader if spec is not None else None
        if not isinstance(loader, FileLoader):
            sys.meta_path.insert(0, self)
            return spec
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _import_configuration()

        loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
