"""Attach a linear memory to a model in place, and take it off again.

Nothing is wrapped: the memory is a child called ``liza`` of each attention module. Hooks capture the projections'
outputs once and mix the memory in before the output projection. Children are looked up by name at every call, because
LoRA and its merge replace them.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from tptt.configuration import MemoryConfig, check_mag_weight
from tptt.memory import LinearMemory, adopt_layer
from tptt.memory.window import WindowLayer, window_mask

from .layouts import Geometry, find_attention
from .segments import Unpacked, segment_ids

NAME = "liza"


@dataclass
class _Site:
    """What belongs to one attention module that carries a memory."""

    geometry: Geometry
    parameters: tuple[str, ...]  # of the module's forward
    hooks: dict[str, tuple[nn.Module, Any]] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)
    call: dict[str, Any] | None = None  # of the call that is running


def attach_memory(model: nn.Module, config: MemoryConfig | None = None) -> nn.Module:
    """Give every attention layer of ``model`` a linear memory, in place.

    Args:
        model: any Hugging Face decoder (or a peft model of one) whose attention has a known layout.
        config: what the memory is; the default is the recommended one.

    Returns:
        ``model`` itself.

    Raises:
        UnsupportedAttentionError: an attention module has none of the known layouts; the model is left untouched.
        ValueError: the model already carries a memory.
    """
    config = config or MemoryConfig()
    if memories(model):
        raise ValueError("this model already carries a memory: detach_memory(model) takes it off")
    for _, module, sizes in find_attention(model):
        memory = LinearMemory(config, sizes.hidden, sizes.heads, sizes.kv_heads, sizes.head_dim)
        module.add_module(NAME, memory.to(next(module.parameters()).device))
        module._tptt = _Site(sizes, tuple(inspect.signature(type(module).forward).parameters)[1:])
        handles = [module.register_forward_pre_hook(_before_attention, with_kwargs=True)]
        module._tptt.handles = [*handles, module.register_forward_hook(_after_attention)]
    body = decoder_body(model)
    names = tuple(inspect.signature(type(body).forward).parameters)[1:]
    body._tptt_handle = body.register_forward_pre_hook(
        partial(_before_body, names, config.max_self_attn_length is not None), with_kwargs=True
    )
    return model


def detach_memory(model: nn.Module) -> nn.Module:
    """Take the memory off again; the model computes what it did before, bit for bit. Returns ``model``."""
    for module in model.modules():
        if (site := module.__dict__.pop("_tptt", None)) is not None:
            for handle in [*site.handles, *(h for _, h in site.hooks.values())]:
                handle.remove()
            delattr(module, NAME)
        if (handle := module.__dict__.pop("_tptt_handle", None)) is not None:
            handle.remove()
    return model


def decoder_body(model: nn.Module) -> nn.Module:
    """The module that turns token ids into hidden states (``LlamaModel`` in ``LlamaForCausalLM``, under peft too)."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(inner, "base_model", inner)


def memories(model: nn.Module) -> list[LinearMemory]:
    """The memories of ``model`` in layer order."""
    return [m for m in model.modules() if isinstance(m, LinearMemory)]


def set_mag_weight(model: nn.Module, weight: float) -> None:
    """Set the Memory-as-Gate weight of every layer.

    Raises:
        ValueError: ``weight`` lies outside [0, 1], or the model carries no memory.
    """
    found = memories(model)
    if not found:
        raise ValueError(f"{type(model).__name__} carries no memory: attach_memory(model, config) gives it one")
    value = check_mag_weight(weight)
    for memory in found:
        memory.mag_weight.fill_(value)


def prepare_cache(model: nn.Module, cache) -> None:
    """Give every layer of ``cache`` that belongs to a memory a recurrent state."""
    for module in model.modules():
        if "_tptt" in module.__dict__:
            _layer(module, cache)


def _window(module: nn.Module) -> int | None:
    """The softmax branch's window: max_self_attn_length, or the base's own sliding window if that is shorter."""
    config, window = module.config, module.liza.config.max_self_attn_length
    if window is None:
        return None
    own, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    slides = kinds[module.layer_idx] == "sliding_attention" if kinds else True
    return min(window, own) if own and slides else window


def _layer(module: nn.Module, cache):
    cache = getattr(cache, "self_attention_cache", cache)
    return adopt_layer(cache, module.layer_idx, _window(module), module.liza.config.sink_tokens)


def _named(names: tuple[str, ...], args: tuple, kwargs: dict) -> dict:
    return dict(zip(names, args, strict=False)) | kwargs


def _before_body(names, windowed, body, args, kwargs):
    """Pass the 2-D mask and the packing down as keywords: attention modules get a 4-D mask at best."""
    kwargs = _named(names, args, kwargs)
    ids = kwargs.get("input_ids")
    ids = kwargs.get("inputs_embeds") if ids is None else ids
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    tokens = ids.shape[1]
    if windowed and isinstance(mask, torch.Tensor) and mask.ndim > 2:
        raise ValueError(f"with max_self_attn_length the attention mask must be 2-D, [B, T]; got {tuple(mask.shape)}")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        kwargs.setdefault("memory_mask", mask[:, -tokens:].bool())
    elif mask is None and positions is not None and kwargs.get("past_key_values") is None:
        caches = kwargs.get("use_cache")
        caches = getattr(body.config, "use_cache", False) if caches is None else caches
        if not caches and positions.ndim == 2 and positions.shape[1] == tokens > 1:
            segments = segment_ids(positions).expand(ids.shape[0], -1)
            if torch.compiler.is_compiling() or bool(segments.any()):
                kwargs["memory_segments"] = segments
    return (), kwargs


def _before_attention(module, args, kwargs):
    site, memory = module._tptt, module.liza
    kwargs = _named(site.parameters, args, kwargs)
    hidden, mask4d = kwargs["hidden_states"], kwargs.get("attention_mask")
    mask, segments = kwargs.pop("memory_mask", None), kwargs.pop("memory_segments", None)
    if kwargs.get("cache") is not None:
        raise ValueError("a paged cache (continuous batching) cannot carry a memory: use generate()")
    cache = kwargs.get("past_key_values")
    layer = None if cache is None else _layer(module, cache)
    if mask is None and isinstance(mask4d, torch.Tensor):
        mask = _mask_of(mask4d, hidden.shape[1], layer)
    if memory.config.max_self_attn_length is not None:
        kwargs["attention_mask"] = _windowed(module, hidden, mask4d, mask, segments, layer)
    site.call = {"hidden": hidden, "mask": mask, "segments": segments, "layer": layer, "outputs": {}}
    _hook_children(module)
    return (), kwargs


def _mask_of(mask: torch.Tensor, tokens: int, layer) -> torch.Tensor | None:
    """Which of the new tokens are real, [B, T] bool, where only a prepared mask arrives: the diagonal of a 4-D one."""
    if mask.ndim == 2:
        return mask[:, -tokens:].bool()
    if tokens == 1:
        return None
    past = 0 if layer is None else layer.get_seq_length()
    rows = torch.arange(tokens, device=mask.device)
    columns = rows + (past if mask.shape[-1] >= int(past) + tokens else mask.shape[-1] - tokens)
    diagonal = mask[:, 0, rows, columns]
    return diagonal if diagonal.dtype == torch.bool else diagonal >= 0


def _windowed(module, hidden, mask4d, mask, segments, layer):
    """The softmax branch's mask with the window in it, in the form its implementation takes."""
    kind = module.config._attn_implementation or "eager"
    if kind not in ("eager", "sdpa"):
        raise ValueError(f"max_self_attn_length needs attn_implementation 'sdpa' or 'eager', not {kind!r}")
    config, (batch, tokens) = module.liza.config, hidden.shape[:2]
    valid = hidden.new_ones(batch, tokens, dtype=torch.bool) if mask is None else mask.expand(batch, -1)
    if isinstance(layer, WindowLayer):
        band = layer.expect(valid)
    elif tokens <= (window := _window(module)) and segments is None:
        return mask4d
    else:
        band = window_mask(valid, window, config.sink_tokens, segments)
    if kind == "sdpa":
        return band
    return torch.zeros(band.shape, dtype=hidden.dtype, device=band.device).masked_fill(
        ~band, torch.finfo(hidden.dtype).min
    )


def _hook_children(module) -> None:
    """Hooks on the projections and the output projection, set again where LoRA or a merge has replaced them."""
    site = module._tptt
    layout = site.geometry.layout
    for name in (*layout.projections, layout.output):
        child = getattr(module, name)
        known = site.hooks.get(name)
        if known is not None:
            if known[0] is child:
                continue
            known[1].remove()
        if name == layout.output:
            handle = child.register_forward_pre_hook(partial(_before_output, (module,)))
        else:
            handle = child.register_forward_hook(partial(_capture, name, (module,)))
        site.hooks[name] = (child, handle)


def _capture(name, owner, child, args, output) -> None:
    if (call := owner[0]._tptt.call) is not None:
        call["outputs"][name] = output


def _before_output(owner, child, args):
    module = owner[0]
    call = module._tptt.call
    if call is None:
        return None
    memory = module.liza
    with torch.autocast(args[0].device.type, enabled=False):
        read = _read(memory, module._tptt.geometry.split(call["outputs"]), call)
        return (memory.mix(args[0], read, call["hidden"]), *args[1:])


def _read(memory: LinearMemory, qkv, call) -> torch.Tensor:
    q, k, v = qkv
    hidden, mask, layer = call["hidden"], call["mask"], call["layer"]
    if call["segments"] is not None:
        unpacked = Unpacked(call["segments"])
        q, k, v, hidden = (unpacked.out(x) for x in (q, k, v, hidden))
        o, _ = memory.read(q, memory.writes(hidden, k, v, unpacked.mask), None)
        return unpacked.back(o)
    writes = memory.writes(hidden, k, v, mask, None if layer is None else layer.taps)
    o, state = memory.read(q, writes, None if layer is None else layer.state)
    if layer is not None:
        layer.write(state, writes)
    return o


def _after_attention(module, args, output) -> None:
    module._tptt.call = None
