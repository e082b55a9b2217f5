"""Attach a linear memory to a model in place, and take it off again.

Nothing is wrapped: the memory is a child called ``liza`` of each attention module, and hooks (forward.py) do the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from tptt.config import MemoryConfig, check_mag_weight, require_decided
from tptt.memory import LinearMemory

from .cache import unknown_cache_layers
from .compat import (
    CACHE_ARGUMENTS,
    as_peft_model,
    attention_implementation,
    cache_argument,
    cache_in,
    can_replace_attention,
    check_cache_layers,
    check_cache_preparation,
    execution_device,
    forget_compiled,
    hands_mask_on,
    hook_cache_preparation,
    tuned_model,
    uncompiled,
    unhook_cache_preparation,
    unknown_arguments,
)
from .discovery import Found, UnsupportedAttentionError, choose, find_attention
from .forward import after_attention, before_attention, before_layer, before_model, cache_layer, hook_children
from .layouts import Geometry
from .masks import before_body, takes_keywords
from .no_memory import NoMemory
from .slots import MEMORY, Branches, MemorySlot, memories, memory_of, patched_attention, put_slot, slot_of, take_slot
from .softmax import follow_mag_weight, restore_attention, set_branches, window_of, window_refusal

_WHOLE_HOOK = "_tptt_handle"
MakeMemory = Callable[[MemoryConfig, Geometry, torch.device], nn.Module]


def attach_memory(model: nn.Module, config: MemoryConfig | None = None) -> nn.Module:
    """Give the attention layers of ``model`` a linear memory, in place.

    Args:
        model: a Hugging Face model (or a peft model of one), or any module with attention of a known layout; of a
            multimodal model the language part gets the memory. Encoders need ``bidirectional=True``.
        config: what the memory is; the default is the recommended one.

    Returns:
        ``model`` itself.

    Raises:
        UnsupportedAttentionError: a chosen attention module has none of the known layouts, or cannot do what ``config``
            asks; the model is left untouched.
        ValueError: the model already carries a memory; ``config`` names a layer that is not there, has another number
            of feature widths than layers, or has ``layers="auto"``, which needs data.
    """
    return _attach(model, config or MemoryConfig(), _new_memory)


def attach_window(model: nn.Module, config: MemoryConfig) -> nn.Module:
    """Give the attention layers of ``model`` the softmax window of ``config`` and no memory, in place.

    For measuring what a memory would be needed for, before there is one; `detach_memory` takes it off again. In the
    place of each memory stands a `NoMemory`, which knows how large the memory would be.

    Raises:
        As `attach_memory`.
    """
    return _attach(model, config, _planned_memory)


def _new_memory(config: MemoryConfig, sizes: Geometry, device: torch.device) -> nn.Module:
    memory = LinearMemory(config, sizes.hidden, sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.value_dim)
    return memory.to(device)


def _planned_memory(config: MemoryConfig, sizes: Geometry, device: torch.device) -> nn.Module:
    with torch.device("meta"):
        return NoMemory(config, _new_memory(config, sizes, torch.device("meta")))


def _attach(model: nn.Module, config: MemoryConfig, make: MakeMemory) -> nn.Module:
    require_decided(config)
    if patched_attention(model):
        raise ValueError("this model already carries a memory: detach_memory(model) takes it off")
    body = attention_body(model, config.bidirectional)
    found = find_attention(body, config.attention_layout)
    if not config.bidirectional:  # a picture's encoder may lie beside the text's decoder
        found = [x for x in found if _is_causal(x) is not False and not _of_another_kind(x.name)] or found
    chosen = choose(found, config.layers)
    fixed = choose(chosen, config.memory_only_layers) if config.memory_only_layers else []
    widths = _widths(config, len(chosen))
    for x in chosen:
        _check(x, body, config, x in fixed)
    if not config.bidirectional:
        check_cache_layers()
        check_cache_preparation(base_of(model))
        _check_own_cache(model, [x.layer for x in chosen])
    others = frozenset(_mask_kind(x) for x in found if x not in chosen)
    slots: list[MemorySlot] = []
    for x, width in zip(chosen, widths, strict=True):
        _give(x, body, replace(config, feature_width=width), x in fixed, others, slots, make)
    if "attention_mask" in (parameters := _parameters(body)):
        _hook_whole(body, partial(before_body, parameters, config, slots, takes_keywords(body)))
    base = base_of(model)
    if not config.bidirectional:
        hook_cache_preparation(base, prepare_generation)
        if base is not body and "logits_to_keep" in (parameters := _parameters(base)):
            _hook_whole(base, partial(before_model, parameters))
    forget_compiled()
    return model


def _parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of the forward of ``module``, without ``self``."""
    return tuple(inspect.signature(type(module).forward).parameters)[1:]


def _hook_whole(module: nn.Module, hook: Callable[..., Any]) -> None:
    """Call ``hook`` before the body or the whole model ``module``, until the memory is taken off."""
    module.__dict__[_WHOLE_HOOK] = module.register_forward_pre_hook(hook, with_kwargs=True)


def _widths(config: MemoryConfig, layers: int) -> tuple[int, ...]:
    """Feature widths of ``layers`` layers."""
    found = config.feature_width
    if isinstance(found, int):
        return (found,) * layers
    if len(found) != layers:
        raise ValueError(
            f"feature_width gives {len(found)} widths to {layers} layers with a memory: one each, or one number for all"
        )
    return found


def prepare_generation(model: nn.Module, generation_config, model_kwargs: dict) -> None:
    """Give the cache in ``model_kwargs`` of ``generate`` states, and let an assistant's record what it may take
    back."""
    if (cache := cache_in(model_kwargs, f"{type(model).__name__}.generate")) is not None:
        prepare_cache(model, cache)
        if generation_config.is_assistant:
            cache.activate_past_recording()


def _check(x: Found, body: nn.Module, config: MemoryConfig, alone: bool) -> None:
    layout = x.sizes.layout  # raises where there is none
    who = f"{x.name} ({type(x.module).__name__})"
    if "BlockSparse" in type(x.module).__name__:
        raise UnsupportedAttentionError(
            f"{who} is replaced by the model as it runs: set attention_type='original_full'"
        )
    parameters = inspect.signature(type(x.module).forward).parameters
    if "attention_mask" not in parameters and not config.bidirectional:
        raise UnsupportedAttentionError(f"{who} takes no attention_mask: padding would get into its memory")
    if config.cross_gate and layout.output is None:
        raise UnsupportedAttentionError(f"{who} holds no output projection, which cross_gate multiplies behind")
    if "layer_idx" in parameters:
        raise UnsupportedAttentionError(f"{who} is shared between layers: one memory cannot follow several")
    if "cycle_offset" in parameters:
        raise UnsupportedAttentionError(f"{who} runs several times for each token: one memory cannot follow it")
    if not config.bidirectional:
        _check_cache_argument(x, body)
    causal = _is_causal(x)
    if causal is config.bidirectional:
        does, needs = ("causal", False) if causal else ("not causal", True)
        raise UnsupportedAttentionError(f"{who} is {does}: its memory needs bidirectional={needs}")
    if (
        config.window is not None
        and not alone
        and (reason := window_refusal(x.module, _config(x, body), config.sink_tokens))
    ):
        raise UnsupportedAttentionError(f"max_self_attn_length cannot bound {who}: {reason}")
    if alone and not can_leave_softmax_out(x.module, body):
        raise UnsupportedAttentionError(
            f"{who} does not take its softmax from transformers' attention interface, so that it cannot be left out: "
            "mu cannot be fixed at 1 (memory_only_layers)"
        )


def _check_cache_argument(x: Found, body: nn.Module) -> None:
    """Refuse an attention module that takes its cache under a name that is not known, or none although its model has
    one."""
    if cache_argument(x.module) is not None:
        return
    who, known = f"{x.name} ({type(x.module).__name__})", ", ".join(CACHE_ARGUMENTS)
    if strange := unknown_arguments(x.module):
        raise UnsupportedAttentionError(
            f"{who} takes its cache under no known name ({known}); it takes {', '.join(strange)}. If one of these is "
            "a cache, a memory would lose its state at every step"
        )
    if cache_argument(body) is not None:
        raise UnsupportedAttentionError(
            f"{type(body).__name__} takes a cache as {cache_argument(body)!r}, and {who} takes none under a known name "
            f"({known}): a memory would lose its state at every step"
        )


def _check_own_cache(model: nn.Module, layers: list[int]) -> None:
    """Refuse a model for which ``generate`` makes cache layers of a kind that is not known."""
    config = getattr(base_of(model), "config", None)
    if config is None or not hasattr(base_of(model), "generate"):
        return
    if strange := unknown_cache_layers(config.get_text_config(decoder=True), layers):
        raise UnsupportedAttentionError(
            f"generate makes cache layers of type {', '.join(strange)} for {type(base_of(model)).__name__}, which "
            "cannot carry a memory in this version of tptt"
        )


def _of_another_kind(name: str) -> bool:
    """Whether the module of that name reads pictures or sound."""
    return any(word in name for word in ("vision", "visual", "image", "img_", "video", "audio", "speech"))


def _is_causal(x: Found) -> bool | None:
    """What the module says of itself; None: nothing."""
    says = [v for n in ("is_causal", "is_decoder") if (v := getattr(x.module, n, None)) is not None]
    return any(says) if says else None


def can_leave_softmax_out(module: nn.Module, body: nn.Module) -> bool:
    """Whether the attention ``module`` of ``body`` can do without its softmax (see
    ``MemoryConfig.memory_only_layers``)."""
    return hasattr(module, "config") and can_replace_attention(body)


def _mask_kind(x: Found) -> str | None:
    """Which of the model's masks the layer takes ("sliding_attention", ...); None where all take one."""
    kinds = getattr(getattr(x.module, "config", None), "layer_types", None)
    return kinds[x.layer] if kinds and x.layer < len(kinds) else None


def _give(
    x: Found,
    body: nn.Module,
    config: MemoryConfig,
    fixed: bool,
    others: frozenset[str | None],
    slots: list[MemorySlot],
    make: MakeMemory,
) -> None:
    """Give one attention module its memory, its slot and its hooks."""
    module, sizes = x.module, x.sizes
    if fixed:
        config = replace(config, mag_weight=1.0, mix_gate="none")
    module.add_module(MEMORY, make(config, sizes, execution_device(module)))
    layer, base = decoder_layer(body, x.name), _config(x, body)
    slot = MemorySlot(
        geometry=sizes,
        parameters=_parameters(module),
        layer=x.layer,
        mask_kind=_mask_kind(x),
        config=base,
        window=window_of(module, base, x.layer, config.window),
        sinks=config.sink_tokens,
        layer_takes_keywords=takes_keywords(layer),
        neighbours=slots,
        other_mask_kinds=others,
        mu_fixed=fixed,
        follows_mag_weight=config.mix_gate == "none" and not fixed and can_leave_softmax_out(module, body),
    )
    put_slot(module, slot)
    slots.append(slot)
    slot.handles = [
        layer.register_forward_pre_hook(partial(before_layer, slot), with_kwargs=True),
        module.register_forward_pre_hook(before_attention, with_kwargs=True),
        module.register_forward_hook(after_attention),
        module.register_load_state_dict_post_hook(_loaded),
    ]
    hook_children(module)
    if slot.window is not None and attention_implementation(base) == "sdpa":
        kind: Any = type(module)
        slot.knows_windows = can_leave_softmax_out(module, body) and hands_mask_on(kind)
    set_branches(module, Branches.MEMORY if fixed else Branches.BOTH)
    follow_mag_weight(module)


def _loaded(module: nn.Module, incompatible_keys) -> None:
    follow_mag_weight(module)


def decoder_layer(body: nn.Module, name: str) -> nn.Module:
    """The layer of ``body`` that holds its child ``name``: an entry of a list of modules, or the parent."""
    parts = name.split(".")
    above = [i for i in range(len(parts)) if isinstance(body.get_submodule(".".join(parts[:i])), nn.ModuleList)]
    return uncompiled(body.get_submodule(".".join(parts[: above[-1] + 1] if above else parts[:-1])))


def _config(x: Found, body: nn.Module):
    return getattr(x.module, "config", None) or getattr(body, "config", None)


def detach_memory(model: nn.Module) -> nn.Module:
    """Take the memory off again; the model computes what it did before, bit for bit. Returns ``model``."""
    unhook_cache_preparation(base_of(model))
    for module in patched_attention(model):
        restore_attention(module)
        slot = take_slot(module)
        assert slot is not None
        for handle in [*slot.handles, *(h for _, handles in slot.hooks.values() for h in handles)]:
            handle.remove()
        delattr(module, MEMORY)
    for module in model.modules():
        if (handle := module.__dict__.pop(_WHOLE_HOOK, None)) is not None:
            handle.remove()
    forget_compiled()
    return model


def base_of(model: nn.Module) -> nn.Module:
    """``model`` without the wrappings of peft and torch.compile."""
    model = uncompiled(model)
    if (peft := as_peft_model(model)) is not None:
        return tuned_model(peft)
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # peft's for mixed adapters


def attention_body(model: nn.Module, bidirectional: bool = False) -> nn.Module:
    """The module that turns token ids into hidden states: the language part of a multimodal model, the decoder of a
    causal one, the whole encoder of an encoder."""
    inner = base_of(model)
    if hasattr(inner, "get_decoder") and not bidirectional:
        decoder = inner.get_decoder()
        if any("ttention" in type(m).__name__ for m in decoder.modules()):  # a head may be called decoder too
            return decoder
    return getattr(inner, "base_model", inner)


def set_mag_weight(model: nn.Module, weight: float) -> None:
    """Set the Memory-as-Gate weight of every layer that has a softmax beside its memory.

    Raises:
        ValueError: ``weight`` lies outside [0, 1], or the model carries no memory, or only such whose mu is fixed at 1.
    """
    value = check_mag_weight(weight)
    if not memories(model):
        raise ValueError(f"{type(model).__name__} carries no memory: attach_memory(model, config) gives it one")
    mixed = [m for m in patched_attention(model) if not slot_of(m).mu_fixed]
    if not mixed and value != 1.0:
        raise ValueError(f"mu is fixed at 1 in every memory of {type(model).__name__}: there is no softmax to mix with")
    for module in mixed:
        memory_of(module).mag_weight.fill_(value)
        follow_mag_weight(module)


def set_layer_mag_weights(model: nn.Module, weights: Sequence[float]) -> None:
    """Set the Memory-as-Gate weight of each layer with a memory, in their order; one whose mu is fixed stays as it is.

    Raises:
        ValueError: there are not as many ``weights`` as layers, or one lies outside [0, 1].
    """
    modules = patched_attention(model)
    if len(weights) != len(modules):
        raise ValueError(
            f"{len(weights)} Memory-as-Gate weights for {len(modules)} layers with a memory: give one for each"
        )
    for module, weight in zip(modules, [check_mag_weight(w) for w in weights], strict=True):
        if not slot_of(module).mu_fixed:
            memory_of(module).mag_weight.fill_(weight)
            follow_mag_weight(module)


def weights_loaded(model: nn.Module) -> None:
    """To be called when weights were loaded by other ways than ``load_state_dict``."""
    for module in patched_attention(model):
        follow_mag_weight(module)


def stop_recording(model: nn.Module, cache) -> None:
    """Let ``cache``, filled by ``model``, record its past no longer, as assisted decoding has it do: what it holds for
    tokens that may be taken back goes, or it would go on growing, window or not."""
    recording = [layer for layer in cache.layers if getattr(layer, "record_past", False)]
    if recording:
        cache.crop(0)
    for layer in recording:
        layer.record_past = False
    for module in patched_attention(model):
        if (layer := cache_layer(module, cache)) is not None:
            layer.settle(memory_of(module))


def prepare_cache(model: nn.Module, cache) -> None:
    """Give every layer of ``cache`` that belongs to a memory a recurrent state."""
    for module in patched_attention(model):
        cache_layer(module, cache)
