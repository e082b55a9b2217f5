"""Where an attention module keeps its projections, as data.

Legend: B batch, T tokens, H query heads, Hk key/value heads, D width of a head's queries and keys, V of its values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

_MISSING = object()


@dataclass(frozen=True)
class Layout:
    """Names of the parts of one kind of attention module.

    Args:
        name: of the layout.
        projections: children whose outputs hold queries, keys and values: three, or one that holds all (see ``split``).
        output: the output projection, whose input the memory is mixed into; None: the module's own output is that
            input.
        split: how the projections' outputs fall into heads, a key of `SPLITS`.
        attributes: what the module's attributes have to be for the layout to apply.
    """

    name: str
    projections: tuple[str, ...]
    output: str | None
    split: str = "separate"
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def fits(self, module: nn.Module) -> bool:
        parts = self.parts
        return all(isinstance(getattr(module, n, None), nn.Module) for n in parts) and all(
            getattr(module, n, _MISSING) == value for n, value in self.attributes.items()
        )

    @property
    def parts(self) -> tuple[str, ...]:
        return (*dict.fromkeys(self.projections), *(() if self.output is None else (self.output,)))


@dataclass(frozen=True)
class Geometry:
    """Layout and sizes of one attention module."""

    layout: Layout
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int

    def split(self, module: nn.Module, outputs: dict[str, torch.Tensor]):
        """q [B, T, H, D], k [B, T, Hk, D] and v [B, T, Hk, V] from the projections' outputs."""
        parts = [outputs[n] for n in self.layout.projections]
        return SPLITS[self.layout.split].split(self, module, parts)


# ---- how a module's projections fall into heads -------------------------------------------------------------------


class Misfit(Exception):
    """Why a layout whose parts are all there does not hold."""


@dataclass(frozen=True)
class Split:
    """How to read the sizes off a module, and to cut its projections' outputs into heads."""

    measure: Callable[[Layout, nn.Module], Geometry]
    split: Callable[[Geometry, nn.Module, list[torch.Tensor]], tuple[torch.Tensor, ...]]


def _config(module: nn.Module, *names: str) -> int | None:
    """The first of ``names`` that the module or its configuration has as a number."""
    for place in (module, getattr(module, "config", None)):
        for name in names:
            if isinstance(value := getattr(place, name, None), int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _heads(module: nn.Module) -> int:
    heads = _config(module, "num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
    if heads is None:
        raise Misfit("neither the module nor its config says how many heads there are")
    return heads


def _head_dim(module: nn.Module) -> int:
    width = _config(module, "head_dim", "head_size", "attention_head_size", "key_value_proj_dim", "dim_head")
    return width or (_config(module, "hidden_size", "embed_dim", "dim") or 0) // _heads(module)


def _width(module: nn.Module, name: str) -> int:
    """What the projection ``name`` puts out (``nf``: transformers' Conv1D)."""
    child = getattr(module, name)
    width = getattr(child, "out_features", None) or getattr(child, "nf", None)
    if width is None:
        raise Misfit(f"{name} ({type(child).__name__}) does not say how wide its output is")
    return int(width)


def _taken(module: nn.Module, name: str) -> int | None:
    child = getattr(module, name)
    return getattr(child, "in_features", None) or getattr(child, "nx", None)


def _checked(geometry: Geometry, module: nn.Module) -> Geometry:
    output, total = geometry.layout.output, geometry.heads * geometry.value_dim
    if geometry.heads % geometry.kv_heads:
        raise Misfit(f"{geometry.heads} query heads are no multiple of {geometry.kv_heads} key/value heads")
    if output is not None and _taken(module, output) not in (None, total):
        raise Misfit(f"{output} takes {_taken(module, output)}, not {geometry.heads} heads of {geometry.value_dim}")
    return geometry


def _divided(name: str, width: int, head_dim: int) -> int:
    if head_dim <= 0 or width % head_dim:
        raise Misfit(f"{name} puts out {width}, no multiple of the head width {head_dim}")
    return width // head_dim


def _measure_separate(layout: Layout, module: nn.Module, parts: int = 1) -> Geometry:
    q, k, v = layout.projections
    head_dim = _head_dim(module)
    heads = _divided(q, _width(module, q), head_dim * parts)
    kv_heads = _divided(k, _width(module, k), head_dim)
    hidden = _taken(module, q) or _width(module, q)
    return _checked(
        Geometry(layout, hidden, heads, kv_heads, head_dim, _divided(v, _width(module, v), kv_heads)), module
    )


def _split_separate(geometry: Geometry, module: nn.Module, parts: list[torch.Tensor]):
    counts = (geometry.heads, geometry.kv_heads, geometry.kv_heads)
    q, k, v = (x.unflatten(-1, (n, -1)) for x, n in zip(parts, counts, strict=True))
    return q[..., : geometry.head_dim], k, v


def _measure_fused(layout: Layout, module: nn.Module) -> Geometry:
    (name,) = layout.projections
    heads = _heads(module)
    head_dim = _head_dim(module) or _width(module, name) // (3 * heads)
    twice = _divided(name, _width(module, name), head_dim) - heads
    if twice <= 0 or twice % 2:
        raise Misfit(f"{name} puts out {_width(module, name)}: not {heads} queries of {head_dim}, keys and values")
    hidden = _taken(module, name) or heads * head_dim
    return _checked(Geometry(layout, hidden, heads, twice // 2, head_dim, head_dim), module)


def _split_blocks(geometry: Geometry, module: nn.Module, parts: list[torch.Tensor]):
    """[q of all heads | k of all | v of all]."""
    counts = (geometry.heads, geometry.kv_heads, geometry.kv_heads)
    rows = parts[0].split([n * geometry.head_dim for n in counts], -1)
    return tuple(x.unflatten(-1, (-1, geometry.head_dim)) for x in rows)


def _split_groups(geometry: Geometry, module: nn.Module, parts: list[torch.Tensor]):
    """Per key/value head [its queries | k | v]."""
    group = geometry.heads // geometry.kv_heads
    rows = parts[0].unflatten(-1, (geometry.kv_heads, group + 2, geometry.head_dim))
    return rows[..., :-2, :].flatten(-3, -2), rows[..., -2, :], rows[..., -1, :]


_PARTITIONS = 4


def _split_partitions(geometry: Geometry, module: nn.Module, parts: list[torch.Tensor]):
    """Four partitions (of the machine the model was trained on), each [q | v | k] of a quarter of the heads."""
    rows = parts[0].unflatten(-1, (_PARTITIONS, 3, -1, geometry.head_dim))
    q, v, k = (rows[..., i, :, :].flatten(-3, -2) for i in range(3))
    return q, k, v


def _measure_latent(layout: Layout, module: nn.Module) -> Geometry:
    nope, value = _config(module, "qk_nope_head_dim"), _config(module, "v_head_dim")
    if nope is None or value is None:
        raise Misfit("neither the module nor its config gives qk_nope_head_dim and v_head_dim")
    kv_heads = _divided("kv_b_proj", _width(module, "kv_b_proj"), nope + value)
    hidden = _taken(module, "kv_a_proj_with_mqa")
    return _checked(Geometry(layout, hidden or 0, _heads(module), kv_heads, nope, value), module)


def _split_latent(geometry: Geometry, module: nn.Module, parts: list[torch.Tensor]):
    """Multi-head latent attention (arXiv 2405.04434): the part of queries and keys without positions. The module
    expands the latents of the whole cache; the memory needs those of the new tokens."""
    q = parts[0].unflatten(-1, (geometry.heads, -1))[..., : geometry.head_dim]
    latent = parts[1].reshape(*q.shape[:2], -1)
    k, v = (
        module.kv_b_proj(latent)
        .unflatten(-1, (geometry.kv_heads, -1))
        .split([geometry.head_dim, geometry.value_dim], -1)
    )
    return q, k, v


SPLITS: dict[str, Split] = {
    "separate": Split(_measure_separate, _split_separate),
    # a query projection twice as wide: per head [q | gate of the output]
    "gated": Split(lambda layout, module: _measure_separate(layout, module, 2), _split_separate),
    "blocks": Split(_measure_fused, _split_blocks),
    "groups": Split(_measure_fused, _split_groups),
    "partitions": Split(_measure_fused, _split_partitions),
    "latent": Split(_measure_latent, _split_latent),
}

# ---- the layouts known --------------------------------------------------------------------------------------------

_QKV = ("q_proj", "k_proj", "v_proj")
LAYOUTS: tuple[Layout, ...] = (
    Layout("separate", _QKV, "o_proj"),  # Llama and most others
    Layout("separate, out_proj", _QKV, "out_proj"),  # OPT, GPT-J, GPT-Neo, Bart's decoder, CLIP
    Layout("separate, dense", _QKV, "dense"),  # Phi
    Layout("separate, Wo", _QKV, "Wo"),  # ModernBERT's decoder
    Layout("gated queries", _QKV, "o_proj", "gated"),  # Qwen3-Next, Qwen3.5
    Layout("values are keys", ("q_proj", "k_proj", "k_proj"), "o_proj", attributes={"v_proj": None}),  # Gemma 4
    Layout("query, key, value", ("query", "key", "value"), None),  # BERT and its kin
    Layout("lin", ("q_lin", "k_lin", "v_lin"), "out_lin"),  # DistilBERT
    Layout("q, k, v, o", ("q", "k", "v"), "o"),  # T5
    Layout("project", ("project_q", "project_k", "project_v"), "attention_out"),  # CPM-Ant
    Layout("Wq, Wk, Wv", ("Wq", "Wk", "Wv"), "dense"),  # CTRL
    Layout("fused", ("c_attn",), "c_proj", "groups", {"multi_query": False}),  # GPT-BigCode without MQA
    Layout("fused, c_attn", ("c_attn",), "c_proj", "blocks"),  # GPT-2; GPT-BigCode
    Layout("fused, qkv_proj", ("qkv_proj",), "o_proj", "blocks"),  # Phi-3
    Layout("fused, Wqkv", ("Wqkv",), "out_proj", "blocks"),  # MPT, DBRX
    Layout("fused, Wqkv and Wo", ("Wqkv",), "Wo", "blocks"),  # ModernBERT
    Layout("fused, qkv", ("qkv",), "proj", "blocks"),  # vision towers
    Layout(
        "multi-query", ("query_key_value",), "dense", "blocks", {"multi_query": True, "new_decoder_architecture": False}
    ),  # Falcon-7B
    Layout("interleaved", ("query_key_value",), "dense", "groups"),  # GPT-NeoX, BLOOM, Persimmon; Falcon-40B
    Layout("partitions", ("qkv_proj",), "out_proj", "partitions"),  # CodeGen
    Layout("latent", ("q_proj", "kv_a_layernorm"), "o_proj", "latent"),  # DeepSeek-V2-Lite
    Layout("latent, low-rank queries", ("q_b_proj", "kv_a_layernorm"), "o_proj", "latent"),  # DeepSeek-V3
)


def known() -> str:
    """The layouts by name and parts, for an error message."""
    return "; ".join(f"{x.name!r} ({', '.join(x.parts)})" for x in LAYOUTS)


def chosen_layouts(choice: str | Mapping[str, Any] | None) -> tuple[Layout, ...]:
    """What ``MemoryConfig.attention_layout`` names: None all known ones, a name of `LAYOUTS`, or a `Layout`'s fields.

    Raises:
        ValueError: the name, a field or the split is unknown.
    """
    if choice is None:
        return LAYOUTS
    if isinstance(choice, str):
        if found := tuple(x for x in LAYOUTS if x.name == choice):
            return found
        raise ValueError(f"unknown attention_layout {choice!r}; known are {known()}; or give a dictionary of one")
    valid, choice = [f.name for f in fields(Layout)], {"name": "given", **choice}
    if unknown := sorted(set(choice) - set(valid)) or sorted({"projections", "output"} - set(choice)):
        raise ValueError(f"attention_layout: {', '.join(unknown)} unknown or missing; a layout has {', '.join(valid)}")
    layout = Layout(**{**choice, "projections": tuple(choice["projections"])})
    if layout.split not in SPLITS:
        raise ValueError(f"attention_layout: unknown split {layout.split!r}; valid are {', '.join(SPLITS)}")
    return (layout,)
