"""The softmax branch beside a memory: left out, taken in again, and where a window cannot bound it."""

from __future__ import annotations

import inspect

from torch import nn

from tptt.memory import LinearMemory

from .compat import NO_SOFTMAX, config_with_attention
from .slots import MEMORY, Branches, memory_of, slot_of
from .window_attention import WINDOWED

_WITH_MEMORY = (Branches.BOTH, Branches.MEMORY)
_CONFIG = "_tptt_config"  # the module's own configuration, while another one stands in its place


def set_branches(module: nn.Module, branches: Branches) -> Branches:
    """Let the patched attention ``module`` compute ``branches`` from now on; returns what it computed before.

    Without softmax the module gets a configuration of its own, which names an attention function that does nothing.
    """
    slot = slot_of(module)
    before, slot.branches = slot.branches, branches
    choose_attention(module)
    return before


def choose_attention(module: nn.Module) -> None:
    """Let the patched attention ``module`` take the attention function that its branches need: none, the one that knows
    windows, or the base's own."""
    slot = slot_of(module)
    restore_attention(module)
    if slot.branches is Branches.MEMORY:
        name = NO_SOFTMAX
    elif slot.knows_windows:
        name = WINDOWED
    else:
        return
    module.__dict__[_CONFIG] = module.config
    module.config = config_with_attention(module.config, name)


def restore_attention(module: nn.Module) -> None:
    """Give ``module`` its own configuration back."""
    if _CONFIG in module.__dict__:
        module.config = module.__dict__.pop(_CONFIG)


def follow_mag_weight(module: nn.Module) -> None:
    """Leave the softmax of ``module`` out while mu can only be 1, and take it in again when it no longer is.

    It stays where an adapter has a memory of its own: adapters are switched without a word, and mu may differ.
    """
    slot, memory = slot_of(module), memory_of(module)
    if not isinstance(memory, LinearMemory) or not slot.follows_mag_weight or memory.mag_weight.is_meta:
        return
    if slot.branches not in _WITH_MEMORY:
        return
    alone = float(memory.mag_weight) == 1.0 and memory is getattr(module, MEMORY)
    if alone is not (slot.branches is Branches.MEMORY):
        set_branches(module, Branches.MEMORY if alone else Branches.BOTH)


def window_refusal(module: nn.Module, config, sinks: int) -> str | None:
    """Why the softmax of ``module`` in a model of ``config`` cannot be bounded, or None."""
    if config is None:
        return "it has no config that names its attention implementation"
    if getattr(config, "alibi", False):
        return "its ALiBi biases lie in the mask"
    if "position_bias" in inspect.signature(type(module).forward).parameters:  # MPT
        return "its ALiBi biases are those of the last keys"
    if sinks and getattr(getattr(module, "bias", None), "ndim", 0) == 4:
        return "it counts distances among the keys it is given, sinks included: set sink_tokens=0"
    return None


def window_of(module: nn.Module, config, layer: int, window: int | None) -> int | None:
    """The softmax branch's window: ``window``, or the base's own sliding one where that is shorter."""
    if window is None:
        return None
    own, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if hasattr(module, "sliding_window"):
        own = module.sliding_window
    elif kinds and kinds[layer] != "sliding_attention":
        own = None
    return min(window, own) if own else window
