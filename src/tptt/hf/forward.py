"""What a converted layer computes: o_proj((1 - mu) softmax + mu memory), by hooks on the base's own modules.

The events of one layer, in their order:

1. `before_layer`: the decoder layer is called. What the body said of the tokens (padding, packing) is noted.
2. `before_attention`: its attention is called. The running `Call` begins: the layer's input, the mask, the cache layer
   with the memory's state; the softmax gets its window.
3. `keep_projection`: q_proj, k_proj and v_proj give what the memory reads as well, before positions are put in.
4. The base computes its softmax attention as ever.
5. `before_output_projection`: the output projection is called with the softmax branch. It gets `mixed_branches`.
6. `after_output_projection`: with a cross gate alone, the product of both branches comes on top.
7. `after_attention`: the call ends. Where a module holds no output projection, the memory is mixed in here.

Children are looked up by name at every call, because LoRA and its merge replace them. A hook is one for all replicas of
its module (nn.DataParallel) and all threads: it knows the slot, and finds the module at work in the running call.

A memory is never left out in silence: where a call ends and nothing was mixed in, it raises.

Legend: B rows, T tokens, H query heads, Hk key/value heads, D width of a head's queries and keys, V of its values.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import torch
from torch import nn

from tptt.memory import LinearMemory, Tokens
from tptt.memory.tptt_modes import cross_product
from tptt.ops.dtypes import without_autocast

from .cache import MemoryState, adopt_layer, memory_states
from .compat import cache_in
from .masks import PASSED_DOWN, apply_window, named_arguments, real_tokens
from .packing import Unpacked
from .slots import Branches, Call, MemorySlot, memory_of, slot_of

_setting_hooks = threading.Lock()  # or two threads that meet a new child would both hook it


def mixed_branches(slot: MemorySlot, call: Call, softmax: torch.Tensor) -> torch.Tensor:
    """(1 - mu) softmax + mu memory, [B, T, H * V], which goes into the output projection.

    ``softmax`` [B, T, H * V] is what the base's own attention gave. mu = 0 gives it back bit for bit.
    """
    call.mixed = True
    if not isinstance(call.memory, LinearMemory):  # its window is left alone: see tptt.convert.window_only
        return softmax
    if "softmax_squares" in slot.records:
        slot.record("softmax_squares", softmax.float().pow(2).mean((0, 1)))
    with without_autocast(softmax.device.type):
        q, k, v = slot.geometry.split(call.module, call.outputs)  # [B, T, H or Hk, D or V], no positions in them
        if "projections" in slot.records:
            slot.record("projections", (q, k))
        tokens = Tokens(call.hidden, k, v, call.mask)
        if call.layer is not None and (one := call.layer.step(call.memory, softmax, q, tokens)) is not None:
            return one
        read = _memory_branch(call, q, tokens)  # [B, T, H, V]
        if "memory_squares" in slot.records:
            slot.record("memory_squares", read.pow(2).mean((0, 1)).flatten())
        return call.memory.mix(softmax, read, call.hidden)


def _memory_branch(call: Call, q: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """What the memory reads, [B, T, H, V]; the state in the cache goes on."""
    if call.sequences is not None:
        unpacked = Unpacked(call.sequences)
        rows = tokens._replace(mask=None).map(unpacked.out)._replace(mask=unpacked.mask)
        return unpacked.back(call.memory(unpacked.out(q), rows))
    if call.layer is None:
        return call.memory(q, tokens)
    return call.layer.advance(call.memory, q, tokens)


# ---- the events, in their order -----------------------------------------------------------------------------------


def before_model(parameters: tuple[str, ...], model: nn.Module, args, kwargs) -> None:
    """Tell a cache that records its past how many tokens of this call may be taken back: of a prompt whose last logits
    alone are asked for, no more than those. Otherwise it would hold the raw tokens of the whole prompt."""
    named = named_arguments(parameters, args, kwargs)
    kept = named.get("logits_to_keep")
    if not isinstance(kept, int) or kept < 1:
        return
    for layer in memory_states(cache_in(named, type(model).__name__)):
        layer.next_removable = kept


def before_layer(slot: MemorySlot, layer: nn.Module, args, kwargs):
    """Note what the body passed down, because not every layer passes keywords on, or takes any.

    Where it does, the attention reads them off its own arguments: under gradient checkpointing the layer is computed
    again without this hook, perhaps after another batch, and on CUDA in a thread of autograd's.
    """
    passed = {k: kwargs[k] for k in PASSED_DOWN if k in kwargs}
    if not slot.layer_takes_keywords:
        kwargs = {k: v for k, v in kwargs.items() if k not in PASSED_DOWN}
    slot.passed_down = slot.running.passed_down = passed
    if slot.running.packed and passed.get("memory_sequences") is None:
        raise ValueError(
            f"the model passes no keywords on to {type(layer).__name__}: its memories cannot be told where packed rows "
            f"begin"
        )
    return args, kwargs


def before_attention(module: nn.Module, args, kwargs):
    """Begin the call: gather what the memory needs of it, and give the softmax its window."""
    slot, memory = slot_of(module), memory_of(module)
    running = slot.running
    running.call = None
    kwargs = named_arguments(slot.parameters, args, kwargs)
    passed = slot.passed_down if running.passed_down is None else running.passed_down
    passed = passed | {k: kwargs.pop(k) for k in PASSED_DOWN if k in kwargs}
    hook_children(module)
    if slot.branches is Branches.BASE:
        return (), kwargs
    hidden, mask = kwargs[slot.parameters[0]], passed.get("memory_mask")
    layer = None if memory.config.bidirectional else cache_layer(module, cache_in(kwargs, type(module).__name__))
    if not passed and isinstance(kwargs.get("attention_mask"), torch.Tensor):
        mask = real_tokens(kwargs["attention_mask"], hidden.shape[1], layer, "position_bias" in slot.parameters)
    if slot.window_now is not None:
        apply_window(slot, hidden, kwargs, mask, passed.get("memory_sequences"), layer)
    if slot.branches is not Branches.SOFTMAX:
        running.call = Call(module, memory, hidden, mask, passed.get("memory_sequences"), layer)
    return (), kwargs


def keep_projection(name: str, slot: MemorySlot, child: nn.Module, args, output) -> None:
    """Keep what the projection ``name`` gave: the memory reads it before positions are put in."""
    if (call := slot.running.call) is not None:
        call.outputs[name] = output


def before_output_projection(slot: MemorySlot, child: nn.Module, args):
    """Mix the memory into what the output projection is called with."""
    if (call := slot.running.call) is not None:
        memory = call.memory
        if isinstance(memory, LinearMemory) and memory.config.cross_gate:
            call.softmax_share = memory.softmax_share(args[0], call.hidden)
        args = (mixed_branches(slot, call, args[0]), *args[1:])
    if "attention_outputs" in slot.records:
        slot.record("attention_outputs", args[0])
    return args


def after_output_projection(slot: MemorySlot, child: nn.Module, args, output):
    """Add the cross gate's product."""
    call = slot.running.call
    if call is None or call.softmax_share is None or not isinstance(output, torch.Tensor):
        return None
    return cross_product(child.forward, call.softmax_share, output)  # not the module: its hooks would mix again


def after_attention(module: nn.Module, args, output):
    """End the call. Where the module holds no output projection, its own output gets the memory.

    Raises:
        RuntimeError: the memory was to be mixed in, and was not.
    """
    slot = slot_of(module)
    call = slot.running.call
    if slot.geometry.layout.output is None:
        several = isinstance(output, tuple | list)
        if call is not None:
            mixed = mixed_branches(slot, call, output[0] if several else output)
            output = type(output)((mixed, *output[1:])) if several else mixed
        if "attention_outputs" in slot.records:
            slot.record("attention_outputs", output[0] if several else output)
    if slot.branches in (Branches.BOTH, Branches.MEMORY) and (call is None or not call.mixed):
        raise RuntimeError(
            f"the memory of layer {slot.layer} was left out: {type(module).__name__} did not call its "
            f"{slot.geometry.layout.output} with hooks. Was it compiled or replaced after the memory was attached? "
            "Attach the memory to the model as it is now"
        )
    slot.running.call = None
    return output


# ---- the cache layer and the children's hooks ---------------------------------------------------------------------


def cache_layer(module: nn.Module, cache: Any) -> MemoryState | None:
    """The layer of ``cache`` that holds the state of ``module``'s memory; None: there is no cache, or none of this
    layer.

    Raises:
        ValueError: see `adopt_layer`.
    """
    if cache is None:
        return None
    slot = slot_of(module)
    if "Paged" in type(cache).__name__:
        raise ValueError("a paged cache (continuous batching) cannot carry a memory: use generate()")
    return adopt_layer(getattr(cache, "self_attention_cache", cache), slot, memory_of(module).config)


def hook_children(module: nn.Module) -> None:
    """Hook the projections and the output projection, again where LoRA or a merge has replaced them."""
    slot, cross_gate = slot_of(module), memory_of(module).config.cross_gate
    for name in slot.geometry.layout.parts:
        child = getattr(module, name)
        if not _has_hooks(child, slot.hooks.get(name)):
            with _setting_hooks:
                _hook(slot, child, name, cross_gate)


def _has_hooks(child: nn.Module, known: tuple[int, list[Any]] | None) -> bool:
    """Whether ``child`` has its hooks. Its dictionaries say so, which the replicas of a child share."""
    return known is not None and (known[0] in child._forward_hooks or known[0] in child._forward_pre_hooks)


def _hook(slot: MemorySlot, child: nn.Module, name: str, cross_gate: bool) -> None:
    known = slot.hooks.get(name)
    if _has_hooks(child, known):  # another thread has been here
        return
    for handle in known[1] if known else ():
        handle.remove()
    if name != slot.geometry.layout.output:
        handles = [child.register_forward_hook(partial(keep_projection, name, slot))]
    else:
        handles = [child.register_forward_pre_hook(partial(before_output_projection, slot))]
        if cross_gate:
            handles.append(child.register_forward_hook(partial(after_output_projection, slot)))
    slot.hooks[name] = (handles[0].id, handles)
