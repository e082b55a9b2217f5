"""Trainer's checkpoints of a run: which of them can be resumed."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tptt.hf.compat import TRAINER_STATE_NAME


def last_checkpoint(folder: str | Path) -> str | None:
    """The last complete checkpoint in a folder of Trainer's; None where there is none.

    Trainer writes a checkpoint's state last: one without it was being written when its run ended.
    """
    return next((str(x) for x in reversed(_checkpoints(folder)) if _complete(x)), None)


def broken_checkpoints(folder: str | Path) -> list[str]:
    """Names of those that a run which ended meanwhile left half written."""
    return [x.name for x in _checkpoints(folder) if not _complete(x)]


def _checkpoints(folder: str | Path) -> list[Path]:
    found = [x for x in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", x.name)]
    return sorted(found, key=lambda x: int(x.name.partition("-")[2]))


def _complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
