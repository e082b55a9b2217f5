"""Which layers keep their whole context: those whose restoring brings the model nearest to its base, under a budget.

A converted model has three kinds of layers: the base's own attention over the whole context, window and memory, memory
alone. Ranking by the Kullback-Leibler divergence that one restored layer saves follows fla-org/hybrid-distillation; here
layers are taken one after another, because what a layer saves depends on which are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from tptt.config import MemoryConfig
from tptt.evaluation import LayerKV, held_kv, layer_kv, markdown_table
from tptt.hf import memory_layers
from tptt.hf.patch import attention_body, can_leave_softmax_out

from .divergence import Batch, Change, divergences


@dataclass(frozen=True)
class Round:
    """One decision: KL(base || model) in nats per token with each candidate changed as well, and the layer taken."""

    kl: dict[int, float]
    taken: int


@dataclass(frozen=True)
class LayerChoice:
    """Which layers keep their whole context, and the numbers behind it.

    Args:
        kv_budget: asked for: share of the base's bytes of keys and values.
        length: tokens of a sequence at which the bytes are counted.
        whole: layers that keep the base's attention, in the order in which they were taken.
        memory: all others, ascending; they have a memory.
        memory_only: those of ``memory`` that have no softmax and hold no keys and values.
        start: KL(base || model) in nats per token with a window in every layer.
        rounds: the decisions in their order.
        base_bytes, kv_bytes: keys and values of one sequence of the base and of this model, at ``length``.
        state_bytes: of the memories' states, which do not grow and which the budget does not count.
    """

    kv_budget: float
    length: int
    whole: tuple[int, ...]
    memory: tuple[int, ...]
    memory_only: tuple[int, ...]
    start: float
    rounds: tuple[Round, ...]
    base_bytes: int
    kv_bytes: int
    state_bytes: int

    @property
    def share(self) -> float:
        """Of the base's keys and values that this model holds."""
        return self.kv_bytes / self.base_bytes

    @property
    def end(self) -> float:
        """KL(base || model) in nats per token after the last decision."""
        return self.rounds[-1].kl[self.rounds[-1].taken] if self.rounds else self.start

    @property
    def settings(self) -> dict[str, Any]:
        """What `MemoryConfig` and `TpttConfig` take: ``layers`` and ``memory_only_layers``."""
        return {"layers": self.memory, "memory_only_layers": self.memory_only}

    def harden(self, config: MemoryConfig) -> MemoryConfig:
        """``config`` for these layers."""
        return replace(config, **self.settings)

    def table(self) -> str:
        """The decisions as Markdown."""
        numbers = sorted({n for x in self.rounds for n in x.kl})
        rows = [["windows everywhere", f"{self.start:.4f}", *[""] * len(numbers)]]
        for x in self.rounds:
            kind = "whole" if x.taken in self.whole else "memory alone"
            each = (f"{x.kl[n]:.4f}" if n in x.kl else "" for n in numbers)
            rows.append([f"layer {x.taken}: {kind}", f"{x.kl[x.taken]:.4f}", *each])
        return markdown_table(["", "KL, nats per token", *(f"layer {n}" for n in numbers)], rows)

    def __str__(self) -> str:
        only = f", layers {list(self.memory_only)} memory alone" if self.memory_only else ""
        return (
            f"layers {list(self.whole)} keep their whole context, layers {list(self.memory)} have a memory{only}: KL to the "
            f"base {self.start:.4f} -> {self.end:.4f} nats per token before training; keys and values {self.share:.1%} of "
            f"the base's at {self.length} tokens (budget {self.kv_budget:.1%}), and {self.state_bytes / 1024:.0f} KiB of states"
        )


def choose_layers(
    model: nn.Module, batches: Sequence[Batch], kv_budget: float, length: int | None = None,
    memory_only: str | Collection[int] = (),
) -> LayerChoice:  # fmt: skip
    """Choose the layers that keep their whole context so that keys and values stay within ``kv_budget``.

    The model is measured as it is. Before training that means mu = 0 (`tptt.evaluation.mag_weight`), where a layer is its
    window alone; after some training a restored layer has neither window nor memory, and what the other memories have
    learned counts. The layer that saves most KL per byte is taken, then the next beside it, until none fits any more. If
    windows in every layer are over the budget already, the layers that miss their softmax least get memory alone
    instead, measured as if they gave nothing. One forward pass per batch, round and candidate; nothing else is in memory
    than the model and the logits of one batch.

    Args:
        model: converted, with a window, a memory in every layer that may be chosen, and the base inside (LoRA or frozen).
        batches: ``input_ids`` [B, T] and, where tokens weigh differently, ``loss_weights`` [B, T] (see `MixedRows`). T
            has to lie beyond the window; rows that ask for facts say most.
        kv_budget: in [0, 1): bytes of keys and values over those of the base, for one sequence of ``length`` tokens.
        length: None is T of the first batch. At a longer one windows weigh less, so that more layers fit.
        memory_only: layers that hold no keys and values unless they are chosen, "all" or their numbers.

    Raises:
        ValueError: a value is out of its range, no layer has a window, ``length`` does not lie beyond it, or the base's
            own weights train.
    """
    if not batches:
        raise ValueError("choose_layers needs one batch or more to measure on")
    length = batches[0]["input_ids"].shape[1] if length is None else length
    search = _Search(
        model, partial(divergences, model, batches), layer_kv(model, length), kv_budget, length, memory_only
    )
    windows = [x.window for x in memory_layers(model) if x.layer in search.able and x.window is not None]
    if (longest := max(x["input_ids"].shape[1] for x in batches)) <= min(windows):
        raise ValueError(f"rows of {longest} tokens show nothing of what lies beyond a window of {min(windows)}")
    return search.run()


def count_layers(
    model: nn.Module, kinds: list[LayerKV], kv_budget: float, length: int, memory_only: str | Collection[int] = ()
) -> LayerChoice:
    """As many layers as `choose_layers` would choose, the first ones: which of them, only a measurement says."""
    return _Search(model, lambda changes: [0.0] * len(changes), kinds, kv_budget, length, memory_only).run()


class _Search:
    """Rounds of `choose_layers`."""

    def __init__(
        self, model: nn.Module, measure: Callable[[Sequence[Change]], list[float]], kinds: list[LayerKV], kv_budget: float,
        length: int, memory_only: str | Collection[int],
    ) -> None:  # fmt: skip
        check_kv_budget(kv_budget)
        bounded = [x for x in kinds if x.window is not None]
        if not bounded:
            raise ValueError("choose_layers weighs windows against whole contexts: set max_self_attn_length")
        # layers that could keep more than their window
        self.able = [x.layer for x in bounded if x.window is not None and x.window < x.whole]
        if not self.able:
            raise ValueError(
                f"at {length} tokens no window is narrower than the base's own attention: count the budget at a longer length"
            )
        known = [x.layer for x in bounded]
        if isinstance(memory_only, str) and memory_only != "all":
            raise ValueError(f"memory_only must be 'all' or layer numbers, got {memory_only!r}")
        # layers that are to have no softmax unless they are chosen
        self.only = known if isinstance(memory_only, str) else list(memory_only)
        if strange := [n for n in self.only if n not in known]:
            raise ValueError(f"memory_only names layers {strange} that have no memory with a window; valid are {known}")
        self.model, self.measure, self.kinds, self.kv_budget, self.length = model, measure, kinds, kv_budget, length
        self.whole: list[int] = []
        self.muted: list[int] = []
        self.rounds: list[Round] = []
        self.kl = 0.0  # after the last of them
        self.base_bytes = sum(x.whole for x in kinds)

    def run(self) -> LayerChoice:
        (start,) = self.measure([((), ())])
        self.kl = start
        if self._bytes() > self._most:
            self._mute()
        else:
            self._restore()
        carried = [x for x in self.kinds if x.state and x.layer not in self.whole]
        memory = tuple(x.layer for x in carried)
        gone = (*self.only, *self.muted)
        return LayerChoice(
            self.kv_budget, self.length, tuple(self.whole), memory, tuple(n for n in memory if n in gone), start,
            tuple(self.rounds), self.base_bytes, self._bytes(), sum(x.state for x in carried),
        )  # fmt: skip

    @property
    def _most(self) -> float:
        return self.kv_budget * self.base_bytes

    def _bytes(self, *more: int) -> int:
        whole = (*self.whole, *more)
        return held_kv(self.kinds, whole, [n for n in (*self.only, *self.muted) if n not in whole])

    def _restore(self) -> None:
        """Give layers their whole context while the budget lasts; one at least keeps its memory."""
        while len(self.whole) + 1 < len(memory_layers(self.model)):
            fitting = [n for n in self.able if n not in self.whole and self._bytes(n) <= self._most]
            if not fitting:
                return
            now = self._bytes()
            changes = [((*self.whole, n), ()) for n in fitting]
            kl = dict(zip(fitting, self.measure(changes), strict=True))
            saved = {n: (self.kl - kl[n]) / (self._bytes(n) - now) for n in fitting}
            taken = max(saved, key=saved.__getitem__)
            self.rounds.append(Round(kl, taken))
            self.whole.append(taken)
            self.kl = kl[taken]

    def _mute(self) -> None:
        """Take the softmax of layers away until the rest fits the budget."""
        body = attention_body(self.model)
        able = [x.layer for x in memory_layers(self.model) if can_leave_softmax_out(x.attention, body)]
        while self._bytes() > self._most:
            left = [n for n in able if n not in (*self.muted, *self.only)]
            if not left:
                raise ValueError(
                    f"keys and values of {self._bytes() / self.base_bytes:.1%} of the base's are left at {self.length} tokens, "
                    f"over the kv_budget of {self.kv_budget:.1%}, in layers that cannot do without their softmax: take a "
                    "narrower window or a longer length"
                )
            changes = [((), (*self.muted, n)) for n in left]
            kl = dict(zip(left, self.measure(changes), strict=True))
            taken = min(kl, key=kl.__getitem__)
            self.rounds.append(Round(kl, taken))
            self.muted.append(taken)


def check_kv_budget(value: object) -> float:
    """``value`` as a share of the base's keys and values.

    Raises:
        ValueError: it is no number in [0, 1).
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
        raise ValueError(
            "kv_budget must be a number in [0, 1), the share of the base's keys and values that may remain (1 is the base "
            f"itself), got {value!r}"
        )
    return float(value)
