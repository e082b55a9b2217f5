"""Configurations of bases as files."""

import json
from pathlib import Path


def describe(config, folder: Path) -> Path:
    """``config`` as a file of configs/bases."""
    path = folder / "base.json"
    path.write_text(json.dumps({"_source": "a remark"} | config.to_dict()))
    return path
