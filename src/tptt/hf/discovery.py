"""Which modules of a model are its self-attention, and what they look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from .compat import uncompiled
from .layouts import SPLITS, Geometry, Layout, Misfit, chosen_layouts, known


class UnsupportedAttentionError(ValueError):
    """An attention module has none of the known layouts, or does what a memory cannot follow."""


class Found(NamedTuple):
    """One self-attention module: its name in the model, the module, the number of its layer, and its sizes, or the
    error that says why it cannot have a memory."""

    name: str
    module: nn.Module
    layer: int
    geometry: Geometry | UnsupportedAttentionError

    @property
    def sizes(self) -> Geometry:
        """Its sizes.

        Raises:
            UnsupportedAttentionError: a memory cannot be given to it.
        """
        if isinstance(self.geometry, UnsupportedAttentionError):
            raise self.geometry
        return self.geometry


def find_attention(model: nn.Module, layout: str | Mapping[str, Any] | None = None) -> list[Found]:
    """Every self-attention module of ``model`` in layer order, without cross-attention and linear attention.

    Args:
        model: any module. Give the language part of a multimodal model.
        layout: as ``MemoryConfig.attention_layout``.

    Raises:
        UnsupportedAttentionError: there is none. The message says what was found.
    """
    layouts = chosen_layouts(layout)
    found: list[Found] = []
    inner: str | None = None  # what lies in the attention module found last
    for name, module in model.named_modules():
        if uncompiled(module) is not module or _passed_over(name, module) or (inner and name.startswith(inner)):
            continue
        fitting = [x for x in layouts if x.fits(module)]
        if fitting or (_is_attention(module) and not _wraps(module, layouts)):
            found.append(Found(name, module, _layer_of(module, len(found)), _geometry(name, module, fitting)))
            inner = f"{name}."
    if not found:
        names = sorted({type(m).__name__ for m in model.modules() if "ttention" in type(m).__name__})
        raise UnsupportedAttentionError(
            f"{type(model).__name__} has no attention module with a known layout (attention classes found: "
            f"{', '.join(names) or 'none'}); known layouts: {known()}"
        )
    return found


def choose(found: Sequence[Found], layers: Any) -> list[Found]:
    """The modules of ``found`` in the layers that ``layers`` names (see ``MemoryConfig.layers``).

    Raises:
        ValueError: a layer of that number has no attention, or no layer is chosen.
    """
    if isinstance(layers, int):
        chosen = list(found[layers - 1 :: layers])
    elif layers == "all":
        chosen = list(found)
    else:
        numbers = [x.layer for x in found]
        if strange := [n for n in layers if n not in numbers]:
            raise ValueError(f"layers {strange} have no attention here; valid are {numbers}")
        chosen = [x for x in found if x.layer in layers]
    if not chosen:
        raise ValueError(f"layers={layers!r} chooses none of the {len(found)} layers with attention")
    return chosen


def _is_attention(module: nn.Module) -> bool:
    weights = (p for child in module.children() for p in child.parameters())
    return "ttention" in type(module).__name__ and any(p.ndim >= 2 for p in weights)


def _wraps(module: nn.Module, layouts: Sequence[Layout]) -> bool:
    """Attention lies in a child, as in BERT, where this module adds the output projection."""
    return any(x.fits(m) for m in module.modules() if m is not module for x in layouts)


def _passed_over(name: str, module: nn.Module) -> bool:
    """Whether ``module`` is cross-attention, which reads another sequence, or linear attention, which is a memory."""
    kind, last = type(module).__name__.lower(), name.rpartition(".")[2].lower()
    if getattr(module, "is_cross_attention", False) or "cross" in kind or "cross" in last or last == "encoder_attn":
        return True
    return any(word in kind for word in ("lightning", "deltaattention", "deltanet"))


def _layer_of(module: nn.Module, count: int) -> int:
    for name in ("layer_idx", "layer_id"):
        if isinstance(index := getattr(module, name, None), int):
            return index
    return count


def _geometry(name: str, module: nn.Module, layouts: list[Layout]) -> Geometry | UnsupportedAttentionError:
    reasons = []
    if getattr(module, "is_kv_shared_layer", False):
        return UnsupportedAttentionError(
            f"{name} ({type(module).__name__}) takes its keys and values from another layer: a memory has nothing to "
            "read; leave this layer out with layers=[...]"
        )
    for layout in layouts:
        try:
            return SPLITS[layout.split].measure(layout, module)
        except Misfit as error:
            reasons.append(f"{layout.name!r}: {error}")
    return UnsupportedAttentionError("; ".join([_described(name, module), *reasons, f"known layouts: {known()}"]))


def _described(name: str, module: nn.Module) -> str:
    parts = ", ".join(
        f"{n} {_size(child)}" for n, child in module.named_children() if any(True for _ in child.parameters())
    )
    return f"{name} ({type(module).__name__}) has no layout known here; its parts are {parts or 'none'}"


def _size(child: nn.Module) -> str:
    weight = getattr(child, "weight", None)
    return f"({type(child).__name__}{'' if weight is None else ' ' + 'x'.join(map(str, weight.shape))})"
