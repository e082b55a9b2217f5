"""Bases in GGUF files: whether a file can be used, and its SHA-256."""

from __future__ import annotations

import copy
import functools
import hashlib
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .compat import cached_file, gguf_available, gguf_block_sizes, gguf_can_dequantise
from .gguf_header import GgufHeader, read_header
from .gguf_place import GgufPlace

_OF_HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision", "proxies", "subfolder")
_PROJECTORS = ("clip", "mmproj")
_SCALED = ("gpt-oss",)
"""Architectures whose scaled positions transformers reads."""
_ROTARY = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def checked_gguf(place: GgufPlace, **options: Any) -> Path:
    """The file at ``place``, on this machine, once it is known that it can be loaded.

    Args:
        options: of ``from_pretrained``; those that concern the hub are used.

    Raises:
        ImportError: the package ``gguf`` is missing.
        OSError: there is no such file.
        ValueError: it is damaged, or holds what cannot be loaded; the message says which.
    """
    if not gguf_available():
        raise ImportError(
            f"the base {place} is a GGUF file: reading one needs the package gguf (pip install 'tptt[gguf]')"
        )
    hub = {k: options[k] for k in _OF_HUB if options.get(k) is not None}
    try:
        path = Path(str(cached_file(place.folder, place.file, **hub)))
    except OSError as error:
        raise OSError(f"there is no GGUF file {place}: {error}") from error
    try:
        _check(path)
    except (ValueError, MemoryError, OverflowError) as error:
        raise ValueError(f"the GGUF file {place} cannot be used: {error}") from error
    return path


def gguf_config(path: Path) -> PreTrainedConfig:
    """The configuration of the model in the file at ``path``, a copy of its own.

    It is read once in a process: transformers parses the whole vocabulary for it, which takes tens of seconds.

    Raises:
        ValueError: transformers does not know the architecture.
    """
    state = path.stat()
    return copy.deepcopy(_read_config(path.absolute(), state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _read_config(path: Path, size: int, changed: int) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)


def sha256_of(path: Path) -> str:
    """The SHA-256 of the file at ``path``, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(path: Path) -> None:
    header = read_header(path)
    _check_contents(header)
    sizes = gguf_block_sizes()
    for tensor in header.tensors:
        if tensor.kind not in sizes or not gguf_can_dequantise(tensor.kind):
            raise ValueError(
                f"its tensor {tensor.name!r} is stored in the ggml type {tensor.kind}, which the installed package "
                "gguf cannot dequantise"
            )
        values, end = sizes[tensor.kind][0], header.data_start + tensor.offset + tensor.nbytes(sizes)
        if not tensor.shape or 0 in tensor.shape or tensor.shape[0] % values:
            raise ValueError(f"its tensor {tensor.name!r} has the impossible shape {tensor.shape}: it is damaged")
        if end > header.file_size:
            raise ValueError(
                f"its tensor {tensor.name!r} ends at byte {end}, the file at byte {header.file_size}: it is damaged or "
                "not wholly copied"
            )


def _check_contents(header: GgufHeader) -> None:
    """Refuse files that hold something else than one whole language model."""
    said = header.metadata
    if header.architecture in _PROJECTORS or said.get("general.type") in _PROJECTORS:
        raise ValueError("it holds the projector of a multimodal model (mmproj), not a language model")
    if said.get("general.type", "model") != "model":
        raise ValueError(f"it holds a {said['general.type']!r}, not a whole model")
    if (parts := said.get("split.count", 0)) > 1:
        raise ValueError(
            f"it is part {said.get('split.no', 0) + 1} of {parts} of a model: join them with `llama-gguf-split --merge`"
        )
    if not header.tensors:
        raise ValueError("it holds no tensors: it is a vocabulary alone")
    scaling = said.get(f"{header.architecture}.rope.scaling.type", "none")
    if scaling != "none" and header.architecture not in _SCALED:
        raise ValueError(
            f"it scales its rotary embedding ({scaling}), which transformers does not read from a GGUF file of "
            f"{header.architecture!r}: the model would be another one. Give the base as safetensors"
        )
    if found := [t.name for t in header.tensors if t.name in _ROTARY]:
        raise ValueError(
            f"it scales its rotary embedding by a table ({', '.join(found)}), which transformers does not read from a "
            "GGUF file: the model would be another one. Give the base as safetensors"
        )
