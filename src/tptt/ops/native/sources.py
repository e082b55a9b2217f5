"""The hash that ties the compiled kernels to their sources.

setup.py runs this file by its path, before anything is installed: it imports the standard library only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent / "kernels"
MARK = b"tptt kernel sources "
"""In the compiled library this text stands before the hash of its sources (kernels/dispatch.cpp)."""


def source_hash(folder: Path = FOLDER) -> str:
    """SHA-256 over names and contents of the C++ files in ``folder``, as 64 hexadecimal digits.

    Raises: FileNotFoundError: ``folder`` has no C++ files.
    """
    files = sorted((file for file in folder.glob("*") if file.suffix in (".h", ".cpp")), key=lambda file: file.name)
    if not files:
        raise FileNotFoundError(f"there are no kernel sources in {folder}")
    total = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        total.update(f"{file.name} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()
