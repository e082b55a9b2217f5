"""What happens at an attention module that carries a memory, call by call.

The projections' outputs are captured once and the memory is mixed in before the output projection. Children are looked
up by name at every call, because LoRA and its merge replace them.

A hook is one for all replicas of its module (nn.DataParallel) and all threads: it knows the Site, and finds the module at
work in the running call.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from tptt.memory import LinearMemory
from tptt.ops.dtypes import without_autocast

from .active import memory_of
from .cache import adopt_layer
from .call import Running
from .inputs import named
from .layouts import Geometry
from .packing import Unpacked
from .softmax import real_tokens, windowed

# what travels down beside the base's own arguments: which tokens are real and which sequence they belong to, [B, T]
TOLD = ("memory_mask", "memory_segments")
_setting_hooks = threading.Lock()  # or two threads that meet a new child would both hook it


@dataclass
class Site:
    """What belongs to one attention module that carries a memory."""

    geometry: Geometry
    parameters: tuple[str, ...]  # of the module's forward
    layer: int
    kind: str | None  # which of the model's masks it takes ("sliding_attention", ...); None: there is one
    config: Any  # of the module, or of the model's body where it has none
    own_window: int | None  # of the softmax branch, where there is one; None: it sees all
    sinks: int
    layer_takes_keywords: bool
    neighbours: list[Site]  # all of the model, this one included
    plain_kinds: frozenset[str | None]  # of the layers without a memory
    fixed: bool  # mu is 1 for good
    follows: bool  # there is no softmax whenever mag_weight is 1
    alone: bool = False  # no softmax, no keys and values
    running: Running = field(default_factory=Running)
    told: dict[str, torch.Tensor | None] = field(default_factory=dict)  # TOLD of the last call, for threads without one
    hooks: dict[str, tuple[int, list[Any]]] = field(default_factory=dict)  # on each child: the first's id, handles
    handles: list[Any] = field(default_factory=list)
    softmax_squared: list[torch.Tensor] | None = None  # while it is a list: mean squares of the softmax branch, [H * V]
    memory_squared: list[torch.Tensor] | None = None  # the same of the memory's
    projected: list[tuple[torch.Tensor, ...]] | None = None  # while it is a list: q, k of a call before positions
    off: bool = False  # no memory: see base_view.as_base
    whole: bool = False  # and no window either
    outputs: list[torch.Tensor] | None = None  # while it is a list: what goes into the output projection, [B, T, H * V]

    @property
    def window(self) -> int | None:
        """Of the softmax branch; None: it sees all, or there is none."""
        return None if self.alone else self.own_window

    def shares_mask(self) -> bool:
        """Whether some layer of this kind takes the mask that the model makes (ALiBi's width goes by it as well)."""
        takes = (s.kind == self.kind and not s.alone and s.own_window is None for s in self.neighbours)
        return self.kind in self.plain_kinds or "alibi" in self.parameters or any(takes)


def carriers(model: nn.Module) -> list[nn.Module]:
    """The attention modules of ``model`` that carry a memory, in layer order."""
    return [m for m in model.modules() if "_tptt" in m.__dict__]


def cache_layer(module: nn.Module, cache):
    """The layer of ``cache`` that holds the state of ``module``'s memory."""
    site = module._tptt
    cache = getattr(cache, "self_attention_cache", cache)
    sinks = site.sinks if site.window else 0
    return adopt_layer(cache, site.layer, site.window, sinks, site.alone, site.shares_mask)


def before_layer(site: Site, layer, args, kwargs):
    """Note what `before_body` passed down, because not every layer passes keywords on, or takes any.

    Where it does, the attention reads them off its own arguments: under gradient checkpointing the layer is computed
    again without this hook, perhaps after another batch, and on CUDA in a thread of autograd's.
    """
    told = {k: kwargs[k] for k in TOLD if k in kwargs}
    if not site.layer_takes_keywords:
        kwargs = {k: v for k, v in kwargs.items() if k not in TOLD}
    site.told = site.running.told = told
    if site.running.packed and told.get("memory_segments") is None:
        raise ValueError(
            f"the model passes no keywords on to {type(layer).__name__}: its memories cannot be told where packed rows begin"
        )
    return args, kwargs


def before_attention(module, args, kwargs):
    site, memory = module._tptt, memory_of(module)
    running = site.running
    kwargs = named(site.parameters, args, kwargs)
    hidden, mask4d = kwargs[site.parameters[0]], kwargs.get("attention_mask")
    told = site.told if running.told is None else running.told
    told = told | {k: kwargs.pop(k) for k in TOLD if k in kwargs}
    mask, segments = told.get("memory_mask"), told.get("memory_segments")
    running.call = None
    _hook_children(module, memory.config.cross_gate)
    if site.whole:
        return (), kwargs
    if "Paged" in type(kwargs.get("cache")).__name__:
        raise ValueError("a paged cache (continuous batching) cannot carry a memory: use generate()")
    cache = kwargs.get("past_key_values")
    cache = kwargs.get("layer_past") if cache is None else cache
    layer = None if cache is None or memory.config.bidirectional else cache_layer(module, cache)
    if not told and isinstance(mask4d, torch.Tensor):
        mask = real_tokens(mask4d, hidden.shape[1], layer, "position_bias" in site.parameters)
    if site.window is not None:
        windowed(module, hidden, kwargs, mask, segments, layer)
    if not site.off:
        running.call = {
            "module": module, "memory": memory, "hidden": hidden, "mask": mask, "segments": segments, "layer": layer,
            "outputs": {},
        }  # fmt: skip
    return (), kwargs


def _hook_children(module, cross_gate: bool) -> None:
    """Hooks on the projections and the output projection, set again where LoRA or a merge has replaced them."""
    site = module._tptt
    for name in site.geometry.layout.parts:
        child = getattr(module, name)
        if not _has_hooks(child, site.hooks.get(name)):
            with _setting_hooks:
                _hook(site, child, name, cross_gate)


def _has_hooks(child, known) -> bool:
    """By what is in its dicts, which the replicas of a child share: it is another object in each of them."""
    return known is not None and (known[0] in child._forward_hooks or known[0] in child._forward_pre_hooks)


def _hook(site: Site, child: nn.Module, name: str, cross_gate: bool) -> None:
    known = site.hooks.get(name)
    if _has_hooks(child, known):  # another thread has been here
        return
    for handle in known[1] if known else ():
        handle.remove()
    if name != site.geometry.layout.output:
        handles = [child.register_forward_hook(partial(_capture, name, site))]
    else:
        handles = [child.register_forward_pre_hook(partial(_before_output, site))]
        if cross_gate:
            handles.append(child.register_forward_hook(partial(_after_output, site)))
    site.hooks[name] = (handles[0].id, handles)


def _capture(name, site, child, args, output) -> None:
    if (call := site.running.call) is not None:
        call["outputs"][name] = output


def _before_output(site, child, args):
    if (call := site.running.call) is not None:
        memory = call["memory"]
        if isinstance(memory, LinearMemory) and memory.config.cross_gate:
            call["softmax"] = memory.softmax_share(args[0], call["hidden"])
        args = (_mixed(site, call, args[0]), *args[1:])
    if site.outputs is not None:
        site.outputs.append(args[0])
    return args


def _after_output(site, child, args, output):
    """Cross gate: W is linear but for its bias c, so that with a = W (1 - mu) softmax and b = W mu memory, ``output`` is
    a + b + c; the product a b comes on top."""
    call = site.running.call
    if call is None or not isinstance(output, torch.Tensor):
        return None
    if (first := call.get("softmax")) is None:
        return None
    bias = child.forward(torch.zeros_like(first[:1, :1]))
    with_bias = child.forward(first)  # not the module itself: its hooks would mix again
    return output + (with_bias - bias) * (output - with_bias)


def after_attention(module, args, output):
    """Where the module holds no output projection, the memory is mixed into its own output."""
    site = module._tptt
    if site.geometry.layout.output is None:
        many = isinstance(output, tuple | list)
        if (call := site.running.call) is not None:
            mixed = _mixed(site, call, output[0] if many else output)
            output = type(output)((mixed, *output[1:])) if many else mixed
        if site.outputs is not None:
            site.outputs.append(output[0] if many else output)
    site.running.call = None
    return output


def _mixed(site: Site, call: dict[str, Any], softmax: torch.Tensor) -> torch.Tensor:
    module, memory = call["module"], call["memory"]
    if not isinstance(memory, LinearMemory):  # taken out, its window left: see training.window_alone
        return softmax
    if site.softmax_squared is not None:
        site.softmax_squared.append(softmax.float().pow(2).mean((0, 1)))
    with without_autocast(softmax.device.type):
        q, k, v = site.geometry.split(module, call["outputs"])
        if site.projected is not None:
            site.projected.append((q, k))
        layer = call["layer"]
        one = None
        if layer is not None and call["mask"] is None and not layer.record_past:
            one = memory.step(softmax, call["hidden"], q, k, v, layer.state)
        if one is not None:
            mixed, layer.state = one
            return mixed
        read = _read(memory, q, k, v, call)
        if site.memory_squared is not None:
            site.memory_squared.append(read.pow(2).mean((0, 1)).flatten())
        return memory.mix(softmax, read, call["hidden"])


def _read(memory: LinearMemory, q, k, v, call) -> torch.Tensor:
    hidden, mask, layer = call["hidden"], call["mask"], call["layer"]
    if call["segments"] is not None:
        unpacked = Unpacked(call["segments"])
        q, k, v, hidden = (unpacked.out(x) for x in (q, k, v, hidden))
        return unpacked.back(memory(hidden, q, k, v, unpacked.mask))
    if layer is None:
        return memory(hidden, q, k, v, mask)
    writes = memory.writes(hidden, k, v, mask, layer.taps, layer.seen)
    o, state = memory.read(q, writes, layer.state)
    layer.write(state, writes)
    return o
