"""Names of bases that are GGUF files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SUFFIX = ".gguf"


@dataclass(frozen=True)
class GgufPlace:
    """Where the GGUF file of a base is, as transformers takes it.

    Args:
        folder: folder or hub id.
        file: name of the file in it.
    """

    folder: str
    file: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.file}"

    def options(self) -> dict[str, str]:
        """What transformers' ``from_pretrained`` of this ``folder`` is given."""
        return {"gguf_file": self.file}


def gguf_place(name: str | None, file: str | None = None) -> GgufPlace | None:
    """The GGUF file that a base's ``name`` and ``file`` stand for; None: it is no GGUF file.

    Args:
        name: path of a ``.gguf`` file, or the folder or hub id that ``file`` lies in.
        file: name of a file in it.

    Raises:
        ValueError: both name a file, or ``file`` is not the name of a ``.gguf`` file.
    """
    is_file = name is not None and name.lower().endswith(SUFFIX) and not Path(name).is_dir()
    if file is None:
        if not is_file:
            return None
        folder, last = os.path.split(str(name))
        return GgufPlace(folder or ".", last)
    if name is None or is_file:
        raise ValueError(
            f"base_gguf_file={file!r} is the name of a file in the folder or hub repository base_model_name, which is "
            f"{name!r}: give one of both ways"
        )
    if not file.lower().endswith(SUFFIX):
        raise ValueError(f"base_gguf_file must be the name of a {SUFFIX} file, got {file!r}")
    return GgufPlace(name, file)
