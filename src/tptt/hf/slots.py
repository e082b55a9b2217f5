"""What an attention module that carries a memory knows of itself, and the one accessor through which other rooms
ask."""

from __future__ import annotations

import enum
import threading
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from tptt.memory import LinearMemory

from .compat import is_offloaded, keep_on_device, trained_copy
from .layouts import Geometry

MEMORY = "liza"
"""Name of the child module that an attention module gets."""
_SLOT = "_tptt"


class Branches(enum.Enum):
    """Which branches an attention layer computes."""

    BASE = "the base's own attention over the whole context"
    SOFTMAX = "softmax within the window, no memory"
    BOTH = "softmax within the window, mixed with the memory"
    MEMORY = "the memory alone: no softmax, no keys and values"


@dataclass
class Call:
    """One call of an attention module, from its first hook to the output projection. B rows, T tokens.

    Args:
        module: the attention module at work: the replicas of ``nn.DataParallel`` share their hooks.
        memory: the memory at work in it, or what stands in its place (`tptt.convert.window_only`).
        hidden: the layer's input, [B, T, hidden].
        mask: [B, T] bool, False at padding; None: every token is real.
        sequences: [B, T] number of the packed sequence of each token; None: rows are not packed.
        layer: the cache layer that holds the memory's state; None: no cache.
        outputs: what each projection gave in this call.
        softmax_share: (1 - mu) softmax, [B, T, H * V], for a cross gate.
        mixed: whether the memory has been mixed in.
    """

    module: nn.Module
    memory: Any
    hidden: torch.Tensor
    mask: torch.Tensor | None
    sequences: torch.Tensor | None
    layer: Any
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    softmax_share: torch.Tensor | None = None
    mixed: bool = False


class Running:
    """What belongs to the running call of one attention module in one thread."""

    call: Call | None = None
    """None: no memory is to be mixed in."""
    packed: bool = False
    """Whether the call has packed rows."""
    passed_down: dict[str, torch.Tensor | None] | None = None
    """What the body passed down to the layer; None: it has never passed anything in this thread."""


class CallContext(threading.local):
    """Every thread has its own `Running`: a server's threads share one model, and the replicas of ``nn.DataParallel``
    share everything that is no parameter.

    What is set is set on that object: torch.compile loses what is set on a ``threading.local`` itself.
    """

    def __init__(self) -> None:
        self.running = Running()

    def __reduce__(self):
        return CallContext, ()  # a copied or pickled model begins anew


@dataclass
class MemorySlot:
    """What belongs to one attention module that carries a memory.

    Args:
        geometry: layout and sizes of the attention.
        parameters: names of the parameters of the module's forward, without ``self``.
        layer: number of the layer.
        mask_kind: which of the model's masks the layer takes ("sliding_attention", ...); None: there is one for all.
        config: of the module, or of the model's body where the module has none.
        window: tokens that the softmax branch sees; None: all.
        sinks: first tokens that stay visible beyond the window.
        layer_takes_keywords: whether the decoder layer passes unknown keywords on to its attention.
        neighbours: the slots of all layers of the model, this one included.
        other_mask_kinds: mask kinds of the layers without a memory.
        mu_fixed: mu is 1 for good.
        follows_mag_weight: the softmax is left out whenever ``mag_weight`` is 1.
        knows_windows: whether the module's attention function may get a `window_attention.Band` in the place of a mask.
        branches: what the layer computes now.
        context: of the running call.
        passed_down: what the last call passed down, for threads that were passed nothing themselves.
        hooks: name of each projection -> (id of its first hook, handles).
        handles: of the hooks on the module and its layer.
        records: name -> list that a measurement fills while it runs (see `teacher`).
    """

    geometry: Geometry
    parameters: tuple[str, ...]
    layer: int
    mask_kind: str | None
    config: Any
    window: int | None
    sinks: int
    layer_takes_keywords: bool
    neighbours: list[MemorySlot]
    other_mask_kinds: frozenset[str | None]
    mu_fixed: bool
    follows_mag_weight: bool
    knows_windows: bool = False
    branches: Branches = Branches.BOTH
    context: CallContext = field(default_factory=CallContext)
    passed_down: dict[str, torch.Tensor | None] = field(default_factory=dict)
    hooks: dict[str, tuple[int, list[Any]]] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)
    records: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def running(self) -> Running:
        """What belongs to the running call in this thread."""
        return self.context.running

    @property
    def window_now(self) -> int | None:
        """Window of the softmax branch as it computes now; None: it sees all, or there is none."""
        return None if self.branches in (Branches.BASE, Branches.MEMORY) else self.window

    def shares_mask(self) -> bool:
        """Whether some layer of this kind takes the mask that the model makes (ALiBi's width goes by it as well)."""
        takes = (
            s.mask_kind == self.mask_kind and s.branches is not Branches.MEMORY and s.window is None
            for s in self.neighbours
        )
        return self.mask_kind in self.other_mask_kinds or "alibi" in self.parameters or any(takes)

    def record(self, name: str, value: Any) -> None:
        """Append ``value`` to the list ``name`` where a measurement asked for it."""
        self.records[name].append(value)


@dataclass(frozen=True)
class MemoryLayer:
    """One layer of a converted model, as other rooms see it.

    Args:
        layer: number of the layer.
        attention: the attention module.
        memory: the memory at work in it; of several adapters' copies the active one.
        geometry: layout and sizes of the attention.
        window: tokens that the softmax branch sees; None: all.
        sinks: first tokens that stay visible beyond the window.
        mu_fixed: mu is 1 for good (``memory_only_layers``).
        branches: what the layer computes now.
    """

    layer: int
    attention: nn.Module
    memory: LinearMemory
    geometry: Geometry
    window: int | None
    sinks: int
    mu_fixed: bool
    branches: Branches

    @property
    def has_softmax(self) -> bool:
        """Whether the layer computes a softmax now."""
        return self.branches is not Branches.MEMORY

    def replace_memory(self, module: nn.Module) -> None:
        """Put ``module`` in the place of the memory."""
        setattr(self.attention, MEMORY, module)


def memory_layers(model: nn.Module) -> list[MemoryLayer]:
    """The layers of ``model`` that carry a memory (or, after `tptt.convert.window_only`, its window), in layer
    order."""
    return [_described(m, slot_of(m)) for m in patched_attention(model)]


def _described(module: nn.Module, slot: MemorySlot) -> MemoryLayer:
    return MemoryLayer(
        slot.layer, module, memory_of(module), slot.geometry, slot.window, slot.sinks, slot.mu_fixed, slot.branches
    )


def patched_attention(model: nn.Module) -> list[nn.Module]:
    """The attention modules of ``model`` that carry a memory, in layer order."""
    return [m for m in model.modules() if _SLOT in m.__dict__]


def slot_of(module: nn.Module) -> MemorySlot:
    """The slot of a patched attention ``module``."""
    return module.__dict__[_SLOT]


def put_slot(module: nn.Module, slot: MemorySlot) -> None:
    """Mark ``module`` as carrying a memory."""
    module.__dict__[_SLOT] = slot


def take_slot(module: nn.Module) -> MemorySlot | None:
    """Take the mark off ``module``; None: it had none."""
    return module.__dict__.pop(_SLOT, None)


def memory_of(module: nn.Module) -> LinearMemory:
    """The memory at work in a patched attention ``module``: of the copies that peft trains
    (``modules_to_save=["liza"]``) the active adapter's, or the one they were copied from. After
    `tptt.convert.window_only`: what stands in its place."""
    found = getattr(module, MEMORY)
    if is_offloaded(found) or any(map(is_offloaded, found.children())):  # it is used outside of its forward as well
        keep_on_device(found)
    copy = trained_copy(found)
    return cast(LinearMemory, found if copy is None else copy)


def memories(model: nn.Module) -> list[LinearMemory]:
    """The memories of ``model`` in layer order; of an adapter's copy and its original the one at work."""
    idle = {x for m in patched_attention(model) for x in getattr(m, MEMORY).modules() if x is not memory_of(m)}
    return [m for m in model.modules() if isinstance(m, LinearMemory) and m not in idle]


def let_memories_train(model: nn.Module) -> None:
    """Let the memories of ``model`` train, but for those that an adapter trains a copy of."""
    for module in patched_attention(model):
        if isinstance(memory := getattr(module, MEMORY), LinearMemory):
            memory.requires_grad_(True)


def is_memory_parameter(name: str) -> bool:
    """Whether ``name`` is that of a memory's parameter or buffer in a converted model."""
    return f".{MEMORY}." in name or name.startswith(f"{MEMORY}.")
