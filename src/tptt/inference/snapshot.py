"""A conversation's memory as data: kept, saved, loaded, and turned into a cache again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import DynamicCache

from tptt.hf import memories
from tptt.hf.patch import prepare_cache
from tptt.version import __version__

from .fingerprint import fingerprint


def new_cache(model) -> DynamicCache:
    """An empty cache for a converted ``model``.

    Raises:
        ValueError: it carries no memory.
    """
    if not memories(model):
        raise ValueError(f"{type(model).__name__} carries no memory: attach_memory(model, config) gives it one")
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    prepare_cache(model, cache)
    return cache


@dataclass(frozen=True)
class MemorySnapshot:
    """What a cache held at one moment; nothing that happens to the cache afterwards changes it.

    Args:
        tensors: keys, values, states and bookkeeping by ``layer.attribute``.
        plain: the layers' other attributes by the same names, and their classes.
        tokens: that had been read.
        pending: ids that had been generated and not read yet.
        model: `fingerprint` of the model that read them.
    """

    tensors: dict[str, torch.Tensor]
    plain: dict[str, Any]
    tokens: int
    pending: tuple[int, ...]
    model: str

    @classmethod
    def of(cls, model, cache, pending: tuple[int, ...] = ()) -> MemorySnapshot:
        """What ``cache``, filled by ``model``, holds now.

        Raises:
            ValueError: the cache records its past for a roll-back (an assistant's), or holds what cannot be kept.
        """
        tensors: dict[str, torch.Tensor] = {}
        plain: dict[str, Any] = {}
        for index, layer in enumerate(cache.layers):
            if getattr(layer, "record_past", False):
                raise ValueError("this cache records its past, as assisted decoding needs it: crop it, or take another")
            if hasattr(layer, "linearize"):
                layer.linearize()
            plain[f"{index}.class"] = type(layer).__name__
            for name, value in vars(layer).items():
                _take(f"{index}.{name}", value, tensors, plain)
        return cls(tensors, plain, int(cache.get_seq_length()), tuple(pending), fingerprint(model))

    @property
    def bytes(self) -> int:
        """Of the tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    def cache(self, model) -> DynamicCache:
        """A new cache that goes on from here; every call gives another.

        Raises:
            ValueError: ``model`` is not the one that read the tokens.
        """
        self.check(model)
        cache = new_cache(model)
        for index, layer in enumerate(cache.layers):
            kept, found = self.plain[f"{index}.class"], type(layer).__name__
            if kept != found:
                raise ValueError(f"layer {index} of the snapshot is a {kept}, that of a cache of this model a {found}")
            for name, value in vars(layer).items():
                setattr(layer, name, self._give(f"{index}.{name}", value, model.device))
        return cache

    def check(self, model) -> None:
        """Raises:
        ValueError: ``model`` is not the one that read the tokens.
        """
        if fingerprint(model) != self.model:
            raise ValueError(
                f"this snapshot of {self.tokens} tokens was taken from another model: another base, other weights "
                "(trained on, merged, in another precision), other adapters at work or another memory configuration "
                f"than this {type(model).__name__}. Load the checkpoint that read them, or read the text again"
            )

    def _give(self, key: str, value: Any, device: torch.device) -> Any:
        if isinstance(value, dict):
            return {k: self._give(f"{key}.{k}", v, device) for k, v in value.items()}
        if key in self.tensors:
            return self.tensors[key].to(device, copy=True)
        if key in self.plain:
            kept = self.plain[key]
            if isinstance(kept, dict):
                return device if "device" in kept else getattr(torch, kept["dtype"])
            return kept
        return value

    def save(self, path: str | Path) -> Path:
        """Write to one safetensors file, ``path``; returns it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"plain": self.plain, "tokens": self.tokens, "pending": self.pending, "model": self.model}
        about["tptt_version"] = __version__
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, path, {"tptt_snapshot": json.dumps(about)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> MemorySnapshot:
        """Read what `save` wrote.

        Raises:
            OSError: there is no such file.
            ValueError: it is no snapshot.
        """
        if not Path(path).is_file():
            raise OSError(f"no snapshot at {path}")
        try:
            with safe_open(path, "pt") as file:
                about = (file.metadata() or {}).get("tptt_snapshot")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except Exception as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
        if about is None:
            raise ValueError(
                f"{path} is a safetensors file, but no snapshot of a memory (MemorySnapshot.save writes them)"
            )
        found = json.loads(about)
        return cls(tensors, found["plain"], found["tokens"], tuple(found["pending"]), found["model"])


def _take(key: str, value: Any, tensors: dict, plain: dict) -> None:
    """Sort one attribute of a cache layer into what is kept; what a new cache makes for itself is left."""
    if isinstance(value, torch.Tensor):
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
    elif isinstance(value, dict):
        for name, part in value.items():
            _take(f"{key}.{name}", part, tensors, plain)
    elif isinstance(value, torch.device):
        plain[key] = {"device": None}
    elif isinstance(value, torch.dtype):
        plain[key] = {"dtype": str(value).removeprefix("torch.")}
    elif value is None or isinstance(value, bool | int | float | str):
        plain[key] = value
