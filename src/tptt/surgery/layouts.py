"""Where an attention module keeps its projections, as data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Layout:
    """Names of the projections of one kind of attention module. A single projection holds [q | k | v] side by side."""

    name: str
    projections: tuple[str, ...]
    output: str

    def fits(self, module: nn.Module) -> bool:
        return all(hasattr(module, n) for n in (*self.projections, self.output))


LAYOUTS = (
    Layout("separate", ("q_proj", "k_proj", "v_proj"), "o_proj"),  # Llama, Mistral, Qwen2, Qwen3
    Layout("fused", ("c_attn",), "c_proj"),  # GPT-2
)


class UnsupportedAttentionError(ValueError):
    """An attention module has none of the known layouts."""


@dataclass(frozen=True)
class Geometry:
    """Layout and sizes of one attention module."""

    layout: Layout
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int

    def split(self, outputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [B, T, H, D], k and v [B, T, Hk, D] from the projections' outputs."""
        if len(self.layout.projections) == 1:
            widths = [n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads)]
            q, k, v = outputs[self.layout.projections[0]].split(widths, -1)
        else:
            q, k, v = (outputs[n] for n in self.layout.projections)
        return tuple(x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))  # type: ignore[return-value]


def _width(module: nn.Module) -> int | None:
    return getattr(module, "out_features", None) or getattr(module, "nf", None)


def geometry(name: str, module: nn.Module) -> Geometry:
    """Layout and sizes of the attention ``module`` called ``name``.

    Raises:
        UnsupportedAttentionError: it has none of the known layouts, or its projections have other widths than its heads.
    """
    layout = next((x for x in LAYOUTS if x.fits(module)), None)
    known = "; ".join(f"{x.name} ({', '.join((*x.projections, x.output))})" for x in LAYOUTS)
    if layout is None:
        children = ", ".join(n for n, _ in module.named_children()) or "none"
        raise UnsupportedAttentionError(
            f"{name} ({type(module).__name__}) has no layout known here; its parts are {children}; known layouts: {known}"
        )
    config = module.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(module, "head_dim", None) or config.hidden_size // heads
    sizes = Geometry(layout, config.hidden_size, heads, kv_heads, head_dim)
    total = (heads + 2 * kv_heads) * head_dim
    widths = [_width(getattr(module, n)) for n in layout.projections]
    if None not in widths and sum(widths) != total:  # type: ignore[arg-type]
        raise UnsupportedAttentionError(
            f"{name} ({type(module).__name__}): projections {dict(zip(layout.projections, widths, strict=True))} do not "
            f"hold {heads} query and 2 x {kv_heads} key/value heads of width {head_dim}; known layouts: {known}"
        )
    return sizes


def find_attention(model: nn.Module) -> list[tuple[str, nn.Module, Geometry]]:
    """Every self-attention module of ``model`` in layer order.

    Raises:
        UnsupportedAttentionError: there is none, or one of them has no known layout.
    """
    found = []
    for name, module in model.named_modules():
        if getattr(module, "layer_idx", None) is None or not hasattr(module, "config"):
            continue
        if getattr(module, "is_cross_attention", False) or "Attention" not in type(module).__name__:
            continue
        found.append((name, module, geometry(name, module)))
    if not found:
        names = sorted({type(m).__name__ for m in model.modules() if "ttention" in type(m).__name__})
        raise UnsupportedAttentionError(
            f"{type(model).__name__} has no attention module with a layer_idx (attention classes found: {names or 'none'}); "
            f"known layouts: {', '.join(x.name for x in LAYOUTS)}"
        )
    return found
