"""The header of a GGUF file, read without its tensors: is the file whole, and what does it hold?

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = "general.alignment"


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of a tensor.

    Args:
        shape: sizes, the fastest-moving first, as the file has them.
        kind: number of the ggml type that its values are stored in.
        offset: bytes from the start of the tensors' part of the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    def nbytes(self, sizes: Mapping[int, tuple[int, int]]) -> int:
        """Bytes in the file; ``sizes`` has for each ggml type the values of a block and their bytes."""
        values, held = sizes[self.kind]
        total = 1
        for n in self.shape:
            total *= n
        return total // values * held


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Args:
        metadata: name -> value; of an array its length alone.
        tensors: in the file's order.
        data_start: byte at which the tensors' part begins.
        file_size: bytes of the whole file.
    """

    metadata: dict[str, Any]
    tensors: tuple[TensorEntry, ...]
    data_start: int
    file_size: int

    @property
    def architecture(self) -> str:
        """The name of the model's architecture, as llama.cpp spells it."""
        return str(self.metadata["general.architecture"])


class _Reader:
    """Reads numbers and strings of a file, and knows where the file ends."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError("the file ends within its header: it is damaged or not wholly copied")
        return self.file.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def string(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"a name in its header is no text: it is damaged ({error})") from error

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.take(self.number("Q")).decode("utf-8", errors="replace")
        if kind == _ARRAY:
            return self._array()
        raise ValueError(f"its header has a value of the unknown kind {kind}: it is damaged")

    def _array(self) -> int:
        """Skip an array; returns its length."""
        kind, count = self.number("I"), self.number("Q")
        if kind in _NUMBERS:
            self.take(count * struct.calcsize(f"<{_NUMBERS[kind]}"))
        elif count > self.size:
            raise ValueError("its header has an array that is longer than the file: it is damaged")
        else:
            for _ in range(count):
                self.value(kind)
        return count


def read_header(path: str | Path) -> GgufHeader:
    """The header of the GGUF file ``path``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no GGUF file of a known version, or its header is damaged; the message says which.
    """
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        reader = _Reader(file, size)
        _check_beginning(reader)
        tensors, values = reader.number("Q"), reader.number("Q")
        if max(tensors, values) > size:
            raise ValueError("its header promises more entries than the file has bytes: it is damaged")
        metadata: dict[str, Any] = {}
        for _ in range(values):
            name = reader.string()
            metadata[name] = reader.value(reader.number("I"))
        entries = tuple(_entry(reader) for _ in range(tensors))
        end = file.tell()
    if "general.architecture" not in metadata:
        raise ValueError("its header does not say the model's architecture (general.architecture)")
    alignment = metadata.get(_ALIGNMENT, 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"its header has {_ALIGNMENT} {alignment!r}: it is damaged")
    return GgufHeader(metadata, entries, -(-end // alignment) * alignment, size)


def _check_beginning(reader: _Reader) -> None:
    if reader.size == 0:
        raise ValueError("the file is empty")
    if reader.size < 24:
        raise ValueError(f"the file has {reader.size} bytes, fewer than a GGUF header: it is damaged")
    if (magic := reader.take(4)) != _MAGIC:
        raise ValueError(f"it is no GGUF file: it begins with {magic!r}, and a GGUF file with {_MAGIC!r}")
    beginning = reader.take(4)
    if int.from_bytes(beginning, "big") in _VERSIONS:
        raise ValueError("it is big-endian; transformers reads little-endian GGUF files alone")
    if (version := int.from_bytes(beginning, "little")) not in _VERSIONS:
        raise ValueError(f"it is of GGUF version {version}; known are {' and '.join(map(str, _VERSIONS))}")


def _entry(reader: _Reader) -> TensorEntry:
    name, count = reader.string(), reader.number("I")
    if count > 8:
        raise ValueError(f"its tensor {name!r} has {count} dimensions: it is damaged")
    shape = tuple(reader.number("Q") for _ in range(count))
    return TensorEntry(name, shape, reader.number("I"), reader.number("Q"))
