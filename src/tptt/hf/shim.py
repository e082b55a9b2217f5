"""The file beside a checkpoint through which ``trust_remote_code=True`` finds the installed tptt package."""

from __future__ import annotations

from pathlib import Path

SHIM = "modeling_tptt.py"
AUTO_MAP = {"AutoConfig": "modeling_tptt.TpttConfig", "AutoModelForCausalLM": "modeling_tptt.TpttModel"}
"""What a checkpoint's config.json says of the classes in it."""
_TEXT = '''"""Loads this checkpoint through the installed tptt package; needed by trust_remote_code=True only."""

_HINT = (
    "this checkpoint needs the tptt package, version 1.0 or newer, that made it. The package called tptt on the public "
    "index (0.x) is another, older project: uninstall that one and install tptt from its repository, "
    "for example with pip install ./tptt"
)
try:
    import tptt
    from tptt import TpttConfig, TpttModel
except ImportError as error:
    raise ImportError(_HINT) from error
if int(str(getattr(tptt, "__version__", "0")).split(".")[0]) < 1:
    raise ImportError(_HINT + f" (found {getattr(tptt, '__version__', 'no version')})")

__all__ = ["TpttConfig", "TpttModel"]
'''


def write_shim(folder: Path) -> None:
    """Write the file into ``folder``, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SHIM).write_text(_TEXT, encoding="utf-8")
